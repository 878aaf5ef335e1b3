"""ImageNet and CIFAR: synsets as keys, single prompt and ensemble, folder or data set."""

import pytest
from tiny_evals import AllThere, features, numbers, write_photos

from evals import registry
from evals.benchmarks import zeroshot
from evals.images import DataRoots


def few(monkeypatch, count: int) -> zeroshot.Prompts:
    """The first classes and three templates of what is shipped."""
    real = zeroshot.read_prompts

    def read(name: str) -> zeroshot.Prompts:
        prompts = real(name)
        return zeroshot.Prompts(
            prompts.classes[:count], prompts.keys[:count], prompts.templates[:3]
        )

    monkeypatch.setattr(zeroshot, "read_prompts", read)
    return read("imagenet")


def test_imagenet_is_keyed_by_synset(tmp_path, monkeypatch):
    prompts = few(monkeypatch, 8)
    assert prompts.keys[0] == "n01440764" and prompts.classes[0] == "tench"
    write_photos(tmp_path / "imagenet" / "val", [f"{key}/a.JPEG" for key in prompts.keys])
    problem = registry.get("imagenet").load(DataRoots((tmp_path,)))
    assert problem.scored == 8 and problem.images[0].path == "val/n01440764/a.JPEG"
    predictions = problem.score(*features(problem)).predictions
    assert predictions["class"] == list(prompts.classes)
    assert "a photo of a tench." in problem.texts and "a bad photo of a tench." in problem.texts


def test_other_names_of_the_folder(tmp_path, monkeypatch):
    prompts = few(monkeypatch, 6)
    write_photos(tmp_path / "ILSVRC2012" / "val", [f"{key}/a.JPEG" for key in prompts.keys])
    assert registry.get("imagenet").load(DataRoots((tmp_path,))).scored == 6


class Rows(list):
    """What tensorflow-datasets gives for a prepared split: rows, and the names of the labels."""

    def __init__(self, names, labels):
        super().__init__({"image": b"", "label": label} for label in labels)
        feature = type("ClassLabel", (), {"names": names})
        self.dataset_info = type("Info", (), {"features": {"image": None, "label": feature}})


@pytest.mark.parametrize(
    ("benchmark", "asked", "prompts"),
    [
        (registry.get("imagenet"), ("imagenet2012", "validation"), "imagenet"),
        (registry.get("cifar10"), ("cifar10", "test"), "cifar10"),
        (registry.get("cifar100"), ("cifar100", "test"), "cifar100"),
    ],
)
def test_prepared_data_sets_with_labels_in_their_own_order(
    tmp_path, monkeypatch, benchmark, asked, prompts
):
    keys = zeroshot.read_prompts(prompts).keys
    names = [key.replace(" ", "_") for key in reversed(keys)]

    def rows(name, split, folders):
        assert (name, split) == asked and folders == (tmp_path,)
        return Rows(names, [0, 1, len(keys) - 1])

    monkeypatch.setattr(zeroshot, "tfds_rows", rows)
    problem = benchmark.load(AllThere((tmp_path,)))
    assert problem.file == f"tfds:{'/'.join(asked)}" and problem.total == 3
    assert problem.images[2].path == f"tfds:{'/'.join(asked)}#2"
    if prompts == "imagenet":
        return  # 80,000 prompts: that they are all there is enough
    classes = zeroshot.read_prompts(prompts).classes
    predictions = problem.score(*features(problem)).predictions
    assert predictions["class"] == [classes[-1], classes[-2], classes[0]]


def test_numbers_say_which_prompts_they_used(tmp_path, monkeypatch):
    few(monkeypatch, 6)
    keys = zeroshot.read_prompts("cifar10").keys[:6]
    write_photos(
        tmp_path / "cifar10" / "test", [f"{key}/{i}.png" for key in keys for i in range(3)]
    )
    problem = registry.get("cifar10").load(DataRoots((tmp_path,)))
    ours = numbers(problem.score(*features(problem)))
    assert set(ours) == {
        f"top{k}_{name}{rule}"
        for k in (1, 5)
        for name in ("single", "ensemble")
        for rule in ("", "_strict")
    }
    assert "ensemble: 3 prompt(s) a class" in problem.notes[-1]
