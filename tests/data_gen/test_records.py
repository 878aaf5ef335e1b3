"""Tables: every field comes back, a wrong one is refused, and a failure leaves the former file."""

import pyarrow.parquet as pq
import pytest

from data_gen.records import SCHEMAS, read_table, write_table
from negclip_jax.common.errors import InputError

PAIR = {
    "pair_id": "1",
    "foils": ["a", "b"],
    "accepted": True,
    "reasons": [],
    "keys": {"propose": "x", "verify": None, "rewrite": "y"},
    "p_no": 0.5,
}


def test_rows_come_back_with_nulls_for_what_they_lack(tmp_path):
    write_table(tmp_path / "pairs" / "part-00000.parquet", "pairs", [PAIR, {"pair_id": "2"}])
    first, second = read_table(tmp_path, "pairs").to_pylist()
    assert {key: first[key] for key in PAIR} == PAIR
    assert second["foils"] is None and set(second) == set(SCHEMAS["pairs"].names)
    assert read_table(tmp_path, "pairs", ["pair_id"]).to_pylist()[1] == {"pair_id": "2"}


def test_nothing_there_is_an_empty_table(tmp_path):
    assert read_table(tmp_path, "verdicts").num_rows == 0
    assert read_table(tmp_path, "verdicts").schema == SCHEMAS["verdicts"]


def test_unknown_columns_are_refused(tmp_path):
    with pytest.raises(KeyError, match="objct"):
        write_table(tmp_path / "x.parquet", "pairs", [{"objct": "dog"}])


def test_a_damaged_part_is_a_sentence(tmp_path):
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "part-00000.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(InputError, match="the answers are in the cache"):
        read_table(tmp_path, "pairs")


def test_a_failure_leaves_the_former_table(tmp_path):
    path = tmp_path / "pairs" / "part-00000.parquet"
    write_table(path, "pairs", [PAIR])
    former = path.read_bytes()
    with pytest.raises(KeyError):
        write_table(path, "pairs", [PAIR, {"objct": "dog"}])
    assert path.read_bytes() == former and list(path.parent.iterdir()) == [path]


def test_files_say_nothing_of_when_and_by_what_they_were_written(tmp_path):
    for name in ("a", "b"):
        write_table(tmp_path / name, "pairs", [PAIR])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert not pq.read_metadata(tmp_path / "a").metadata
