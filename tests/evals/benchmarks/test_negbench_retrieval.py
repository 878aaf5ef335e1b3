"""NegBench's retrieval files: Python lists without eval, the official arithmetic, videos."""

import ast
import csv

import numpy as np
import pytest
from tiny_evals import AllThere, feature, features, numbers, retrieval_row, write_csv

from evals import registry
from evals.images import DataRoots, ImageRef
from negclip_jax.common.errors import InputError

torch = pytest.importorskip("torch")
PLAIN, NEGATED = registry.get("negbench_retrieval"), registry.get("negbench_retrieval_negated")
NAME = "COCO_val_retrieval.csv"
NAMES = {
    NAME: PLAIN,
    "COCO_val_negated_retrieval_llama3.1_rephrased_affneg_true.csv": NEGATED,
}


@pytest.mark.parametrize("name", NAMES)
def test_the_slice_equals_the_official_arithmetic(shared_data, name):
    """`retrieval.py`: text x image scores, recall_at_k > 0 over all captions."""
    folder = shared_data / "benchmarks" / "slices"
    problem = NAMES[name].load(DataRoots((folder,), (shared_data / "coco" / "photos",)))
    assert problem.total == problem.scored == 1055 and len(problem.images) == 211
    images, texts, owner = [], [], []
    for i, row in enumerate(csv.DictReader((folder / name).open(newline=""))):
        images.append(feature(ImageRef(row["filepath"])))
        captions = ast.literal_eval(row["captions"])
        texts += [feature(caption) for caption in captions]
        owner += [i] * len(captions)
    scores = np.stack(texts).astype(np.float64) @ np.stack(images).astype(np.float64).T
    ours = numbers(problem.score(*features(problem)))
    for k in (1, 5, 10):
        top = torch.topk(torch.from_numpy(scores.astype(np.float32)), k, dim=1).indices
        expected = (top == torch.tensor(owner)[:, None]).any(1).float().mean().item()
        assert ours[f"t2i_recall@{k}"] == pytest.approx(expected, abs=1e-6)


def test_whole_files_have_the_published_counts(shared_data):
    folder = shared_data / "benchmarks" / "negbench"
    plain, negated = (b.load(AllThere((folder,))) for b in (PLAIN, NEGATED))
    assert plain.total == negated.total == 25_014
    assert list(plain.images) == list(negated.images) and len(plain.images) == 5000


def error(folder, rows) -> str:
    write_csv(folder / NAME, rows)
    with pytest.raises(InputError) as caught:
        PLAIN.load(AllThere((folder,)))
    return str(caught.value)


def row(i: int, captions) -> dict:
    return retrieval_row(i, "val2017/{:012d}.jpg", captions)


@pytest.mark.parametrize(
    "written",
    [
        "__import__('os').mkdir('trap')",
        "['a', open('x')]",
        "['a', 3]",
        "[]",
        "['a'",
        "a dog",
        "{'a': 1}",
        "[" * 200,
    ],
)
def test_only_lists_of_strings_are_read(tmp_path, monkeypatch, written):
    monkeypatch.chdir(tmp_path)
    message = error(tmp_path, [row(0, ["a cat"]), row(1, written)])
    assert '"captions" is not a' in message and "row 1" in message
    assert not (tmp_path / "trap").exists()


def test_the_same_photo_twice(tmp_path):
    assert "an id occurs twice (1): 0 in row 0 and row 1" in error(
        tmp_path, [row(0, ["a"]), row(0, ["b"])]
    )


def test_wrong_columns(tmp_path):
    assert "has no column image_id, captions" in error(tmp_path, [{"filepath": "a.jpg"}])


@pytest.mark.parametrize("written", ["a man's [blurred] talk", "['a man talks']"])
def test_a_video_has_one_caption_or_a_list(tmp_path, written):
    rows = [retrieval_row(i, "videos/video{}.mp4", written) for i in range(2)]
    write_csv(tmp_path / "msr_vtt_retrieval.csv", rows)
    problem = registry.get("negbench_msrvtt").load(AllThere((tmp_path,)))
    assert problem.texts == ["a man talks" if written[0] == "[" else written]
    assert len(problem.images) == 8 and problem.images[5].path == "video1_frame1.jpg"
    predictions = problem.score(*features(problem)).predictions
    assert {tuple(sorted(pair)) for pair in predictions["images"]} == {(0, 4)}
