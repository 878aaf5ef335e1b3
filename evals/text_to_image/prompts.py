"""Prompts that negate, with the questions that a picture must answer.

Three published files are read as they are (SpaceVLM, github.com/sepehrkr/SpaceVLM, `T2I/`):
`prompts_with_questions.json`, the 107 prompts credited there to NegationCLIP (`Prompt`,
`Question1`, `Question2`); `prompts_with_questions_multiple_negation.json` (`full_prompt`,
`affirmative_prompt`, `negative_prompts` and a list of `Question2`); `splitted_prompts.csv`
(`Prompts`, `Affirmative`). So is any list of one's own with such keys as .json, .jsonl or .csv,
or a .txt with a prompt on each line, which can be drawn and not judged.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.cues import split_at_cue
from evals.reading import Fields, read_csv, read_json, read_json_lines
from negclip_jax.common.errors import InputError
from negclip_jax.common.strict_json import read_text

PUBLISHED, PUBLISHED_SIZE = "prompts_with_questions.json", 107
DOWNLOAD = "github.com/sepehrkr/SpaceVLM, T2I/prompts_with_questions.json"
_TEXT_KEYS = ("Prompt", "Prompts", "prompt", "full_prompt")
_AFFIRMATIVE_KEYS = ("affirmative_prompt", "Affirmative", "affirmative")
_QUESTION = re.compile(r"(?:is|are) (?:this|these|it|there) (?P<phrase>.+?)\s*\?", re.IGNORECASE)
_QUANTIFIER = re.compile(r"^(?:any|a single)\s+", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt and what tells whether a picture follows it."""

    text: str  # what is drawn, "a man not wearing a hat"
    present: str = ""  # question to be answered yes, "Is this a man?"; "" where the file has none
    absent: tuple[str, ...] = ()  # questions, each to be answered no, "Is the man wearing a hat?"
    affirmative: str = ""  # the part without the negation, "a man"; "" where it cannot be told
    # Statements that hold where the prompt is not followed, "a man wearing a hat".
    affirmed: tuple[str, ...] = ()


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file, in its order.

    Raises InputError for no such file or no known layout, and for all of its bad records at once.
    """
    if path.suffix.lower() == ".txt":
        records = [{"prompt": line} for line in read_text(path).splitlines() if line.strip()]
    elif path.suffix.lower() == ".csv":
        records = read_csv(path, ())
    elif path.suffix.lower() == ".jsonl":
        records = read_json_lines(path)
    elif path.suffix.lower() == ".json":
        records = read_json(path, list)
    else:
        raise InputError(f"{path}: prompts are read from .json, .jsonl, .csv or .txt")
    if not records:
        raise InputError(f"{path} holds no prompts.")
    fields = Fields(path)
    prompts = [_prompt(fields, record, f"[{i}]") for i, record in enumerate(records)]
    fields.done()
    return prompts


def _prompt(fields: Fields, record: Any, where: str) -> Prompt:
    record = {"prompt": record} if isinstance(record, str) else record
    named = _first_key(record, _TEXT_KEYS) or "Prompt"
    text = fields.text(record, named, where).strip()
    fields.unique(text, where)
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        fields.note("the prompt is not valid Unicode (half a surrogate pair)", where)
    present, absent = "", ()
    if _first_key(record, ("Question1", "Question2")):
        present = fields.text(record, "Question1", where).strip()
        several = isinstance(record.get("Question2"), list)
        read = fields.texts if several else fields.text
        found = read(record, "Question2", where)
        absent = tuple(text.strip() for text in (found if several else [found]))
    key = _first_key(record, _AFFIRMATIVE_KEYS)
    given = fields.text(record, key, where).strip(" .") if key else ""
    # One of the published "affirmative" parts, "a shelf with no books", is the prompt itself.
    affirmative = given if given and not affirm(given) else _affirmative(text, present)
    if _first_key(record, ("negative_prompts",)):
        names = fields.texts(record, "negative_prompts", where)
        affirmed = tuple(f"{affirmative} with {name}" for name in names)
    else:
        affirmed = tuple(filter(None, [affirm(text)]))
    return Prompt(text, present, absent, affirmative, affirmed)


def _first_key(record: Any, keys: Sequence[str]) -> str | None:
    if not isinstance(record, Mapping):
        return None
    return next((key for key in keys if key in record), None)


def affirm(text: str) -> str:
    """The prompt with its negating word taken out, "" where it has none.

    >>> affirm("a man not wearing a hat"), affirm("a room with no window")
    ('a man wearing a hat', 'a room with window')
    >>> affirm("a beach without any umbrellas"), affirm("a not white cat")
    ('a beach with umbrellas', 'a white cat')
    """
    before, after = split_at_cue(text)
    if before == text:
        return ""
    without = text[len(before) :].lower().startswith(("without", "w/o"))
    rest = _QUANTIFIER.sub("", after.strip(), count=1)
    return " ".join(f"{before} {'with' if without else ''} {rest}".split())


def _affirmative(text: str, present: str) -> str:
    """What the picture must show: asked for by "Is this a man?", else what stands before the cue.

    An article alone, as in "a not white cat", names nothing.
    """
    asked = _QUESTION.fullmatch(present)
    if asked:
        return asked["phrase"]
    before = split_at_cue(text)[0].strip(" ,")
    before = re.sub(r"\s+(?:with|and|but|is|are)$", "", before)
    return "" if before == text or len(before.split()) < 2 else before
