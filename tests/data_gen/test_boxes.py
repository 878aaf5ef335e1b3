"""Pairs from boxes: ids in every spelling, photos that the boxes do not know, no pair at all."""

import itertools
import json

import pytest
from fault_server import photo, table

from data_gen.cli import main

NAMES = ["dog", "cat", "car", "bench", "boat"]
PHOTOS = range(1, 13)


def shown(i: int) -> tuple[str, ...]:
    return tuple(NAMES[(i + k) % 5] for k in range(3))


_TURNS = itertools.count()
SPELLINGS = {
    "numbers": lambda i: i,
    "texts": str,
    "padded": lambda i: f"{i:012d}",
    "floats": float,
    "float texts": lambda i: f"{i}.0",
    "mixed": lambda i: (i, str(i), float(i), f"{i:06d}")[next(_TURNS) % 4],
}


def write(folder, spelled, *, captions="coco", captions_id=lambda i: i, known=PHOTOS, named=True):
    """`captions.*` and `instances.json`, whose photos are those of `known`."""
    name = {i: f"{i:04d}.jpg" for i in PHOTOS}
    text = "A quiet place in the afternoon."
    if captions == "coco":
        content = {
            "images": [{"id": captions_id(i), "file_name": name[i]} for i in PHOTOS],
            "annotations": [{"id": i, "image_id": captions_id(i), "caption": text} for i in PHOTOS],
        }
        (folder / "captions.json").write_text(json.dumps(content))
    else:
        rows = [{"image": name[i], "caption": text} for i in PHOTOS]
        (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    objects = [(i, obj) for i in known for obj in shown(i)]
    content = {
        "images": [
            {"id": spelled(i), "width": 640, "height": 480, "file_name": name[i] if named else None}
            for i in known
        ],
        "annotations": [
            {"id": k, "image_id": spelled(i), "category_id": 1 + NAMES.index(obj),
             "bbox": [9, 9, 200, 200], "area": 40000, "iscrowd": 0}
            for k, (i, obj) in enumerate(objects)
        ],
        "categories": [{"id": k, "name": obj} for k, obj in enumerate(NAMES, 1)],
    }  # fmt: skip
    (folder / "instances.json").write_text(json.dumps(content))
    (folder / "photos").mkdir()
    for i in PHOTOS:
        (folder / "photos" / name[i]).write_bytes(photo(i))
    return [
        "run",
        f"--captions={next(folder.glob('captions.*'))}",
        f"--instances={folder}/instances.json",
        f"--out={folder}/run",
    ]


def denied(folder) -> set[int]:
    """The photos that got a pair; none of which may deny what is there."""
    accepted = [row for row in table(folder / "run", "pairs") if row["accepted"]]
    for row in accepted:
        assert row["object"] not in shown(int(row["file_name"][:4])), row
    return {int(row["file_name"][:4]) for row in accepted}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("captions", ["coco", "coco texts", "jsonl"])
def test_ids_in_every_spelling_say_the_same(tmp_path, spelling, captions):
    own = str if captions == "coco texts" else lambda i: i
    command = write(tmp_path, SPELLINGS[spelling], captions=captions[:5].strip(), captions_id=own)
    photos = [f"--images={tmp_path}/photos"] if spelling in ("mixed", "padded") else []
    assert main([*command, *photos]) == 0
    assert denied(tmp_path) == set(PHOTOS)


def test_an_id_of_another_photo_is_not_believed(tmp_path):
    """Captions that were numbered anew: the id 1 is there another photo's."""
    assert main(write(tmp_path, lambda i: i, captions_id=lambda i: i % 12 + 1)) == 0
    assert denied(tmp_path) == set(PHOTOS)


@pytest.mark.parametrize("captions", ["coco", "jsonl"])
def test_photos_that_the_boxes_do_not_know_are_counted(tmp_path, capsys, captions):
    command = write(tmp_path, lambda i: i, captions=captions, known=range(1, 6))
    assert main(command) == 0
    assert "left out: not_annotated 7" in capsys.readouterr().out
    assert denied(tmp_path) == set(range(1, 6))
    assert main(["status", f"--out={tmp_path}/run"]) == 0
    assert f"unknown     7 photos are not in {tmp_path}/instances.json" in capsys.readouterr().out
    assert main(["report", f"--out={tmp_path}/run"]) == 0
    assert "not_annotated" in (tmp_path / "run" / "report.html").read_text()


def test_objects_of_a_file_about_unknown_photos_are_counted_too(tmp_path, capsys):
    command = write(tmp_path, lambda i: i, known=range(1, 6))
    (tmp_path / "o.json").write_text(json.dumps({str(i): ["dog", "cat", "car"] for i in PHOTOS}))
    assert main([*command, f"--objects={tmp_path}/o.json"]) == 0
    assert "left out: not_annotated 7" in capsys.readouterr().out


def test_a_run_without_a_pair_says_why(tmp_path, capsys):
    command = write(tmp_path, lambda i: 100 + i, captions="coco", named=False)
    assert main(command) == 3
    said = capsys.readouterr()
    assert "error: no pair was accepted (left out: not_annotated 12; candidates:" in said.err
    assert "next: python" not in said.out
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "0001.jpg").write_bytes(b"no photo")
    assert main([*command, f"--images={tmp_path}/photos"]) == 3
    assert "left out: image_missing 11, image_undecodable 1" in capsys.readouterr().err
