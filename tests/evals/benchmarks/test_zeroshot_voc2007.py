"""VOC2007's objects from the devkit's folder and from tensorflow-datasets, to the same boxes."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from tiny_evals import AllThere, features, voc_annotation, write_benchmark

from evals import registry
from evals.benchmarks import zeroshot
from evals.images import DataRoots
from negclip_jax.common.errors import InputError

CLASSES = zeroshot.read_prompts("voc2007").classes


def test_objects_are_cut_out(tmp_path):
    roots = write_benchmark("voc2007", tmp_path)
    problem = registry.get("voc2007").load(roots)
    assert problem.total == 14 and len(problem.texts) == 80 * 20  # "a photo of a {}." is in both
    assert {metric.name for metric in problem.score(*features(problem)).metrics} >= {
        "top1_single",
        "top1_imagenet_templates",
    }
    assert problem.images[0].box == (1, 2, 29, 38)  # xmin, ymin, xmax - xmin, ymax - ymin
    assert problem.images[0].open(roots).size == (29, 38)
    assert problem.images[0].path == "VOC2007/JPEGImages/000000.jpg"


def write(folder, annotation: str, name: str = "000001"):
    root = folder / "VOCdevkit" / "VOC2007"
    for part in ("ImageSets/Main", "Annotations"):
        (root / part).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main" / "test.txt").write_text(f"{name}\n")
    (root / "Annotations" / "000001.xml").write_text(annotation)
    return AllThere((folder,))


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (voc_annotation([("unicorn", (1, 1, 5, 5))]), '"name" is none of aeroplane'),
        (voc_annotation([("cat", (5, 1, 5, 5))]), "a box has no area (1): object 0"),
        (voc_annotation([("cat", ("x", 1, 5, 5))]), '"xmin" is not a number (1): object 0'),
        ("<annotation><object><name>cat</name></object></annotation>", '"xmin" is missing'),
        ("<annotation><object>", "not valid XML"),
    ],
)
def test_bad_annotations(tmp_path, annotation, expected):
    with pytest.raises(InputError) as caught:
        registry.get("voc2007").load(write(tmp_path, annotation))
    assert expected in str(caught.value) and "000001.xml" in str(caught.value)


def test_an_annotation_that_is_not_there(tmp_path):
    roots = write(tmp_path, voc_annotation([]), name="000009")
    with pytest.raises(InputError, match=r"000009\.xml cannot be read"):
        registry.get("voc2007").load(roots)


class Rows(list):
    """A prepared `voc/2007`: boxes are ymin, xmin, ymax, xmax as shares of the photo."""

    def __init__(self, rows):
        super().__init__(rows)
        label = type("ClassLabel", (), {"names": CLASSES})
        features = {"image": None, "objects": {"label": label}}
        self.dataset_info = type("Info", (), {"features": features})


def test_a_prepared_data_set_gives_the_same_boxes(tmp_path, monkeypatch):
    objects = [("cat", (17, 3, 351, 331)), ("dog", (1, 1, 500, 375))]
    buffer = BytesIO()
    Image.new("RGB", (500, 375)).save(buffer, "JPEG")
    shares = [(y / 375, x / 500, bottom / 375, right / 500) for _, (x, y, right, bottom) in objects]
    row = {
        "image": buffer.getvalue(),
        "objects": {
            "bbox": np.array(shares, np.float32),
            "label": np.array([CLASSES.index(kind) for kind, _ in objects]),
        },
    }
    monkeypatch.setattr(zeroshot, "tfds_rows", lambda name, split, folders: Rows([row]))
    prepared = registry.get("voc2007").load(AllThere((tmp_path,)))
    assert prepared.images[0].path == "tfds:voc/2007/test#0"
    folder = registry.get("voc2007").load(write(tmp_path, voc_annotation(objects)))
    assert [ref.box for ref in prepared.images] == [ref.box for ref in folder.images]
    assert prepared.total == folder.total == 2


def test_neither_is_there(tmp_path):
    with pytest.raises(InputError, match=r"VOCdevkit/VOC2007.*host\.robots.*tfds build voc"):
        registry.get("voc2007").load(DataRoots((tmp_path,)))
