"""What counts as a photo of a folder, and what is never read."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_tars import write_photos

from evals.search.ranking import PhotoFolder, photos_of
from negclip_jax.common.errors import InputError


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    (root / "b" / "deep").mkdir(parents=True)
    (root / ".thumbnails").mkdir()
    for name in ("z.jpg", "b/deep/a.PNG", ".thumbnails/t.jpg", ".hidden.jpg", "b/note.txt"):
        Image.new("RGB", (8, 8)).save(root / name, "PNG")
    return root


def names(folder) -> list[str]:
    return [ref.path for ref in folder.refs]


def test_photos_at_any_depth_in_the_order_of_their_names(folder):
    found = PhotoFolder(folder)
    assert names(found) == ["b/deep/a.PNG", "z.jpg"] and not found.skipped
    assert found.refs[1].open(found).size == (8, 8)
    assert found.path(found.refs[1]) == folder / "z.jpg"


def test_photos_of_every_kind_are_listed_or_named(folder):
    for name in ("a.avif", "b.jfif", "c.JPE", "cafe\u0301.jpg", "d.heic", "e.TIFF"):
        (folder / name).write_bytes(b"")
    Image.new("RGB", (8, 8)).save(folder / "no_suffix", "PNG")
    (folder / "README").write_text("no photo")
    (folder / "f.CR2").touch()
    found = PhotoFolder(folder)
    kinds = ["a.avif", "b.jfif", "c.JPE", "cafe\u0301.jpg", "d.heic", "e.TIFF", "no_suffix"]
    assert names(found) == sorted([*kinds, "b/deep/a.PNG", "z.jpg"])
    assert found.skipped == {"f.CR2": "photos of the type .cr2 are not read"}


def test_links_out_of_the_folder_are_told_and_not_followed(folder, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.new("RGB", (8, 8)).save(outside / "secret.png")
    (folder / "link.png").symlink_to(outside / "secret.png")
    (folder / "album").symlink_to(outside)
    (folder / "again.jpg").symlink_to(folder / "z.jpg")
    (folder / "broken.jpg").symlink_to(folder / "nothing.jpg")
    os.mkfifo(folder / "pipe.jpg")
    found = PhotoFolder(folder)
    assert names(found) == ["again.jpg", "b/deep/a.PNG", "z.jpg"]
    assert found.skipped == {
        "album": "a link to a folder is not followed",
        "broken.jpg": "it is no file",
        "link.png": "a link leads out of the folder",
        "pipe.jpg": "it is no file",
    }


def test_an_identity_changes_with_the_file(folder):
    found = PhotoFolder(folder)
    before = found.identity("z.jpg")
    assert before == PhotoFolder(folder).identity("z.jpg")
    Image.new("RGB", (9, 9)).save(folder / "z.jpg")
    assert found.identity("z.jpg") != before
    assert found.read("z.jpg") == (folder / "z.jpg").read_bytes()


def test_folders_without_photos_have_messages(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty holds no photo \(looked for \.avif, "):
        PhotoFolder(tmp_path / "empty")
    (tmp_path / "empty" / "x.jpg").symlink_to(folder / "z.jpg")
    with pytest.raises(InputError, match=r"no photo that can be read; x\.jpg: a link leads out"):
        PhotoFolder(tmp_path / "empty")
    with pytest.raises(InputError, match="does not exist: give a folder"):
        PhotoFolder(tmp_path / "nothing")
    with pytest.raises(InputError, match="is not a folder"):
        PhotoFolder(folder / "z.jpg")


def test_photos_in_tars_and_parquet(folder, tmp_path):
    names = ["b/deep/a.PNG", "z.jpg"]
    write_photos(tmp_path / "t.tar", folder, names)
    found = photos_of(f"wds:{tmp_path}/t.tar")
    assert [ref.path for ref in found.refs] == [f"t.tar/{name}" for name in names] and names
    assert found.read(found.refs[0].path) == (folder / names[0]).read_bytes()
    url, link = found.shown(found.refs[0], tmp_path)
    assert url.startswith("data:image/jpeg") and not link
    table = pa.table({"image": [(folder / name).read_bytes() for name in names]})
    pq.write_table(table, tmp_path / "p.parquet")
    found = photos_of(f"parquet:{tmp_path}/p.parquet")
    assert [ref.path for ref in found.refs] == [f"p.parquet/{i}" for i in range(len(names))]
    assert found.open(found.refs[0].path).size == Image.open(folder / names[0]).size
    with pytest.raises(InputError, match="there is no"):
        photos_of(f"wds:{tmp_path}/none.tar")
