"""User errors, and how untrusted text is shown in messages and terminals."""

import unicodedata

_LONGEST = 8000  # characters of a message; a file name or an id inside it may be a megabyte


class InputError(ValueError):
    """A user error: a file, a setting, a checkpoint, a server or a disk that cannot be used.

    The message says what is wrong, where, and what to do. Commands exit with it as a one-line
    message, without a traceback. It is printable and bounded, whatever was quoted in it.

    Attributes:
      status: exit status of the command; None for the one that the command gives to user errors.
    """

    def __init__(self, message: object = "", status: int | None = None):
        super().__init__(as_message(str(message)))
        self.status = status


def as_message(text: str) -> str:
    """The text as a message: `printable`, and without its middle beyond 8,000 characters."""
    return _cut(printable(_cut(text)))


def _cut(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2 - 30
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"


def printable(text: str) -> str:
    r"""The text as it may go to a terminal: line ends and tabs stay, other controls become `\x1b`.

    Escape sequences could rewrite the screen, and right-to-left marks what a line seems to say.
    Halves of surrogate pairs, which no stream can encode, are written out too.
    """
    if text.isprintable():
        return text
    return "".join(c if _is_harmless(c) else c.encode("unicode_escape").decode() for c in text)


def _is_harmless(character: str) -> bool:
    spaces = character in "\n\t" or unicodedata.category(character) == "Zs"
    return spaces or character.isprintable()
