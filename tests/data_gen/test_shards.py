"""Parts of a run: when one is done, and what a damaged mark costs."""

import json

from data_gen import runner
from data_gen.records import SCHEMAS, Caption, ImageItem, Rows, read_table

IMAGES = [ImageItem(str(i), f"{i}.jpg", (Caption(str(i), "a man"),)) for i in range(5)]


def rows(image: ImageItem) -> Rows:
    return Rows(items=[{"image_id": image.image_id, "caption": image.captions[0].text}])


def write_all(run, settings="s", images=IMAGES):
    cut = runner.cut(images, 2, settings)
    for shard in cut:
        shard.write(run, [rows(image) for image in shard.images])
    return cut


def test_a_written_shard_is_done_and_its_counts_are_in_the_mark(tmp_path):
    cut = write_all(tmp_path)
    assert [len(shard.images) for shard in cut] == [2, 2, 1]
    assert all(shard.is_done(tmp_path) for shard in cut)
    assert [mark["rows"]["items"] for mark in runner.read_marks(tmp_path)] == [2, 2, 1]
    table = read_table(tmp_path, "items")
    assert table.column("image_id").to_pylist() == ["0", "1", "2", "3", "4"]
    assert table.schema == SCHEMAS["items"]


def test_other_settings_or_other_images_make_it_again(tmp_path):
    write_all(tmp_path)
    assert not any(s.is_done(tmp_path) for s in runner.cut(IMAGES, 2, "other"))
    assert [s.is_done(tmp_path) for s in runner.cut(IMAGES[:3], 2, "s")] == [True, False]


def test_a_missing_table_or_a_damaged_mark_is_not_done(tmp_path):
    first, second, third = write_all(tmp_path)
    (tmp_path / "pairs" / first.name).unlink()
    second.mark(tmp_path).write_text("{")
    third.mark(tmp_path).write_text("[]")
    assert not any(s.is_done(tmp_path) for s in (first, second, third))
    assert len(runner.read_marks(tmp_path)) == 1  # what cannot be read, or is no mark, is none


def test_the_parts_of_a_longer_run_are_removed(tmp_path):
    write_all(tmp_path)
    (tmp_path / "rejects" / "part-ingest.parquet").write_bytes(b"kept")
    runner.remove_others(tmp_path, runner.cut(IMAGES[:2], 2, "s"))
    assert [p.name for p in (tmp_path / "items").iterdir()] == ["part-00000.parquet"]
    assert (tmp_path / "rejects" / "part-ingest.parquet").exists()


def test_equal_rows_are_equal_bytes(tmp_path):
    write_all(tmp_path / "a")
    write_all(tmp_path / "b")
    for path in (tmp_path / "a").rglob("*.parquet"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    marks = [json.loads(p.read_text()) for p in sorted((tmp_path / "a" / "done").iterdir())]
    assert all(len(mark["sha256"]) == len(SCHEMAS) for mark in marks)


def test_a_shard_of_a_version_without_labels_stays_done(tmp_path):
    first, *_ = write_all(tmp_path)
    mark = json.loads(first.mark(tmp_path).read_text())
    del mark["sha256"]["labels"]
    first.mark(tmp_path).write_text(json.dumps(mark))
    (tmp_path / "labels" / first.name).unlink()
    assert first.is_done(tmp_path)
