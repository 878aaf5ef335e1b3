"""Lists of prompts: published layouts, one's own, and what is wrong with them."""

import json

import pytest

from evals.text_to_image.prompts import (
    PUBLISHED,
    PUBLISHED_SIZE,
    Prompt,
    affirm,
    read_prompts,
)
from negclip_jax.common.errors import InputError

HAT = {
    "Prompt": "a man not wearing a hat",
    "Question1": "Is this a man?",
    "Question2": "Is the man wearing a hat?",
}


def written(tmp_path, content, name="prompts.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("prompt", "statement"),
    [
        ("a man not wearing a hat", "a man wearing a hat"),
        ("a room with no window", "a room with window"),
        ("a dog without a collar", "a dog with a collar"),
        ("a beach without any umbrellas", "a beach with umbrellas"),
        ("a not white cat", "a white cat"),
        ("a dog", ""),
    ],
)
def test_the_negating_word_is_taken_out(prompt, statement):
    assert affirm(prompt) == statement


def test_published_questions(tmp_path):
    assert read_prompts(written(tmp_path, [HAT])) == [
        Prompt(
            "a man not wearing a hat",
            "Is this a man?",
            ("Is the man wearing a hat?",),
            "a man",
            ("a man wearing a hat",),
        )
    ]


def test_several_negations(tmp_path):
    record = {
        "full_prompt": "A photo of a man without a hat, or tie.",
        "affirmative_prompt": "A man.",
        "negative_prompts": ["hat", "tie"],
        "Question1": "Is this a man?",
        "Question2": ["Is there a hat?", "Is there a tie?"],
    }
    (prompt,) = read_prompts(written(tmp_path, [record]))
    assert prompt.absent == ("Is there a hat?", "Is there a tie?")
    assert prompt.affirmed == ("A man with hat", "A man with tie")


def test_lines_and_columns(tmp_path):
    lines = written(tmp_path, "a room with no window\n\na not white cat\n", "p.txt")
    room, cat = read_prompts(lines)
    assert (room.affirmative, room.affirmed) == ("a room", ("a room with window",))
    assert cat.affirmative == "" and room.present == "" and room.absent == ()
    table = "Prompts,Affirmative,Negated\na shelf with no books,a shelf with no books,books\n"
    (shelf,) = read_prompts(written(tmp_path, table, "p.csv"))
    assert shelf.affirmative == "a shelf"
    assert read_prompts(written(tmp_path, json.dumps(HAT) + "\n", "p.jsonl"))[0].absent


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("[]", "p.json", "holds no items"),
        ("", "p.txt", "holds no prompts"),
        ("x", "p.yaml", ".json, .jsonl, .csv or .txt"),
        ("[1]", "p.json", r"a record is not an object \(1\): \[0\]"),
        ('[{"prompt": "  "}]', "p.json", '"prompt" is empty'),
        ('[{"Question1": "Is it?"}]', "p.json", '"Prompt" is missing'),
        ('["a", "a"]', "p.json", r"occurs twice \(1\): a in \[0\] and \[1\]"),
        ('[{"Prompt": "a", "Question1": "Is it?"}]', "p.json", '"Question2" is missing'),
        ('["half a pair \\ud83d"]', "p.json", "not valid Unicode"),
        ("[", "p.json", "not valid JSON"),
    ],
)
def test_mistakes_are_messages(tmp_path, content, name, message):
    with pytest.raises(InputError, match=message):
        read_prompts(written(tmp_path, content, name))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.json cannot be read: No such file"):
        read_prompts(tmp_path / "nowhere.json")


def test_the_published_lists(shared_data):
    folder = shared_data / "benchmarks" / "t2i_negation"
    one = read_prompts(folder / PUBLISHED)
    assert len(one) == PUBLISHED_SIZE
    several = read_prompts(folder / PUBLISHED.replace(".json", "_multiple_negation.json"))
    split = read_prompts(folder / "splitted_prompts.csv")
    assert (len(one), len(several), len(split)) == (107, 100, 107)
    for prompt in [*one, *several, *split]:
        assert prompt.affirmative and prompt.affirmed
        assert not [text for text in (prompt.affirmative, *prompt.affirmed) if affirm(text)]
    assert all(prompt.present and len(prompt.absent) == 1 for prompt in one)
    assert {len(prompt.absent) for prompt in several} == {3}
