"""The grammar on written captions and on the captions of real photos."""

import collections
import json
import re

import pytest

from data_gen.rules import check
from negclip_jax.language.grammar import (
    BY_NAME,
    NATURAL,
    NOT_OF_TWO,
    TEMPLATES,
    THING,
    Grammar,
    held_out,
    pick,
    shape_of,
)
from negclip_jax.language.inflection import noun
from negclip_jax.language.mentions import find_same, mentioned
from negclip_jax.language.negation import AFTER, ALONE, BEFORE, cue_of, find_cues
from negclip_jax.language.text import tokenize


def rewrite(caption, obj, key, grammar=NATURAL, avoid=()):
    text, template = grammar.rewrite(caption, obj, key, avoid)
    return text, template.name


@pytest.mark.parametrize(
    ("template", "caption", "name", "expected"),
    [
        ("with-no", "A bus on a road.", "dog", "A bus on a road with no dog."),
        ("there-are-no", "A man rides.", "broccoli", "A man rides, and there is no broccoli."),
        ("isnt-one", "a bus", "scissors", "a bus, but there aren't any scissors"),
        ("without-in-sight", "A bus", "umbrella", "A bus, without an umbrella in sight"),
        ("is-not-visible", "A bus", "hourglass", "A bus, but an hourglass is not visible"),
        ("is-not-visible", "A bus", "skis", "A bus, but skis are not visible"),
        ("nobody-around", "A bus", "person", "A bus, and there is nobody around"),
        ("there-are-no-in", "A bus", "knife", "There are no knives in this photo of a bus"),
        ("without-after", "A bus.", "apple", "A bus without an apple."),
        ("there-is-no", "A bus on a road .", "skis", "A bus on a road, but there are no skis."),
        ("there-are-none", "a bus", "person", "a bus, and as for people, there are none"),
        ("without-there", "A bus.", "umbrella", "Without any umbrellas there, a bus."),
        ("no-here", "TV on a table", "knife", "No knife here: TV on a table"),
        ("nobody-before", "A bus.", "person", "Nobody there: a bus."),
        ("there-is-no-alone", "", "wine glass", "there is no wine glass"),
        ("isnt-there-alone", "A bus.", "bench", "The bench isn't there."),
        ("with-no", "a {x} sign", "dog", "a {x} sign with no dog"),
        ("but-no", "A BUS ON A ROAD", "dog", "A BUS ON A ROAD, BUT NO DOG"),
        ("but-no", "TV", "dog", "TV, but no dog"),
        ("nowhere-but", "A bus is red.", "cow", "A cow is nowhere to be seen, but a bus is red."),
    ],
)
def test_article_number_and_style(template, caption, name, expected):
    assert BY_NAME[template].fill(caption, noun(name)) == expected


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_every_template_negates_the_object_once_with_its_cue(template):
    name = "person" if template.people else "apple"
    caption = "A bus is on a road." if "{s}" in template.text else "A bus on a road."
    text = template.fill(caption, noun(name))
    cues = find_cues(tokenize(text))
    assert len(cues) == 1
    assert cue_of(text)[1] == template.position
    assert cues[0].word.replace("aren't", "isn't") == template.cue
    assert template.people or re.search(r"\bapples?\b", text.lower())
    assert ("bus" in text.lower()) == (template.position != ALONE)
    assert text[0].isupper()
    assert text.endswith(".") and "{" not in text


def test_names_are_unique_and_cues_many():
    assert len(BY_NAME) == len(TEMPLATES) > 150
    assert len({(t.position, t.text) for t in TEMPLATES}) == len(TEMPLATES)
    for style in ("natural", "plain"):
        assert len({t.cue for t in TEMPLATES if t.style in (style, "both")}) >= 15


def test_phrases_sentences_and_pictures_get_templates_that_fit():
    def used(caption):
        texts = {rewrite(caption, "dog", str(i))[1] for i in range(400)}
        return {slot for name in texts for slot in re.findall(r"{[cpos]}", BY_NAME[name].text)}

    assert used("A bus on a road") == {"{c}", "{p}", "{o}"}
    assert used("A bus is on a road") == {"{c}", "{s}"}
    assert used("A picture of a bus on a road") == {"{c}", "{p}"}
    assert used("Two men play on a road") == {"{c}"}


def test_same_key_same_text_and_another_try_another_template():
    first = rewrite("A bus on a road", "dog", "7")
    assert rewrite("A bus on a road", "dog", "7") == first
    assert rewrite("A bus on a road", "dog", "7", avoid=(first[1],))[1] != first[1]
    everything = tuple(BY_NAME)
    assert rewrite("A bus on a road", "dog", "7", avoid=everything) == first


def test_captions_are_data():
    text, _ = rewrite("A {x} sign with %s and {0}", "dog", "1")
    assert "{x} sign with %s and {0}" in text


def test_statements_stand_alone():
    for name in ("dog", "person"):
        texts = {NATURAL.statement(name, str(i), "A bus.") for i in range(50)}
        assert len(texts) > 5
        assert all(cue_of(text)[1] == ALONE and text.endswith(".") for text in texts)


def test_draws_are_even():
    drawn = collections.Counter(pick("abcd", str(i), "letters") for i in range(2000))
    assert min(drawn.values()) > 400


def test_real_captions_pass_the_rules(shared_data):
    """Every output for every caption of the photos, with one of COCO's classes, is accepted."""
    content = json.loads((shared_data / "coco" / "captions.json").read_text())
    instances = json.loads((shared_data / "coco" / "instances.json").read_text())
    names = [category["name"] for category in instances["categories"]] + ["bread", "red hat"]
    rows = content["annotations"]
    rejected, used = [], set()
    for i, row in enumerate(rows):
        caption, name = row["caption"], names[i % len(names)]
        if find_cues(tokenize(caption)) or mentioned(name, [caption]):
            continue
        text, template = rewrite(caption, name, str(row["id"]))
        used.add(template)
        found = check(text, caption=caption, obj=name, count_tokens=lambda t: 20)
        rejected += [(found, text)] if found else []
    assert rejected == []
    assert len(used) > 35


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
def test_phrases(caption, phrase):
    assert shape_of(caption).phrase == phrase


def test_sentences_get_no_phrase_templates_and_nobody_is_said_of_people_only():
    plain = Grammar("plain")
    names = {t.name for t in plain.fitting(AFTER, "a man rides a wave", False)}
    assert "without-after" in names
    assert "and-no" not in names
    assert not any(t.people for t in plain.fitting(AFTER, "a bus", False))
    assert any(t.people for t in plain.fitting(AFTER, "a bus", True))


def test_held_out_by_cue_and_by_name():
    grammar = Grammar("plain", ("lacking", "with-no"))
    used = {rewrite("a bus", "dog", str(i), grammar)[1] for i in range(2000)}
    banned = {t.name for t in held_out(("lacking", "with-no"))}
    assert len(banned) == 4 and not used & banned
    assert used | banned == {
        t.name for t in TEMPLATES if t.position != ALONE and t.style != "natural"
        and t.fits("a bus", False)
    } | banned  # fmt: skip


def test_unknown_names_and_styles_are_refused_with_the_list():
    with pytest.raises(ValueError, match=r"lakcing.*Cues: .*lacking"):
        Grammar(hold_out=("lakcing",))
    with pytest.raises(ValueError, match="every template"):
        Grammar(hold_out=tuple({t.cue for t in TEMPLATES}))
    with pytest.raises(ValueError, match="natural, plain"):
        Grammar("fancy")


def test_what_holds_out_all_that_fits_writes_nothing():
    left = Grammar(hold_out=tuple({t.cue for t in TEMPLATES} - {"nobody", "never"}))
    assert left.statement("dog", "1") is None
    assert rewrite("a bus", "dog", "1", left)[1] == "never-one"


def test_positions_follow_their_shares():
    def share(position, **settings):
        grammar = Grammar("plain", **settings)
        names = [rewrite("a bus", "dog", str(i), grammar)[1] for i in range(500)]
        return sum(BY_NAME[name].position == position for name in names) / 500

    assert share(ALONE, statements=1.0) == 1
    assert share(ALONE) == 0
    assert 0.33 < share(ALONE, statements=0.4) < 0.47
    assert share(BEFORE, before=1.0) == 1
    assert 0.24 < share(BEFORE, before=0.3) < 0.36
    assert share(BEFORE, before=0.0) == 0


def test_the_natural_style_draws_as_people_write():
    natural, plain = Grammar(), Grammar(style="plain")
    captions = ("a bus on a road", "A man is riding a horse.", "Two dogs sleep near a couch")
    drawn = collections.Counter(
        natural.rewrite(captions[i % 3], "cup", str(i))[1].name for i in range(3000)
    )
    weights = {t.name: t.weight for t in TEMPLATES}
    assert all(weights[name] for name in drawn)
    colons = sum(n for name, n in drawn.items() if ": {c}" in BY_NAME[name].text)
    assert colons / 3000 <= 0.05
    assert drawn["no-in-sight"] > 3 * drawn["cant-see"] > 0
    # Other styles draw alike, and where only forms of weight 0 are left one of them is taken.
    plain_drawn = collections.Counter(
        plain.rewrite(captions[0], "cup", str(i))[1].name for i in range(6000)
    )
    assert max(plain_drawn.values()) < 3 * min(plain_drawn.values())
    others = [t.name for t in TEMPLATES if t.weight]
    assert natural.rewrite(captions[1], "cup", "key", avoid=others)[1].weight == 0


def test_every_form_is_said_of_present_things_as_well():
    for template in TEMPLATES:
        base = "a bus is on a road" if template.position != ALONE else ""
        for name in ("dog", "scissors", "broccoli"):
            text = template.affirm(base, noun(name))
            assert bool(text) != template.people, template.name
            if text:
                tokens = tokenize(text)
                assert not find_cues(tokens) and find_same(name, tokens), text


def test_a_form_that_nobody_writes_comes_behind_another_place():
    first = Grammar(before=1.0)
    drawn = {first.rewrite("a zebra", "bird", str(i), shape=THING)[1] for i in range(300)}
    assert {t.position for t in drawn} == {BEFORE} and all(t.weight for t in drawn)
    # Before several sentences only forms of weight 0 fit.
    several = "A cat. It sleeps on a sofa"
    assert any(not t.weight for t in NATURAL.fitting(BEFORE, several, False))
    drawn = {first.rewrite(several, "bird", str(i))[1] for i in range(300)}
    assert {t.position for t in drawn} == {AFTER} and all(t.weight for t in drawn)


@pytest.mark.parametrize(
    ("template", "there", "like", "place", "text"),
    [
        ("but-no", "cat", "A cat on a sofa.", "on a sofa", "A cat on a sofa, but no dog."),
        ("but-no", "cat", "A cat", "", "There is a cat in the picture, but no dog"),
        ("but-no", "cat", "A cat", None, "A cat, but no dog"),
        ("there-is-no-in", "cat", "a cat", "", "there is no dog in this picture of a cat"),
        ("no-in-sight", "skis", "", "", "there are skis in the picture, with no dog in sight"),
        ("but-no", "person", "a man", "", "there is a person in the picture, but no dog"),
        ("but-no", "person", "A MAN", "ON A SOFA", "A PERSON ON A SOFA, BUT NO DOG"),
    ],
)
def test_a_thing_that_is_there_and_one_that_is_not(template, there, like, place, text):
    assert BY_NAME[template].contrast(there, "dog", like, place) == text


def test_what_is_one_of_several_things_is_not_all_there_is():
    assert {"no-just", "no-only", "no-visible-only", "nobody-just"} <= set(NOT_OF_TWO)
    assert not {"but-no", "there-is-no-in"} & set(NOT_OF_TWO)


def test_what_is_affirmed_may_be_one_alone():
    texts = [
        t.affirm("a bus is on a road", noun("dog")) for t in TEMPLATES if "as for" not in t.text
    ]
    assert not [text for text in texts if "dogs" in text]
    assert BY_NAME["no-many-alone"].affirm("", noun("person")) == "there is a person in this photo"
    assert BY_NAME["no-many-alone"].fill("", noun("person")) == "there are no people in this photo"
