"""SigLIP's tokenizers against those of transformers, on tiny vocabularies made here."""

import json
import shutil
import sys

import numpy as np
import pytest
import transformers

from negclip_jax.data.tokenizer import SigLIPTokenizer, TokenizerError, load_tokenizer

TEXTS = [
    "a photo of a dog",
    "A Photo, of NO dog!  (really)",
    "don't  walk the\tdog; it's not a cat",
    "",
    "dog " * 40,
    "caf\u00e9 \u2014 na\u00efve",
]
CORPUS = "a photo of a dog and no cat\nthere is not a dog in this photo\nit is really a cat\n" * 20


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A SentencePiece model with SigLIP's ids: end token 1, unknown 2."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("siglip")
    (folder / "corpus.txt").write_text(CORPUS)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "spiece"),
        vocab_size=60,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return folder


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """Gemma's kind of byte-pair model, saved as transformers saves it."""
    symbols = [chr(i) for i in range(33, 127)] + ["\u2581"]
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    merges = [("d", "o"), ("do", "g"), ("\u2581", "a"), ("n", "o"), ("p", "h"), ("c", "a")]
    vocab = [*special, *symbols, *(a + b for a, b in merges)]
    vocab += [f"<0x{byte:02X}>" for byte in range(256)]
    folder = tmp_path_factory.mktemp("siglip2")
    tokenizer = transformers.Siglip2Tokenizer(
        vocab={token: i for i, token in enumerate(vocab)}, merges=merges, padding_side="right"
    )
    tokenizer.save_pretrained(folder)
    return folder


def test_siglip_2_equals_transformers(second):
    theirs = transformers.AutoTokenizer.from_pretrained(second)
    ours = load_tokenizer(second, context_length=16)
    assert isinstance(ours, SigLIPTokenizer)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"], text
    rows = ours(TEXTS)
    assert rows.shape == (6, 16) and rows.dtype == np.int32
    assert (ours.eos_id, ours.pad_id) == (1, 0)
    assert rows[3].tolist() == [1] + 15 * [0]
    assert rows[4, -1] == 1 and rows[4, -2] != 0, "a long caption keeps its end token"


def test_siglip_equals_transformers(first):
    pytest.importorskip("google.protobuf")
    theirs = transformers.SiglipTokenizer(str(first / "spiece.model"))
    ours = load_tokenizer(first, context_length=24)
    for text in TEXTS[:5]:
        assert [*ours.encode(text), 1] == theirs(text)["input_ids"], text
    assert ours.eos_id == ours.pad_id == 1
    padded = theirs(TEXTS[:3], padding="max_length", max_length=24)["input_ids"]
    np.testing.assert_array_equal(ours(TEXTS[:3]), padded)
    assert ours.vocab_size == theirs.vocab_size


def test_captions_cannot_place_special_tokens(second):
    tokenizer = load_tokenizer(second)
    ids = tokenizer.encode("a <eos> <pad> dog")
    assert not {0, 1} & set(ids)


def test_ragged_rows_are_whole(second):
    tokenizer = load_tokenizer(second, context_length=8)
    ids, offsets = tokenizer.encode_ragged(TEXTS[:2])
    assert offsets.tolist() == [0, 8, 16]
    np.testing.assert_array_equal(ids.reshape(2, 8), tokenizer(TEXTS[:2]))


def test_first_kind_from_json_loses_punctuation(second, tmp_path):
    for path in second.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "SiglipTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("No, dog!") == tokenizer.encode("no   dog")


def test_what_cannot_be_used(first, second, tmp_path, monkeypatch):
    tokenizer = SigLIPTokenizer(second, 8)
    with pytest.raises(TokenizerError, match="length is 5: SigLIP reads rows of exactly 8"):
        tokenizer("a", 5)
    with pytest.raises(TokenizerError, match="must be a string, got int"):
        tokenizer.encode(3)
    with pytest.raises(TokenizerError, match="must be at least 1"):
        SigLIPTokenizer(second, 0)
    with pytest.raises(TokenizerError, match="has no tokenizer"):
        SigLIPTokenizer(tmp_path)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(TokenizerError, match=r"pip install -e '\.\[siglip\]'"):
        load_tokenizer(first)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be read"):
        SigLIPTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((second / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<end>"}}')
    with pytest.raises(TokenizerError, match="has no token '<end>'"):
        SigLIPTokenizer(tmp_path)


def test_padding_before_captions_is_refused(second, tmp_path):
    shutil.copytree(second, tmp_path, dirs_exist_ok=True)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["padding_side"] == "right"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"padding_side": "left"}))
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: padding_side is 'left'"):
        load_tokenizer(tmp_path, 16)
