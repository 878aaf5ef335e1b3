"""Tokenizer: OpenAI's ids, checked against open_clip's copy of OpenAI's code and fixed ids."""

import ast
import csv
import importlib.util
import json
import os
import pickle
import random
import time
from pathlib import Path

import numpy as np
import pytest

from negclip_jax.data.tokenizer import Tokenizer, TokenizerError, byte_symbols, load_tokenizer

DATA = Path(
    os.environ.get("NEGCLIP_TEST_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data"
)
NEGBENCH = (
    DATA / "benchmarks/negbench/COCO_val_negated_retrieval_llama3.1_rephrased_affneg_true.csv"
)


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    if not (DATA / "clip_tokenizer" / "vocab.json").is_file():
        pytest.skip(f"CLIP's vocabulary is not at {DATA}/clip_tokenizer (set NEGCLIP_TEST_DATA)")
    return load_tokenizer(DATA / "clip_tokenizer")


@pytest.fixture(scope="module")
def openai():
    """OpenAI's SimpleTokenizer as open_clip ships it, with its own copy of the vocabulary.

    Loaded from its file: importing open_clip itself needs torchvision.
    """
    pytest.importorskip("torch", reason="open_clip's tokenizer imports torch")
    package = importlib.util.find_spec("open_clip")
    if package is None:
        pytest.skip("open_clip_torch is not installed")
    file = Path(package.origin).with_name("tokenizer.py")
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("A  PHOTO\tof\n a cat ", [320, 1125, 539, 320, 2368]),
        ("don't", [847, 713]),
        ("don\u2019t", [847, 713]),
        ("rock &amp;amp; roll", [2172, 261, 3341]),
        ("", []),
        (" \n ", []),
    ],
)
def test_known_ids(clip, text, ids):
    assert clip.encode(text) == ids


@pytest.mark.slow
def test_equals_openai_on_every_negbench_caption(clip, openai):
    if not NEGBENCH.is_file():
        pytest.skip(f"{NEGBENCH} is absent")
    with NEGBENCH.open(newline="") as file:
        rows = [ast.literal_eval(row["captions"]) for row in csv.DictReader(file)]
    captions = [caption for row in rows for caption in row]
    assert len(captions) > 20_000
    ours = clip(captions)
    assert (ours == openai(captions).numpy()).all()
    assert (np.count_nonzero(ours == clip.eos_id, axis=1) == 1).all()


STRANGE = (
    "cat no there's DON'T won't 'S 'LL it\u2019s \u201cno\u201d &amp; &#39; &lt;b&gt; &amp;quot; "
    "&nbsp; &bogus; & <i> caf\u00e9 na\u00efve caf\u00c3\u00a9 \u00e2\u20ac\u2122 "
    "\u00c3\u00a0 \ufb01sh \uff28\uff29 \U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 "
    "\u4f60\u597d \u0440\u0443\u0441 \u0639\u0631\u0628\u064a \u0e44\u0e17\u0e22 "
    "'\u017f \u0130 \u1e9e \u03a3\u03a3 \u212a \u00b2\u00bd \u2163 1234 3.14 _ -- ... "
    "\u00a0 \u3000 \u2028 \r\n \x1c \x85 \x0b \x07 \x1b[0m \ud800 \ufeff \u200b e\u0301 \x80\x99 "
    "\u00a0\u0192 #$%^*()[]{}|\\ \u20ac\u00a3 \ufffd \u1f88 \u0345 \u0149 \ua7fb \U0001d400"
)


def fuzzed(count: int) -> list[str]:
    rng, pieces = random.Random(0), STRANGE.split(" ")

    def piece() -> str:
        kind = rng.random()
        if kind < 0.6:
            return rng.choice(pieces)
        if kind < 0.8:
            return "".join(chr(rng.randrange(32, 127)) for _ in range(rng.randrange(1, 8)))
        limit = rng.choice([0x100, 0x800, 0x3100, 0xD800])
        return "".join(chr(rng.randrange(limit)) for _ in range(rng.randrange(1, 5)))

    return [
        "".join(piece() + rng.choice(["", " "]) for _ in range(rng.randrange(1, 9)))
        for _ in range(count)
    ]


def test_equals_openai_on_fuzzed_unicode(clip, openai):
    different = [t for t in fuzzed(6000) if clip.encode(t) != openai.encode(t)]
    assert different == []


@pytest.mark.parametrize("token", ["<|endoftext|>", "<|startoftext|>", "<|ENDOFTEXT|>"])
def test_special_token_in_a_caption_stays_text(clip, token):
    ids = clip.encode(f"a cat {token} and no dog")
    assert clip.eos_id not in ids and clip.bos_id not in ids
    assert ids == clip.encode(f"a cat <| {token[2:-2]} |> and no dog")


def test_batch_layout_and_truncation(clip):
    ids = clip(["a cat", "no " * 200, ""])
    assert ids.shape == (3, 77) and ids.dtype == np.int32
    assert ids[0].tolist() == [49406, 320, 2368, 49407] + [0] * 73
    assert ids[1].tolist() == [49406] + [871] * 75 + [49407]
    assert ids[2].tolist() == [49406, 49407] + [0] * 75
    assert clip("a cat", length=3).tolist() == [[49406, 320, 49407]]
    assert clip([]).shape == (0, 77)


def test_caption_of_exactly_the_context_length_is_kept(clip):
    assert clip("no " * 75)[0, 75] == 871
    assert clip("no " * 74)[0, 75:].tolist() == [49407, 0]


def test_ragged_is_the_batch_without_padding(clip):
    texts = ["a cat", "", "no " * 200, "there is no dog"]
    flat, offsets = clip.encode_ragged(texts)
    assert flat.dtype == np.int32 and offsets.dtype == np.int64
    assert offsets.tolist() == [0, 4, 6, 83, 89]
    for row, start, stop in zip(clip(texts), offsets, offsets[1:], strict=False):
        assert row[: stop - start].tolist() == flat[start:stop].tolist()
        assert not row[stop - start :].any()


@pytest.mark.parametrize("length", [0, 1, 78, -3])
def test_length_out_of_range_is_refused(clip, length):
    with pytest.raises(TokenizerError, match="77"):
        clip(["a cat"], length=length)


def test_text_that_is_not_a_string_is_refused(clip):
    with pytest.raises(TokenizerError, match="must be a string, got NoneType"):
        clip(["a cat", None])


def test_word_cache_is_bounded_and_changes_nothing(clip, monkeypatch):
    monkeypatch.setattr("negclip_jax.data.tokenizer._CACHED_WORDS", 3)
    texts = ["one two three four five", "five four three two one", "x" * 300]
    small = pickle.loads(pickle.dumps(clip))
    small._words.clear()
    assert (small(texts) == clip(texts)).all()
    assert len(small._words) <= 3 and "x" * 300 not in small._words


def test_twenty_thousand_letters_take_a_moment(clip):
    word = "".join(random.Random(1).choices("abcdefgh", k=20_000))
    started = time.process_time()
    ids = clip.encode(word)
    assert time.process_time() - started < 1.0  # OpenAI's code needs several seconds
    letters = {i: symbol for symbol, i in clip._vocab.items()}
    assert "".join(letters[i] for i in ids) == word + "</w>"


def small_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    merges = [("c", "a"), ("ca", "t</w>"), ("n", "o</w>")]
    symbols = list(byte_symbols().values())
    tokens = [*symbols, *(s + "</w>" for s in symbols), *("".join(m) for m in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}, merges


def write_slow(directory: Path, vocab: dict, merges: list) -> None:
    (directory / "vocab.json").write_text(json.dumps(vocab))
    lines = ["#version: 0.2", *(" ".join(m) for m in merges), ""]
    (directory / "merges.txt").write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize("as_list", [True, False])
def test_small_vocabulary_from_either_layout(tmp_path, as_list):
    vocab, merges = small_vocabulary()
    write_slow(tmp_path, vocab, merges)
    slow = load_tokenizer(tmp_path, context_length=16)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).unlink()
    specials = {k: vocab.pop(k) for k in ("<|startoftext|>", "<|endoftext|>")}
    model = {"vocab": vocab, "merges": [list(m) if as_list else " ".join(m) for m in merges]}
    added = [{"id": i, "content": token} for token, i in specials.items()]
    content = {"added_tokens": added, "model": model}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    fast = load_tokenizer(tmp_path, context_length=16)

    cat, no = vocab["cat</w>"], vocab["no</w>"]
    assert slow("no cat")[0].tolist() == [slow.bos_id, no, cat, slow.eos_id] + [0] * 12
    assert (fast("no cat cab \u00e9") == slow("no cat cab \u00e9")).all()
    assert slow.encode("ca") == [vocab["c"], vocab["a</w>"]]
    assert (fast.vocab_size, fast.bos_id, fast.eos_id) == (517, 515, 516)


def test_what_transformers_saves_gives_the_same_ids(clip, tmp_path):
    transformers = pytest.importorskip("transformers")
    transformers.CLIPTokenizer.from_pretrained(DATA / "clip_tokenizer").save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).unlink(missing_ok=True)
    saved = load_tokenizer(tmp_path)
    texts = ["There is no cat, but a caf\u00e9.", "don\u2019t &amp; won't"]
    assert saved.vocab_size == 49408 and (saved(texts) == clip(texts)).all()


def test_start_and_end_token_follow_the_config(tmp_path):
    vocab, merges = small_vocabulary()
    vocab["<end>"] = vocab.pop("<|endoftext|>")
    write_slow(tmp_path, vocab, merges)
    with pytest.raises(TokenizerError, match=r"lacks <\|endoftext\|>"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<end>"}}')
    assert load_tokenizer(tmp_path).eos_id == vocab["<end>"]


def test_hash_merges_are_not_comments(tmp_path):
    vocab, merges = small_vocabulary()
    vocab["##</w>"] = len(vocab)
    write_slow(tmp_path, vocab, [*merges, ("#", "#</w>")])
    assert load_tokenizer(tmp_path).encode("##") == [vocab["##</w>"]]


def test_directory_without_tokenizer(tmp_path):
    with pytest.raises(TokenizerError, match=r"has no tokenizer: put CLIP's vocab.json"):
        load_tokenizer(tmp_path)


def test_vocabulary_and_merges_of_different_checkpoints(tmp_path):
    vocab, merges = small_vocabulary()
    write_slow(tmp_path, vocab, [*merges, ("d", "og</w>")])
    with pytest.raises(TokenizerError, match=r"do not fit together: 1 of 4 merges.*d og</w>"):
        load_tokenizer(tmp_path)


def test_vocabulary_of_another_tokenizer(tmp_path):
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2}
    write_slow(tmp_path, vocab, [])
    with pytest.raises(TokenizerError, match="GPT-2"):
        load_tokenizer(tmp_path)


def test_character_outside_a_small_vocabulary_is_named(tmp_path):
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
    write_slow(tmp_path, vocab, [])
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("a") == [2]
    with pytest.raises(TokenizerError, match="no symbol 'b</w>', needed for the word 'b'"):
        tokenizer.encode("a b")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", '{"a": 1', r"vocab.json is not valid JSON at line 1 column 8"),
        ("vocab.json", "[1, 2]", r"vocab.json holds a value of type list, not a JSON object"),
        ("vocab.json", '{"a": "1"}', r"vocab.json: the id of 'a' is '1', not a number"),
        ("vocab.json", '{"a": 1, "b": 1}', r"two symbols share one id"),
        ("merges.txt", "#version: 0.2\nc a\nc a t\n", r"merges.txt, line 3: 'c a t' is not"),
        ("tokenizer_config.json", "[]", r"tokenizer_config.json holds a value of type list"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, message):
    write_slow(tmp_path, *small_vocabulary())
    (tmp_path / name).write_text(content)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["{}", '{"model": {"vocab": {}}}', '{"model": [1]}'])
def test_tokenizer_json_of_another_kind(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError, match="no byte-pair model"):
        load_tokenizer(tmp_path)
