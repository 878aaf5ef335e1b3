"""What models are asked: text files with turns, filled in with data that stays data.

A prompt is a file of sections `[system]`, `[user]`, `[assistant]`; the last user turn has the
placeholders. Captions and objects go in as JSON strings, in one pass over the template: braces,
quotes and line ends in a caption cannot become part of the prompt's form.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from negclip_jax.common import strict_json
from negclip_jax.common.errors import InputError
from negclip_jax.common.provenance import content_hash

# The placeholders that each prompt must have; others are data only where the stage fills them.
REQUIRED = {
    "propose": ("captions", "number"),
    "propose_many": ("photos", "number"),
    "propose_caption": ("caption",),
    "propose_random": (),
    "verify": ("question",),
    "verify_many": ("questions",),
    "rewrite": ("caption", "object"),
    "rewrite_many": ("lines",),
    "rewrite_caption": ("caption", "object"),
    "questions": ("captions", "number"),
    "merge": ("caption", "question"),
}
_OPTIONAL = {"rewrite": ("style",)}
_SECTION = re.compile(r"^\[(system|user|assistant)\]\n", re.MULTILINE)
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
BUILT_IN = Path(__file__).with_suffix("")

# Ways to say it, for variety; chosen by a hash of the caption. The grammar has many more.
STYLES = (
    'end with "without"',
    'begin with "there is no"',
    'use "with no" in the middle',
    'end with "but no"',
    'use "not"',
    'use "is absent" or "is missing"',
    'begin with "without"',
    'use "there isn\'t"',
)


Turns = tuple[tuple[str, str], ...]  # (role, text)


@dataclass(frozen=True)
class Prompt:
    """Turns of which the last one has placeholders."""

    name: str  # a key of REQUIRED
    id: str  # name and hash of the text, as in the tables
    turns: Turns

    def fill(self, **values: str) -> Turns:
        """The turns with values in place of `{placeholders}` of the last one.

        Values are not looked at again: what looks like a placeholder in them stays as it is.
        """
        role, text = self.turns[-1]
        filled = _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), text)
        return (*self.turns[:-1], (role, filled))

    def without_system(self) -> "Prompt":
        """The same words for a model that takes no system turn: they open the first user turn."""
        if self.turns[0][0] != "system":
            return self
        (_, system), (role, text), *rest = self.turns
        return replace(self, turns=((role, f"{system}\n\n{text}"), *rest))

    def in_one_turn(self) -> "Prompt":
        """The same for a model that takes a single turn: examples are told in its text."""
        *before, (role, text) = self.turns
        told = [f"Answer: {said}" if who == "assistant" else said for who, said in before]
        return replace(self, turns=((role, "\n\n".join([*told, text])),))


def load_prompts(folder: str | None = None) -> Mapping[str, Prompt]:
    """The built-in prompts, with those of `folder` (NAME.txt) in place of their namesakes.

    With a "propose" of one's own and no "propose_many" there is none: each photo is asked about in
    one's own words. Raises InputError for a file of another name, without a user turn at its end or
    without a placeholder that it needs.
    """
    prompts = {name: _read(BUILT_IN / f"{name}.txt") for name in REQUIRED}
    if folder is None:
        return prompts
    if not Path(folder).is_dir():
        raise InputError(f"prompts: there is no folder {folder}")
    own = {path.stem: path for path in sorted(Path(folder).glob("*.txt"))}
    for name, path in own.items():
        if name not in REQUIRED:
            raise InputError(f"{path}: there is no prompt of this name; {', '.join(REQUIRED)}")
        prompts[name] = _read(path)
    if "propose" in own and "propose_many" not in own:
        del prompts["propose_many"]
    return prompts


def _read(path: Path) -> Prompt:
    name = path.stem
    parts = _SECTION.split(strict_json.read_text(path))
    turns = tuple((role, body.strip()) for role, body in zip(parts[1::2], parts[2::2], strict=True))
    if not turns or turns[-1][0] != "user" or parts[0].strip():
        raise InputError(
            f"{path} must consist of [system], [user] and [assistant] turns, [user] last"
        )
    present = set(_PLACEHOLDER.findall(turns[-1][1]))
    if missing := [p for p in REQUIRED[name] if p not in present]:
        raise InputError(f"{path}: the last user turn lacks {{{missing[0]}}}")
    if unknown := present.difference(REQUIRED[name], _OPTIONAL.get(name, ())):
        raise InputError(f"{path}: nothing fills in {{{min(unknown)}}}")
    return Prompt(name, f"{name}-{content_hash(turns)[:8]}", turns)


def most_tokens(text: str) -> int:
    """More tokens than a model makes of the text: it has three bytes in each, where usual are four.

    A Chinese character is three bytes and about one token.
    """
    return len(text.encode("utf-8", "replace")) // 3 + 1


def quoted(text: str) -> str:
    """Text as data inside a prompt: a JSON string on one line."""
    return json.dumps(" ".join(text.split()), ensure_ascii=False)


def lines(texts: list[str], numbered: bool = False) -> str:
    """Texts as data, one a line, with numbers from 1 if wished."""
    rows = [quoted(text) for text in texts]
    return "\n".join(f"{i}. {row}" if numbered else row for i, row in enumerate(rows, 1))
