"""The forms of COCO's and Flickr30k's splits, all to the same photos and captions; bad files."""

import json

import pytest
from tiny_evals import karpathy_content, write_json

from evals.captions import read_captions
from negclip_jax.common.errors import InputError

EXPECTED = [
    ("COCO_val2014_000000000001.jpg", ("Thing 1, view 0.", "Thing 1, view 1.", "Thing 1, view 2.")),
    ("COCO_val2014_000000000002.jpg", ("Thing 2, view 0.", "Thing 2, view 1.")),
    ("COCO_val2014_000000000003.jpg", ("Thing 3, view 0.", "Thing 3, view 1.", "Thing 3, view 2.")),
]


def plain(records):
    return [(r.image.path.rpartition("/")[2], r.captions) for r in records]


def karpathy(folder):
    return write_json(folder / "dataset_coco.json", karpathy_content(4))


def blip(folder):
    content = [{"image": f"val2014/{name}", "caption": list(texts)} for name, texts in EXPECTED]
    return write_json(folder / "coco_karpathy_test.json", content)


def coco(folder):
    images = [{"id": 7 + i, "file_name": name} for i, (name, _) in enumerate(EXPECTED)]
    annotations = [
        {"id": 9, "image_id": 7 + i, "caption": text}
        for i, (_, texts) in enumerate(EXPECTED)
        for text in texts
    ]
    content = {"images": images, "annotations": annotations}
    return write_json(folder / "coco_test_karpathy.json", content)


def lines(folder):
    path = folder / "flickr30k_test_karpathy.txt"
    rows = [f"{name},{text}" for name, texts in EXPECTED for text in texts]
    path.write_text("\n".join(["image,caption", *rows, ""]))
    return path


@pytest.mark.parametrize("form", [karpathy, blip, coco, lines])
def test_all_forms_say_the_same(tmp_path, form):
    assert plain(read_captions(form(tmp_path), "test")) == EXPECTED


def test_only_the_split_is_taken(tmp_path):
    """COCO's images of the training part are not in the test split; restval is neither."""
    assert len(read_captions(karpathy(tmp_path), "train")) == 1
    with pytest.raises(InputError, match=r"has no photo of the split 'val'"):
        read_captions(karpathy(tmp_path), "val")


def test_lines_of_another_system(tmp_path):
    path = tmp_path / "flickr30k_test_karpathy.txt"
    path.write_text("image,caption\r\na.jpg,one\u2028two\r\n", newline="")
    assert plain(read_captions(path, "test")) == [("a.jpg", ("one\u2028two",))]


def test_captions_stay_raw(tmp_path):
    text = '  A "Big" dog,  caf\u00e9!'
    content = [{"image": "a.jpg", "caption": [text]}]
    path = write_json(tmp_path / "flickr30k_test.json", content)
    assert plain(read_captions(path, "test")) == [("a.jpg", (text,))]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([{"image": "a.jpg", "caption": "one text"}], '"caption" is not a Python list'),
        ([{"image": "a.jpg", "caption": []}], '"caption" is not a list of strings'),
        ([{"caption": ["x"]}], '"image" is missing'),
        ([{"image": "a.jpg", "caption": ["x"]}] * 2, "an id occurs twice (1): a.jpg"),
        ({"images": [{"id": 1, "file_name": "a.jpg"}],
          "annotations": [{"image_id": 2, "caption": "x"}]}, "a photo has no caption"),
        ({"images": [{"split": "test", "filename": "a.jpg", "sentences": []}]},
         '"sentences" is not a list'),
        ({"images": [{"split": "test", "filename": "a.jpg", "sentences": [{"tokens": []}]}]},
         '"raw" is missing (1): images[0].sentences[0]'),
        ({"info": "other"}, '"images" is missing'),
    ],
)  # fmt: skip
def test_bad_files(tmp_path, content, expected):
    path = write_json(tmp_path / "coco_karpathy_test.json", content)
    with pytest.raises(InputError) as caught:
        read_captions(path, "test")
    assert expected in str(caught.value) and str(path) in str(caught.value)


def test_bad_lines(tmp_path):
    path = lines(tmp_path)
    path.write_text(path.read_text() + "no comma here\n")
    with pytest.raises(InputError, match=r'a line is not "image\.jpg,caption" \(1\): line 10'):
        read_captions(path, "test")


def test_real_captions(shared_data):
    path = shared_data / "coco" / "captions.json"
    count = len(json.loads(path.read_text())["annotations"])
    records = read_captions(path, "test")
    assert sum(len(record.captions) for record in records) == count > 1000
