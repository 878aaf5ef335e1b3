"""Parts of a run: when one is done, and what a damaged mark costs."""

import json

from data_gen import shards
from data_gen.records import SCHEMAS, read_table
from data_gen.work import Caption, ImageItem, Rows

IMAGES = [ImageItem(str(i), f"{i}.jpg", (Caption(str(i), "a man"),)) for i in range(5)]


def rows(image: ImageItem) -> Rows:
    return Rows(items=[{"image_id": image.image_id, "caption": image.captions[0].text}])


def write_all(run, settings="s", images=IMAGES):
    cut = shards.cut(images, 2, settings)
    for shard in cut:
        shards.write(run, shard, [rows(image) for image in shard.images])
    return cut


def test_a_written_shard_is_done_and_its_counts_are_in_the_mark(tmp_path):
    cut = write_all(tmp_path)
    assert [len(shard.images) for shard in cut] == [2, 2, 1]
    assert all(shards.is_done(tmp_path, shard) for shard in cut)
    assert [mark["rows"]["items"] for mark in shards.read_marks(tmp_path)] == [2, 2, 1]
    table = read_table(tmp_path, "items")
    assert table.column("image_id").to_pylist() == ["0", "1", "2", "3", "4"]
    assert table.schema == SCHEMAS["items"]


def test_other_settings_or_other_images_make_it_again(tmp_path):
    write_all(tmp_path)
    assert not any(shards.is_done(tmp_path, s) for s in shards.cut(IMAGES, 2, "other"))
    assert [shards.is_done(tmp_path, s) for s in shards.cut(IMAGES[:3], 2, "s")] == [True, False]


def test_a_missing_table_or_a_damaged_mark_is_not_done(tmp_path):
    first, second, third = write_all(tmp_path)
    (tmp_path / "pairs" / first.name).unlink()
    shards.mark_path(tmp_path, second).write_text("{")
    shards.mark_path(tmp_path, third).write_text("[]")
    assert not any(shards.is_done(tmp_path, s) for s in (first, second, third))
    assert len(shards.read_marks(tmp_path)) == 1  # what cannot be read, or is no mark, is none


def test_the_parts_of_a_longer_run_are_removed(tmp_path):
    write_all(tmp_path)
    (tmp_path / "rejects" / "part-ingest.parquet").write_bytes(b"kept")
    shards.remove_others(tmp_path, shards.cut(IMAGES[:2], 2, "s"))
    assert [p.name for p in (tmp_path / "items").iterdir()] == ["part-00000.parquet"]
    assert (tmp_path / "rejects" / "part-ingest.parquet").exists()


def test_equal_rows_are_equal_bytes(tmp_path):
    write_all(tmp_path / "a")
    write_all(tmp_path / "b")
    for path in (tmp_path / "a").rglob("*.parquet"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    marks = [json.loads(p.read_text()) for p in sorted((tmp_path / "a" / "done").iterdir())]
    assert all(len(mark["sha256"]) == len(SCHEMAS) for mark in marks)
