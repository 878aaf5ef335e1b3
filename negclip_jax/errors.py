"""The one exception that a person's input can raise, and how strangers' text is shown."""

import unicodedata

_LONGEST = 20_000  # characters of a message; a file name or an id inside it may be a megabyte


class InputError(ValueError):
    """Bad input from a person: a file, a setting, a checkpoint, a disk.

    The message is a sentence that says what is wrong, where, and what to do. Commands print it
    without a traceback and exit with status 1. It is `printable`, whatever was quoted in it.
    """

    def __init__(self, message: object = ""):
        super().__init__(printable(str(message)))


def printable(text: str) -> str:
    r"""The text as it may go to a terminal: line ends and tabs stay, other controls become `\x1b`.

    Escape sequences could rewrite the screen, and right-to-left marks what a line seems to say.
    Halves of surrogate pairs, which no stream can encode, are written out too. The middle of a text
    beyond 20,000 characters is left out.
    """
    if len(text) > _LONGEST:
        half = _LONGEST // 2
        text = f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"
    if text.isprintable():
        return text
    return "".join(c if _is_harmless(c) else c.encode("unicode_escape").decode() for c in text)


def _is_harmless(character: str) -> bool:
    spaces = character in "\n\t" or unicodedata.category(character) == "Zs"
    return spaces or character.isprintable()
