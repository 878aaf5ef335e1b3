"""Foils say of a photo what is false, with as few changes as possible."""

import json

import pytest

from data_gen.annotations import read_scenes
from negclip_jax.language.cues import find_cues, tokenize
from negclip_jax.language.foils import foil
from negclip_jax.language.mentions import find_kinds, mentioned


def foils(caption, present):
    return {foil(caption, present, str(i)) for i in range(30)}


@pytest.mark.parametrize(
    ("caption", "present", "expected"),
    [
        ("A man with a dog on a leash.", "dog", "A man without a dog on a leash."),
        ("A man with two dogs", "dog", "A man without any dogs"),
        ("A kitchen with a stove and a sink", "sink", "A kitchen without a stove and a sink"),
        ("There is a dog on a bed", "dog", "There is no dog on a bed"),
        ("there are two dogs on a bed", "dog", "there are no dogs on a bed"),
        ("A dog is running", "dog", "A dog is not running"),
        ("A woman riding a horse", "horse", "A woman not riding a horse"),
        ("A giraffe stands on a rock", "giraffe", "A giraffe does not stand on a rock"),
        ("A laptop on a desk", "laptop", "A laptop not on a desk"),
    ],
)
def test_small_changes(caption, present, expected):
    assert expected in foils(caption, present)


def test_plates_laden_with_things_are_not_changed():
    assert not any("laden without" in text for text in foils("A table laden with cakes", "cake"))


def test_what_the_caption_does_not_name_is_added():
    texts = foils("A man on a bench", "dog")
    assert all("man on a bench" in text.lower() for text in texts)
    assert all(find_kinds("dog", tokenize(text)) for text in texts)


def test_what_cannot_be_changed_becomes_a_statement():
    text = foil("Surfing cats", "cat", "1")
    assert "cat" in text.lower()
    assert "surfing" not in text.lower()


def test_real_foils_negate_once(shared_data):
    captions = json.loads((shared_data / "coco" / "captions.json").read_text())
    instances = json.loads((shared_data / "coco" / "instances.json").read_text())
    scenes = read_scenes(captions, instances)
    changed = named = 0
    for row in captions["annotations"]:
        scene, caption = scenes.get(row["image_id"]), row["caption"]
        if scene is None or find_cues(tokenize(caption)):
            continue
        for present in sorted(scene.present)[:2]:
            text = foil(caption, present, str(row["id"]))
            assert len(find_cues(tokenize(text))) == 1, (caption, text)
            assert text != caption
            if mentioned(present, [caption]):
                named += 1
                changed += len(text) > 0.8 * len(caption)
    assert changed > 0.5 * named > 0
