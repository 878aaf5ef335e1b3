"""Pairs: every layout in and out, every bad file with a sentence, splits that do not leak."""

import dataclasses
import itertools
import json
import os
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from negclip_jax.data import pair_tables, prepared
from negclip_jax.data.pairs import (
    Pair,
    PairError,
    about_how_many,
    read_pairs,
    write_pairs,
)
from negclip_jax.data.records import FIELDS, held_out

DATA = Path(
    os.environ.get("NEGCLIP_TEST_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data"
)


def coco() -> dict:
    return {
        "images": [{"id": 1, "file_name": "val/a.jpg"}, {"id": "x", "file_name": "b.jpg"}],
        "annotations": [
            {
                "id": 10,
                "image_id": 1,
                "caption": "A cat.",
                "updated_caption": "A cat, no dog.",
                "foils": ["A cat and a dog."],
                "object": "dog",
                "provenance": "llama",
            },
            {"id": 11, "image_id": 1, "caption": "A tabby."},
            {"id": 12, "image_id": "x", "caption": "A bus.", "updated_caption": "A bus, no car."},
        ],
    }


PAIRS = [
    Pair(
        "val/a.jpg",
        "A cat.",
        "A cat, no dog.",
        ("A cat and a dog.",),
        "dog",
        "llama",
        image_id="1",
    ),
    Pair("val/a.jpg", "A tabby.", None, image_id="1"),
    Pair("b.jpg", "A bus.", "A bus, no car.", image_id="x"),
]
WITH_NEGATED = [PAIRS[0], PAIRS[2]]


def write(path: Path, content) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def error(path: Path, **options) -> str:
    with pytest.raises(PairError) as caught:
        read_pairs(path, **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_coco(tmp_path, caplog):
    path = write(tmp_path / "p.json", coco())
    with caplog.at_level("INFO"):
        assert read_pairs(path) == WITH_NEGATED
    assert "2 pairs, 1 records without updated_caption left out" in caplog.text
    assert read_pairs(path, require_negated=False) == PAIRS


def test_released_layout_on_real_captions():
    path = DATA / "coco" / "negation_pairs.json"
    if not path.is_file():
        pytest.skip(f"{path} is absent (set NEGCLIP_TEST_DATA)")
    pairs = read_pairs(path)
    assert len(pairs) == 1055 and len({p.image for p in pairs}) == 211
    assert all(p.negated and p.negated != p.caption for p in pairs)
    assert len(read_pairs(DATA / "coco" / "captions.json", require_negated=False)) == 1705


@pytest.mark.parametrize("name", ["p.json", "p.jsonl", "p.parquet", "P.JSONL", "sub/new/p.jsonl"])
def test_round_trip(tmp_path, name):
    odd = Pair("c d/\u00e9.jpg", "Caf\u00e9 \u201cno\u201d", "x", ("a", "b"), image_id="007")
    write_pairs(tmp_path / name, iter([*PAIRS, odd]))
    assert read_pairs(tmp_path / name, require_negated=False) == [*PAIRS, odd]
    assert read_pairs(tmp_path / name) == [*WITH_NEGATED, odd]
    assert [p.name for p in (tmp_path / name).parent.iterdir()] == [Path(name).name]
    assert about_how_many(tmp_path / name) == len(PAIRS) + 1


def test_how_many_there_are_is_not_asked_of_shards_and_damaged_files(tmp_path):
    (tmp_path / "p.csv").write_text("filepath,title\na.jpg,a cat\nb.jpg,a dog\n")
    (tmp_path / "p.parquet").write_bytes(b"PAR1 and nothing more")
    assert about_how_many(tmp_path / "p.csv") == 3  # with its head: for an estimate
    assert about_how_many(tmp_path / "p.parquet") is None
    assert about_how_many("wds:cc12m-{0000..1242}.tar") is None


def test_jsonl_defaults(tmp_path):
    lines = [
        '{"image": "./a//b.jpg", "caption": "A cat.", "negated": "No dog.", "foils": "A dog."}'
    ]
    path = write(tmp_path / "p.jsonl", "\ufeff" + "\n\n".join(lines) + "\n \n")
    expected = Pair("a/b.jpg", "A cat.", "No dog.", ("A dog.",), image_id="a/b.jpg")
    assert read_pairs(path) == [expected]
    assert read_pairs(path.rename(tmp_path / "named.json")) == [expected]


def test_parquet_without_optional_columns(tmp_path):
    table = pa.table(
        {
            "image": pa.array(["a.jpg"]).dictionary_encode(),
            "caption": pa.array(["A cat."], pa.large_string()),
            "image_id": [7],
            "negated": ["No dog."],
            "foils": pa.array([None]),
            "score": [0.5],
        }
    )
    pq.write_table(table, tmp_path / "no-extension")
    assert read_pairs(tmp_path / "no-extension") == [
        Pair("a.jpg", "A cat.", "No dog.", image_id="7")
    ]


def test_files_that_cannot_be_read(tmp_path):
    assert "no file of pairs" in error(tmp_path / "absent.json")
    assert "is a directory" in error(tmp_path)
    assert "0 bytes" in error(write(tmp_path / "empty.json", ""))
    assert "white space" in error(write(tmp_path / "blank.json", " \n "))
    assert "holds no captions" in error(write(tmp_path / "blank.jsonl", "\n\n"))
    (tmp_path / "latin.json").write_bytes(b'{"images": "\xe9"}')
    assert "not UTF-8 text: byte 12" in error(tmp_path / "latin.json")
    assert "it is nested too deeply" in error(write(tmp_path / "deep.json", "[" * 100_000))


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("p.txt", "title\tfilepath\n", "tab-separated values with the columns title, filepath"),
        ("pairs", "image,caption,negated\n", "with the columns image, caption, negated. Pairs are"),
        ("p.tar", b"a.jpg" + b"\0" * 252 + b"ustar\0" + b"00", "a tar archive"),
        ("p.json", b"a.jpg" + b"\0" * 252 + b"ustar\0" + b"00", "a tar archive"),
        ("data-00000-of-00001.arrow", b"\xff\xff\xff\xff\x10", "an Arrow file"),
        ("p.json", b"ARROW1\0\0", "an Arrow file"),
        ("p.json.gz", b"\x1f\x8b\x08", "a compressed file"),
        ("p.json", "title\tfilepath\n", "tab-separated values with the columns title, filepath"),
        ("p.json", "version https://git-lfs.github.com/spec/v1\n", "`git lfs pull` brings"),
        ("p.html", "<html>404</html>", "no JSON: it begins with '<html>404</html>'"),
        ("p.txt", "A cat.\nA dog.\n", "no JSON: it begins with 'A cat.'"),
    ],
)
def test_files_of_other_kinds_are_named_with_what_is_wanted(tmp_path, name, content, found):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    message = error(tmp_path / name)
    assert found in message and "not valid JSON" not in message
    assert '"image", "caption" and "negated"' in message


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.json"])
@pytest.mark.parametrize("require_negated", [True, False])
def test_lines_with_other_columns_are_named(tmp_path, name, require_negated):
    path = write(tmp_path / name, '{"file_name": "a.jpg", "text": "A cat."}\n' * 2)
    message = error(path, require_negated=require_negated)
    assert message == f'{path} has no column "image"; it has: file_name, text.'


def test_whole_numbers_are_ids_however_written(tmp_path):
    content = {"images": [{"id": 391895.0, "file_name": "a.jpg"}, {"id": 2.5, "file_name": "b"}]}
    content["annotations"] = [{"image_id": "0391895", "caption": "A cat.", "updated_caption": "No"}]
    message = error(write(tmp_path / "p.json", content))
    assert 'an entry of "images" has an id that is no whole number (1): images[1] (2.5)' in message
    del content["images"][1]
    (pair,) = read_pairs(write(tmp_path / "p.json", content))
    assert pair.image_id == "391895"
    line = {"image": "a.jpg", "caption": "A cat.", "negated": "No", "image_id": 391895.0}
    (pair,) = read_pairs(write(tmp_path / "p.jsonl", line))
    assert pair.image_id == "391895"


def test_truncated_json_says_where(tmp_path):
    text = json.dumps(coco(), indent=1)
    message = error(write(tmp_path / "cut.json", text[: text.index("tabby") + 3]))
    assert "line 27 column 15" in message and "cut short" in message
    assert "cut short" in error(write(tmp_path / "cut.json", text[: text.index('"A tabby')]))
    message = error(write(tmp_path / "typo.json", '{"images": [],\n "annotations": [}'))
    assert "line 2 column 18 (character 32 of 33)" in message and "cut short" not in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "holds a list"),
        ({"annotations": []}, 'the key "images" is missing'),
        ({"images": []}, 'the key "annotations" is missing'),
        ({"images": [], "annotations": {}}, 'the key "annotations" is not a list'),
        ({"images": [], "annotations": []}, "holds no captions"),
    ],
)
def test_not_the_coco_layout(tmp_path, content, message):
    assert message in error(write(tmp_path / "p.json", content))


def test_plain_captions_name_the_key_and_the_way_out(tmp_path):
    content = coco()
    for annotation in content["annotations"]:
        annotation.pop("updated_caption", None)
    message = error(write(tmp_path / "p.json", content))
    assert 'none of its 3 records has "updated_caption"' in message
    assert 'data.caption_mode="original"' in message
    write_pairs(tmp_path / "p.jsonl", [PAIRS[1]])
    assert 'none of its 1 records has "negated"' in error(tmp_path / "p.jsonl")


def test_unknown_and_missing_image_ids_are_counted(tmp_path):
    content = coco()
    template = content["annotations"][0]
    content["annotations"] += [template | {"image_id": 100 + i, "id": i} for i in range(12)]
    content["annotations"] += [{k: v for k, v in template.items() if k != "image_id"}]
    message = error(write(tmp_path / "p.json", content))
    assert "13 problems" in message
    assert 'image_id is not among "images" (12): 100 in annotations[3] (id 0), 101' in message
    assert "109 in annotations[12] (id 9) and 2 more" in message and "110" not in message
    assert "image_id is missing or no id (1): annotations[15] (id 10)" in message


def test_images_section_is_checked(tmp_path):
    content = coco()
    content["images"] += [{"id": 1, "file_name": "c.jpg"}, {"file_name": "d.jpg"}, {"id": 3}, 4]
    message = error(write(tmp_path / "p.json", content))
    assert 'two entries of "images" share an id (1): 1 in images[2]' in message
    assert 'an entry of "images" has no id (2): images[3], images[5]' in message
    assert 'an entry of "images" has no file_name (1): images[4] (id 3)' in message


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/passwd", "is an absolute path"),
        ("C:/a.jpg", "is an absolute path"),
        ("c:a.jpg", "is an absolute path"),
        ("../a.jpg", "climbs out of the image directory"),
        ("a/../../b.jpg", "climbs out of the image directory"),
        ("a/..", "climbs out of the image directory"),
        ("..\\a.jpg", "contains a backslash"),
        ("a\0.jpg", "contains a NUL"),
        (" ", "is empty"),
        ("", "is empty"),
        (".", "names no file"),
        (7, "is not a string"),
        (None, "is not a string"),
    ],
)
def test_image_names_that_could_leave_the_directory(tmp_path, name, reason):
    content = coco()
    content["images"][0]["file_name"] = name
    message = error(write(tmp_path / "p.json", content))
    assert f"the image name {reason} (1): images[0] (id 1)" in message
    line = json.dumps({"image": name, "caption": "A cat.", "negated": "No dog."})
    message = error(write(tmp_path / "p.jsonl", f"\n{line}\n"))
    assert f"the image name {reason} (1): line 2" in message


def test_dots_inside_a_name_are_no_climb(tmp_path):
    write_pairs(tmp_path / "p.jsonl", [Pair("a..b/..c.jpg", "x", "y", image_id="1")])
    assert read_pairs(tmp_path / "p.jsonl")[0].image == "a..b/..c.jpg"


BAD_FIELDS = [
    ({"caption": " \n"}, "the caption is empty"),
    ({"caption": None}, "the caption is missing"),
    ({"caption": 5}, "the caption is not a string"),
    ({"negated": "\u3000"}, "the negated caption is empty"),
    ({"negated": ["no"]}, "the negated caption is not a string"),
    ({"caption": "caf\u00e9 \ud800"}, "the caption is not valid Unicode"),
    ({"foils": ["x", ""]}, "the foil is empty"),
    ({"foils": [None]}, "the foil is missing"),
    ({"foils": 3}, "foils is not a list"),
    ({"object": 3}, "object is not a string"),
    ({"provenance": {}}, "provenance is not a string"),
    ({"image_id": 1.5}, "image_id is neither"),
]


@pytest.mark.parametrize(("change", "message"), BAD_FIELDS)
def test_bad_fields_of_a_record(tmp_path, change, message):
    good = {"image": "a.jpg", "caption": "A cat.", "negated": "No dog."}
    lines = [json.dumps(good), json.dumps(good | change)]
    found = error(write(tmp_path / "p.jsonl", "\n".join(lines)))
    assert message in found and "1 problem:" in found and ": line 2" in found


def test_every_problem_of_a_file_in_one_error(tmp_path):
    content = coco()
    bad = {"image_id": 1, "caption": "", "updated_caption": "No dog."}
    content["annotations"] += [bad] * 14 + [bad | {"caption": 3}, "text"]
    message = error(write(tmp_path / "p.json", content))
    assert "16 problems" in message and "the caption is empty (14): annotations[3], " in message
    assert "annotations[12] and 4 more;" in message and "annotations[13]" not in message
    assert "the caption is not a string (1): annotations[17]" in message
    assert "not an object (1): annotations[18]" in message


def test_broken_lines_are_numbered(tmp_path):
    good = '{"image": "a.jpg", "caption": "A cat.", "negated": "No dog."}'
    (tmp_path / "p.jsonl").write_bytes(
        "\n".join([good, good[:-9], "[]", good, "\xff"]).encode("latin-1")
    )
    message = error(tmp_path / "p.jsonl")
    assert "not valid JSON (2): line 2 column 53, line 5" in message
    assert "not an object (1): line 3" in message


def test_bad_records_without_a_negated_caption_are_left_out_too(tmp_path):
    content = coco()
    content["annotations"].append({"image_id": 99, "caption": ""})
    path = write(tmp_path / "p.json", content)
    assert read_pairs(path) == WITH_NEGATED
    assert "image_id" in error(path, require_negated=False)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": ["a.jpg"]}, 'no column "caption"; it has: image'),
        ({"image": ["a.jpg"], "caption": [3]}, 'wrong type of column "caption" (int64)'),
        ({"image": ["a.jpg"], "caption": ["x"], "foils": [[1]]}, '"foils" (list<'),
        ({"image": ["a.jpg"], "caption": ["x"], "negated": [""]}, "is empty (1): row 0"),
        ({"image": ["a.jpg"], "caption": ["x"]}, 'none of its 1 records has "negated"'),
    ],
)
def test_parquet_columns(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    assert message in error(tmp_path / "p.parquet")


def test_damaged_parquet(tmp_path):
    write_pairs(tmp_path / "p.parquet", PAIRS)
    data = (tmp_path / "p.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[:-50])
    assert "cannot be read as Parquet" in error(tmp_path / "cut.parquet")
    assert "cannot be read as Parquet" in error(write(tmp_path / "json.parquet", "{}"))


def test_writing_says_what_is_wrong_and_keeps_the_former_file(tmp_path, monkeypatch):
    with pytest.raises(PairError, match=r"p\.csv: pairs are written as \.json, \.jsonl"):
        write_pairs(tmp_path / "p.csv", PAIRS)
    clash = [PAIRS[0], Pair("z.jpg", "x", "y", image_id="1")]
    with pytest.raises(PairError, match=r"id 1 stands for val/a\.jpg and z\.jpg"):
        write_pairs(tmp_path / "p.json", clash)

    path = tmp_path / "p.jsonl"
    write_pairs(path, PAIRS)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(PairError, match=r"p\.jsonl could not be written \(No space left"):
        write_pairs(path, PAIRS[:1])
    assert read_pairs(path, require_negated=False) == PAIRS
    assert [p.name for p in tmp_path.iterdir()] == ["p.jsonl"]


def many(images: int = 50, captions: int = 5) -> list[Pair]:
    return [
        Pair(f"{i}.jpg", f"caption {i} {c}", "no", image_id=str(i))
        for i in range(images)
        for c in range(captions)
    ]


@pytest.fixture
def split(tokenizer, tmp_path):
    """A function of pairs and arguments of `held_out`: both sides, as training divides them."""
    folders = (tmp_path / f"prepared-{i}" for i in itertools.count())

    def sides(pairs: list[Pair], *, by: str = "image", **how) -> tuple[list[Pair], list[Pair]]:
        folder, rows = next(folders), np.arange(len(pairs))
        folder.mkdir()
        list(prepared.write(pairs, folder, "it", tokenizer, caption_mode="negated", foils=0))
        groups = prepared.find(folder, "it").groups(rows) if by == "image" else None
        is_out = held_out(groups, len(pairs), by=by, **how)
        return tuple([pairs[i] for i in np.flatnonzero(side)] for side in (~is_out, is_out))

    return sides


def test_split_by_image_leaks_nothing_and_ignores_the_order(split):
    pairs = many()
    train, validation = split(pairs, validation_fraction=0.2, seed=42)
    assert (len(train), len(validation)) == (200, 50)
    assert not {p.image for p in train} & {p.image for p in validation}
    assert sorted(train + validation, key=pairs.index) == pairs
    assert train == sorted(train, key=pairs.index)

    shuffled = random.Random(0).sample(pairs, len(pairs))
    again = split(shuffled, validation_fraction=0.2, seed=42)
    assert [set(side) for side in again] == [set(train), set(validation)]
    other = split(pairs, validation_fraction=0.2, seed=43)
    assert other[1] != validation


def test_split_by_image_joins_ids_and_files(split):
    pairs = [
        Pair(f"{i // 4}/{i % 2}.jpg", str(i), "no", image_id=f"{i // 4}-{(i % 4) // 2}")
        for i in range(400)
    ]
    train, validation = split(pairs, validation_fraction=0.3, seed=0)
    assert len(validation) == 120
    for key in ("image", "image_id"):
        assert not {getattr(p, key) for p in train} & {getattr(p, key) for p in validation}


def test_split_by_caption_leaks_as_published(split):
    pairs = many()
    train, validation = split(pairs, validation_fraction=0.2, by="caption", seed=42)
    assert (len(train), len(validation)) == (200, 50)
    assert {p.image for p in train} & {p.image for p in validation}
    assert set(train) | set(validation) == set(pairs)


def test_split_is_the_same_everywhere(split):
    # Fixed by Philox' raw bits, not by numpy's version.
    _, validation = split(many(10, 1), validation_fraction=0.3, seed=7)
    assert [p.image for p in validation] == ["1.jpg", "4.jpg", "8.jpg"]
    assert np.random.Philox(key=7).random_raw(2).tolist() == [
        16086915834549238692,
        5448529601018347655,
    ]


def test_split_of_nothing_held_out(split):
    assert split(many(3, 1), validation_fraction=0.0, seed=0) == (many(3, 1), [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_fraction": 0.1}, r"0\.1 of 3 images leaves the validation side empty"),
        ({"validation_fraction": 0.9}, r"0\.9 of 3 images leaves the training side empty"),
        ({"validation_fraction": 1.0}, r"0 <= f < 1"),
        ({"validation_fraction": -0.1}, r"0 <= f < 1"),
        ({"validation_fraction": float("nan")}, r"0 <= f < 1"),
        ({"validation_fraction": 0.5, "by": "photo"}, "not by 'photo'"),
    ],
)
def test_splits_that_cannot_be(split, options, message):
    with pytest.raises(PairError, match=message):
        split(many(3, 1), seed=0, **options)


def some_pairs(number: int) -> list[Pair]:
    return [
        Pair(
            f"{i % 7}.jpg", f"text {i * 7919 % 9973}", f"not {i}" if i % 4 else None,
            ("a foil", "another")[: i % 3], image_id=f"{i % 7}", object=("dog", None)[i % 2],
        )
        for i in range(number)
    ]  # fmt: skip


@pytest.mark.parametrize("number", [0, 1, 1023, 2048, 3000])
def test_parquet_is_written_in_groups_as_if_from_one_table(tmp_path, monkeypatch, number):
    pairs, path = some_pairs(number), tmp_path / "a.parquet"
    write_pairs(path, pairs)
    kinds = {k: pa.list_(pa.string()) if k == "foils" else pa.string() for k in FIELDS}
    columns = {k: pa.array([getattr(p, k) for p in pairs], kind) for k, kind in kinds.items()}
    pq.write_table(pa.table(columns), tmp_path / "b.parquet")
    assert path.read_bytes() == (tmp_path / "b.parquet").read_bytes()
    monkeypatch.setattr(pair_tables, "_GROUP", 2048)
    write_pairs(path, pairs)
    sizes = pq.ParquetFile(path).metadata
    sizes = [sizes.row_group(i).num_rows for i in range(sizes.num_row_groups)]
    assert sizes == {0: [0], 1: [1], 1023: [1023], 2048: [2048], 3000: [2048, 952]}[number]
    if number:
        assert read_pairs(path, require_negated=False) == pairs


def test_coco_lists_each_image_once_wherever_its_pairs_stand(tmp_path):
    pairs = some_pairs(20)
    write_pairs(tmp_path / "a.json", pairs)
    text = (tmp_path / "a.json").read_text()
    content = json.loads(text)
    assert text == json.dumps(content, ensure_ascii=False)
    assert content["images"] == [{"id": i, "file_name": f"{i}.jpg"} for i in range(7)]
    assert read_pairs(tmp_path / "a.json", require_negated=False) == pairs
    pairs.append(dataclasses.replace(pairs[0], image="other.jpg"))
    with pytest.raises(PairError, match=r"id 0 stands for 0\.jpg and other\.jpg"):
        write_pairs(tmp_path / "a.json", pairs)
    assert (tmp_path / "a.json").read_text() == text and len(list(tmp_path.iterdir())) == 1
    write_pairs(tmp_path / "a.json", [])
    assert (tmp_path / "a.json").read_text() == '{"images": [], "annotations": []}'
