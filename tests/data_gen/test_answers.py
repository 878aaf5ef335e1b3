"""From what models answer to captions and object names."""

import math

import pytest

from data_gen.answers import CHATTER, MARKUP, REFUSAL, clean, many_masses, normalise_object
from negclip_jax.common.chat.messages import ChatResult


@pytest.mark.parametrize(
    "answer",
    [
        "A dog with no cat.",
        '"A dog with no cat."',
        "“A dog with no cat.”",
        'Sure! Here is the updated caption:\n\n"A dog with no cat."',
        "Sure, here's the rewritten caption: A dog with no cat.",
        "**Caption:** A dog with no cat.",
        "Updated caption: A dog with no cat.",
        "1. A dog with no cat.\n2. A cat with no dog.",
        "- A dog with no cat.",
        "<s>A dog with no cat.</s>",
        "```\nA dog with no cat.\n```",
        '"A dog with no cat." # Note: I kept the tone',
        "  A dog   with no cat.  \nLet me know if you need more!",
    ],
)
def test_clean(answer):
    assert clean(answer) == "A dog with no cat."


@pytest.mark.parametrize("answer", ["", "\n \n", "**", "Here is the caption:"])
def test_nothing_to_clean(answer):
    assert clean(answer) in ("", "**")


def test_what_belongs_to_a_caption_stays():
    for text in ("A sign that says 8:25", "A 'no smoking' sign", "The man said: jump"):
        assert clean(text) == text


@pytest.mark.parametrize("text", ["I'm sorry, but I can't", "As an AI, I", "I cannot assist"])
def test_refusals(text):
    assert REFUSAL.search(text)


@pytest.mark.parametrize(
    "text", ["No car is in sight as a large elephant walks", "A man sorry for himself"]
)
def test_no_refusals(text):
    assert not REFUSAL.search(text)
    assert not CHATTER.search(text)


@pytest.mark.parametrize(
    ("item", "name"),
    [
        ("Umbrella", "umbrella"),
        ("a Sofa.", "couch"),
        ("wine glasses", "wine glass"),
        ("- trees", "tree"),
        ('"Traffic lights"', "traffic light"),
        ("people", "person"),
        ("scissors", "scissors"),
        ("sunglasses", "sunglasses"),
        ("TV", "tv"),
        ("building", "building"),
    ],
)
def test_object_names(item, name):
    assert normalise_object(item) == name


@pytest.mark.parametrize(
    "item",
    ["", "None", "sky", "blue sky", "surfing", "a dog and a cat", "I think it is a dog", "7", "x",
     "I'm sorry", "cat, dog", "a very large and old tree in the park", None, 5],
)  # fmt: skip
def test_no_object(item):
    assert normalise_object(item) is None


@pytest.mark.parametrize(
    "answer",
    [
        "<script>alert(1)</script>A dog with no cat.",
        "<b>A dog</b> with no cat.",
        "```python\nprint('a dog with no cat')\n```",
        "A dog with `no cat`.",
        "![a dog](http://x/a.jpg) with no cat",
        "See www.example.org: a dog with no cat",
        '{"caption": "A dog with no cat."}',
        '["A dog with no cat."]',
        "A dog with no cat &nbsp; here",
        "| A dog | no cat |",
        "\\textbf{A dog} with no cat",
        "<|im_start|>system <b>",
    ],
)
def test_markup_is_not_cleaned_away(answer):
    assert MARKUP.search(clean(answer))


def test_what_is_no_markup():
    for text in ("A dog & a cat", "A man's R&B record; no cat", 'A "stop" sign (no dog) at 8:25',
                 "A $5 bill - no dog, 100 % wool", "A cat/dog sign with no dog"):  # fmt: skip
        assert not MARKUP.search(text)


def test_several_answers_with_their_probabilities():
    said = '{"1": "no", "2": "Yes.", "3": "unsure"}'
    values = {"1": [("no", math.log(0.7)), ("yes", math.log(0.2))]}
    found = many_masses(ChatResult(said, values=values), 3)
    assert found[0] == pytest.approx((0.2, 0.7)) and found[1:] == [(1.0, 0.0), None]
    lines = "1. No, there is not.\n2. Yes, there is a dog.\n3. I cannot tell."
    assert many_masses(ChatResult(lines), 3) == [(0.0, 1.0), (1.0, 0.0), None]
    assert many_masses(ChatResult(lines), 2) == [None, None]
    assert many_masses(ChatResult(said, error="timeout"), 1) == [None]
