"""NegBench's questions against its script's arithmetic, and what the captions alone give away."""

import csv

import numpy as np
import pytest
from tiny_evals import AllThere, feature, features, mcq_row, numbers, write_csv, write_photos

from evals import registry
from evals.benchmarks import negbench_mcq
from evals.images import DataRoots, ImageRef
from negclip_jax.common.errors import InputError

torch = pytest.importorskip("torch")
FILES = {
    "COCO_val_mcq_llama3.1_rephrased.csv": (5914, registry.get("negbench_mcq")),
    "VOC2007_mcq_llama3.1_rephrased.csv": (5031, registry.get("negbench_mcq_voc2007")),
}


def official(path) -> tuple[list[int], dict[str, float]]:
    """`mcq.py`: normalised embeddings, argmax over four logits, accuracy in all and by type."""
    predictions, right, by_type = [], [], {"positive": [], "negative": [], "hybrid": []}
    for row in csv.DictReader(path.open(newline="")):
        image = torch.tensor(feature(ImageRef(row["image_path"]))).double()
        texts = torch.stack([torch.tensor(feature(row[f"caption_{i}"])).double() for i in range(4)])
        prediction = (texts @ image).float().argmax().item()
        predictions.append(prediction)
        right.append(prediction == int(row["correct_answer"]))
        by_type[row["correct_answer_template"]].append(right[-1])
    parts = {f"accuracy_{name}": np.mean(values) for name, values in by_type.items()}
    return predictions, {"accuracy": np.mean(right), **parts}


@pytest.fixture(scope="module")
def problems(shared_data):
    folder = shared_data / "benchmarks" / "negbench"
    return {
        name: (folder / name, benchmark.load(AllThere((folder,))))
        for name, (_, benchmark) in FILES.items()
    }


COCO, VOC = FILES
ALL = pytest.mark.parametrize("name", [VOC, pytest.param(COCO, marks=pytest.mark.slow)])


@ALL
def test_all_questions_equal_the_official_arithmetic(problems, name):
    file, problem = problems[name]
    result = problem.score(*features(problem))
    predictions, expected = official(file)
    assert problem.total == FILES[name][0] == len(predictions)
    untied = [i for i, p in enumerate(result.predictions["predicted"]) if len(p) == 1]
    assert len(untied) > 0.98 * len(predictions)  # a few questions repeat a caption
    assert [result.predictions["predicted"][i] for i in untied] == [
        [predictions[i]] for i in untied
    ]
    ours = numbers(result)
    assert {key: ours[key] for key in expected} == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "share"), zip(FILES, (0.98, 0.96), strict=True))
def test_the_captions_alone_give_the_answer_away(problems, name, share):
    _, problem = problems[name]
    solved = numbers(problem.controls["text-only solver"]())
    assert solved["accuracy_strict"] > share
    assert min(solved[f"accuracy_{t}_strict"] for t in negbench_mcq.TYPES) > 0.93


def test_the_solver_does_not_look_at_positions(tmp_path):
    rows = [mcq_row(i, answer=i % 4) for i in range(12)]
    write_csv(tmp_path / "COCO_val_mcq_llama3.1_rephrased.csv", rows)
    problem = registry.get("negbench_mcq").load(AllThere((tmp_path,)))
    assert numbers(problem.controls["text-only solver"]())["accuracy_strict"] == 1


def test_the_slice_with_its_photos(shared_data):
    roots = DataRoots((shared_data / "benchmarks" / "slices",), (shared_data / "coco" / "photos",))
    problem = registry.get("negbench_mcq").load(roots)
    assert problem.total == problem.scored == 313 and not problem.missing


def test_videos_are_the_mean_of_four_frames(tmp_path):
    row = mcq_row(0, "data/video/MSRVTT/videos/all/video{}.mp4")
    write_csv(tmp_path / "msr_vtt_mcq_rephrased_llama.csv", [row])
    assert registry.get("negbench_mcq_msrvtt").load(DataRoots((tmp_path,))).missing == [
        f"video0_frame{i}.jpg" for i in range(4)
    ]
    write_photos(tmp_path, [f"video0_frame{i}.jpg" for i in range(4)])
    problem = registry.get("negbench_mcq_msrvtt").load(DataRoots((tmp_path,)))
    images, texts = features(problem)
    mean = images.astype(np.float64).mean(0)
    expected = texts @ (mean / np.linalg.norm(mean))
    scores = problem.score(images, texts).predictions["scores"][0]
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def error(folder, rows) -> str:
    write_csv(folder / "COCO_val_mcq_llama3.1_rephrased.csv", rows)
    with pytest.raises(InputError) as caught:
        registry.get("negbench_mcq").load(AllThere((folder,)))
    return str(caught.value)


def test_wrong_columns(tmp_path):
    row = mcq_row(0)
    del row["caption_3"]
    message = error(tmp_path, [row])
    assert "has no column caption_3" in message and "its columns are image_path" in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"correct_answer": 4}, '"correct_answer" is none of 0, 1, 2, 3 (1): row 1'),
        ({"correct_answer": "first"}, '"correct_answer" is none of'),
        ({"correct_answer_template": "both"}, "is none of positive, negative, hybrid"),
        ({"caption_1": ""}, '"caption_1" is empty (1): row 1'),
        ({"image_path": ""}, '"image_path" is empty'),
    ],
)
def test_bad_rows(tmp_path, change, expected):
    assert expected in error(tmp_path, [mcq_row(0), mcq_row(1) | change])
