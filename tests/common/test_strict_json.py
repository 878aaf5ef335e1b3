"""Untrusted JSON: every oddity is an error, and no file takes more memory than is free."""

import contextlib
import io
import json
import os
import re

import pytest

from negclip_jax.common import strict_json
from negclip_jax.common.errors import InputError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' * 100_000, "nested too deeply"),
        ('[{"b": 1, "a": 1, "a": 2}]', "the key 'a' occurs twice"),
        ("[" + "9" * 5000 + "]", "4300 digits"),
        (b'["\xff"]', "utf-8"),
        (b"\xff\xfe[\x00]\x00", "utf-8"),
        ('["a\nb"]', "Invalid control character"),
        ("[1] []", "Extra data"),
        ("", "Expecting value"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        strict_json.loads(text)


def test_what_is_read():
    assert strict_json.loads(b'\xef\xbb\xbf{"caf\xc3\xa9": [1, 2.5, null]}') == {
        "caf\u00e9": [1, 2.5, None]
    }
    assert strict_json.loads('"\\ud800"') == "\ud800"  # for the readers to refuse, who know where


def test_what_is_just_not_too_deep_can_be_printed():
    accepted = 0
    for depth in range(500, 1000, 7):
        with contextlib.suppress(ValueError):
            assert len(repr(strict_json.loads("[" * depth + "]" * depth))) == 2 * depth
            accepted += 1
    assert 0 < accepted < 71


def test_a_file_and_its_errors(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    assert strict_json.load(path) == {"a": 1}
    with pytest.raises(FileNotFoundError):
        strict_json.load(tmp_path / "b.json")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="a device or a pipe"):
        strict_json.load(tmp_path / "pipe")
    with pytest.raises(ValueError, match="a device or a pipe"):
        strict_json.read(strict_json.Path("/dev/zero"))


MANY = {
    "objects": "{}",
    "lists": "[]",
    "strings": '"ab"',
    "numbers": "999",
    "records": '{"id": 1, "a": [1, 2.5], "b": "x"}',
}


@pytest.fixture
def memory(monkeypatch):
    """Function that sets the bytes that reading may take, of a file of any size."""
    monkeypatch.setattr(strict_json, "_SMALL", 64)
    return lambda n: monkeypatch.setattr(strict_json, "_free_memory", lambda: 2 * n)


@pytest.mark.parametrize("kind", MANY)
def test_a_file_is_weighed_before_it_is_parsed(kind, tmp_path, memory, monkeypatch):
    path = tmp_path / "many.json"
    path.write_text("[" + ",".join([MANY[kind]] * 50_000) + "]")
    needed = strict_json.memory_needed(path.read_bytes())
    memory(needed)
    assert len(strict_json.load(path)) == 50_000
    monkeypatch.setattr(json, "loads", None)  # it must not come to that
    with pytest.raises(ValueError, match=r"would need about 0\.0 GiB of memory, and 0\.0 GiB may"):
        memory(needed - 1)
        strict_json.load(path)


@pytest.mark.parametrize("kind", MANY)
def test_the_weight_is_no_underestimate(kind):
    import tracemalloc

    text = ("[" + ",".join([MANY[kind]] * 50_000) + "]").encode()
    tracemalloc.start()
    try:
        strict_json.loads(text)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak + len(text) <= strict_json.memory_needed(text)


def test_a_large_file_is_measured_against_the_free_memory(tmp_path, monkeypatch):
    path = tmp_path / "large.json"
    path.write_bytes(b"[" + b" " * 2**24 + b"]")
    assert strict_json.load(path) == []
    monkeypatch.setattr(strict_json, "_free_memory", lambda: 2**25)
    with pytest.raises(ValueError, match="GiB of memory"):
        strict_json.load(path)
    path.write_bytes(b"\0" * (2**24 + 1))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="does not begin like JSON"):
        strict_json.load(path)


def test_free_memory_where_the_system_does_not_say(monkeypatch, tmp_path):
    assert strict_json._free_memory() > 2**20
    monkeypatch.setattr(strict_json, "_MEMORY", tmp_path / "none")
    assert strict_json._free_memory() == 2**33


def test_lines_and_one_that_is_too_long():
    lines = strict_json.lines(io.BytesIO(b"a\n\nbc\n" + b"x" * 9), longest=8)
    assert [next(lines) for _ in range(3)] == [b"a\n", b"\n", b"bc\n"]
    with pytest.raises(ValueError, match="longer than 8 bytes"):
        next(lines)
    assert list(strict_json.lines(io.BytesIO(b"12345678"), longest=8)) == [b"12345678"]


class OurError(InputError):
    pass


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.json is empty: 0 bytes."),
        (b" \n ", "a.json is empty: it holds only white space."),
        (b'{"a": 1', "is not valid JSON at line 1 column 8 (character 7 of 7): Expecting ','"),
        (b'{"a": "b', "The file seems to be cut short: copy or write it again."),
        (b'{"a": 1,\n oops}', "is not valid JSON at line 2 column 2 (character 10 of 15)"),
        (b'{"a": "\xff"}', "is not UTF-8 text: byte 7 cannot be read."),
        (b'{"a": 1, "a": 2}', "cannot be read: the key 'a' occurs twice in an object."),
        (b"[" * 100_000, "cannot be read: it is nested too deeply."),
        (b"[1]", "holds a value of type list, not a JSON object."),
    ],
)
def test_every_surprise_of_a_file_is_one_error_of_the_class_asked_for(content, message, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(OurError, match=re.escape(message)) as caught:
        strict_json.read_json(path, dict, OurError)
    assert str(path) in str(caught.value)


def test_what_is_no_file_is_the_same_error(tmp_path):
    with pytest.raises(OurError, match=r"b\.json cannot be read: No such file"):
        strict_json.read_json(tmp_path / "b.json", dict, OurError)
    with pytest.raises(OurError, match="cannot be read: Is a directory"):
        strict_json.read_text(tmp_path, OurError)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OurError, match="pipe cannot be read: it is a device or a pipe"):
        strict_json.read_json(tmp_path / "pipe", dict, OurError)
    with pytest.raises(OurError, match="line 3 is not valid JSON"):
        strict_json.parse_json("{", "line 3", OurError)


def test_a_key_left_out_needs_no_memory_and_moves_no_position(tmp_path, memory):
    polygons = [[1.5, 2, 3e5, -4], [5, 6] * 20]
    rows = [{"id": i, "polygon": polygons, "b": '"polygon": [1]'} for i in range(100)]
    rows += [{"id": 100, "polygon": {"counts": [1, 2], "size": [3, 4]}}, {"polygon": []}]
    path = tmp_path / "a.json"
    for indent in (None, 1):
        path.write_text(json.dumps({"a": rows}, indent=indent))
        expected = [{k: v for k, v in row.items() if k != "polygon"} for row in rows]
        assert strict_json.read_json(path, without="polygon") == {"a": expected}
        assert strict_json.read_json(path) == {"a": rows}
        needed = strict_json.memory_needed(path.read_bytes())
        memory(needed * 2 // 3)
        assert strict_json.load(path, without="polygon")
        with pytest.raises(ValueError, match="of memory"):
            strict_json.load(path)
        memory(2**30)
    path.write_text('{"polygon": [[1,\n 2]],\n oops}')
    with pytest.raises(InputError, match="line 3 column 2"):
        strict_json.read_json(path, without="polygon")


def pieced(path, **options):
    """What `members` yields, put together again."""
    content = {}
    for key, is_element, value in strict_json.members(path, **options):
        content.setdefault(key, []).append(value) if is_element else content.update({key: value})
    return content


PIECED = '\ufeff { "a" : [1, {"b": [2, "\\"]"], "x": [[1.5]]}, "\u00e9\u72ac", [ ]], '
PIECED += '"n": 12345, "e": [ ] ,"t": "]"} '


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000])
def test_a_file_in_pieces_is_the_file(tmp_path, monkeypatch, piece):
    path = tmp_path / "a.json"
    path.write_bytes(PIECED.encode())
    monkeypatch.setattr(strict_json, "_PIECE", piece)
    assert pieced(path) == strict_json.load(path)
    assert pieced(path, without="x") == strict_json.load(path, without="x") != pieced(path)
    assert list(strict_json.elements(path, "a")) == strict_json.load(path)["a"]
    assert list(strict_json.elements(path, "e")) == []
    for keys in (["a", "n"], ["a", "none"]):
        with pytest.raises(strict_json.Irregular):
            list(strict_json.elements(path, *keys))


@pytest.mark.parametrize("end", range(len(PIECED.encode()) - 1))
def test_what_is_cut_is_not_read_in_pieces(tmp_path, end):
    (tmp_path / "a.json").write_bytes(PIECED.encode()[:end])
    with pytest.raises(strict_json.Irregular):
        pieced(tmp_path / "a.json")


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}{}", "{} x", '{"a": 1 "b": 2}', '{"a": 1,}', '{"a": [1,]}', '{"a": [1 2]}',
        '{"a": [,1]}', '{"a" 1}', "{a: 1}", '{"a": 1, "a": 1}', '{"a": [{"b": 1, "b": 1}]}',
        '{"a": [%s]}' % ("9" * 5000), '{"a": %s}' % ("[" * 100_000), '{"a": ["\x01"]}', "{,}",
    ],
)  # fmt: skip
def test_what_load_refuses_is_not_read_in_pieces(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(strict_json.Irregular):
        pieced(path)
    if text != "[]":
        with pytest.raises(ValueError):
            strict_json.load(path)


def test_what_follows_a_list_need_not_be_read(tmp_path):
    (tmp_path / "a.json").write_text('{"n": 0, "a": [1], "b": [2], "c": [3, ')
    found = strict_json.elements(tmp_path / "a.json", "a", "b", to_end=False)
    assert list(found) == [1, 2]
    with pytest.raises(strict_json.Irregular):
        list(strict_json.elements(tmp_path / "a.json", "a", "b"))


def test_no_device_no_other_bytes_and_no_endless_value_is_read_in_pieces(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin").write_bytes(b'{"a": ["\xff"]}')
    with (tmp_path / "long").open("wb") as file:
        file.write(b'{"a": ["')
        file.truncate(2**28)
    for name in ("pipe", "latin", "long", "none"):
        with pytest.raises(strict_json.Irregular):
            pieced(tmp_path / name)
