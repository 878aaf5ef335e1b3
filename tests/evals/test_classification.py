"""Zero-shot classification against open_clip's arithmetic, ties between equal names, columns."""

import numpy as np
import pytest
from tiny_evals import AllThere, features, numbers

from evals.images import ImageRef
from evals.retrieval import Labelled, classification_problem

torch = pytest.importorskip("torch")
CLASSES = ("cat", "dog", "bus", "axe", "pan", "jet", "cow")
PROMPTS = {
    "single": ["a photo of a {}."],
    "ensemble": ["a {}.", "art of a {}.", "a photo of a {}."],
}


def items(count: int = 60, classes: int = 7) -> list[Labelled]:
    return [Labelled(f"i{i}", ImageRef(f"{i}.png"), (i * i) % classes) for i in range(count)]


def build(tmp_path, made, classes=CLASSES, prompts=PROMPTS):
    return classification_problem(AllThere((tmp_path,)), tmp_path, made, classes, prompts)


def open_clip(problem, made, templates) -> tuple[float, float]:
    """`zero_shot_classifier` and `accuracy`: mean of normalised prompts, topk of 100 x cosine."""
    images, texts = (torch.from_numpy(array).double() for array in features(problem))
    weights = []
    for name in CLASSES:
        rows = [problem.texts.index(template.format(name)) for template in templates]
        mean = torch.nn.functional.normalize(texts[rows], dim=-1).mean(0)
        weights.append(mean / mean.norm())
    order = [problem.images.index(item.image) for item in made]
    logits = 100.0 * images[order] @ torch.stack(weights, dim=1)
    target = torch.tensor([item.label for item in made])
    top = logits.topk(5, 1, True, True)[1]
    correct = top.eq(target[:, None])
    return tuple(correct[:, :k].any(1).double().mean().item() for k in (1, 5))


def test_equal_to_open_clip(tmp_path):
    made = items()
    problem = build(tmp_path, made)
    ours = numbers(problem.score(*features(problem)))
    for name, templates in PROMPTS.items():
        expected = open_clip(problem, made, templates)
        assert (ours[f"top1_{name}"], ours[f"top5_{name}"]) == pytest.approx(expected)
        assert ours[f"top1_{name}_strict"] == pytest.approx(expected[0])
    assert ours["top1_single"] != ours["top1_ensemble"]


def test_labels_and_chances(tmp_path):
    problem = build(tmp_path, items())
    metrics = {m.name: m for m in problem.score(*features(problem)).metrics}
    assert [n for n, m in metrics.items() if m.headline] == ["top1_single", "top1_ensemble"]
    assert metrics["top1_single"].chance == pytest.approx(1 / 7)
    assert metrics["top5_ensemble_strict"].chance == pytest.approx(5 / 7)
    assert "single: 1 prompt(s) a class, 'a photo of a {}.' first" in problem.notes[-1]


def test_texts_shared_by_both_sets_are_encoded_once(tmp_path):
    problem = build(tmp_path, items())
    assert len(problem.texts) == len(set(problem.texts)) == 3 * len(CLASSES)


def test_two_classes_of_one_name_tie(tmp_path):
    """ImageNet has two classes "missile": no model can tell them apart."""
    problem = build(tmp_path, items(8, 2), ("missile", "missile", "cat"), {"single": ["a {}"]})
    images = np.tile(np.array([1, 0], np.float32), (8, 1))
    texts = np.array([[1, 0], [0, 1]], np.float32)
    found = {m.name: m for m in problem.score(images, texts).metrics}
    assert found["top1_single_strict"].values.tolist() == [0.5] * 8
    assert set(found["top1_single"].values.tolist()) == {0.0, 1.0}
    assert "top5_single" not in found  # five of three


def test_predictions_show_the_best_other_class(tmp_path):
    made = items()
    problem = build(tmp_path, made)
    predictions = problem.score(*features(problem)).predictions
    for i, item in enumerate(made):
        right, rival = predictions["texts"][i]
        assert right == f"a photo of a {CLASSES[item.label]}." != rival
        assert predictions["class"][i] == CLASSES[item.label]
        best = int(np.argmax(predictions["scores"][i]))
        assert predictions["predicted"][i] == [best]
        assert (
            predictions["right"][i] == float(best == 0) == float(predictions["rank_single"][i] == 1)
        )


def test_objects_of_one_photo_are_a_cluster(tmp_path):
    boxes = [(0, 0, 5, 5), (1, 1, 9, 9)]
    made = [Labelled(f"{i}", ImageRef("a.png", box), i) for i, box in enumerate(boxes)]
    problem = build(tmp_path, [*made, Labelled("2", ImageRef("b.png"), 2)])
    (first, *_) = problem.score(*features(problem)).metrics
    assert first.clusters.tolist() == [0, 0, 1]
