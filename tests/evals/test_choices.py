"""Choices: numbers over parts and groups, clusters, columns, missing photos."""

import numpy as np
import pytest
from tiny_evals import AllThere, features, mean

from evals.choices import AccuracySpec, Choice, by_group, choice_problem
from evals.images import DataRoots, ImageRef


def choice(i: int, **groups: str) -> Choice:
    return Choice(f"i{i}", (ImageRef(f"{i // 2}.jpg"),), (f"right {i}", f"wrong {i}"), 0, groups)


@pytest.fixture
def roots(tmp_path):
    return AllThere((tmp_path,))


def build(roots, items, **options):
    return choice_problem(roots, roots.data[0] / "f.json", items, rule="argmax", **options)


def scored(problem, right: set[str]):
    """The result of a model that is right on the items of these ids."""
    texts = np.array([[float(t.startswith("right")), 0.5] for t in problem.texts], np.float32)
    for i, text in enumerate(problem.texts):
        kind, number = text.split()
        texts[i, 0] = 1.0 if (kind == "right") == (f"i{number}" in right) else 0.0
    images = np.tile(np.array([1, 0], np.float32), (len(problem.images), 1))
    return {metric.name: metric for metric in problem.score(images, texts).metrics}


def test_several_texts_or_several_images():
    one, two = ImageRef("a"), ImageRef("a", (0, 0, 1, 1))
    assert Choice("x", (one,), ("s", "t")).options == [(one, "s"), (one, "t")]
    assert Choice("x", (one, two), ("s",)).options == [(one, "s"), (two, "s")]
    with pytest.raises(ValueError, match="argument"):
        _ = Choice("x", (one, two), ("s", "t", "u")).options


def test_parts_and_macro_means(roots):
    kinds = "aaabbc"
    items = [choice(i, kind=kinds[i]) for i in range(6)]
    numbers = (
        AccuracySpec(headline=True),
        *by_group("kind", "ab"),
        AccuracySpec("macro", macro="kind"),
        AccuracySpec("macro_of_two", macro="kind", at_least=2),
    )
    metrics = scored(build(roots, items, numbers=numbers), {"i0", "i3", "i4"})
    assert mean(metrics["accuracy"]) == pytest.approx(3 / 6)
    assert mean(metrics["accuracy_a"]) == pytest.approx(1 / 3)
    assert mean(metrics["accuracy_b"]) == 1
    assert mean(metrics["macro"]) == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert mean(metrics["macro_of_two"]) == pytest.approx((1 / 3 + 1) / 2)
    assert metrics["macro_of_two"].items.tolist() == ["i0", "i1", "i2", "i3", "i4"]
    assert [m for m in metrics.values() if m.headline] == [metrics["accuracy"]]


def test_a_part_without_items_is_not_reported(roots):
    numbers = by_group("kind", ("a", "z"))
    assert set(scored(build(roots, [choice(0, kind="a")], numbers=numbers), set())) == {
        "accuracy_a",
        "accuracy_a_strict",
    }


def test_items_on_one_photo_are_a_cluster(roots):
    shared = scored(build(roots, [choice(i) for i in range(4)]), set())["accuracy"]
    assert shared.clusters.tolist() == [0, 0, 1, 1]
    own = scored(build(roots, [choice(i) for i in (0, 2)]), set())["accuracy"]
    assert own.clusters is None


def test_options_of_different_number(roots):
    items = [
        choice(0),
        Choice("i1", (ImageRef("1.jpg"),), ("right 1", "wrong 1", "wrong 7", "wrong 8"), 0),
    ]
    problem = build(roots, items)
    metrics = {m.name: m for m in problem.score(*features(problem)).metrics}
    assert metrics["accuracy"].chance == pytest.approx((1 / 2 + 1 / 4) / 2)
    same = np.ones((4, 2), np.float32)
    strict = problem.score(same[: len(problem.images)], np.ones((len(problem.texts), 2), "f"))
    assert strict.predictions["right"] == [1 / 2, 1 / 4]
    assert strict.predictions["predicted"] == [[0, 1], [0, 1, 2, 3]]


def test_an_item_with_a_missing_photo_is_left_out(tmp_path):
    from tiny_evals import write_photos

    write_photos(tmp_path, ["0.jpg", "1.jpg"])
    crops = Choice("pair", (ImageRef("0.jpg"), ImageRef("9.jpg")), ("t",), 0)
    problem = build(DataRoots((tmp_path,)), [*(choice(i) for i in range(5)), crops])
    assert problem.missing == ["2.jpg", "9.jpg"]
    assert (problem.total, problem.scored) == (6, 4)
    assert problem.score(*features(problem)).predictions["item"] == ["i0", "i1", "i2", "i3"]


def test_cue_columns_only_where_a_text_negates(roots):
    plain = build(roots, [choice(0)])
    assert "cue" not in plain.score(*features(plain)).predictions
    negated = build(roots, [Choice("x", (ImageRef("x.jpg"),), ("a cat", "no cat"), 0)])
    result = negated.score(*features(negated))
    assert result.predictions["cue"] == ["no"] and result.predictions["negated"] == ["wrong"]
    assert not result.breakdowns  # one item has nothing to be broken down by


def test_equal_options_are_told(roots):
    items = [choice(0), Choice("x", (ImageRef("x.jpg"),), ("a cat", "a cat"), 0)]
    assert build(roots, items).notes == (
        "1 items have two equal options, which no model can tell apart.",
    )
    assert build(roots, items[:1]).notes == ()


def test_controls_are_scored_like_models(roots):
    items = [choice(i) for i in range(4)]
    problem = build(roots, items, controls={"last": lambda items: [[0.0, 1.0]] * len(items)})
    (last,) = problem.controls.values()
    assert [mean(m) for m in last().metrics] == [0, 0]
    assert last().predictions["scores"] == [[0.0, 1.0]] * 4


def test_ties_of_controls_are_shared_under_both_names(roots):
    items = [choice(i) for i in range(4)]
    problem = build(roots, items, controls={"equal": lambda items: [[1.0, 1.0]] * len(items)})
    (equal,) = problem.controls.values()
    assert [mean(m) for m in equal().metrics] == [0.5, 0.5]
    assert equal().predictions["right_official"] == [0.5] * 4
