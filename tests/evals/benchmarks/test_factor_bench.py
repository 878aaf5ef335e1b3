"""FACTOR-Bench against its script's loops: choices, equivalences, its two layouts, bad samples."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_evals import AllThere, constant, factor_sample, feature, features, numbers, write_json

from evals import registry
from evals.benchmarks.factor_bench import EQUIVALENCES, OPERATORS
from evals.images import ImageRef
from negclip_jax.common.errors import InputError


def every_sample() -> list[dict]:
    samples = [factor_sample(k, i, "ab"[i % 3 == 0]) for k in OPERATORS for i in range(20)]
    return samples + [factor_sample(k, i, "both") for k in EQUIVALENCES for i in range(30)]


@pytest.fixture
def problem(tmp_path):
    write_json(tmp_path / "factor_bench.json", {"samples": every_sample()})
    return registry.get("factor_bench").load(AllThere((tmp_path,)))


def cosines(sample: dict, nearer: float) -> tuple[np.float32, np.float32]:
    image = feature(ImageRef(sample["image"])).astype(np.float64)
    a, b = (feature(sample[key]).astype(np.float64) for key in ("caption_a", "caption_b"))
    return np.float32(a @ image), np.float32((a + (b - a) * nearer) @ image)


def test_it_equals_the_scripts_loops(problem):
    """`evaluate` and `evaluate_equivalence`; equivalent captions are moved together, so that some
    pairs differ by less than a thousandth."""
    nearer = 0.002
    images, texts = features(problem)
    rows = {text: row for row, text in enumerate(problem.texts)}
    right, violations = {}, {}
    for sample in every_sample():
        both = sample["correct"] == "both"
        score_a, score_b = cosines(sample, nearer if both else 1)
        if both:
            a = texts[rows[sample["caption_a"]]].astype(np.float64)
            moved = a + (texts[rows[sample["caption_b"]]].astype(np.float64) - a) * nearer
            texts[rows[sample["caption_b"]]] = moved
            kind = sample["meta"]["equivalence_type"]
            violations.setdefault(kind, []).append(abs(score_a - score_b) > 0.001)
        else:
            chosen = "a" if score_a > score_b else "b"
            right.setdefault(sample["operator"], []).append(chosen == sample["correct"])
    found = numbers(problem.score(images, texts))
    for operator, row in right.items():
        assert found[f"accuracy_{operator}"] == np.mean(row)
    split = [value for operator, row in right.items() if operator != "COMPOUND" for value in row]
    assert found["accuracy"] == np.mean(split) and len(split) == 100
    for kind, row in violations.items():
        assert 0 < np.mean(row) < 1  # so that the threshold is tried on both sides
        assert found[f"consistency_{kind}"] == pytest.approx(1 - np.mean(row))
    every = [value for row in violations.values() for value in row]
    assert found["consistency"] == pytest.approx(1 - np.mean(every))


def test_a_tie_chooses_b_officially_and_is_half_strictly(problem):
    found = numbers(constant(problem))
    b_is_right = np.mean([s["correct"] == "b" for s in every_sample() if s["correct"] != "both"])
    assert found["accuracy"] == b_is_right != 0.5 and found["accuracy_strict"] == 0.5


def test_equivalences_are_no_choices(problem):
    """Neither in the accuracies nor among the groups of negating words."""
    columns = problem.score(*features(problem)).predictions
    for row, split in enumerate(columns["split"]):
        assert (columns["answers"][row] == [0, 1]) == (split == "equivalence")
        assert (columns["cue"][row] == "equivalent") == (split == "equivalence")


def test_json_lines_say_the_same(problem, tmp_path):
    folder = tmp_path / "lines"
    folder.mkdir()
    lines = "\n".join(map(json.dumps, every_sample()))
    (folder / "factor_bench.jsonl").write_text(lines + "\n")
    same = registry.get("factor_bench").load(AllThere((folder,)))
    assert dataclasses.replace(problem, file="", score=None, controls={}) == dataclasses.replace(
        same, file="", score=None, controls={}
    )
    assert numbers(same.score(*features(same))) == numbers(problem.score(*features(problem)))


def test_published_values_are_shares_of_the_splits():
    sizes = dict(zip(OPERATORS, (300, 150, 150, 250, 250), strict=False))
    published = registry.get("factor_bench").published
    for value in published:
        n = sizes.get(value.metric.removeprefix("accuracy_"), 1100)
        assert value.value * n == pytest.approx(round(value.value * n))
    overall = [round(100 * p.value, 1) for p in published if p.metric == "accuracy"]
    assert overall == [58.3, 65.0]


def test_bad_samples(tmp_path):
    good, equal = factor_sample("NOT", 0, "a"), factor_sample("de_morgan", 1, "both")
    broken = [
        good,
        good,
        factor_sample("XOR", 2, "a"),
        factor_sample("NOT", 3, "a") | {"correct": "both"},
        equal | {"correct": "a"},
        factor_sample("commutativity", 4, "both") | {"meta": None},
    ]
    write_json(tmp_path / "factor_bench.json", {"samples": broken})
    with pytest.raises(InputError, match=r"factor_bench\.json has 5 problems") as caught:
        registry.get("factor_bench").load(AllThere((tmp_path,)))
    for part in (
        "an id occurs twice (1): NOT_0",
        '"operator" is none of NOT, AND',
        '"correct" is none of b, a (1): sample 3',
        '"correct" is none of both (1): sample 4',
        "a record is not an object (1): sample 5.meta",
    ):
        assert part in str(caught.value)
