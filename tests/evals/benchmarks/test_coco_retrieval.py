"""COCO retrieval: which of its files is taken, and the test split alone."""

import pytest
from tiny_evals import AllThere, features, karpathy_content, numbers, write_json

from evals.benchmarks import coco_retrieval

BLIP = [{"image": f"val2014/COCO_val2014_{i:012d}.jpg", "caption": ["a", "b"]} for i in range(7)]


def test_forms_give_the_same_numbers(tmp_path):
    karpathy = karpathy_content(8)
    write_json(tmp_path / "a" / "dataset_coco.json", karpathy)
    blip = [
        {
            "image": f"{image['filepath']}/{image['filename']}",
            "caption": [sentence["raw"] for sentence in image["sentences"]],
        }
        for image in karpathy["images"]
        if image["split"] == "test"
    ]
    write_json(tmp_path / "b" / "coco_karpathy_test.json", blip)
    first, second = (coco_retrieval.load(AllThere((tmp_path / name,))) for name in "ab")
    assert list(first.images) == list(second.images) and len(first.images) == 6
    assert numbers(first.score(*features(first))) == numbers(second.score(*features(second)))


def test_karpathys_own_file_comes_first(tmp_path):
    write_json(tmp_path / "coco_karpathy_test.json", BLIP)
    assert coco_retrieval.load(AllThere((tmp_path,))).total == 14
    write_json(tmp_path / "deeper" / "dataset_coco.json", karpathy_content(4))
    problem = coco_retrieval.load(AllThere((tmp_path,)))
    assert problem.file.endswith("dataset_coco.json") and problem.total == 8


def test_published_values():
    values = {(p.model, p.metric): p.value for p in coco_retrieval.BENCHMARK.published}
    assert values["CLIP ViT-B/32", "t2i_recall@5"] == pytest.approx(0.5585)
    assert values["CLIP ViT-L/14", "i2t_recall@5"] == pytest.approx(0.7918)


def test_both_directions_are_shown(tmp_path):
    write_json(tmp_path / "coco_karpathy_test.json", BLIP)
    problem = coco_retrieval.load(AllThere((tmp_path,)))
    metrics = problem.score(*features(problem)).metrics
    assert [m.name for m in metrics if m.headline] == ["t2i_recall@5", "i2t_recall@5"]
    assert "7 images and 14 captions." in problem.notes
