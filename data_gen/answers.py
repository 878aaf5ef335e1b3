"""From what a model answers to what was asked for: a caption, an object, yes or no, a JSON list."""

import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from negclip_jax.common.chat.messages import ChatResult
from negclip_jax.language.names import object_name

_LABEL = re.compile(
    r"^(?:(?:the |your |my )?(?:new|updated|rewritten|revised|modified|negated|final|output)? ?"
    r"(?:caption|answer|output|sentence|result|rewrite|response|description|object)\s*(?:is)?\s*:"
    r"|assistant\s*:|a\s*:)\s*",
    re.IGNORECASE,
)
_OPENING = re.compile(
    r"^(?:(?:sure|certainly|of course|absolutely|okay|ok|great)\b[^\w\"“'‘]*)?"
    r"(?:(?:here(?:['’]s| is| are|'re)|this is)\b[^:.\n]*"
    r"(?:caption|sentence|version|rewrite|answer|object)[^:.\n]*:\s*)?",
    re.IGNORECASE,
)
# What models leave around a caption: their special tokens, and a fence without a language.
_TOKEN = re.compile(
    r"<\|[\w ]{1,40}\|>|</?s>|<(?:eos|bos|pad|(?:start|end)_of_turn)>|\[/?INST\]|"
    r"^```(?:text|plaintext|markdown|md)?[^\S\n]*$",
    re.MULTILINE,
)
_BULLET = re.compile(r"^\s*(?:[-*•>#]+|\(?\d{1,2}[.)])\s+")
_COMMENT = re.compile(r"(?<=[\"”.!?])\s*(?:#|//|\((?:note|rephras|original)).*$", re.IGNORECASE)
_QUOTES = "\"'“”‘’`«»"

REFUSAL = re.compile(
    r"\b(?:i['’]?m sorry|i am sorry|i apologi[sz]e|as an? (?:ai\b|language model|large language)|"
    r"i (?:cannot|can['’]t|can not|am unable|['’]m unable|won['’]t|am not able)\b|"
    r"unable to (?:provide|assist|help|add|rewrite|generate|create|comply)|"
    r"(?:cannot|can['’]t) (?:assist|help with|comply|fulfil|provide|be rewritten))",
    re.IGNORECASE,
)
MARKUP = re.compile(r"[<>{}*#|`\[\]\\]|\w://|\bwww\.|&(?:[a-z]{2,8}|#\d{1,7});", re.IGNORECASE)
CHATTER = re.compile(
    r"\n|^\W*(?:sure|certainly|of course|okay)\b[,!.:]|"
    r"\bhere(?:['’]s| is) (?:the|your|a|an) (?:re|up|mod|new|neg|cap|sent)|\blet me know\b|"
    r"\b(?:rewritten|updated|revised|modified|original) (?:caption|sentence)\b|"
    r"\b(?:this|the|your) caption\b|\bcaption:|\bnote(?: that)?:|\bplease (?:note|provide|let)\b|"
    r"\bi(?: have|['’]ve)? (?:added|rewrote|rewritten|changed|removed|included)\b|"
    r"\bthe absence of [\w ]+ (?:is|has been|was) (?:added|indicated|mentioned|noted)|"
    r"\bonly rephrase\b|[\"”]\s*or\s*[\"“]",
    re.IGNORECASE,
)

_WORD = re.compile(r"[a-z]+")
_POLITE = re.compile(
    r"^(sure|certainly|of course|okay|ok|well|the answer is|final answer|answer|答案是?|回答)"
    r"[\s,:.!]*",
    re.IGNORECASE,
)
_QUESTION = re.compile(r"^[^\S\n]*([A-Z][^?\n]{5,120}\?)\s*$", re.MULTILINE)
_NUMBERED = re.compile(r"^[^\S\n]*(\d{1,3})[.):][^\S\n]+(.*\S)[^\S\n]*$", re.MULTILINE)
_SHORT_NAME = re.compile(r"[A-Za-z-]+(?: [A-Za-z-]+)?")
_AROUND = " \t\r\n\u0120\u010a\u2581\"'`*.,:!。"
_ENDS = ".,;:!。、\n"
_CHINESE_YES = ("是的", "是", "有的", "有", "对的", "对")
_CHINESE_NO = ("没有", "没", "不是", "不", "否", "无")
_CHINESE = re.compile(f"({'|'.join(_CHINESE_YES + _CHINESE_NO)})")
# "No, there is a dog" and "no, but I see one" are no absence; "no, there is no dog" is one.
_TAKES_BACK = re.compile(r"\b(but|however|although)\b|\bthere (is|are) (?!no\b|not\b|none\b)")
_REPEATS = re.compile(r"\s+(there (is|are) no|there (isn|aren)|it (is not|isn)|(he|she|they) )")


def clean(answer: str) -> str:
    """The caption in a model's answer: one line without labels, quotes, emphasis or greeting.

    Strips once, what is usual; what is left over is for the rules "chatter" and "markup" to reject:
    of "<b>A bear</b>" or a script it is not known what is the caption.
    """
    for line in _TOKEN.sub(" ", answer).splitlines():
        line = _BULLET.sub("", line.strip()).replace("**", "").replace("__", "")
        line = _LABEL.sub("", _OPENING.sub("", line.strip()))
        line = _COMMENT.sub("", " ".join(line.split()))
        bare = line.rstrip(".")
        if len(bare) > 1 and bare[0] in _QUOTES and bare[-1] in _QUOTES:
            line = bare[1:-1].strip()
        if line and not line.endswith(":"):
            return line
    return ""


def normalise_object(item: str) -> str | None:
    """`object_name` of what a model answered; None for what is no text or names no thing."""
    return object_name(clean(item)) if isinstance(item, str) else None


def yes_no_mass(top: Sequence[tuple[str, float]]) -> tuple[float, float]:
    """Probabilities of "yes" and of "no" among the (token, log probability) of one position.

    Tokens count in any case, with the space marks of tokenizers and punctuation around them.
    """
    p_yes = p_no = 0.0
    for token, logprob in top:
        p = math.exp(min(logprob, 0.0))
        word = unicodedata.normalize("NFKC", token).strip(_AROUND).lower()
        if word in ("yes", "是", "是的", "有", "有的"):
            p_yes += p
        elif word in ("no", "否", "没有", "不是"):  # 不 or 无 may go on: "do not know", "unable"
            p_no += p
    return min(p_yes, 1.0), min(p_no, 1.0)


def yes_or_no(text: str) -> str | None:
    """ "yes" or "no" where the answer plainly is one of them, else None.

    Never taken for an absence: "no idea", "No, there is one", "yes and no", a refusal, nothing.
    """
    text = unicodedata.normalize("NFKC", text)  # full-width letters and marks
    text = _POLITE.sub("", text.strip().strip("\"'`*( ").lower())
    if match := _CHINESE.match(text):
        rest = text[match.end() :]
        if match[1] in _CHINESE_YES:
            return None if re.search("[不没否无]", rest) else "yes"
        taken_back = re.search("但|不过|然而|是|(?<!没)有", rest)
        return None if taken_back or rest[:1] not in ("", *_ENDS) else "no"
    words = _WORD.findall(text)
    if not words or words[0] not in ("yes", "no"):
        return None
    rest = text[len(words[0]) :].lstrip("\"'`*)")
    if words[0] == "yes":
        return None if "no" in words[1:3] else "yes"
    if "yes" in words[1:] or _TAKES_BACK.search(rest):
        return None
    return "no" if not rest or rest[0] in _ENDS or _REPEATS.match(rest) else None


def json_answer(text: str) -> Any:
    """The JSON list or object in an answer, or None.

    One repair: a code fence, words around it, single quotes, a trailing comma.
    """
    # From the first bracket that is closed somewhere to the last one that closes it: a regular
    # expression would look for the end anew from each of a million brackets.
    places = [(text.find(start), text.rfind(end)) for start, end in ("[]", "{}")]
    first, last = min((p for p in places if 0 <= p[0] < p[1]), default=(0, -1))
    found = text[first : last + 1]
    repaired = re.sub(r",\s*([\]}])", r"\1", found)
    for candidate in (found, repaired if '"' in repaired else repaired.replace("'", '"')):
        try:
            return json.loads(candidate)
        except (ValueError, RecursionError):
            continue
    return None


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
    items = bullets or _QUESTION.findall(text)
    if not items:  # "umbrella" or "dog, cat and kite", and nothing that looks like a sentence
        names = re.split(r",\s*(?:and\s+)?|\s+and\s+|\n", text.strip().rstrip("."))
        items = names if all(_SHORT_NAME.fullmatch(name.strip()) for name in names) else []
    return [item.strip() for item in items] or None


def object_schema(properties: Mapping[str, Any]) -> dict[str, Any]:
    """JSON schema of an object with these properties, all required, and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


LIST_SCHEMA = object_schema({"items": {"type": "array", "items": {"type": "string"}}})


def numbered_schema(count: int, options: Sequence[str] = ()) -> dict[str, Any]:
    """JSON schema of an object with the strings "1".."count", of `options` if there are some."""
    value = {"type": "string", **({"enum": list(options)} if options else {})}
    return object_schema(dict.fromkeys(map(str, range(1, count + 1)), value))


def numbered(text: str, count: int) -> list[str | None] | None:
    """Answers 1..count of a JSON object or list or of numbered lines, None for those that are not
    strings.

    None where the answer is none of these, or a list of another length.
    """
    content = json_answer(text)
    rows = _NUMBERED.findall(text) if content is None else []
    if rows and [number for number, _ in rows] == [str(i) for i in range(1, count + 1)]:
        content = dict(rows)
    if isinstance(content, list) and len(content) == count:
        content = {str(i): item for i, item in enumerate(content, 1)}
    if not isinstance(content, dict):
        return None
    items = [content.get(str(i)) for i in range(1, count + 1)]
    return [item if isinstance(item, str) else None for item in items]


def lists_schema(count: int) -> dict[str, Any]:
    """JSON schema of an object with a caption and a list of objects for each of "1".."count"."""
    unit = {"caption": {"type": "string"}, "objects": LIST_SCHEMA["properties"]["items"]}
    return object_schema(dict.fromkeys(map(str, range(1, count + 1)), object_schema(unit)))


def numbered_lists(text: str, captions: Sequence[str]) -> list[list[str] | None]:
    """The lists 1..n of a JSON object, each of which says the caption that it is for.

    None for one that is missing or no list, and for one beside another caption than its number's:
    it may be some other photo's.
    """
    content, found = json_answer(text), list[list[str] | None]()
    for i, caption in enumerate(captions, 1):
        unit = content.get(str(i)) if isinstance(content, dict) else None
        said, items = map(unit.get, ("caption", "objects")) if isinstance(unit, dict) else ("", ())
        known = isinstance(said, str) and isinstance(items, list) and bare(said) == bare(caption)
        found.append(([item for item in items if isinstance(item, str)] or None) if known else None)
    return found


def bare(text: str) -> list[str]:
    """The words of a text whatever their case and the marks between them: models repeat the words,
    and less surely the rest."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


def many_masses(result: ChatResult, count: int) -> list[tuple[float, float] | None]:
    """Probabilities of "yes" and of "no" in the answers 1..count to several questions.

    From the alternatives of each answer's first token where the server told them, else 1 and 0 by
    the text; None for what could not be read.
    """
    items, found = None if result.error else numbered(result.text, count), []
    for i, item in enumerate(items or [None] * count, 1):
        answer, top = item and yes_or_no(item), (result.values or {}).get(str(i))
        masses = yes_no_mass(top) if top else (float(answer == "yes"), float(answer == "no"))
        found.append(masses if answer else None)
    return found
