"""Files as they are published: what is read, and one line for everything wrong."""

import json

import pytest
from tiny_evals import AllThere, write_photos

from evals.images import DataRoots, FileMissing, ImageRef
from evals.reading import Fields, read_csv, read_json, read_json_lines, read_parts
from negclip_jax.common.errors import InputError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.json"


def message(action, *rest) -> str:
    with pytest.raises(InputError) as caught:
        action(*rest)
    return str(caught.value)


def test_parts_that_are_there(tmp_path):
    names = {"one": ("one.json", "x_one.json"), "two": ("two.json",)}
    (tmp_path / "x_one.json").write_text("[1]")

    def read(folder):
        return read_parts(
            DataRoots((folder,)),
            names,
            "example.org",
            "part",
            lambda file: enumerate(read_json(file, list)),
            lambda fields, where, record, part: (part, where, record),
        )

    first = [("one", "0", 1)]
    found = (tmp_path, first, ["Parts whose file is not there or empty: two."])
    assert read(tmp_path) == found
    (tmp_path / "two.json").write_text("[ ]\n")
    assert read(tmp_path) == found
    (tmp_path / "two.json").write_text("[2]")
    assert read(tmp_path) == (tmp_path, [*first, ("two", "0", 2)], [])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileMissing, match=r"one\.json or two\.json is not below .* example\.org"):
        read(empty)


def test_json(path):
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": "caf\u00e9"}).encode())
    assert read_json(path, dict) == read_json(path, (dict, list)) == {"a": "caf\u00e9"}


@pytest.mark.parametrize(
    ("content", "kind", "expected"),
    [
        (b'{"a": 1', dict, "is not valid JSON at line 1 column 8"),
        (b"[]", list, "holds no items"),
        (b"[1]", dict, "holds a value of type list, not a JSON object"),
        (b"3", (list, dict), "holds a value of type int, not a JSON list or object"),
        (b'{"x": {"a": 1, "a": 2}}', dict, "the key 'a' occurs twice"),
        (b'"\xff"', list, "is not UTF-8 text: byte 1"),
        (b"[" * 100_000, list, "is nested too deeply"),
    ],
)
def test_bad_json(path, content, kind, expected):
    path.write_bytes(content)
    found = message(read_json, path, kind)
    assert expected in found and str(path) in found


def test_a_file_that_cannot_be_read(tmp_path):
    assert "cannot be read" in message(read_json, tmp_path, dict)


def test_json_lines(path):
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert read_json_lines(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n\n{"a": }\n')
    assert "line 3 is not valid JSON at line 1 column 7" in message(read_json_lines, path)
    path.write_text("\n")
    assert "holds no items" in message(read_json_lines, path)


def test_csv(path):
    path.write_text('b,a\n"x, ""y""\nz",2\n')
    assert read_csv(path, ("a", "b")) == [{"b": 'x, "y"\nz', "a": "2"}]
    path.write_text("b;a\n1;2\n")
    assert "has no column a, b; its columns are b;a" in message(read_csv, path, ("a", "b"))
    path.write_text("a,b\n")
    assert "holds no items" in message(read_csv, path, ("a", "b"))
    path.write_text("")
    assert "has no column a" in message(read_csv, path, ("a",))


def test_line_ends_inside_captions(tmp_path):
    """U+2028 and form feeds end no record, in any of the layouts."""
    odd = "a\u2028b\x0cc\x85d"
    path = tmp_path / "f.csv"
    path.write_text(f"a,b\r\n{odd},2\r\n", newline="")
    assert read_csv(path, ("a", "b")) == [{"a": odd, "b": "2"}]
    path.write_text(json.dumps({"a": odd}, ensure_ascii=False) + "\r\n{}\n", newline="")
    assert read_json_lines(path)[0] == {"a": odd}


def test_a_file_that_is_no_csv(path):
    path.write_text("a,b\n1,2\n" + '"' + "x" * (1 << 24) + "x")  # a quote that never closes
    assert "is not CSV after line 2: field larger than" in message(read_csv, path, ("a",))


def test_a_row_that_is_cut_short(path):
    path.write_text("a,b\n1\n")
    fields = Fields(path)
    (row,) = read_csv(path, ("a", "b"))
    assert fields.text(row, "b", "row 0") == ""
    assert '"b" is missing (1): row 0' in message(fields.done)


def test_fields_of_a_good_record(path):
    fields = Fields(path)
    record = {"t": " a ", "l": ["x"], "p": "['it\\'s', \"b\"]", "n": "2.5", "o": "yes"}
    assert fields.text(record, "t", "") == " a "
    assert fields.texts(record, "l", "") == ["x"]
    assert fields.texts(record, "p", "") == ["it's", "b"]
    assert fields.number(record, "n", "") == 2.5
    assert fields.option(record, "o", "", ("yes", "no")) == "yes"
    assert fields.box([0, "1.5", 2, 3], "") == (0, 1.5, 2, 3)
    assert fields.sequence({"s": [1]}, "s", "") == [1]
    fields.done()


@pytest.mark.parametrize(
    ("written", "texts"),
    [
        ("['a cat' 'a dog']", ["a cat", "a dog"]),
        ("['a cat'\n 'a dog'\n \"it's\"]", ["a cat", "a dog", "it's"]),
        ("['a cat''a dog']", ["a cat", "a dog"]),
        ("['a cat', 'a dog']", ["a cat", "a dog"]),
        ("['says \\'\\' twice', \"\"\"'' x\"\"\"]", ["says '' twice", "'' x"]),
        ("['one']", ["one"]),
    ],
)
def test_lists_as_numpy_prints_them(path, written, texts):
    fields = Fields(path)
    assert fields.texts({"captions": written}, "captions", "row 0") == texts
    fields.done()


@pytest.mark.parametrize(
    "written",
    [
        "['a cat' 'a dog', 'a cow']",  # which of the two was meant?
        "['a cat' 'a dog' ... 'a cow']",
        "['a cat', ..., 'a cow']",
        "['a cat', nan]",
        "['a cat', 'a d...",
        "a cat;a dog",
        "array(['a cat', 'a dog'], dtype=object)",
    ],
)
def test_lists_that_cannot_be_read_name_their_row(path, written):
    fields = Fields(path)
    assert fields.texts({"captions": written}, "captions", "row 7") == []
    assert '"captions" is not a' in message(fields.done) and "row 7" in message(fields.done)


@pytest.mark.parametrize("cell", ["nan", "NaN", "<NA>", "None"])
def test_what_pandas_writes_for_an_empty_cell_is_no_text(path, cell):
    path.write_text(f"caption,other\nA nan bread.,{cell}\n{cell},x\n")
    first, second = read_csv(path, ("caption",))
    assert (first["caption"], first["other"], second["caption"]) == ("A nan bread.", cell, None)


def test_cells_that_were_cut_and_rows_that_were_split_are_named(path):
    cut = "A man is standing beside a horse on a field wi..."
    assert len(cut) == 49
    path.write_text(f"caption\n{cut}\n{'x' + cut}\n")
    assert '"caption" was cut with "..." when the file was written (1): row 1' in message(
        read_csv, path, ("caption",)
    )
    path.write_text("caption,answer\nA cat, a dog,1\n")
    assert "more cells than columns (1): row 0" in message(read_csv, path, ("caption",))


@pytest.mark.parametrize("text", ["['a cat' 'a dog']", "a cat;a dog", "a cat|a dog"])
def test_a_caption_that_is_a_list_is_named(path, text):
    fields = Fields(path)
    fields.caption({"c": text}, "c", "row 3")
    assert '"c" holds several texts (1): row 3' in message(fields.done)
    assert fields.caption({"c": "A cat; no dog | here"}, "c", "row 4") == "A cat; no dog | here"


@pytest.mark.parametrize(
    "number", [None, "", "x", True, [1], float("nan"), float("inf"), "nan", "-inf"]
)
def test_what_is_no_number(path, number):
    fields = Fields(path)
    assert fields.number({"n": number}, "n", "item 0") != 0
    assert '"n" is' in message(fields.done)


@pytest.mark.parametrize("box", [None, 3, [1, 2, 3], [1, 2, 3, 4, 5], [0, 0, float("nan"), 1]])
def test_what_is_no_box(path, box):
    fields = Fields(path)
    fields.box(box, "item 0")
    assert "a box is not four numbers x, y, width, height (1): item 0" in message(fields.done)


def test_all_problems_come_at_once_and_not_too_many(path):
    fields = Fields(path)
    for i in range(8):
        fields.text({"a": ""}, "a", f"item {i}")
    fields.option({}, "b", "item 9", ("x",))
    found = message(fields.done)
    assert f"{path} has 9 problems" in found and "nothing was scored" in found
    assert '"a" is empty (8): item 0, item 1, item 2, item 3, item 4 and 3 more' in found
    assert '"b" is missing (1): item 9' in found


def test_ids_that_occur_twice(path):
    fields = Fields(path)
    for where, name in enumerate(["a", "b", "a", "", ""]):
        fields.unique(name, f"row {where}")
    assert "an id occurs twice (1): a in row 0 and row 2" in message(fields.done)


BOXES = [(0, 0, 64, 48), (-1, 0, 64, 48.9), (0.5, 0, 65, 48), (0, -2, 5, 5), (60, 40, 5, 10)]


@pytest.mark.parametrize(
    ("box", "inside"), zip(BOXES, (True, True, False, False, False), strict=True)
)
def test_boxes_and_photos(tmp_path, path, box, inside):
    write_photos(tmp_path, ["a.jpg"])
    fields = Fields(path)
    assert fields.check_boxes(DataRoots((tmp_path,)), [(ImageRef("a.jpg", box), "item 0")]) == []
    if inside:
        fields.done()
    else:
        assert "a box lies outside its photo (1): item 0" in message(fields.done)


def test_a_missing_photo_is_no_problem_of_its_box(tmp_path, path):
    fields = Fields(path)
    ref = ImageRef("absent.jpg", (0, 0, 5000, 5000))
    assert fields.check_boxes(DataRoots((tmp_path,)), [(ref, "item 0")]) == []
    fields.done()


def test_tolerated_boxes_are_told(tmp_path, path):
    fields = Fields(path)
    roots = AllThere((tmp_path,))
    refs = [ImageRef(f"{i}.jpg", (0, 0, 5, 5 if i else 99_999)) for i in range(10)]
    boxes = [(ref, f"item {i}") for i, ref in enumerate(refs)]
    assert fields.check_boxes(roots, boxes, 0.1) == ["1 of 10 boxes reach out of their photo."]
    fields.done()
    fields.check_boxes(roots, boxes, 0.09)
    assert "outside" in message(fields.done)


def test_boxes_of_a_photo_that_cannot_be_read_are_left_to_its_encoding(tmp_path):
    """A damaged photo does not stop the reading of its benchmark, nor of the others."""
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    write_photos(tmp_path, ["good.png"])
    fields, box = Fields(tmp_path / "f.json"), (0.0, 0.0, 9e3, 9e3)
    boxes = [(ImageRef(name, box), name) for name in ("bad.jpg", "good.png", "gone.png")]
    assert fields.check_boxes(DataRoots((tmp_path,)), boxes) == []
    assert "outside its photo (1): good.png" in message(fields.done)
