"""Tokenizers of other models, by their tokenizer.json, against transformers and open_clip."""

import itertools
import json

import numpy as np
import pytest
import tokenizers
import torch  # noqa: F401 before the stand-ins of `libraries`
import transformers
from interop import libraries
from tokenizers import models, normalizers, pre_tokenizers, processors

from negclip_jax.data.tokenizer import JsonTokenizer, TokenizerError, load_tokenizer

TEXTS = ["a cat", "A  Dog's café &amp; “no” cat_s", "", "x" * 90, "the cat and the dog " * 9]
LITERAL = "a </s> cat"


def xlm(folder):
    """SentencePiece's unigrams between <s> and </s>, as XLM-V has them."""
    letters = "abcdefghijklmnopqrstuvwxyzACD&'_\"é"
    pieces = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>", "▁")]
    pieces += [(letter, -5.0) for letter in letters]
    pieces += [("▁cat", -2.0), ("▁the", -2.0), ("dog", -3.0)]
    made = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=3))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(folder)
    return folder


def bert(folder):
    """BERT's word pieces between [CLS] and [SEP]."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "the", "dog", "and", "##s", "'", "&"]
    made = tokenizers.Tokenizer(
        models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    )
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(folder)
    return folder


OPTIONS = {
    "plain": (xlm, {}),
    "canonical": (xlm, {"clean": "canonicalize"}),
    "lower": (xlm, {"clean": "lower"}),
    "BERT without separator": (bert, {"strip_sep_token": True}),
}


def described(folder, options, **others):
    text = {"hf_tokenizer_name": "a/b", "context_length": 16, "tokenizer_kwargs": options} | others
    content = {"model_cfg": {"text_cfg": text}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))


@pytest.mark.parametrize("case", OPTIONS)
def test_ids_are_open_clips(case, tmp_path):
    make, options = OPTIONS[case]
    described(make(tmp_path), options)
    theirs = libraries.load("open_clip").get_tokenizer(f"local-dir:{tmp_path}")
    ours = load_tokenizer(tmp_path, 16, always_pads=True)
    expected = theirs(TEXTS).numpy()
    np.testing.assert_array_equal(ours(TEXTS), expected)
    ids, offsets = ours.encode_ragged(TEXTS)
    np.testing.assert_array_equal(ids.reshape(-1, 16), expected)
    assert set(np.diff(offsets)) == {16}


def test_padding_before_captions_is_refused_where_it_is_read(tmp_path):
    xlm(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": "left"}))
    load_tokenizer(tmp_path, 16)  # a causal tower: nothing pads
    with pytest.raises(TokenizerError, match="padding_side is 'left', and this model"):
        load_tokenizer(tmp_path, 16, always_pads=True)


def test_ids_are_transformers_where_open_clip_says_nothing(tmp_path):
    xlm(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path, 16)
    expected = [theirs(text, truncation=True, max_length=16)["input_ids"] for text in TEXTS]
    ids, offsets = ours.encode_ragged(TEXTS)
    assert [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)] == expected
    assert (ours.eos_id, ours.pad_id, ours.special_tokens) == (2, 1, 2)


def test_a_caption_cannot_place_a_special_token(tmp_path):
    ids = load_tokenizer(xlm(tmp_path), 16).encode(LITERAL)
    assert 2 not in ids and len(ids) == 4


def test_fingerprints_follow_what_changes_ids(tmp_path):
    described(xlm(tmp_path), {})
    prints = {load_tokenizer(tmp_path, 16).fingerprint, load_tokenizer(tmp_path, 15).fingerprint}
    prints.add(load_tokenizer(tmp_path, 16, always_pads=True).fingerprint)
    described(tmp_path, {"clean": "lower"})
    assert len(prints | {load_tokenizer(tmp_path, 16).fingerprint}) == 4


@pytest.mark.parametrize(
    ("options", "others", "reason"),
    [
        ({"clean": "other"}, {}, "tokenizer_kwargs {'clean': 'other'}, which this tokenizer does"),
        ({"language": "fr"}, {}, "'language': 'fr'"),
        ({}, {"tokenizer_mode": "clips"}, "tokenizer_mode 'clips'"),
    ],
)
def test_what_is_not_done_is_said(options, others, reason, tmp_path):
    described(xlm(tmp_path), options, **others)
    with pytest.raises(TokenizerError, match=reason):
        load_tokenizer(tmp_path, 16)


def test_files_that_are_no_tokenizer(tmp_path):
    described(tmp_path, {"clean": "lower"})
    with pytest.raises(
        TokenizerError, match=r"belong to the tokenizer 'a/b': put its tokenizer\.js"
    ):
        load_tokenizer(tmp_path, 16)
    xlm(tmp_path)
    with pytest.raises(TokenizerError, match="length of 2 cannot be used: it must hold 2 special"):
        load_tokenizer(tmp_path, 2)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw | {"post_processor": None}))
    with pytest.raises(TokenizerError, match="ends captions with 0 special tokens"):
        JsonTokenizer(tmp_path, 16)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="cannot be read"):
        JsonTokenizer(tmp_path, 16)
