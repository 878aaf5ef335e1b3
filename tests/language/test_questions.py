"""Yes/no questions answered "no", said as a clause and merged with a caption."""

import pytest

from data_gen.rules import check
from negclip_jax.language.negation import cue_of
from negclip_jax.language.questions import deny, merge_question


@pytest.mark.parametrize(
    ("question", "clause", "focus"),
    [
        ("Is the man wearing a hat?", "the man is not wearing a hat", "hat"),
        ("Is the person running?", "the person is not running", "running"),
        ("Are there any people in the photo?", "there are no people in the photo", "person"),
        ("Is there a dog on the couch?", "there is no dog on the couch", "dog"),
        ("Is it raining?", "it is not raining", "raining"),
        ("Is anyone swimming?", "nobody is swimming", "swimming"),
        ("Is anyone in the water?", "nobody is in the water", "water"),
        ("Is this a kitchen?", "this is not a kitchen", "kitchen"),
        ("Is this man happy?", "this man is not happy", "happy"),
        ("Does the dog have a collar?", "the dog does not have a collar", "collar"),
        ("Can you see any boats?", "you cannot see any boats", "boat"),
        ("Is the fire hydrant yellow?", "the fire hydrant is not yellow", "yellow"),
        ("Is the woman's hair long?", "the woman's hair is not long", "long"),
        ("Is the man on the left wearing a hat?",
         "the man on the left is not wearing a hat", "hat"),
        ("Has the pizza been eaten?", "the pizza has not been eaten", "eaten"),
    ],
)  # fmt: skip
def test_denials(question, clause, focus):
    assert deny(question) == (clause, focus)


@pytest.mark.parametrize(
    "question",
    ["What is this?", "Is it a cat or a dog?", "Do you think it is cold?", "Are there two dogs?",
     "Does anyone have an umbrella?", "Isn't it wet?", "Is", "", "Is {x} (y) wet?", "Is it?"],
)  # fmt: skip
def test_what_no_rule_can_answer(question):
    assert deny(question) is None
    assert merge_question("A bus.", question) is None


def test_merged_captions_keep_their_style_and_pass_the_rules():
    questions = ["Is the man wearing a hat?", "Is it raining?", "Is there a dog on the sand?",
                 "Is anyone swimming?", "Is the water calm?"]  # fmt: skip
    for caption in ("A man rides a wave on a surfboard.", "a man on a {board}"):
        for question in questions:
            text = merge_question(caption, question)
            assert text.startswith(caption.rstrip("."))
            assert text.endswith(".") == caption.endswith(".")
            assert cue_of(text)[1] == "after"
            found = check(text, caption=caption, obj=deny(question).focus, count_tokens=lambda t: 9)
            assert [r for r in found if r != "chatter" or "{" not in caption] == []


def test_same_texts_same_caption_and_joints_vary():
    texts = [merge_question(f"A man on bus {i}", "Is it raining?") for i in range(20)]
    assert texts == [merge_question(f"A man on bus {i}", "Is it raining?") for i in range(20)]
    assert {text.split(", ")[1].split()[0] for text in texts} == {"and", "but"}
