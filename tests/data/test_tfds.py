"""The tensorflow-datasets source, on small data sets written without TensorFlow."""

import pickle
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from negclip_jax.common.decoding import ImageError
from negclip_jax.common.errors import InputError
from negclip_jax.data.records import Pair
from negclip_jax.data.tfds import TfdsImages, _records, read_tfds_pairs

tfds = pytest.importorskip("tensorflow_datasets")

CAPTIONS = {0: ["A cat.", "Caf\u00e9 \u201ccat\u201d."], 1: ["A bus.", " \n"], 2: []}


class CocoCaptions(tfds.core.GeneratorBasedBuilder):
    """COCO captions in little: same name, configuration and features as TFDS' own."""

    __module__ = "coco_captions"  # TFDS looks for data files beside modules of packages
    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS' interface)
        tfds.core.BuilderConfig(name="2014", version=tfds.core.Version("1.1.0"))
    ]
    features = {  # noqa: RUF012
        "image": tfds.features.Image(encoding_format="png"),
        "image/filename": tfds.features.Text(),
        "image/id": np.int64,
        "captions": tfds.features.Sequence({"text": np.str_, "id": np.int64}),
    }

    def _info(self):
        features = tfds.features.FeaturesDict(self.features)
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i, captions in CAPTIONS.items():
            buffer = BytesIO()
            Image.new("RGB", (6, 4), (i, 20, 30)).save(buffer, "png")
            buffer.seek(0)
            example = {"image": buffer, "image/filename": f"COCO_{i}.png", "image/id": i}
            example["captions"] = [{"text": t, "id": j} for j, t in enumerate(captions)]
            yield i, {key: example[key] for key in self.features}


class NoCaptions(CocoCaptions):
    __module__ = "no_captions"
    features = {k: v for k, v in CocoCaptions.features.items() if k != "captions"}  # noqa: RUF012


def prepared(builder: type, folder: Path) -> str:
    builder(data_dir=folder, file_format="array_record").download_and_prepare()
    return str(folder)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    return prepared(CocoCaptions, tmp_path_factory.mktemp("tfds"))


def test_pairs_are_the_affirmative_captions(data_dir, caplog):
    with caplog.at_level("INFO"):
        pairs = read_tfds_pairs("coco_captions", "train", data_dir)
    assert sorted(pairs, key=lambda p: (p.image, p.caption)) == [
        Pair("COCO_0.png", "A cat.", None, image_id="0"),
        Pair("COCO_0.png", "Caf\u00e9 \u201ccat\u201d.", None, image_id="0"),
        Pair("COCO_1.png", "A bus.", None, image_id="1"),
    ]
    assert "3 captions, 1 blank left out" in caplog.text


def test_images_by_name(data_dir):
    images = TfdsImages("coco_captions", "train", data_dir)
    for i in range(3):
        image = images.open(f"COCO_{i}.png")
        assert image.mode == "RGB" and image.size == (6, 4)
        assert image.getpixel((0, 0)) == (i, 20, 30)
    assert images.missing(["COCO_1.png", "x.png", "COCO_2.png", "x.png"]) == ["x.png"]
    with pytest.raises(ImageError, match=r"x\.png: there is no such image in tfds:coco_captions"):
        images.open("x.png")


def test_a_copy_in_another_process_does_not_list_again(data_dir):
    images = pickle.loads(pickle.dumps(TfdsImages("coco_captions", "train", data_dir)))
    _records.cache_clear()
    assert images.open("COCO_2.png").getpixel((0, 0)) == (2, 20, 30)
    assert images.missing(["COCO_1.png"]) == []
    assert _records.cache_info().misses == 0


def test_the_split_is_listed_once_and_no_image_decoded(data_dir, monkeypatch):
    _records.cache_clear()
    monkeypatch.setattr("negclip_jax.data.tfds.decode", lambda *_: pytest.fail("decoded"))
    read_tfds_pairs("coco_captions", "train", data_dir)
    TfdsImages("coco_captions", "train", data_dir).missing(["COCO_1.png"])
    assert (_records.cache_info().misses, _records.cache_info().hits) == (1, 1)


def test_damaged_image_is_named(data_dir, monkeypatch):
    images = TfdsImages("coco_captions", "train", data_dir)
    row = images._index()["COCO_1.png"]
    monkeypatch.setattr(images, "_source", {row: {"image": b"\x89PNG\r\n\x1a\n"}})
    with pytest.raises(ImageError, match=r"COCO_1\.png in tfds:coco_captions/train"):
        images.open("COCO_1.png")


def test_parts_of_a_split(data_dir):
    assert len(read_tfds_pairs("coco_captions:1.1.0", "train[:34%]", data_dir)) <= 2


def test_not_prepared_says_how(tmp_path):
    for source in (TfdsImages, read_tfds_pairs):
        with pytest.raises(
            InputError, match=r"tfds:coco_captions/train in .* is not prepared"
        ) as e:
            source("coco_captions", "train", str(tmp_path))
        assert "tfds build coco_captions --file_format=array_record" in str(e.value)
        assert "TFDS_DATA_DIR" in str(e.value)


def test_unknown_split_names_the_known(data_dir):
    with pytest.raises(InputError, match=r"Unknown split 'val'.*train"):
        TfdsImages("coco_captions", "val", data_dir)


def test_data_set_without_captions(tmp_path):
    with pytest.raises(InputError, match=r"tfds:no_captions/train in .* has no captions"):
        read_tfds_pairs("no_captions", "train", prepared(NoCaptions, tmp_path))


def test_format_without_random_access(data_dir, monkeypatch):
    from tensorflow_datasets.core import dataset_builder

    def refuse(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr(dataset_builder.DatasetBuilder, "as_data_source", refuse)
    with pytest.raises(InputError, match=r"without random access\. Convert it: `tfds convert"):
        TfdsImages("coco_captions", "train", data_dir)


def test_tensorflow_is_not_imported(data_dir):
    program = f"""
import sys
from negclip_jax.data.tfds import TfdsImages, read_tfds_pairs
assert "tensorflow_datasets" not in sys.modules  # imported when used
pairs = read_tfds_pairs("coco_captions", "train", {data_dir!r})
assert TfdsImages("coco_captions", "train", {data_dir!r}).open(pairs[0].image).mode == "RGB"
print([name for name in ("tensorflow", "jax", "torch") if name in sys.modules])
"""
    # A stand-in that can be imported: without TensorFlow here, its absence would prove nothing.
    stand_in = Path(data_dir) / "path" / "tensorflow"
    stand_in.mkdir(parents=True)
    (stand_in / "__init__.py").write_text("")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path.insert(0, {str(stand_in.parent)!r})\n{program}",
        ],
        capture_output=True,
        text=True,
        cwd=root,
        check=False,
    )
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr
