"""Reading what models answer: yes or no with a probability, and JSON in its many wrappings."""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

_WORD = re.compile(r"[a-z]+")
_POLITE = re.compile(
    r"^(sure|certainly|of course|okay|ok|well|the answer is|final answer|answer)[\s,:.!]*", re.I
)
_QUESTION = re.compile(r"^[^\S\n]*([A-Z][^?\n]{5,120}\?)\s*$", re.MULTILINE)
_NAME = re.compile(r"[A-Za-z-]+(?: [A-Za-z-]+)?")
# "No, there is a dog" and "no, but I see one" are no absence; "no, there is no dog" is one.
_TAKES_BACK = re.compile(r"\b(but|however|although)\b|\bthere (is|are) (?!no\b|not\b|none\b)")
_REPEATS = re.compile(r"\s+(there (is|are) no|there (isn|aren)|it (is not|isn)|(he|she|they) )")


def yes_no_mass(top: Sequence[tuple[str, float]]) -> tuple[float, float]:
    """Probabilities of "yes" and of "no" among the (token, log probability) of one position.

    Tokens count in any case, with the space marks of tokenizers and punctuation around them.
    """
    p_yes = p_no = 0.0
    for token, logprob in top:
        p = math.exp(min(logprob, 0.0))
        word = token.strip(" \t\n\u0120\u2581\"'`*.,:!").lower()
        if word == "yes":
            p_yes += p
        elif word == "no":
            p_no += p
    return min(p_yes, 1.0), min(p_no, 1.0)


def yes_or_no(text: str) -> str | None:
    """ "yes" or "no" where the answer plainly is one of them, else None.

    Never taken for an absence: "no idea", "No, there is one", "yes and no", a refusal, nothing.
    """
    text = _POLITE.sub("", text.strip().strip("\"'`*( ").lower())
    words = _WORD.findall(text)
    if not words or words[0] not in ("yes", "no"):
        return None
    rest = text[len(words[0]) :].lstrip("\"'`*)")
    if words[0] == "yes":
        return None if "no" in words[1:3] else "yes"
    if "yes" in words[1:] or _TAKES_BACK.search(rest):
        return None
    return "no" if not rest or rest[0] in ".,;:!\n" or _REPEATS.match(rest) else None


def json_answer(text: str) -> Any:
    """The JSON list or object in an answer, or None.

    One repair: a code fence, words around it, single quotes, a trailing comma.
    """
    found = _bracketed(text)
    if not found:
        return None
    for candidate in (found, _repaired(found)):
        try:
            return json.loads(candidate)
        except (ValueError, RecursionError):
            continue
    return None


def _bracketed(text: str) -> str:
    """From the first bracket that is closed somewhere to the last one that closes it.

    A regular expression would look for the end anew from each of a million brackets.
    """
    places = [(text.find(start), text.rfind(end)) for start, end in ("[]", "{}")]
    first, last = min((p for p in places if 0 <= p[0] < p[1]), default=(0, -1))
    return text[first : last + 1]


def _repaired(text: str) -> str:
    text = re.sub(r",\s*([\]}])", r"\1", text)
    return text if '"' in text else re.sub(r"'", '"', text)


def string_list(text: str) -> list[str] | None:
    """The strings of a JSON list, also one inside an object, or of a plain list.

    Plain are bullets, numbers, lines that are questions, and a few short names with commas, since
    models of all sizes are asked. None where there is nothing of the kind.
    """
    content = json_answer(text)
    if isinstance(content, dict):
        content = next((value for value in content.values() if isinstance(value, list)), None)
    if isinstance(content, list):
        return [item for item in content if isinstance(item, str)] or None
    bullets = re.findall(r"^[^\S\n]*(?:[-*•]|\d{1,9}[.)])[^\S\n]+(.+)$", text, re.MULTILINE)
    items = bullets or _QUESTION.findall(text) or _short_names(text)
    return [item.strip() for item in items] or None


def _short_names(text: str) -> list[str]:
    """ "umbrella" or "dog, cat and kite", and nothing that looks like a sentence."""
    items = re.split(r",\s*(?:and\s+)?|\s+and\s+|\n", text.strip().rstrip("."))
    return items if all(_NAME.fullmatch(item.strip()) for item in items) else []


LIST_SCHEMA = {
    "type": "object",
    "properties": {"items": {"type": "array", "items": {"type": "string"}}},
    "required": ["items"],
    "additionalProperties": False,
}


def numbered_schema(count: int, options: Sequence[str] = ()) -> dict[str, Any]:
    """JSON schema of an object with the strings "1".."count", of `options` if there are some."""
    value = {"type": "string", **({"enum": list(options)} if options else {})}
    names = [str(i) for i in range(1, count + 1)]
    return {
        "type": "object",
        "properties": dict.fromkeys(names, value),
        "required": names,
        "additionalProperties": False,
    }


def numbered(text: str, count: int) -> list[str | None] | None:
    """Answers 1..count of a JSON object or list, None for those that are not strings.

    None where the answer is neither, or a list of another length.
    """
    content = json_answer(text)
    if isinstance(content, list) and len(content) == count:
        content = {str(i): item for i, item in enumerate(content, 1)}
    if not isinstance(content, dict):
        return None
    items = [content.get(str(i)) for i in range(1, count + 1)]
    return [item if isinstance(item, str) else None for item in items]
