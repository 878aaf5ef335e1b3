"""The words of a text, with their places and the punctuation between them."""

import re
from functools import lru_cache
from typing import NamedTuple

# "isn't" is one word, also where a tokenizer of captions has cut it ("isn 't"); so is "t-shirt".
WORD = re.compile(r"w/o\b|[a-z0-9]+n ?['’] ?t\b|[^\W_]+(?:['’][a-z]+)*(?:-[^\W_]+)*", re.IGNORECASE)


class Token(NamedTuple):
    """A word in lower case without "'s", its place, and the punctuation before it."""

    word: str
    start: int
    end: int
    mark: str


def tokenize(text: str) -> list[Token]:
    """The words of a text with their places."""
    return list(_tokens(text))


@lru_cache(2000)  # a caption is looked at many times, one soon after the other
def _tokens(text: str) -> tuple[Token, ...]:
    tokens, end = [], 0
    for match in WORD.finditer(text):
        start = match.start()
        mark = text[end:start].strip()
        end = match.end()
        word = match.group().lower().replace("’", "'").replace(" ", "").removesuffix("'s")
        tokens.append(Token(word, start, end, mark))
    return tuple(tokens)
