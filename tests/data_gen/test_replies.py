"""Reading yes and no, lists, and numbered answers out of what models say."""

import math

import pytest

from data_gen.answers import json_answer, numbered, string_list, yes_no_mass, yes_or_no


@pytest.mark.parametrize(
    "text", ["No", "no.", '"No"', "**No**", "No, there is no dog", "Answer: no"]
)
def test_no(text):
    assert yes_or_no(text) == "no"


@pytest.mark.parametrize("text", ["Yes", "yes!", "Yes, there is a dog.", "Sure! Yes", "(yes)"])
def test_yes(text):
    assert yes_or_no(text) == "yes"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "There is no dog",
        "No idea",
        "No problem, let me look",
        "No, there is a dog",
        "no, but I see one",
        "yes and no",
        "No... yes",
        "I'm sorry, I cannot",
        "nope?",
        "<html>",
    ],
)
def test_neither(text):
    assert yes_or_no(text) is None


def test_mass_of_tokens():
    top = [("No", 0.4), ("\u0120no", 0.2), ("\u2581NO", 0.1), (" yes", 0.2), ("not", 0.05)]
    assert yes_no_mass([(token, math.log(p)) for token, p in top]) == pytest.approx((0.2, 0.7))
    assert yes_no_mass([]) == (0, 0)
    assert yes_no_mass([("no", 5000.0)]) == (0, 1)  # no logarithm of a probability


@pytest.mark.parametrize(
    "text",
    ['["a", "b"]', '```json\n["a", "b"]\n```', 'Here: ["a", "b",] ok', "['a', 'b']", "- a\n- b"],
)
def test_lists(text):
    assert string_list(text) == ["a", "b"]


def test_other_lists():
    assert string_list('{"objects": ["a", 3]}') == ["a"]
    assert string_list("1. a dog\n2) a cat") == ["a dog", "a cat"]
    assert string_list("Umbrella.") == ["Umbrella"]
    assert string_list("dog, traffic light, and kite") == ["dog", "traffic light", "kite"]
    assert string_list("Is it hot?\nIs he running?") == ["Is it hot?", "Is he running?"]
    for text in ("", "I cannot help with that", "[]", '{"a": "b"}', "[1, 2]", "[" * 5000):
        assert string_list(text) is None, text


def test_numbered():
    assert numbered('{"1": "a", "2": "b"}', 2) == ["a", "b"]
    assert numbered('{"2": "b", "1": 5}', 2) == [None, "b"]
    assert numbered('["a", "b"]', 2) == ["a", "b"]
    assert numbered('["a"]', 2) is None
    assert numbered("a b", 2) is None
    assert json_answer("{broken") is None


def test_brackets_that_close_nothing():
    assert json_answer("a ] b [1, 2] c") == [1, 2]
    assert json_answer('x } {"a": [1]} ]') == {"a": [1]}
    assert json_answer("[ no end") is None and json_answer("]no start[") is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\u662f", "yes"),
        ("\u662f\u7684\uff0c\u56fe\u4e2d\u6709\u72d7\u3002", "yes"),
        ("\u6709\u3002", "yes"),
        ("\u5426", "no"),
        ("\u5426\u3002", "no"),
        ("\u6ca1\u6709\u3002", "no"),
        ("\u4e0d\u662f", "no"),
        ("\u7b54\u6848\uff1a\u5426\u3002", "no"),
        ("\u6ca1\u6709\uff0c\u56fe\u4e2d\u6ca1\u6709\u72d7\u3002", "no"),
        ("no\u3002", "no"),
        ("\uff2e\uff4f\u3002", "no"),
        ("Yes\uff01", "yes"),
        ("\u6ca1\u6709\uff0c\u4f46\u6709\u4e00\u53ea\u732b", None),  # no, but there is a cat
        ("\u4e0d\u77e5\u9053", None),  # I do not know
        ("\u662f\u4e0d\u662f", None),
        ("\u65e0\u6cd5\u786e\u5b9a", None),  # cannot tell
        ("\u5bf9\u4e0d\u8d77\uff0c\u6211\u65e0\u6cd5", None),  # sorry, I cannot
    ],
)
def test_chinese_and_full_width_answers(text, answer):
    assert yes_or_no(text) == answer


def test_chinese_tokens_count():
    top = [("\u6ca1\u6709", math.log(0.5)), ("\u5426", math.log(0.2)), ("\u662f", math.log(0.1))]
    assert yes_no_mass(top) == pytest.approx((0.1, 0.7))
    assert yes_no_mass([("\u0120No\u3002", math.log(0.5))]) == pytest.approx((0, 0.5))
    assert yes_no_mass([("\u4e0d", -0.1), ("\u65e0", -0.1)]) == (0, 0)  # "do not know", "unable"
