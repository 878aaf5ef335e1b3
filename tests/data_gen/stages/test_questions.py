"""What a question's "no" denies, and which questions are worth asking."""

import pytest

from data_gen.records import Candidate
from data_gen.stages.propose import filtered, focus


@pytest.mark.parametrize(
    ("question", "word"),
    [
        ("Is the man wearing a hat?", "hat"),
        ("Is the person running?", "running"),
        ("Is it raining?", "raining"),
        ("Are there any cars?", "car"),
    ],
)
def test_focus(question, word):
    assert focus(question) == word


@pytest.mark.parametrize(
    "question",
    [
        "What is it?",
        "How many dogs are there?",
        "Is it a cat or a dog?",
        "Is nobody there?",
        "Isn't there no dog?",
        "Is it?",
        "A dog",
        "",
    ],
)
def test_no_focus(question):
    assert focus(question) is None


def test_reasons():
    asked = ["Is it raining?", "is it raining?", "Why?", "Is there a dog?", "Is the man sitting?"]
    candidates = [Candidate("", "llm", question=question) for question in asked]
    found = filtered(candidates, ["A man with a dog"])
    reasons = [c.reject_reason for c in found]
    assert reasons == [None, "duplicate", "unusable", "mentioned", None]
