"""`data.fields`: one way to say which field is what, for every form of file."""

import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_evals import cc_neg_content
from tiny_tars import member, write_tar

from negclip_jax.data import fields, pair_records
from negclip_jax.data.pairs import Pair, PairError, read_pairs

ROWS = [
    {"photo": "a.jpg", "title": "a cat", "not": "a cat, no dog", "wrong": "a dog", "more": ["x"]},
    {"photo": "b.jpg", "title": "a bus", "not": None, "wrong": None, "more": []},
]
NAMED = "image=photo, caption=title, negated=not, foils=wrong, foils=more"
EXPECTED = [
    Pair("a.jpg", "a cat", "a cat, no dog", ("a dog", "x"), image_id="a.jpg"),
    Pair("b.jpg", "a bus", None, image_id="b.jpg"),
]


def jsonl(folder, rows):
    path = folder / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parquet(folder, rows):
    pq.write_table(pa.Table.from_pylist(rows), folder / "p.parquet")
    return folder / "p.parquet"


def csv(folder, rows):
    lines = ["\t".join([*rows[0], "caption"])]  # a column that has the name of a part
    lines += ["\t".join("" if v is None else str(v) for v in [*row.values(), "?"]) for row in rows]
    (folder / "p.tsv").write_text("\n".join(lines))
    return folder / "p.tsv"


def array_record(folder, rows):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(folder / "p.array_record"), "group_size:1")
    for row in rows:
        writer.write(json.dumps(row).encode())
    writer.close()
    return f"arrayrecord:{folder}/p.array_record"


def tar(folder, rows):
    members = []
    for row in rows:
        key = row["photo"].removesuffix(".jpg")
        about = {name: row[name] for name in ("not", "wrong", "more")}
        parts = {"jpg": b"", "title": row["title"].encode(), "json": json.dumps(about).encode()}
        members += [member(f"{key}.{suffix}", content) for suffix, content in parts.items()]
    write_tar(folder / "p.tar", members)
    return f"wds:{folder}/p.tar"


FORMS = {"jsonl": jsonl, "parquet": parquet, "csv": csv, "arrayrecord": array_record}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_takes_the_same_words(tmp_path, form):
    path = FORMS[form](tmp_path, ROWS)
    assert read_pairs(path, require_negated=False, fields=NAMED) == EXPECTED
    assert read_pairs(path, fields=NAMED) == EXPECTED[:1]
    with pytest.raises(PairError, match=r'no column "nothing"; it has: .*title') as caught:
        read_pairs(path, require_negated=False, fields=f"{NAMED},object=nothing")
    assert "\n" not in str(caught.value)


def test_tars_take_suffixes_and_keys_of_the_json_member(tmp_path):
    named = "caption=title,negated=json.not,foils=json.wrong,foils=json.more"
    path = tar(tmp_path, ROWS)
    found = read_pairs(path, require_negated=False, fields=named)
    names = ["p.tar/a.jpg", "p.tar/b.jpg"]
    assert found == [
        Pair(n, p.caption, p.negated, p.foils, image_id=n)
        for n, p in zip(names, EXPECTED, strict=True)
    ]
    with pytest.raises(PairError, match=r'no column "json\.no"; it has: jpg, title, json, json\.n'):
        read_pairs(path, require_negated=False, fields="caption=title,negated=json.no")


def test_coco_and_keys_of_objects_inside(tmp_path):
    annotation = {"image_id": 1, "caption": "?", "by": {"us": {"text": "a cat"}, "them": "no dog"}}
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [annotation]}
    (tmp_path / "p.json").write_text(json.dumps(content))
    named = "caption=by.us.text,negated=by.them"
    expected = [Pair("a.jpg", "a cat", "no dog", image_id="1")]
    assert read_pairs(tmp_path / "p.json", fields=named) == expected
    with pytest.raises(PairError, match="names image, which COCO JSON says itself"):
        read_pairs(tmp_path / "p.json", fields=f"{named},image=by.us.text")
    rows = [{"image": "a.jpg", **annotation, "image_id": "1"}]
    assert read_pairs(jsonl(tmp_path, rows), fields=named) == expected
    assert read_pairs(parquet(tmp_path, rows), fields=named) == expected


def test_lists_of_captions_are_pairs_each(tmp_path):
    rows = [{"image": "a.jpg", "all": ["x", "y"]}, {"image": "b.jpg", "all": ["z"]}]
    for path in (jsonl(tmp_path, rows), parquet(tmp_path, rows), csv(tmp_path, rows)):
        found = read_pairs(path, require_negated=False, fields="captions=all")
        assert [(p.image, p.caption) for p in found] == [
            ("a.jpg", "x"),
            ("a.jpg", "y"),
            ("b.jpg", "z"),
        ]


def test_captions_in_a_list_of_objects(tmp_path, caplog):
    """As `datasets` has COCO; `sentences.raw` of row groups and batches of any size."""
    rows = [
        {
            "image": f"{i}.jpg",
            "said": [{"raw": f"{i} {j}", "of": {"no": "n"}} for j in range(1 + i % 3)],
        }
        for i in range(40)
    ]
    expected = [(row["image"], one["raw"]) for row in rows for one in row["said"]]
    named = {"require_negated": False, "fields": "captions=said.raw"}
    for path in (jsonl(tmp_path, rows), parquet(tmp_path, rows)):
        assert [(p.image, p.caption) for p in read_pairs(path, **named)] == expected
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet", row_group_size=7)
    assert [(p.image, p.caption) for p in read_pairs(tmp_path / "p.parquet", **named)] == expected
    parquet(tmp_path, [*rows, {"image": "x.jpg", "said": None}])
    assert len(read_pairs(tmp_path / "p.parquet", **named)) == len(expected)
    assert "samples are left out that have no caption (1): row 40" in caplog.text
    inner = read_pairs(jsonl(tmp_path, rows), require_negated=False, fields="captions=said.of.no")
    assert {p.caption for p in inner} == {"n"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("caption", r"cannot read 'caption': write PART=FIELD"),
        ("title=caption", r"cannot read 'title=caption'.*the parts of a pair are image, caption"),
        ("caption=", r"cannot read 'caption='"),
        ("caption=a,caption=b", "names caption twice: a and b"),
        ("caption=a,captions=b", "names both caption and captions"),
    ],
)
def test_words_that_cannot_be_read(text, message):
    with pytest.raises(PairError, match=message):
        fields.parse(text)


def test_a_list_where_a_text_is_wanted(tmp_path):
    with pytest.raises(PairError, match=r"the caption is not a string \(2\): line 1, line 2"):
        read_pairs(jsonl(tmp_path, ROWS), require_negated=False, fields="image=photo,caption=more")
    with pytest.raises(PairError, match=r'wrong type of column "more" \(list<'):
        read_pairs(parquet(tmp_path, ROWS), fields="image=photo,caption=more")


def test_cc_neg_without_what_it_is_evaluated_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(pair_records, "CC_NEG_EVALUATION", 4)
    caplog.set_level(logging.INFO)
    content, path = cc_neg_content(6), tmp_path / "ccneg_preprocessed.pt"
    content["annotations"][1] |= {"caption": "flat", "json": None}
    torch.save(content, path)
    images = [f"cc3m_subset_images_extracted_final/{i:09d}.jpg" for i in range(2)]
    texts = [("a cat, and a dog 0", "a cat, and not a dog 0"), ("flat", "a cat, and not a dog 1")]
    assert read_pairs(path, require_negated=False) == [
        Pair(image, caption, None, (foil,), image_id=image)
        for image, (caption, foil) in zip(images, texts, strict=True)
    ]
    negated = [p.negated for p in read_pairs(path, fields="negated=sop_data.negative-prompt")]
    assert negated == [foil for _, foil in texts]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], 'has no lists "image_paths" and "annotations"'),
        ({"image_paths": ["a"] * 5, "annotations": [{}] * 6}, "5 image_paths and 6 annotations"),
        ({"image_paths": ["a"] * 4, "annotations": [{}] * 4}, "last 4 are for evaluation"),
        ({"image_paths": ["/a"] * 6, "annotations": [{}, 1] * 3}, r"not an object \(1\): index 1"),
        ({"image_paths": ["a"] * 6, "annotations": [{}] * 6}, r"caption is missing \(2\): index 0"),
        ({"image_paths": torch.zeros(2)}, "is no torch file of plain lists and strings"),
    ],
)
def test_other_torch_files(tmp_path, content, message, monkeypatch):
    monkeypatch.setattr(pair_records, "CC_NEG_EVALUATION", 4)
    torch.save(content, tmp_path / "p.pt")
    with pytest.raises(PairError, match=message):
        read_pairs(tmp_path / "p.pt", require_negated=False)
