"""The grammar on written captions and on the captions of real photos."""

import collections
import json
import re

import pytest

from data_gen.grammar import rewrite_by_template
from data_gen.rules import check, cue_of, mentioned
from negclip_jax.language.cues import find_cues, tokenize
from negclip_jax.language.nouns import noun
from negclip_jax.language.phrasing import GRAMMAR, pick, state_absence
from negclip_jax.language.templates import ALONE, TEMPLATES

BY_NAME = {template.name: template for template in GRAMMAR}


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
        ("nowhere-but", "A bus is red.", "cow", "A cow is nowhere to be seen, but a bus is red."),
    ],
)
def test_article_number_and_style(template, caption, name, expected):
    assert BY_NAME[template].fill(caption, noun(name)) == expected


@pytest.mark.parametrize("template", GRAMMAR, ids=lambda template: template.name)
def test_every_template_negates_the_object_once_with_its_cue(template):
    name = "person" if template.people else "apple"
    text = template.fill("A bus is on a road.", noun(name))
    cues = find_cues(tokenize(text))
    assert len(cues) == 1
    assert cue_of(text)[1] == template.position
    assert cues[0].word.replace("aren't", "isn't") == template.cue.replace("aren't", "isn't")
    assert text[0].isupper()
    assert text.endswith(".") and "{" not in text


def test_names_are_unique_and_cues_many():
    assert len(BY_NAME) == len(GRAMMAR)
    assert len({template.cue for template in GRAMMAR}) >= 15
    assert len(GRAMMAR) + len(TEMPLATES) > 150


def test_phrases_sentences_and_pictures_get_templates_that_fit():
    def used(caption):
        texts = {rewrite_by_template(caption, "dog", str(i))[1] for i in range(400)}
        return {slot for name in texts for slot in re.findall(r"{[cpos]}", BY_NAME[name].text)}

    assert used("A bus on a road") == {"{c}", "{p}", "{o}"}
    assert used("A bus is on a road") == {"{c}", "{s}"}
    assert used("A picture of a bus on a road") == {"{c}", "{p}"}
    assert used("Two men play on a road") == {"{c}"}


def test_same_key_same_text_and_another_try_another_template():
    first = rewrite_by_template("A bus on a road", "dog", "7")
    assert rewrite_by_template("A bus on a road", "dog", "7") == first
    assert rewrite_by_template("A bus on a road", "dog", "7", avoid=(first[1],))[1] != first[1]
    everything = tuple(BY_NAME)
    assert rewrite_by_template("A bus on a road", "dog", "7", avoid=everything) == first


def test_captions_are_data():
    text, _ = rewrite_by_template("A {x} sign with %s and {0}", "dog", "1")
    assert "{x} sign with %s and {0}" in text


def test_statements_stand_alone():
    for name in ("dog", "person"):
        texts = {state_absence(name, str(i), "A bus.") for i in range(50)}
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
        text, template = rewrite_by_template(caption, name, str(row["id"]))
        used.add(template)
        found = check(text, caption=caption, obj=name, count_tokens=lambda t: 20)
        rejected += [(found, text)] if found else []
    assert rejected == []
    assert len(used) > 65
