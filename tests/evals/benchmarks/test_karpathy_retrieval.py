"""COCO and Flickr30k retrieval: their files in all forms, the test split alone."""

import json

import pytest
from tiny_evals import AllThere, features, karpathy_content, numbers, write_json

from evals import registry
from evals.benchmarks.karpathy_retrieval import read_captions
from negclip_jax.common.errors import InputError

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
    first, second = (
        registry.get("coco_retrieval").load(AllThere((tmp_path / name,))) for name in "ab"
    )
    assert list(first.images) == list(second.images) and len(first.images) == 6
    assert numbers(first.score(*features(first))) == numbers(second.score(*features(second)))


def test_karpathys_own_file_comes_first(tmp_path):
    write_json(tmp_path / "coco_karpathy_test.json", BLIP)
    assert registry.get("coco_retrieval").load(AllThere((tmp_path,))).total == 14
    write_json(tmp_path / "deeper" / "dataset_coco.json", karpathy_content(4))
    problem = registry.get("coco_retrieval").load(AllThere((tmp_path,)))
    assert problem.file.endswith("dataset_coco.json") and problem.total == 8


def test_published_values():
    values = {(p.model, p.metric): p.value for p in registry.get("coco_retrieval").published}
    assert values["CLIP ViT-B/32", "t2i_recall@5"] == pytest.approx(0.5585)
    assert values["CLIP ViT-L/14", "i2t_recall@5"] == pytest.approx(0.7918)


def test_both_directions_are_shown(tmp_path):
    write_json(tmp_path / "coco_karpathy_test.json", BLIP)
    problem = registry.get("coco_retrieval").load(AllThere((tmp_path,)))
    metrics = problem.score(*features(problem)).metrics
    assert [m.name for m in metrics if m.headline] == ["t2i_recall@5", "i2t_recall@5"]
    assert "7 images and 14 captions." in problem.notes


def flickr_karpathy(folder):
    content = karpathy_content(8)
    for i, image in enumerate(content["images"]):
        del image["filepath"], image["cocoid"]  # Flickr30k's has neither
        image["filename"] = f"{i}.jpg"
    write_json(folder / "dataset_flickr30k.json", content)
    return content


def flickr_blip(folder):
    content = [
        {
            "image": f"flickr30k-images/{i['filename']}",
            "caption": [s["raw"] for s in i["sentences"]],
        }
        for i in flickr_karpathy(folder)["images"]
        if i["split"] == "test"
    ]
    (folder / "dataset_flickr30k.json").unlink()
    write_json(folder / "flickr30k_test.json", content)


def flickr_lines(folder):
    rows = ["image,caption"]
    for image in flickr_karpathy(folder)["images"]:
        if image["split"] == "test":
            rows += [f"{image['filename']},{s['raw']}" for s in image["sentences"]]
    (folder / "dataset_flickr30k.json").unlink()
    (folder / "flickr30k_test_karpathy.txt").write_text("\n".join(rows))


@pytest.mark.parametrize("write", [flickr_karpathy, flickr_blip, flickr_lines])
def test_each_form_of_flickr30k(tmp_path, write):
    write(tmp_path)
    problem = registry.get("flickr30k_retrieval").load(AllThere((tmp_path,)))
    assert [ref.path.rpartition("/")[2] for ref in problem.images] == [
        f"{i}.jpg" for i in (1, 2, 3, 5, 6, 7)
    ]
    assert problem.total == 16 and "Thing 7, view 2." in problem.texts
    assert numbers(problem.score(*features(problem))).keys() >= {"t2i_recall@5", "i2t_recall@5"}


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
