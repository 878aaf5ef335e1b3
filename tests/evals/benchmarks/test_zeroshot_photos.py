"""Photos with classes: OpenAI's prompts, class folders, and data sets of tensorflow-datasets."""

import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from tiny_evals import write_photos

from evals.benchmarks.zeroshot import find_labelled, read_prompts
from evals.images import DataRoots
from negclip_jax.common.errors import InputError

tfds = pytest.importorskip("tensorflow_datasets")
KEYS = ("aquarium fish", "cat", "dog")


class Pets(tfds.core.GeneratorBasedBuilder):
    """Three classes in another order than ours, as `cifar10` has image and label."""

    __module__ = "pets"  # TFDS looks for data files beside modules of packages
    VERSION = tfds.core.Version("1.0.0")
    NAMES = ("dog", "aquarium_fish", "cat")
    FEATURES = {  # noqa: RUF012
        "image": tfds.features.Image(encoding_format="png"),
        "label": tfds.features.ClassLabel(names=NAMES),
    }

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(self.FEATURES)
        )

    def _split_generators(self, manager):
        return {"test": self._generate_examples()}

    def _generate_examples(self):
        for i in range(6):
            buffer = BytesIO()
            Image.new("RGB", (6, 4), (40 * i, 20, 30)).save(buffer, "png")
            buffer.seek(0)
            example = {"image": buffer, "label": self.NAMES[i % 3]}
            yield i, {key: example[key] for key in self.FEATURES}


class Unlabelled(Pets):
    __module__ = "unlabelled"
    FEATURES = {"image": Pets.FEATURES["image"]}  # noqa: RUF012


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tfds")
    for builder in (Pets, Unlabelled):
        builder(data_dir=path, file_format="array_record").download_and_prepare()
    return path


def find(folder, tfds_name="pets/test", keys=KEYS):
    return find_labelled(DataRoots((folder,)), ("pets/val",), tfds_name, keys, "example.org")


def test_prompts_are_openais(shared_data):
    import json

    folder = shared_data / "benchmarks" / "clip_prompts"
    others = json.loads((folder / "other_datasets.json").read_text())
    for name, theirs in (
        ("cifar10", "CIFAR10"),
        ("cifar100", "CIFAR100"),
        ("voc2007", "PascalVOC2007"),
    ):
        ours = read_prompts(name)
        assert ours.classes == ours.keys == others[theirs]["classes"]
        assert ours.templates == others[theirs]["templates"]
    imagenet = read_prompts("imagenet")
    for ours, file in zip(imagenet, ("classnames", "wnids", "templates"), strict=True):
        assert ours == json.loads((folder / f"imagenet_{file}.json").read_text())


@pytest.mark.parametrize(
    ("name", "classes", "templates"),
    [("imagenet", 1000, 80), ("cifar10", 10, 18), ("cifar100", 100, 18), ("voc2007", 20, 1)],
)
def test_prompts_are_complete(name, classes, templates):
    prompts = read_prompts(name)
    assert len(prompts.classes) == len(prompts.keys) == len(set(prompts.keys)) == classes
    assert len(set(prompts.templates)) == templates
    assert all(template.count("{}") == 1 for template in prompts.templates)
    assert "a photo of a {}." in prompts.templates


def test_class_folders(tmp_path):
    photos = ["aquarium_fish/1.png", "cat/1.png", "cat/2.JPEG", "dog/1.png"]
    write_photos(tmp_path / "pets" / "val", photos)
    (tmp_path / "pets" / "val" / "cat" / "notes.txt").write_text("x")
    where, items = find(tmp_path)
    assert where == tmp_path / "pets" / "val"
    assert [(i.id, i.image.path, i.label) for i in items] == [
        ("aquarium_fish/1.png", "val/aquarium_fish/1.png", 0),
        ("cat/1.png", "val/cat/1.png", 1),
        ("cat/2.JPEG", "val/cat/2.JPEG", 1),
        ("dog/1.png", "val/dog/1.png", 2),
    ]
    roots = DataRoots((tmp_path,))
    files = [roots.resolve(item.image.path) for item in items]
    assert files[0] != files[1] != files[3]  # the same name in another folder is another photo
    assert files[1].parent.name == "cat"


def test_other_class_folders(tmp_path):
    write_photos(tmp_path / "pets" / "val", ["cat/1.png", "bird/1.png"])
    with pytest.raises(InputError, match=r"one folder for each of 3 classes") as caught:
        find(tmp_path)
    assert "1 unknown (bird)" in str(caught.value)
    assert "2 without folder (aquarium fish, dog)" in str(caught.value)


def test_empty_class_folders(tmp_path):
    for key in KEYS:
        (tmp_path / "pets" / "val" / key).mkdir(parents=True)
    (tmp_path / "pets" / "val" / "list.txt").write_text("x")
    with pytest.raises(InputError, match="holds no images"):
        find(tmp_path)


def test_prepared_data_set(data_dir):
    where, items = find(data_dir)
    assert str(where) == "tfds:pets/test" and len(items) == 6
    roots = DataRoots((data_dir,))
    reds = {item.label: set() for item in items}
    for item in items:
        reds[item.label].add(item.image.open(roots).getpixel((0, 0))[0])
    assert reds == {2: {0, 120}, 0: {40, 160}, 1: {80, 200}}  # dog, aquarium fish, cat


def test_other_classes_in_the_data_set(data_dir):
    with pytest.raises(InputError, match=r"other classes than the prompts \(bird, dog"):
        find(data_dir, keys=("aquarium fish", "cat", "bird"))


def test_a_data_set_without_labels(data_dir):
    with pytest.raises(InputError, match="tfds:unlabelled/test has no labels"):
        find(data_dir, tfds_name="unlabelled/test")


def test_neither_says_both(tmp_path):
    with pytest.raises(InputError, match=r"none of the folders pets/val .*example\.org") as caught:
        find(tmp_path, tfds_name="absent_set/test")
    assert "tfds build absent_set" in str(caught.value)


def test_tensorflow_is_not_imported(data_dir):
    program = f"""
import sys
from pathlib import Path
from evals.images import DataRoots
from evals.benchmarks.zeroshot import find_labelled
roots = DataRoots((Path({str(data_dir)!r}),))
items = find_labelled(roots, (), "pets/test", {KEYS!r}, "")[1]
items[0].image.open(roots)
print([name for name in ("tensorflow", "torch") if name in sys.modules], len(items))
"""
    # A stand-in that can be imported: without TensorFlow here, its absence would prove nothing.
    stand_in = data_dir / "path" / "tensorflow"
    stand_in.mkdir(parents=True)
    (stand_in / "__init__.py").write_text("")
    program = f"import sys; sys.path.insert(0, {str(stand_in.parent)!r})\n{program}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert done.stdout.strip().endswith("[] 6"), done.stdout + done.stderr
