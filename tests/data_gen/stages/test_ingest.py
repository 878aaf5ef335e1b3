"""Captions files in: order, every refusal with its code, VQAv2's questions."""

import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_tars import member, write_tar

from data_gen.records import Caption
from data_gen.stages.ingest import id_order, read_captions, with_questions
from negclip_jax.common.errors import InputError


def write(path, annotations, images=None) -> str:
    images = images or [{"id": i, "file_name": f"{i}.jpg"} for i in (10, 9, 1)]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return str(path)


def row_of(i, text, image=1):
    return {"id": i, "image_id": image, "caption": text}


def test_images_come_by_number_with_their_captions_in_order(tmp_path):
    path = write(
        tmp_path / "c.json", [row_of(1, "a  b\n", 10), row_of(2, "c", 9), row_of(3, "d", 10)]
    )
    ingested = read_captions(path)
    assert [image.image_id for image in ingested.images] == ["9", "10"]
    assert [caption.text for caption in ingested.images[1].captions] == ["a b", "d"]
    assert ingested.captions == 3 and ingested.rejects == []
    assert sorted(["b", "10", "9", "a"], key=id_order) == ["9", "10", "a", "b"]


@pytest.mark.parametrize(
    ("caption", "code"),
    [
        ("", "caption_empty"),
        ("  \n", "caption_empty"),
        (None, "caption_not_text"),
        (7, "caption_not_text"),
        (["a"], "caption_not_text"),
        ("a" * 513, "caption_too_long"),
        ("a\x00b", "caption_control"),
        ("a\x1b[31m", "caption_control"),
        ("half \ud800 a pair", "caption_control"),
    ],
)
def test_captions_that_cannot_be_used(tmp_path, caption, code):
    path = write(tmp_path / "c.json", [row_of(1, "good"), row_of(2, caption)])
    ingested = read_captions(path)
    assert [(r["caption_id"], r["code"]) for r in ingested.rejects] == [("2", code)]
    assert ingested.captions == 1


def test_ids(tmp_path):
    same = [row_of(1, "a"), row_of(1, "a"), row_of(2, "b", 77), "text"]
    ingested = read_captions(write(tmp_path / "c.json", same))
    codes = [reject["code"] for reject in ingested.rejects]
    assert codes == ["duplicate", "image_unknown", "not_an_object"] and ingested.captions == 1
    with pytest.raises(InputError, match="two different captions have the id 1"):
        read_captions(write(tmp_path / "c.json", [row_of(1, "a"), row_of(1, "b")]))
    twice = [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}]
    with pytest.raises(InputError, match="two images have the id 1"):
        read_captions(write(tmp_path / "c.json", [row_of(1, "a")], twice))


def test_ids_are_compared_however_they_are_written_and_kept_as_written(tmp_path):
    images = [{"id": "0007", "file_name": "a.jpg"}, {"id": 8.0, "file_name": "b.jpg"}]
    rows = [row_of(1, "one", 7), row_of(2, "two", 7.0), row_of(3, "three", "8")]
    ingested = read_captions(write(tmp_path / "c.json", rows, images))
    assert ingested.rejects == []
    assert [
        (image.image_id, image.file_name, len(image.captions)) for image in ingested.images
    ] == [
        ("0007", "a.jpg", 2),
        ("8", "b.jpg", 1),
    ]


@pytest.mark.parametrize("other", ["1", 1.0, "01"])
def test_two_images_that_cannot_be_told_apart_are_refused(tmp_path, other):
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": other, "file_name": "b.jpg"}]
    with pytest.raises(InputError, match="two images have the id 1"):
        read_captions(write(tmp_path / "c.json", [row_of(1, "a")], images))
    lines = [{"image": f"{i}.jpg", "caption": "a", "image_id": str(i)} for i in (1, other)]
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    if other != "1":
        with pytest.raises(InputError, match="two images have the id"):
            read_captions(str(path))


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b.jpg", "C:\\b.jpg"])
def test_image_names_that_leave_the_folder(tmp_path, name):
    images = [{"id": 1, "file_name": name}, {"id": 2, "file_name": "b.jpg"}]
    path = write(tmp_path / "c.json", [row_of(1, "a"), row_of(2, "b", 2)], images)
    ingested = read_captions(path)
    assert [image.file_name for image in ingested.images] == ["b.jpg"]
    assert ingested.rejects[0]["code"] == "image_outside"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty: 0 bytes"),
        ("{", "not valid JSON"),
        ('{"images": []}', 'the key "annotations" is missing'),
        ("[]", 'object with "images" and "annotations"'),
        ('{"images": [{}], "annotations": []}', "has no id or no file_name"),
        ('{"images": [], "annotations": []}', "no usable caption"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, text, said):
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        read_captions(str(path))


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_captions(str(tmp_path / "none.json"))


def test_too_many_bad_captions_are_an_error(tmp_path):
    path = write(tmp_path / "c.json", [row_of(i, "" if i % 3 == 0 else "a") for i in range(30)])
    with pytest.raises(InputError, match=r"10 of 30 captions cannot be used, more than 20%"):
        read_captions(path, max_rejects=0.2)
    assert read_captions(path, max_rejects=0.4).captions == 20


def test_jsonl(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"image": "a.jpg", "caption": "x"}\n{"image": "a.jpg", "caption": "y"}\n')
    (image,) = read_captions(str(path)).images
    assert image.file_name == "a.jpg" and image.texts == ["x", "y"]


def votes(yes: int, no: int) -> list[dict]:
    said = ["yes"] * yes + ["no"] * no
    return [{"answer": answer} for answer in said + ["maybe"] * (10 - len(said))]


def test_questions_of_vqa(tmp_path):
    images = read_captions(write(tmp_path / "c.json", [row_of(1, "a"), row_of(2, "b", 9)])).images
    questions = [
        {"question_id": i, "image_id": 1, "question": text}
        for i, text in enumerate(["Is it hot?", "What is it?", "Is it red?"])
    ]
    answers = [
        {"question_id": 0, "answers": votes(1, 9)},
        {"question_id": 1, "answers": [{"answer": "bus"}] * 10},
        {"question_id": 2, "answers": votes(6, 4)},
    ]
    (tmp_path / "q.json").write_text(json.dumps({"questions": questions}))
    (tmp_path / "a.json").write_text(json.dumps({"annotations": answers}))
    (image,) = with_questions(images, str(tmp_path / "q.json"), str(tmp_path / "a.json"))
    assert [(q.text, q.yes, q.no) for q in image.questions] == [
        ("Is it hot?", 1, 9),
        ("Is it red?", 6, 4),
    ]


@pytest.mark.parametrize("row", [{"question_id": 0}, "text", {"question_id": 0, "answers": ["no"]}])
def test_files_that_are_not_of_vqa(tmp_path, row):
    images = read_captions(write(tmp_path / "c.json", [row_of(1, "a")])).images
    asked = {"questions": [{"question_id": 0, "image_id": 1, "question": "Is it hot?"}]}
    (tmp_path / "q.json").write_text(json.dumps(asked))
    (tmp_path / "a.json").write_text(json.dumps({"annotations": [row]}))
    with pytest.raises(InputError, match="not in VQAv2's layout"):
        list(with_questions(images, str(tmp_path / "q.json"), str(tmp_path / "a.json")))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("c.json", b"image,caption\na.jpg,A dog\n", "comma-separated values with the columns ima"),
        ("c.tar", b"", "a tar archive"),
        ("c.json", b"\x1f\x8b\x08\x00", "a compressed file"),
        ("c.json", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
    ],
)
def test_other_formats_are_named_with_what_is_wanted(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said) as error:
        read_captions(str(tmp_path / name))
    assert 'columns "image" and "caption"' in str(error.value)


def test_images_are_a_sequence_of_which_parts_are_too(tmp_path):
    images = read_captions(
        write(
            tmp_path / "c.json",
            [row_of(i, f"text {i}", image) for i, image in enumerate((10, 1, 9, 1))],
        )
    ).images
    every = list(images)
    assert [image.image_id for image in every] == ["1", "9", "10"]
    assert every[0].captions == (Caption("1", "text 1"), Caption("3", "text 3"))
    assert [images[i] for i in (0, 1, 2, -1)] == [*every, every[-1]]
    assert list(images[1:]) == every[1:] and list(images[1:][1:]) == every[2:]
    assert list(images[::2]) == every[::2] and len(images[:2]) == 2
    with pytest.raises(IndexError):
        images[3]


def test_the_order_of_a_file_does_not_matter(tmp_path):
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in (3, 20, 100)],
        "annotations": [row_of(i, f"text {i}", (20, 3, 100)[i % 3]) for i in range(9)],
    }
    for name, keys in (("a", ["images", "annotations"]), ("b", ["annotations", "images"])):
        (tmp_path / f"{name}.json").write_text(json.dumps({key: content[key] for key in keys}))
    found = [list(read_captions(str(tmp_path / f"{name}.json")).images) for name in "ab"]
    assert found[0] == found[1] and [image.image_id for image in found[0]] == ["3", "20", "100"]
    rows = [
        {"image": f"{'cab'[i % 3]}.jpg", "caption": f"text {i}", "image_id": "xyz"[i % 3]}
        for i in range(6)
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    images = read_captions(str(tmp_path / "c.jsonl")).images
    assert [(i.image_id, i.file_name, i.texts) for i in images] == [
        ("x", "c.jpg", ["text 0", "text 3"]),
        ("y", "a.jpg", ["text 1", "text 4"]),
        ("z", "b.jpg", ["text 2", "text 5"]),
    ]


def test_what_is_odd_is_told_as_if_the_file_were_read_whole(tmp_path):
    good = json.dumps(
        {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [row_of(1, "a")]}
    )
    path = tmp_path / "c.json"
    path.write_text(good[:-1] + ', "licenses": [{"id": 1, "id": 2}]}')
    with pytest.raises(InputError, match="the key 'id' occurs twice in an object"):
        read_captions(str(path))
    path.write_text(good[:-1] + ', "licenses": [1,]}')
    with pytest.raises(InputError, match="not valid JSON at line 1 column"):
        read_captions(str(path))


def test_a_duplicate_is_rejected_in_its_place(tmp_path):
    rows = [row_of(1, ""), row_of(2, "b"), row_of(2, "b"), row_of(3, "")]
    rejects = read_captions(write(tmp_path / "c.json", rows)).rejects
    assert [(r["caption_id"], r["code"]) for r in rejects] == [
        ("1", "caption_empty"), ("2", "duplicate"), ("3", "caption_empty"),
    ]  # fmt: skip
    assert set(rejects[0]) == {"image_id", "file_name", "caption_id", "code", "detail"}


@pytest.mark.parametrize(
    ("few", "many"), [(2_000, 6_000), pytest.param(5_000, 20_000, marks=pytest.mark.long)]
)
def test_a_caption_takes_few_bytes(tmp_path, few, many):
    def held(number: int) -> int:
        images = [{"id": i, "file_name": f"{i:012d}.jpg"} for i in range(number // 5)]
        rows = [row_of(i, f"a text of some thirty letters {i:05d}", i // 5) for i in range(number)]
        path = write(tmp_path / "c.json", rows, images)
        del images, rows
        tracemalloc.start()
        found = read_captions(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert found.captions == number
        return peak

    assert held(many) - held(few) < 200 * (many - few)


ROWS = [("b.jpg", "A dog."), ("a.jpg", "A cat."), ("b.jpg", "Two dogs.")]


def in_form(folder, form: str) -> tuple[str, str]:
    """The rows in a file, and the fields that name its columns."""
    images, captions = zip(*ROWS, strict=True)
    if form == "wds":
        samples = [[member(f"{i}.jpg", b"photo"), member(f"{i}.txt", text.encode())]
                   for i, text in enumerate(captions)]  # fmt: skip
        write_tar(folder / "00000.tar", [part for sample in samples for part in sample])
        return f"wds:{folder}/{{00000..00000}}.tar", ""
    path, names = folder / f"c.{form}", ("path", "said")
    if form == "parquet":
        pq.write_table(pa.table({"path": images, "said": captions}), path)
    elif form == "jsonl":
        path.write_text("\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in ROWS))
    else:
        mark = {"csv": ",", "tsv": "\t"}[form]
        path.write_text("\n".join(mark.join(row) for row in [names, *ROWS]))
    return str(path), "image=path,caption=said"


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_captions_come_from_tables_of_any_names(tmp_path, form):
    path, fields = in_form(tmp_path, form)
    images = read_captions(path, fields=fields).images
    assert [(i.file_name, i.texts) for i in images] == [
        ("a.jpg", ["A cat."]), ("b.jpg", ["A dog.", "Two dogs."]),
    ]  # fmt: skip


def test_captions_come_from_tars(tmp_path):
    path, _ = in_form(tmp_path, "wds")
    images = read_captions(path).images
    assert [i.texts for i in images] == [[text] for _, text in ROWS]
    assert [i.file_name.rpartition("/")[2] for i in images] == ["0.jpg", "1.jpg", "2.jpg"]


@pytest.mark.parametrize(
    ("form", "fields", "said"),
    [
        ("csv", "", "path, said"),
        ("csv", "image=path,caption=nothing", "nothing"),
        ("parquet", "image=path,caption=nothing", "nothing"),
        ("jsonl", "picture=path", "input.fields: cannot read 'picture=path'"),
        ("wds", "caption=json.title", "json"),
    ],
)
def test_captions_that_are_not_where_they_are_said_to_be(tmp_path, form, fields, said):
    path, _ = in_form(tmp_path, form)
    with pytest.raises(InputError) as error:
        read_captions(path, fields=fields)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_shards_that_are_not_there_and_fields_of_coco(tmp_path):
    with pytest.raises(InputError, match=r"4 of 4 parts of .* match no file"):
        read_captions(f"wds:{tmp_path}/{{0..3}}.tar")
    with pytest.raises(InputError, match=r"input\.fields=caption=x is not for COCO JSON"):
        read_captions(write(tmp_path / "c.json", [row_of(1, "a")]), fields="caption=x")
