"""No escape sequence, no right-to-left mark of a stranger reaches the terminal or the log raw."""

import json
import logging

import pytest
from PIL import Image

from data_gen import cli
from evals.images import DataRoots
from evals.reading import Fields
from negclip_jax.common.errors import InputError
from negclip_jax.data.images import ImageDirectory
from negclip_jax.data.pairs import read_pairs
from negclip_jax.data.tokenizer import load_tokenizer
from negclip_jax.interop.config import read_config
from negclip_jax.runtime import console

ESCAPES = "\x1b[2J\x1b]0;owned\x07\u202egpj.\r"
RAW = ("\x1b", "\x07", "\u202e", "\r")


def is_plain(text: str) -> bool:
    return bool(text) and not [c for c in RAW if c in text]


def pairs_with(**fields):
    def read(folder):
        record = {"image": "a.jpg", "caption": "x", "negated": "y"} | fields
        (folder / "p.jsonl").write_text(json.dumps(record))
        read_pairs(folder / "p.jsonl")

    return read


def coco_with(image_id):
    def read(folder):
        annotation = {"id": ESCAPES, "image_id": image_id, "caption": "x", "updated_caption": "y"}
        content = {"images": [], "annotations": [annotation]}
        (folder / "p.json").write_text(json.dumps(content))
        read_pairs(folder / "p.json")

    return read


def config_with(content):
    def read(folder):
        (folder / "config.json").write_text(json.dumps(content))
        read_config(folder)

    return read


def vocabulary(folder):
    content = {"model": {"vocab": {ESCAPES: ESCAPES}, "merges": [ESCAPES]}}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    load_tokenizer(folder)


def file_name(folder):
    (folder / f"a{ESCAPES}.jpg").write_text("no image")
    ImageDirectory(folder).open(f"a{ESCAPES}.jpg")


def benchmark(folder):
    fields = Fields(folder / "b.json")
    fields.unique(ESCAPES, "row 1")
    fields.unique(ESCAPES, "row 2")
    fields.done()


def two_photos(folder):
    for i, place in enumerate(("x", "y")):
        (folder / place).mkdir()
        Image.new("RGB", (2, 2), (200 * i, 0, 0)).save(folder / place / f"{ESCAPES}.jpg")
    DataRoots((folder,)).resolve(f"{ESCAPES}.jpg")


DOORS = {
    "name of an image": pairs_with(image=f"../{ESCAPES}"),
    "id of an image": coco_with(ESCAPES),
    "text of no JSON": lambda folder: pairs_with()(folder) or read_json_of(folder),
    "model type": config_with({"model_type": ESCAPES}),
    "activation": config_with({"text_config": {"hidden_act": ESCAPES}}),
    "two keys": lambda folder: twice(folder),
    "vocabulary": vocabulary,
    "name of a file": file_name,
    "id of an item": benchmark,
    "two photos": two_photos,
}


def read_json_of(folder):
    (folder / "p.json").write_text(f'{{"images": {ESCAPES}')
    read_pairs(folder / "p.json")


def twice(folder):
    key = json.dumps(ESCAPES)
    (folder / "config.json").write_text(f"{{{key}: 1, {key}: 2}}")
    read_config(folder)


@pytest.mark.parametrize("door", DOORS)
def test_sentences_about_hostile_texts(door, tmp_path):
    with pytest.raises(InputError) as caught:
        DOORS[door](tmp_path)
    assert is_plain(str(caught.value))


def test_messages_on_the_console_and_in_the_log(tmp_path, capsys):
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        console.set_up_logging()
        log = console.log_to_file(console.epath.Path(tmp_path))
        logging.warning("%s: the image is damaged", ESCAPES)
        log.detach()
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    console.fail(f"{ESCAPES} is missing")
    assert is_plain((tmp_path / "train.log").read_bytes().decode())
    printed = capsys.readouterr().err
    assert is_plain(printed) and r"error: \x1b[2J" in printed and "damaged" in printed


def test_commands_of_data_gen(tmp_path, capsys):
    caption = {"id": ESCAPES, "image_id": 1, "caption": "x"}
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [caption] * 2}
    content["annotations"][1] = caption | {"caption": "y"}
    (tmp_path / "c.json").write_text(json.dumps(content))
    status = cli.main(["plan", f"--captions={tmp_path / 'c.json'}", f"--instances={ESCAPES}"])
    printed = capsys.readouterr()
    assert status == 2 and is_plain(printed.err) and r"\x1b[2J" in printed.err
