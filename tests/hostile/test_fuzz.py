"""The fuzzer finds what is wrong, repeats itself, and 200 inputs of it find nothing."""

import json
import random

import pytest
from hostile import fuzz
from hostile.fuzz_inputs import Kind, annotation_kinds, binary_kinds

from negclip_jax.common.errors import InputError


def test_every_sample_is_good(tmp_path):
    for name, kind in (annotation_kinds() | binary_kinds()).items():
        for sample in kind.samples:
            (tmp_path / kind.file).write_bytes(sample)
            assert fuzz._outcome(kind, tmp_path / kind.file) is None, name


def test_200_inputs(tmp_path):
    counts, findings = fuzz.run(200, 0, tmp_path / "out", quiet=True)
    assert not findings
    assert counts.total() == 200
    outcomes = [sum(n for (_, o), n in counts.items() if o == w) for w in ("accepted", "refused")]
    assert sum(outcomes) == 200 and min(outcomes) > 20
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_mutations_are_those_of_the_seed():
    sample = annotation_kinds()["pairs, COCO"].samples[0]
    made = [fuzz.mutated(random.Random(seed), sample) for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


def crash(path):
    raise KeyError("no")


def raw(path):
    error = InputError()
    error.args = ("\x1b[2J is no name",)
    raise error


@pytest.mark.parametrize(("reader", "said"), [(crash, "KeyError: 'no'"), (raw, "not printable")])
def test_a_finding_is_kept_with_its_seed(reader, said, tmp_path, monkeypatch, capsys):
    kinds = {"broken": Kind("a.json", [json.dumps({"a": [1, 2]}).encode()], reader)}
    monkeypatch.setattr(fuzz, "annotation_kinds", lambda: kinds)
    monkeypatch.setattr(fuzz, "binary_kinds", dict)
    assert fuzz.main(["--inputs=2", "--seed=7", f"--out={tmp_path}"]) == 1
    printed = capsys.readouterr().out
    assert "2 FAILED" in printed and "--only=7 (broken)" in printed and said in printed
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["7-a.json", "8-a.json"]
    kept = (tmp_path / "8-a.json").read_bytes()
    assert fuzz.main(["--only=8", f"--out={tmp_path}"]) == 1
    assert (tmp_path / "8-a.json").read_bytes() == kept
