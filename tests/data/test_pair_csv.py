"""Tables of pairs as others write them, and all that can be wrong with one."""

import logging

import pytest

from negclip_jax.data.pairs import Pair, PairError, read_pairs


def read(path, text: str | bytes, **options) -> list[Pair]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_pairs(path, **{"require_negated": False} | options)


def test_own_columns_and_a_split_line(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    text = "image,caption,negated,foils,image_id\r\n"
    text += 'a//b.jpg,"a dog, ""Rex""","a dog\nand no cat","[\'a cat\', ""no dog""]",7\r\n'
    text += "c.jpg,a hat,,,\r\n"
    pairs = read(tmp_path / "p.csv", text)
    foils = ("a cat", "no dog")
    assert pairs == [
        Pair("a/b.jpg", 'a dog, "Rex"', "a dog\nand no cat", foils, image_id="7"),
        Pair("c.jpg", "a hat", None, image_id="c.jpg"),
    ]
    assert read(tmp_path / "p.csv", text, require_negated=True) == pairs[:1]
    assert "1 pairs, 1 records without negated left out" in caplog.text


def test_columns_of_open_clip_and_negclip(tmp_path):
    (pair,) = read(tmp_path / "p.tsv", "\ufefffilepath\ttitle\nx.jpg\tan, apple\n")
    assert pair == Pair("x.jpg", "an, apple", None, image_id="x.jpg")
    text = "title,filepath,neg_caption,neg_image\n"
    text += "a,x.jpg,\"['b', 'c']\",\"[1]\"\na,x.jpg,b,\na,x.jpg,\"['b' 'c']\",\n"
    pairs = read(tmp_path / "p.csv", text)
    assert [pair.foils for pair in pairs] == [("b", "c"), ("b",), ("b", "c")]


def test_files_of_negbench(tmp_path):
    text = "correct_answer,caption_0,caption_1,caption_2,image_path\n2,a,b,c,x.jpg\n0,d,e,f,y.jpg\n"
    pairs = read(tmp_path / "mcq.csv", text)
    assert [(p.image, p.caption, p.foils) for p in pairs] == [
        ("x.jpg", "c", ("a", "b")),
        ("y.jpg", "d", ("e", "f")),
    ]
    pairs = read(tmp_path / "r.csv", 'filepath,captions\nx.jpg,"[\'a\', ""b\'s""]"\ny.jpg,c\n')
    assert [(p.image, p.caption) for p in pairs] == [
        ("x.jpg", "a"),
        ("x.jpg", "b's"),
        ("y.jpg", "c"),
    ]


BAD = {  # name, content, and what the error says
    "tabs in .csv": ("p.csv", "image\tcaption\na\tb\n", r"has tabs .* where commas should be"),
    "commas in .tsv": ("p.tsv", "image,caption\na,b\n", r"has commas .* where tabs should be"),
    "semicolons": ("p.csv", "image;caption\na;b\n", r"has semicolons between its columns"),
    "no image": ("p.csv", "caption,x\na,b\n", r'no column "image" \(or filepath.*has: caption, x'),
    "no caption": (
        "p.csv",
        "image,x\na,b\n",
        r'no column "caption" \(or title\); it has: image, x',
    ),
    "twice": ("p.csv", "image,filepath,caption\na,b,c\n", r'two columns for "image"'),
    "half a row": ("p.csv", 'image,caption\na,"b', r"is not CSV after line 2: unexpected end"),
    "utf-16": ("p.csv", "image,caption\n".encode("utf-16"), r"is not UTF-8 after line 0"),
    "only a header": ("p.csv", "image,caption\n", r"holds no captions"),
    "several": (
        "p.csv",
        "image,caption,foils\na,b\n../a,b,\nc,,\nd,e,\"['f'\"\ng,h,[1]\ni,j,\"[__import__('os')]\"\n",
        r"has 6 problems: not 3 fields as the header \(1\): line 2; the image name climbs .*"
        r"line 3.*the caption is missing \(1\): line 4; foils is not a Python list of strings "
        r"\(3\): line 5, line 6, line 7",
    ),
    "answer": (
        "p.csv",
        "image,correct_answer,caption_0,caption_1\na,2,b,c\na,x,b,c\na,,b,c\n",
        r"correct_answer is not a number from 0 to 1 \(3\): line 2, line 3, line 4",
    ),
    "captions": ("p.csv", "image,captions\na,\"['b'\"\n", r"captions is not a Python list"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named_in_one_error(tmp_path, name):
    file, content, message = BAD[name]
    with pytest.raises(PairError, match=message) as raised:
        read(tmp_path / file, content)
    assert str(tmp_path / file) in str(raised.value) and "\n" not in str(raised.value)
