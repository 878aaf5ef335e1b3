"""From what a model answers to what was asked for: one caption, one object name."""

import re

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
_TAG = re.compile(r"<\|?/?[a-zA-Z_][^<>]{0,40}>|```\w*|\[/?INST\]")
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
CHATTER = re.compile(
    r"[\n<>{}*#|`\[\]]|https?:|^\W*(?:sure|certainly|of course|okay)\b[,!.:]|"
    r"\bhere(?:['’]s| is) (?:the|your|a|an) (?:re|up|mod|new|neg|cap|sent)|\blet me know\b|"
    r"\b(?:rewritten|updated|revised|modified|original) (?:caption|sentence)\b|"
    r"\b(?:this|the|your) caption\b|\bcaption:|\bnote(?: that)?:|\bplease (?:note|provide|let)\b|"
    r"\bi(?: have|['’]ve)? (?:added|rewrote|rewritten|changed|removed|included)\b|"
    r"\bthe absence of [\w ]+ (?:is|has been|was) (?:added|indicated|mentioned|noted)|"
    r"\bonly rephrase\b|[\"”]\s*or\s*[\"“]",
    re.IGNORECASE,
)


def clean(answer: str) -> str:
    """The caption in a model's answer: one line without labels, quotes, markup or greeting.

    Strips once, what is usual; what is left over is for the rule "chatter" to reject.
    """
    for line in _TAG.sub(" ", answer).splitlines():
        line = _BULLET.sub("", line.strip()).replace("**", "").replace("__", "")
        line = _LABEL.sub("", _OPENING.sub("", line.strip()))
        line = " ".join(line.split())
        line = _unquoted(_COMMENT.sub("", line))
        if line and not line.endswith(":"):
            return line
    return ""


def _unquoted(line: str) -> str:
    bare = line.rstrip(".")
    if len(bare) > 1 and bare[0] in _QUOTES and bare[-1] in _QUOTES:
        return bare[1:-1].strip()
    return line


def normalise_object(item: str) -> str | None:
    """`object_name` of what a model answered; None for what is no text or names no thing."""
    return object_name(clean(item)) if isinstance(item, str) else None
