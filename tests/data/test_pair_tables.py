"""Parquet of strangers: what a file unpacks to is bounded by what it is."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import child

from negclip_jax.data import pair_tables
from negclip_jax.data.pairs import read_pairs
from negclip_jax.data.records import PairError


def written(path, **columns):
    pq.write_table(pa.table(columns), path, compression="zstd")
    return path


def error(path) -> str:
    with pytest.raises(PairError) as caught:
        read_pairs(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_rows_of_the_columns_that_pairs_have(tmp_path):
    path = written(tmp_path / "a.parquet", image=["a"], caption=["x"], other=[3], foil=["y"])
    assert list(pair_tables.rows(pair_tables.Table.of(path))) == [
        {"image": "a", "caption": "x", "foil": "y"}
    ]


def test_a_million_rows_in_a_few_bytes(tmp_path):
    n = 3 * 2**20
    text = pa.DictionaryArray.from_arrays(pa.array([0] * n, pa.int8()), pa.array(["x"]))
    path = written(tmp_path / "bomb.parquet", image=text, caption=text, negated=text)
    assert path.stat().st_size < 100_000
    assert "says that it holds 3,145,728 rows" in error(path)


def test_a_value_that_unpacks_to_far_more_than_the_file(tmp_path):
    caption = "x" * (2**26 + 2**20)
    path = written(tmp_path / "bomb.parquet", image=["a"], caption=[caption], negated=["y"])
    assert path.stat().st_size < 100_000
    assert "unpacks to 68,1" in error(path)


def test_a_long_value_is_not_copied_a_thousand_times(tmp_path):
    long = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int16()), ["x" * (2**20 + 1)])
    path = written(tmp_path / "bomb.parquet", image=["a"] * 1000, caption=long, negated=long)
    assert "column 'caption' has 1,048,577 bytes" in error(path)
    listed = pa.array([["y" * (2**20 + 1)]])
    path = written(path, image=["a"], caption=["x"], negated=["x"], foils=listed)
    assert "column 'foils' has 1,048,577 bytes" in error(path)


_EACH_BYTE = """
content, refused = bytearray(path.read_bytes()), 0
for place in range(len(content) - footer, len(content) - 8):
    kept, content[place] = content[place], 0
    path.write_bytes(content)
    content[place] = kept
    try:
        read_pairs(path)
    except PairError:
        refused += 1
result = refused
"""


def test_damaged_metadata_does_not_end_the_process(tmp_path):
    """pyarrow 26 aborts where it is asked for the metadata of a damaged column."""
    columns = {name: [f"{name} {i}" for i in range(5)] for name in ("image", "caption", "negated")}
    path = written(tmp_path / "a.parquet", **columns, foils=[["x"]] * 5)
    footer = int.from_bytes(path.read_bytes()[-8:-4], "little") + 8
    setup = "from negclip_jax.data.pairs import read_pairs, PairError; from pathlib import Path"
    setup += f"\npath, footer = Path({str(path)!r}), {footer}"
    result, _, _ = child.measured(setup, _EACH_BYTE)
    assert 100 < result < footer


def test_metadata_of_pandas_and_extension_types_run_nothing(tmp_path):
    """pyarrow before 14.0.1 unpickled the extension type that a file's schema names."""
    import base64
    import pickle

    from hostile.evil import Evil

    payload = pickle.dumps(Evil(tmp_path / "ran"))
    names = {b"ARROW:extension:name": b"arrow.py_extension_type"}
    names[b"ARROW:extension:metadata"] = payload
    fields = [
        pa.field("image", pa.string()),
        pa.field("caption", pa.string(), metadata=names),
        pa.field("negated", pa.string()),
    ]
    pandas = {b"pandas": base64.b64encode(payload)}
    table = pa.table([["a"], ["x"], ["y"]], schema=pa.schema(fields, metadata=pandas))
    pq.write_table(table, tmp_path / "a.parquet")
    assert [pair.caption for pair in read_pairs(tmp_path / "a.parquet")] == ["x"]
    assert not (tmp_path / "ran").exists()
