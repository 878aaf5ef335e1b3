"""CC-Neg: reading a torch pickle without running code, the split, commas, and the official loop."""

import os
import pickle
import zipfile

import numpy as np
import pytest
from tiny_evals import AllThere, cc_neg_content, feature, features, numbers

from evals import registry
from evals.benchmarks import cc_neg
from evals.images import ImageRef
from negclip_jax.common.errors import InputError
from negclip_jax.common.plain_pickle import load_torch

torch = pytest.importorskip("torch")


def save(folder, content, **options):
    torch.save(content, folder / "ccneg_preprocessed.pt", **options)
    return AllThere((folder,))


@pytest.mark.parametrize("new_layout", [True, False])
def test_both_layouts_of_torch_are_read(tmp_path, new_layout):
    content = cc_neg_content() | {"caf\u00e9": [1, 2.5, None, (True, "x")]}
    save(tmp_path, content, _use_new_zipfile_serialization=new_layout)
    assert load_torch(tmp_path / "ccneg_preprocessed.pt", "get it again from there") == content


class Touch:
    """What a poisoned pickle does when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new_layout", [True, False])
def test_a_poisoned_file_runs_nothing(tmp_path, new_layout):
    trap = tmp_path / "trap"
    save(tmp_path, [Touch(trap)], _use_new_zipfile_serialization=new_layout)
    with pytest.raises(InputError, match=r"no torch file of plain lists .*mkdir"):
        load_torch(tmp_path / "ccneg_preprocessed.pt", "get it again from there")
    assert not trap.exists()


@pytest.mark.parametrize("content", [{"a": torch.zeros(2)}, np.zeros(2), {1, 2, complex(1)}])
def test_other_content_is_refused(tmp_path, content):
    save(tmp_path, content)
    with pytest.raises(InputError, match="no torch file of plain lists"):
        load_torch(tmp_path / "ccneg_preprocessed.pt", "get it again from there")


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "other zip", "other pickle"])
def test_damaged_files(tmp_path, damage):
    path = tmp_path / "ccneg_preprocessed.pt"
    if damage == "other zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "nothing")
    elif damage == "other pickle":
        path.write_bytes(pickle.dumps({"image_paths": []}))
    else:
        torch.save(cc_neg_content(), path, _use_new_zipfile_serialization=False)
        data = path.read_bytes()
        path.write_bytes({"cut": data[:-30], "noise": b"\x99" * 200, "empty": b""}[damage])
    with pytest.raises(InputError, match=r"ccneg_preprocessed\.pt is no torch file"):
        load_torch(path, "get it again from there")


def test_items_equal_the_official_loop(tmp_path, monkeypatch):
    """The last items, commas out of the negated caption alone, argmax with the true one first."""
    monkeypatch.setattr(cc_neg, "EVALUATION", 40)
    content = cc_neg_content(60)
    problem = registry.get("cc_neg").load(save(tmp_path, content))
    right = []
    for i in range(20, 60):
        path = content["image_paths"][i].replace("/workspace/datasets/cc3m/", "")
        image = feature(ImageRef(path)).astype(np.float64)
        annotation = content["annotations"][i]
        negated = annotation["sop_data"]["negative-prompt"].replace(",", "")
        texts = annotation["json"]["caption"], negated
        right.append(float(np.argmax([np.float32(feature(t) @ image) for t in texts]) == 0))
    result = problem.score(*features(problem))
    assert problem.total == 40 and result.predictions["item"][0] == "20"
    assert result.predictions["right_official"] == right and 5 < sum(right) < 35
    assert "a cat, and a dog 20" in problem.texts and "a cat and not a dog 20" in problem.texts


def test_disliking_negation_or_liking_commas_wins_everything(tmp_path):
    controls = registry.get("cc_neg").load(save(tmp_path, cc_neg_content())).controls
    assert numbers(controls["prefers the affirmed text"]())["accuracy_strict"] == 1
    assert numbers(controls["prefers the negated text"]())["accuracy_strict"] == 0
    assert numbers(controls["prefers the text with commas"]())["accuracy_strict"] == 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"annotations": []}, '"annotations" is not a list of anything'),
        ({"image_paths": ["a.jpg"]}, "image_paths and annotations differ in length"),
        ({"image_paths": [1] * 6}, '"image" is not a string (6): index 0'),
        ({"annotations": [{"json": 3}] * 6}, "a record is not an object (12): index 0"),
    ],
)
def test_bad_records(tmp_path, change, expected):
    with pytest.raises(InputError) as caught:
        registry.get("cc_neg").load(save(tmp_path, cc_neg_content() | change))
    assert expected in str(caught.value)
