"""A line of a gigabyte: every reader of annotations refuses it, in little memory."""

from pathlib import Path

import pytest
from hostile import child

GIGABYTE = 2**30
_READ = """
try:
    result = len(reader(path))
except ValueError as error:  # an InputError is one
    assert "InputError" in [kind.__name__ for kind in type(error).__mro__], repr(error)
    result = str(error)
"""
PAIRS = "from negclip_jax.data.pairs import read_pairs as reader"
BENCHMARK = (
    "from evals.reading import read_json; from pathlib import Path; "
    "reader = lambda p: read_json(Path(p), (list, dict))"
)
CAPTIONS = (
    "from data_gen.stages.ingest import read_captions; reader = lambda p: read_captions(p).images"
)
BOXES = (
    "from data_gen.annotations import InstanceVerifier; "
    "reader = lambda p: InstanceVerifier(p).names"
)
VOCABULARY = (
    "from negclip_jax.data.tokenizer import load_tokenizer; from pathlib import Path; "
    "reader = lambda p: [load_tokenizer(Path(p).parent)]"
)


def gigabyte(path: Path, start: bytes) -> Path:
    """A sparse file of one line."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(GIGABYTE)
    return path


def outcome(setup: str, path: Path, limit_gib: float) -> tuple[object, float]:
    setup = f"{setup}\npath = {str(path)!r}"
    result, before, after = child.measured(setup, _READ, limit_gib=limit_gib)
    return result, after - before


@pytest.mark.parametrize(
    ("setup", "name", "start", "said"),
    [
        (PAIRS, "p.jsonl", b'{"image": "a", "caption": "x"}\n', "line 2: it is longer than 16,777"),
        (PAIRS, "p.jsonl", b'{"image": "', "line 1: it is longer than 16,777,216 bytes"),
        (PAIRS, "p.jsonl", b"", "is no JSON: it begins with"),
        (PAIRS, "p.json", b"", "is no JSON: it begins with"),
        (PAIRS, "p.json", b'{"images": "', "more memory than there is"),
        (PAIRS, "p.parquet", b"PAR1", "cannot be read as Parquet"),
        (BENCHMARK, "b.json", b'[{"a": "', "more memory than there is"),
        (CAPTIONS, "c.json", b"", "is no JSON: it begins with"),
        (BOXES, "i.json", b'{"images": [', "more memory than there is"),
        (VOCABULARY, "tokenizer.json", b"", "does not begin like JSON"),
    ],
)
def test_a_line_of_a_gigabyte(setup, name, start, said, tmp_path):
    """With address space for 1 GB: none of it is read, or the sentence says what was missing."""
    path = gigabyte(tmp_path / name, start)
    result, mib = outcome(setup, path, limit_gib=1.0)
    assert said in result and str(path) in result
    assert mib < 100


def test_a_file_of_nothing_but_problems_is_told_in_few_words(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"[]\n" * 200_000)
    result, mib = outcome(PAIRS, path, limit_gib=2.0)
    assert "not an object (200000): line 1, line 2" in result and len(result) < 500
    assert mib < 5
