"""Photos of a folder in ArrayRecord and Parquet files, in the shapes that others write."""

from pathlib import Path


def write_records(images: Path, folder: Path, files: int = 2) -> tuple[str, dict[str, str]]:
    """Files of encoded images; returns their pattern and each image's name there."""
    from array_record.python.array_record_module import ArrayRecordWriter

    names = sorted(path.name for path in images.iterdir())
    size, called = len(names) // files, {}
    for i in range(files):
        part = names[i * size : (i + 1) * size if i < files - 1 else None]
        writer = ArrayRecordWriter(str(folder / f"a-{i}.array_record"), "group_size:1")
        for row, name in enumerate(part):
            writer.write((images / name).read_bytes())
            called[name] = f"a-{i}.array_record/{row}"
        writer.close()
    return str(folder / "a-*.array_record"), called


def write_parquet(images: Path, folder: Path, *, rows: int = 7, paths: bool = True) -> str:
    """Two files as `datasets` writes them (`push_to_hub`), row groups of `rows`: their pattern."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema({"image": kind, "caption": pa.string()})
    schema = schema.with_metadata({"huggingface": '{"info": {"features": {"image": "Image"}}}'})
    names = sorted(path.name for path in images.iterdir())
    half = len(names) // 2
    for i, part in enumerate((names[:half], names[half:])):
        column = [
            {"bytes": (images / name).read_bytes(), "path": name if paths else None}
            for name in part
        ]
        table = pa.table({"image": column, "caption": part}, schema)
        pq.write_table(table, folder / f"train-{i:05d}-of-00002.parquet", row_group_size=rows)
    return str(folder / "train-*.parquet")
