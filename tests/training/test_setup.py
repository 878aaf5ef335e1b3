"""Configurations and data that do not fit: a sentence that says what and where, at the start."""

import contextlib
import dataclasses
import json
import shutil
import types

import numpy as np
import pytest
from etils import epath

from negclip_jax.data.examples import Examples
from negclip_jax.data.packing import Ragged
from negclip_jax.errors import InputError
from negclip_jax.training import setup
from negclip_jax.training.setup import prepare, read_data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.batch_size": 12}, r"train\.batch_size=12 is not divisible by 8 devices"),
        ({"eval.batch_size": 12}, r"eval\.batch_size=12 is not divisible by 8 devices"),
        ({"train.microbatches": 3}, r"train\.microbatches=3 does not divide the 2 pairs"),
        ({"mesh.fsdp": 3}, r"mesh\.fsdp=3 does not divide 8 devices"),
        (
            {"train.batch_size": 72},
            r"train\.batch_size=72 is larger than the 64 training pairs",
        ),
        ({"train.total": "5 minutes"}, r"train\.total: cannot read '5 minutes'"),
        ({"optim.schedule": "cosin"}, r"optim\.schedule: 'cosin' is none of"),
        ({"optim.freeze": ("vison/.*",)}, r"optim\.freeze: no parameter matches \['vison/"),
        ({"optim.freeze": (".*",)}, r"optim\.freeze leaves nothing to train"),
        ({"mesh.rules": ((".*", "shard"),)}, r"mesh\.rules: 'shard' is neither"),
        ({"data.workers": -1}, r"config\.data\.workers is -1"),
        ({"data.captions": "negate"}, r"data\.captions: 'negate' is none of"),
        ({"data.crop": "centre"}, r"crop is 'centre'"),
        ({"data.validation_fraction": 1.5}, r"validation_fraction is 1\.5"),
        ({"data.split_by": "pair"}, r"split by \"image\" or by \"caption\""),
        ({"data.pairs": "missing.json"}, r"missing\.json"),
        ({"data.images": "missing/"}, r"missing/ does not exist"),
        ({"model.checkpoint": "no/such/checkpoint/anywhere"}, r"no/such/checkpoint/anywhere"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_do_not_fit(make_config, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        prepare(make_config(changes), str(tmp_path))
    assert not (tmp_path / "checkpoints" / "0").exists()


@pytest.mark.parametrize("key", ["model.checkpoint", "data.pairs", "data.images"])
def test_required_keys(make_config, tmp_path, key):
    config = make_config()
    section, name = key.split(".")
    config[section][name] = None
    with pytest.raises(InputError, match=rf"config\.{key} is not set: pass --config\.{key}=\.\.\."):
        prepare(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.fixture
def gappy(tiny_pairs, tmp_path):
    """The tiny pairs without three of their forty images."""
    path = tmp_path / "gappy"
    shutil.copytree(tiny_pairs, path)
    for name in ("007.png", "011.png", "031.png"):
        (path / "images" / name).unlink()
    return {"pairs": str(path / "pairs.json"), "images": str(path / "images")}


def test_missing_images_are_left_out_and_listed(gappy, caplog):
    pairs, _ = read_data(**gappy, captions="negated", max_bad_images=0.075)
    assert len(pairs) == 74 and not {"007.png", "011.png", "031.png"} & {p.image for p in pairs}
    assert "3 of 40 images are not in" in caplog.text
    assert "007.png, 011.png, 031.png; their pairs are left out" in caplog.text


def test_too_many_missing_images_stop_the_run(gappy):
    message = r"3 of 40 images are not in .*: 007\.png, 011.*data\.max_bad_images=0\.05 allows"
    with pytest.raises(InputError, match=message):
        read_data(**gappy, captions="negated", max_bad_images=0.05)


def test_pairs_without_negation_serve_only_a_control_run(tiny_pairs, tmp_path):
    content = json.loads((tiny_pairs / "pairs.json").read_text())
    for annotation in content["annotations"]:
        del annotation["updated_caption"]
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps(content))
    arguments = {"pairs": str(plain), "images": str(tiny_pairs / "images"), "max_bad_images": 0.0}
    assert len(read_data(**arguments, captions="original")[0]) == 80
    for captions in ("negated", "mix"):
        with pytest.raises(InputError, match=r"has \"updated_caption\".*data\.captions=\"original"):
            read_data(**arguments, captions=captions)


def test_tfds_has_no_negated_captions(tiny_pairs):
    with pytest.raises(InputError, match=r"tfds:\.\.\. has no negated captions"):
        read_data(
            pairs="tfds:coco_captions/train",
            images=str(tiny_pairs),
            captions="negated",
            max_bad_images=0.0,
        )
    with pytest.raises(InputError, match="write tfds:NAME/SPLIT"):
        read_data(pairs="tfds:coco", images="tfds:x/y", captions="original", max_bad_images=0.0)


@pytest.mark.parametrize(
    ("recipe", "refused"),
    [
        ({}, False),
        ({"optim.warmup": "10 steps"}, False),
        ({"optim.warmup": "10 percent"}, True),
        ({"optim.schedule": "cosine"}, True),
    ],
)
def test_a_longer_run_is_another_run_if_the_rate_depends_on_its_end(
    make_config, tmp_path, recipe, refused
):
    texts = Ragged(np.ones(2, np.int32), np.array([0, 2]))
    one = np.zeros(1, np.int64)
    examples = Examples(["a.png"], one, texts, one[None], None, None)
    loader = types.SimpleNamespace(examples=examples)
    setup._compare_with_start(make_config(recipe), epath.Path(tmp_path), loader, resumes=False)
    longer = make_config(recipe | {"train.total": "40 steps"})
    expected = pytest.raises(InputError, match=r"train\.total: '20 steps' -> '40 steps'")
    with expected if refused else contextlib.nullcontext():
        setup._compare_with_start(longer, epath.Path(tmp_path), loader, resumes=True)


def test_the_fingerprint_sees_what_is_trained_on(make_config, tmp_path, one_device):
    loader = prepare(make_config({"data.foils": 1}), str(tmp_path)).loader
    examples = loader.examples
    fingerprint = setup._fingerprint(examples)
    other_word = examples.texts.ids.copy()
    other_word[1] += 1
    assert examples.foil_mask.any()
    changed = [
        dataclasses.replace(examples, images=examples.images[::-1]),
        dataclasses.replace(examples, image_of=np.roll(examples.image_of, 1)),
        dataclasses.replace(examples, texts=Ragged(other_word, examples.texts.offsets)),
        dataclasses.replace(examples, captions=np.roll(examples.captions, 1, axis=1)),
        dataclasses.replace(examples, foils=np.roll(examples.foils, 1, axis=0)),
        dataclasses.replace(examples, foils=None),
    ]
    prints = [setup._fingerprint(e) for e in changed]
    assert len({fingerprint, *prints}) == 7
    assert len(fingerprint) == 16 and setup._fingerprint(examples) == fingerprint
