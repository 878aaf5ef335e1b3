"""Lines that survive a kill, and lines that did not."""

import json

from negclip_jax.common.storage import Journal


def test_rows_come_back_in_order(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    journal = Journal(path)
    assert journal.rows == [] and not path.parent.exists()
    for i in range(3):
        journal.append({"i": i, "text": "a “quoted” line\nwith a break"})
    assert Journal(path).rows == journal.rows
    assert [row["i"] for row in journal.rows] == [0, 1, 2]
    assert len(path.read_text().splitlines()) == 3


def test_a_line_cut_short_is_forgotten_and_the_next_one_is_whole(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"i": 0}\n{"i": 1, "te')
    journal = Journal(path)
    assert journal.rows == [{"i": 0}]
    journal.append({"i": 1})
    assert [json.loads(line)["i"] for line in path.read_text().splitlines()] == [0, 1]


def test_damaged_lines_are_left_out_and_told(tmp_path, caplog):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"i": 0}\n\xff\xfe\n[1]\n{"i": 3}\n')
    assert [row["i"] for row in Journal(path).rows] == [0, 3]
    assert "2 damaged lines" in caplog.text


def test_half_a_surrogate_pair_is_written_as_a_question_mark(tmp_path):
    path = tmp_path / "rows.jsonl"
    Journal(path).append({"answer": "yes\ud83d"})
    assert Journal(path).rows == [{"answer": "yes?"}]
