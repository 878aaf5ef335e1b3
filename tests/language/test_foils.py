"""Foils say of a photo what is false, with as few changes as possible."""

import json

import pytest

from data_gen.annotations import InstanceVerifier
from negclip_jax.language.foils import affirm, foil, template_foils
from negclip_jax.language.grammar import BY_NAME, TEMPLATES, Grammar
from negclip_jax.language.mentions import find_kinds, mentioned
from negclip_jax.language.negation import find_cues
from negclip_jax.language.text import tokenize


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
    present_in = InstanceVerifier(shared_data / "coco" / "instances.json").present
    changed = named = 0
    for row in captions["annotations"]:
        objects, caption = present_in.get(str(row["image_id"])), row["caption"]
        if objects is None or find_cues(tokenize(caption)):
            continue
        for present in sorted(objects)[:2]:
            text = foil(caption, present, str(row["id"]))
            assert len(find_cues(tokenize(text))) == 1, (caption, text)
            assert text != caption
            if mentioned(present, [caption]):
                named += 1
                changed += len(text) > 0.8 * len(caption)
    assert changed > 0.5 * named > 0


def test_held_out_cues_are_in_no_foil():
    grammar = Grammar("plain", ("without", "not", "no"))
    for caption in ("A man with a dog", "There is a dog", "A dog is running", "a bus"):
        for i in range(40):
            words = foil(caption, "dog", str(i), grammar).lower().replace(",", "").split()
            assert not {"without", "not", "no"} & set(words)
    nothing = Grammar(hold_out=tuple({t.cue for t in TEMPLATES} - {"nobody", "never"}))
    assert foil("A man with a dog", "dog", "1", nothing) is None


def test_the_template_of_a_pair_says_what_is_there_first_what_the_caption_leaves_out():
    def texts(caption, template, present=("dog", "cat")):
        about = (caption, "kite", present, BY_NAME[template], "1", Grammar("plain"))
        return list(template_foils(*about))

    assert texts("a dog", "with-no")[0] == "a dog with no cat"
    assert texts("a dog", "is-not-alone") == ["there is not a cat", "there is not a dog"]
    assert texts("a bus", "and-no") == ["a bus and no dog", "a bus and no cat"]
    exchanged = texts("a dog", "with-no")[1]  # no "a dog with no dog"
    assert "kite" in exchanged and "dog" in exchanged and len(find_cues(tokenize(exchanged))) == 1


def test_affirmations_say_that_the_absent_is_there_in_the_style_of_the_caption():
    texts = {affirm("A bus.", "apple", str(i), alone=False) for i in range(50)}
    assert "A bus with an apple." in texts and len(texts) == 5
    assert affirm("A bus.", "apple", "1", alone=True).lower().endswith("an apple.")
    assert not any(find_cues(tokenize(text)) for text in texts)
