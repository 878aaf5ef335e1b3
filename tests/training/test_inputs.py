"""What is trained on: pairs without their missing images, captions by kind, and a fingerprint."""

import dataclasses
import json
import os
import re
import shutil

import numpy as np
import pytest
from etils import epath
from tiny_tars import write_photos

from negclip_jax.common.errors import InputError
from negclip_jax.data.images import ImageDirectory
from negclip_jax.data.packing import Ragged
from negclip_jax.data.shard_images import TarImages
from negclip_jax.data.tokenizer import load_tokenizer
from negclip_jax.training.inputs import fingerprint, read_data
from negclip_jax.training.setup import prepare


@pytest.fixture
def read(tiny_vocabulary, tmp_path):
    """Function of arguments of `read_data` to the image names of the pairs that it gives."""
    tokenizer = load_tokenizer(tiny_vocabulary, context_length=24)

    def read(**arguments) -> list[str]:
        kept = {"foils": 0, "tokenizer": tokenizer, "examples_dir": epath.Path(tmp_path / "kept")}
        pairs, rows, _ = read_data(**(kept | arguments))
        return [pairs.images[i] for i in pairs.image_of[rows]]

    return read


@pytest.fixture
def gappy(tiny_pairs, tmp_path):
    """The tiny pairs without three of their forty images."""
    path = tmp_path / "gappy"
    shutil.copytree(tiny_pairs, path)
    for name in ("007.png", "011.png", "031.png"):
        (path / "images" / name).unlink()
    return {"pairs": str(path / "pairs.json"), "images": str(path / "images")}


def test_missing_images_are_left_out_and_listed(gappy, read, caplog, monkeypatch):
    monkeypatch.setattr("negclip_jax.training.inputs._NAMES", 9)  # looked for in parts
    names = read(**gappy, caption_mode="negated", max_bad_images=0.075)
    assert len(names) == 74 and not {"007.png", "011.png", "031.png"} & set(names)
    assert "3 of 40 images are not in" in caplog.text
    assert "007.png, 011.png, 031.png; their pairs are left out" in caplog.text


def test_the_first_check_of_pairs_says_how_long_it_takes(tiny_pairs, read, caplog, monkeypatch):
    """As if each part took ten seconds."""
    caplog.set_level("INFO")
    for name in ("FIRST_SECONDS", "EVERY_SECONDS"):
        monkeypatch.setattr(f"negclip_jax.runtime.console.{name}", 0.0)
    monkeypatch.setattr("negclip_jax.data.prepared._CHUNK", 30)
    places = {"pairs": str(tiny_pairs / "pairs.json"), "images": str(tiny_pairs / "images")}
    read(**places, caption_mode="negated", max_bad_images=0.0)
    told = re.findall(r"pairs checked and tokenized: (\d+) of 80, ETA \d+:\d\d", caplog.text)
    assert told[:3] == ["30", "60", "80"]


def test_pairs_are_prepared_once_and_again_where_they_must(tiny_pairs, read, tmp_path, caplog):
    caplog.set_level("INFO")
    path = shutil.copy(tiny_pairs / "pairs.json", tmp_path / "pairs.json")
    arguments = {"pairs": str(path), "images": str(tiny_pairs / "images"), "max_bad_images": 0.0}

    def writes(caption_mode: str = "negated") -> bool:
        caplog.clear()
        assert len(read(**arguments, caption_mode=caption_mode)) == 80
        assert "80 prepared pairs come from" in caplog.text
        return "80 pairs are prepared" in caplog.text

    assert writes() and not writes()
    os.utime(path, (1, 1))  # the same content
    assert not writes()
    assert writes("mix") and not writes()
    tokens = sorted((tmp_path / "kept").glob("pairs-*/tokens.u2"))
    for file in tokens:
        file.write_bytes(file.read_bytes()[:-2])
    assert writes() and "tokens.u2 is cut short" in caplog.text and not writes()
    path.write_text(path.read_text().replace("thing 1", "thing one"))
    assert writes() and not writes()
    (tmp_path / "kept" / "digests.json").write_text("[")
    assert not writes()


def test_too_many_missing_images_stop_the_run(gappy, read):
    message = r"3 of 40 images are not in .*: 007\.png, 011.*data\.max_bad_images=0\.05 allows"
    with pytest.raises(InputError, match=message):
        read(**gappy, caption_mode="negated", max_bad_images=0.05)


def test_pairs_without_negation_serve_only_a_control_run(tiny_pairs, read, tmp_path):
    content = json.loads((tiny_pairs / "pairs.json").read_text())
    for annotation in content["annotations"]:
        del annotation["updated_caption"]
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps(content))
    arguments = {"pairs": str(plain), "images": str(tiny_pairs / "images"), "max_bad_images": 0.0}
    assert len(read(**arguments, caption_mode="original")) == 80
    for captions in ("negated", "mix"):
        with pytest.raises(
            InputError, match=r"has \"updated_caption\".*data\.caption_mode=\"original"
        ):
            read(**arguments, caption_mode=captions)


def test_tfds_has_no_negated_captions(tiny_pairs, read):
    with pytest.raises(InputError, match=r"tfds:\.\.\. has no negated captions"):
        read(
            pairs="tfds:coco_captions/train",
            images=str(tiny_pairs),
            caption_mode="negated",
            max_bad_images=0.0,
        )
    with pytest.raises(InputError, match="write tfds:NAME/SPLIT"):
        read(pairs="tfds:coco", images="tfds:x/y", caption_mode="original", max_bad_images=0.0)


def test_pairs_and_images_of_the_same_tars(tiny_pairs, read, tmp_path, caplog):
    folder = tiny_pairs / "images"
    write_photos(tmp_path / "t.tar", folder, sorted(os.listdir(folder))[:5])
    arguments = {"pairs": f"wds:{tmp_path}/t.tar", "images": None, "max_bad_images": 0.0}
    arguments["caption_mode"] = "original"
    names = read(**arguments)
    assert names == [f"t.tar/{i:03d}.png" for i in range(5)]
    with pytest.raises(InputError, match=r'no column "text"; it has: png, txt'):
        read(**arguments, fields="caption=text")
    caplog.clear()
    assert read(**arguments) == names and "are prepared" not in caplog.text
    assert read(**arguments, fields="caption=txt") == names and "are prepared" in caplog.text


def test_images_in_shards_are_looked_for_once(gappy, read, tmp_path, monkeypatch, caplog):
    """Until the shards or the pairs change; a folder has to be listed at each start."""
    folder = tmp_path / "gappy" / "images"
    names = sorted(os.listdir(folder))
    write_photos(tmp_path / "t.tar", folder, names)
    of_tars = gappy | {"images": f"wds:{tmp_path}/t.tar"}
    asked: list[int] = []
    for source in (TarImages, ImageDirectory):
        missing = source.missing
        monkeypatch.setattr(
            source, "missing", lambda self, x, missing=missing: asked.append(1) or missing(self, x)
        )

    def looked(arguments: dict, count: int = 74) -> bool:
        asked.clear()
        caplog.clear()
        found = read(**arguments, caption_mode="negated", max_bad_images=0.2)
        assert len(found) == count and "images are not in" in caplog.text
        return bool(asked)

    assert looked(of_tars) and not looked(of_tars)
    with pytest.raises(
        InputError, match=r"3 of 40 images are not in wds:.*: 007\.png, 011\.png, 0"
    ):
        read(**of_tars, caption_mode="negated", max_bad_images=0.05)
    for memo in (tmp_path / "kept").glob("missing-*.json"):
        memo.write_text("[-1, 3]")
    assert looked(of_tars) and not looked(of_tars)
    write_photos(tmp_path / "t.tar", folder, names[:-1])
    assert looked(of_tars, 72) and not looked(of_tars, 72)
    assert looked(gappy) and looked(gappy)


def test_the_fingerprint_sees_what_is_trained_on(make_config, tmp_path, one_device, not_compiled):
    loader = prepare(make_config({"data.foils": 1}), str(tmp_path)).loader
    examples = loader.examples
    before = fingerprint(examples)
    other_word = examples.tokens.ids.copy()
    other_word[1] += 1
    assert examples.fixed_texts(np.arange(len(examples)))[1].any()
    changed = [
        dataclasses.replace(examples, images=examples.images[::-1]),
        dataclasses.replace(examples, image_of=np.roll(examples.image_of, 1)),
        dataclasses.replace(examples, tokens=Ragged(other_word, examples.tokens.offsets)),
        dataclasses.replace(examples, first_text=np.roll(examples.first_text, 1)),
        dataclasses.replace(examples, captions=examples.fixed, fixed=examples.captions),
        dataclasses.replace(examples, fixed=()),
    ]
    prints = [fingerprint(e) for e in changed]
    assert len({before, *prints}) == 7
    assert len(before) == 16 and fingerprint(examples) == before


def test_a_run_leaves_out_captions_that_lose_their_negation(
    make_config, tiny_pairs, tmp_path, one_device, not_compiled, caplog
):
    content = json.loads((tiny_pairs / "pairs.json").read_text())
    content["annotations"][0]["updated_caption"] = "a dog and " * 12 + "no cat"
    (tmp_path / "long.json").write_text(json.dumps(content))
    counts = []
    for truncated in ("drop_lost", "keep"):
        changes = {"data.pairs": str(tmp_path / "long.json"), "data.truncated": truncated}
        run = prepare(make_config(changes), str(tmp_path / truncated))
        validation = run.validation._loader.examples
        counts.append(len(run.loader.examples) + len(validation))
    assert counts == [79, 80]
    assert "1 of them lose a negation by that, e.g. 'a dog and a dog" in caplog.text
    with pytest.raises(InputError, match=r"data\.truncated"):
        prepare(make_config({"data.truncated": "some"}), str(tmp_path / "some"))
