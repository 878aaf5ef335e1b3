import re

import pytest

from negclip_jax.language.nouns import noun
from negclip_jax.language.templates import (
    AFTER,
    ALONE,
    BEFORE,
    NEGATION,
    TEMPLATES,
    by_name,
    fitting,
    held_out,
    is_phrase,
    select,
)


@pytest.mark.parametrize(
    ("template", "caption", "name", "expected"),
    [
        ("with-no", "a bus", "dog", "a bus with no dog"),
        ("without-after", "A bus.", "apple", "A bus without an apple."),
        ("there-is-no", "A bus on a road .", "skis", "A bus on a road, but there are no skis."),
        ("there-are-no", "a bus", "broccoli", "a bus, but there is no broccoli"),
        ("isnt-after", "a bus", "scissors", "a bus, but there aren't any scissors"),
        ("none-after", "a bus", "person", "a bus, and as for people, there are none"),
        ("without-before", "A bus.", "umbrella", "Without an umbrella, a bus."),
        ("no-here", "TV on a table", "knife", "No knife here: TV on a table"),
        ("nobody-before", "A bus.", "person", "Nobody there: a bus."),
        ("there-is-no-alone", "", "wine glass", "there is no wine glass"),
        ("isnt-there-alone", "A bus.", "bench", "The bench isn't there."),
    ],
)
def test_fill_agrees_in_article_number_and_style(template, caption, name, expected):
    assert by_name(template).fill(caption, noun(name)) == expected


def test_a_caption_with_braces_is_text():
    assert by_name("with-no").fill("a {x} sign", noun("dog")) == "a {x} sign with no dog"


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t.name)
def test_every_template_negates_once_and_names_the_object(template):
    dog = noun("person" if template.people else "dog")
    text = template.fill("a bus", dog)
    assert len(NEGATION.findall(text)) == 1
    assert "{" not in text
    assert template.people or re.search(r"\bdogs?\b", text)
    assert ("bus" in text) == (template.position != ALONE)
    if template.position == AFTER:
        assert text.startswith("a bus")
    if template.position == BEFORE:
        assert text.endswith("a bus")


def test_names_are_unique_and_each_cue_is_in_its_text():
    assert len({t.name for t in TEMPLATES}) == len(TEMPLATES)
    for template in TEMPLATES:
        filled = template.fill("a bus", noun("dog"))
        assert template.cue in filled.replace("aren't", "isn't"), template


@pytest.mark.parametrize(
    ("caption", "phrase"),
    [
        ("a bus on a road", True),
        ("a red cross and a blue ring", True),
        ("there is a bus", False),
        ("a man rides a wave", False),
        ("Two men play baseball", False),
        ("a group of men play", False),
        ("you can see a bus", False),
    ],
)
def test_is_phrase(caption, phrase):
    assert is_phrase(caption) == phrase


def test_sentences_get_no_phrase_templates():
    names = {t.name for t in fitting(TEMPLATES, AFTER, "a man rides a wave", noun("dog"))}
    assert "with-no" in names
    assert "and-no" not in names


def test_nobody_is_said_of_people_only():
    assert not any(t.people for t in fitting(TEMPLATES, AFTER, "a bus", noun("dog")))
    assert any(t.people for t in fitting(TEMPLATES, AFTER, "a bus", noun("person")))


def test_held_out_by_cue_and_by_name():
    kept = select(("lacking", "with-no"))
    assert not any(t.cue == "lacking" or t.name == "with-no" for t in kept)
    assert len(kept) + len(held_out(("lacking", "with-no"))) == len(TEMPLATES)


def test_unknown_hold_out_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"lakcing.*Cues: .*lacking"):
        select(("lakcing",))
    with pytest.raises(ValueError, match="every template"):
        select({t.cue for t in TEMPLATES})
