"""Retrieval both ways against CLIP_benchmark's arithmetic, chance, and what predictions show."""

import numpy as np
import pytest
from tiny_evals import AllThere, features, numbers

from evals.images import ImageRef
from evals.retrieval import KS, Captioned, retrieval_problem

torch = pytest.importorskip("torch")


def clip_benchmark(scores, owner) -> dict[str, float]:
    """`zeroshot_retrieval.py`: topk, one-hot, recall > 0, mean; texts x images."""
    scores = torch.from_numpy(scores)
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(scores)), torch.tensor(owner)] = True
    found = {}
    for name, s, p in (("t2i", scores, positive), ("i2t", scores.T, positive.T)):
        for k in KS:
            top = torch.topk(s, k, dim=1)[1]
            onehot = torch.nn.functional.one_hot(top, num_classes=s.shape[1])
            recall = (onehot * p[:, None, :]).sum(dim=(1, 2)) / p.sum(1)
            found[f"{name}_recall@{k}"] = (recall > 0).float().mean().item()
    return found


def records(count: int = 40) -> list[Captioned]:
    return [
        Captioned(f"{i}", ImageRef(f"{i}.jpg"), tuple(f"view {j} of {i}" for j in range(1 + i % 4)))
        for i in range(count)
    ]


def build(tmp_path, made, **options):
    return retrieval_problem(AllThere((tmp_path,)), tmp_path / "f.json", made, **options)


def test_equal_to_clip_benchmark(tmp_path):
    made = records()
    problem = build(tmp_path, made)
    images, texts = features(problem)
    owner = [i for i, record in enumerate(made) for _ in record.captions]
    scores = (texts.astype(np.float64) @ images.astype(np.float64).T).astype(np.float32)
    expected = clip_benchmark(scores, owner)
    ours = numbers(problem.score(images, texts))
    assert {name: ours[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert {name: ours[f"{name}_strict"] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert 0.05 < expected["i2t_recall@5"] < 0.9


def test_headlines_come_first(tmp_path):
    metrics = build(tmp_path, records(), headlines=("i2t_recall@1",))
    metrics = metrics.score(*features(metrics)).metrics
    assert [m.name for m in metrics if m.headline] == ["i2t_recall@1"] == [metrics[0].name]


def test_captions_of_a_photo_are_a_cluster(tmp_path):
    problem = build(tmp_path, records(4))
    found = {m.name: m for m in problem.score(*features(problem)).metrics}
    assert found["t2i_recall@1"].clusters.tolist() == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    assert found["t2i_recall@1"].items[:3].tolist() == ["0#0", "1#0", "1#1"]
    assert found["i2t_recall@1"].clusters is None
    alone = build(tmp_path, [r for r in records(8) if len(r.captions) == 1])
    assert alone.score(*features(alone)).metrics[0].clusters is None


def test_two_photos_with_one_caption_are_a_tie(tmp_path):
    made = [Captioned(f"{i}", ImageRef(f"{i}.jpg"), ("a dog",)) for i in range(2)]
    problem = build(tmp_path, made)
    assert problem.texts == ["a dog"]
    images = np.array([[1, 0], [0, 1]], np.float32)
    found = {m.name: m for m in problem.score(images, np.array([[1, 0]], np.float32)).metrics}
    assert found["t2i_recall@1"].values.tolist() == [1, 0]
    assert found["i2t_recall@1_strict"].values.tolist() == [0.5, 0.5]
    assert found["i2t_recall@1"].values.tolist() == [1, 0]  # the first caption of two equal ones


def test_predictions_show_the_best_other_photo(tmp_path):
    problem = build(tmp_path, records(12))
    images, texts = features(problem)
    predictions = problem.score(images, texts).predictions
    captions = [text for record in records(12) for text in record.captions]
    owner = [i for i, record in enumerate(records(12)) for _ in record.captions]
    scores = texts[[problem.texts.index(text) for text in captions]] @ images.T
    for i, row in enumerate(scores):
        right, rival = predictions["images"][i]
        others = np.delete(np.arange(12), owner[i])
        assert right == owner[i] and rival == others[np.argmax(row[others])]
        assert predictions["scores"][i] == pytest.approx([row[right], row[rival]], abs=1e-6)
        assert predictions["predicted"][i] == [int(row[rival] > row[right])]
        assert predictions["right"][i] == float(row[right] > row[rival])
        assert predictions["rank"][i] == 1 + int((row > row[right]).sum())


def test_one_photo_alone(tmp_path):
    problem = build(tmp_path, records(1))
    result = problem.score(*features(problem))
    assert set(numbers(result).values()) == {1.0}
    assert result.predictions["images"] == [[0]]
