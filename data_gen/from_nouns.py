"""Text rows: pairs and statements about sets of things that no photo needs to show.

Negation is learnt noun by noun, and photos deny a small part of the nouns there are. A text row
names a set of things; training takes the base's features of that text, moved to where images are,
for an image that shows them, and asks the same of it as of a photo. What is in such an "image", and
what is not, is known without a label. The image of a row is called `text:NUMBER:THE THINGS`.
"""

import collections
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_gen.annotations import ABSENT, PRESENT
from data_gen.settings import Settings
from data_gen.statements import Facts, Statement, grammar_of, pen_of, row_of, write
from negclip_jax.common.errors import InputError
from negclip_jax.common.progress import told
from negclip_jax.data.pairs import Pair, PairError, read_pairs, write_pairs
from negclip_jax.language.grammar import Grammar, Template, pick
from negclip_jax.language.inflection import noun, singular
from negclip_jax.language.mentions import mentioned, named_things
from negclip_jax.language.names import object_name
from negclip_jax.language.vocabulary import canonical

PAIRS, STATEMENTS = "pairs.jsonl", "statements.parquet"
_CAPTIONS = ("{}", "{}", "there is {}", "a picture of {}")
_MOST_THINGS = 3
_CANDIDATES = 4  # for what is absent, beside the one that the pair denies
_FEWEST_CAPTIONS = 5  # of a corpus, that name a noun
_NOUNS = 8


def write_text_rows(
    config: Settings,
    folder: Path,
    rows: int,
    nouns: str | os.PathLike | None = None,
    captions: str | os.PathLike | None = None,
) -> dict[str, int]:
    """Writes `pairs.jsonl` and `statements.parquet` for `data.text_nouns`; returns counts.

    Seed and grammar are those of `config`. `nouns`: text file, one noun a line; `captions`: COCO
    captions or pairs, whose nouns are taken, beside or in place of `nouns`. Raises InputError for
    files that cannot be read, fewer than eight nouns, and no row.
    """
    names = [*(_listed(Path(nouns)) if nouns else ()), *(_named(captions) if captions else ())]
    names = list({canonical(name): name for name in names}.values())
    if len(names) < _NOUNS:
        raise InputError(
            f"{nouns or captions}: {len(names)} nouns; text rows need {_NOUNS} or more, as they "
            "say of some that they are there and of others that they are not"
        )
    if rows < 1:
        raise InputError(f"--rows={rows}: a text row or more is to be written")
    pen, grammar, pairs = pen_of(config), grammar_of(config), list[Pair]()

    def written() -> Iterator[list[Statement] | None]:
        for number in told(range(rows), "text rows"):
            if made := _pair(number, names, config.seed, grammar):
                pair, template, facts, listed = made
                row = row_of(number, pair, f"template:{template.name}")
                pairs.append(pair)
                yield from (found for _, found in pen.write([row], facts, [listed]))

    texts = write(folder / STATEMENTS, written())
    write_pairs(folder / PAIRS, pairs)
    return {"nouns": len(names), "rows": len(pairs), "units": pen.units, "texts": texts}


def _pair(
    number: int, names: Sequence[str], seed: int, grammar: Grammar
) -> tuple[Pair, Template, Facts, str] | None:
    """A pair, its template, the facts, and the things that are there in words.

    None where the grammar finds no words for it.
    """
    rng = np.random.default_rng([seed, number])
    order = [names[i] for i in rng.permutation(len(names))[: _MOST_THINGS + 1 + _CANDIDATES]]
    count = int(rng.integers(2, _MOST_THINGS + 1))
    present, others = order[:count], order[count:]
    listed = _list(present)
    # A puppy is a dog: what the words for what is there also name is not absent.
    absent = [name for name in others if not mentioned(name, [listed])]
    # Half of the captions leave one thing out, as captions do.
    said = present if rng.random() < 0.5 else present[: max(1, count - 1)]
    key = f"{seed}/{number}"
    caption = pick(_CAPTIONS, key, "caption").format(_list(said))
    rewritten = grammar.rewrite(caption, absent[0], key) if absent else None
    if rewritten is None:
        return None
    text, template = rewritten
    rests = {name: f"{name}={PRESENT}@text" for name in present}
    rests |= {canonical(name): f"{name}={ABSENT}@text" for name in absent}
    facts = Facts(present, [canonical(name) for name in absent], rests)
    image, about = f"text:{number}", {"object": absent[0], "provenance": "data_gen nouns"}
    pair = Pair(f"{image}:{listed}", caption, text, image_id=image, **about)
    return pair, template, facts, listed


def _list(names: Sequence[str]) -> str:
    *most, last = [noun(name).some for name in names]
    return f"{', '.join(most)} and {last}" if most else last


def _listed(path: Path) -> list[str]:
    """The nouns of a text file, one a line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a list of nouns: {error}") from None
    found = []
    for number, line in enumerate(lines, 1):
        if text := line.strip():
            if object_name(text) is None:
                raise InputError(f"{path}, line {number}: {text[:80]!r} is no noun: one a line")
            # The word itself, where `object_name` has the usual one: a lantern is to be learnt.
            found.append(singular(re.sub(r"^(an?|the) ", "", " ".join(text.split()))))
    return found


def _named(path: str | os.PathLike) -> list[str]:
    """The things that captions of a file name, those of at least five captions."""
    try:
        pairs = read_pairs(path, require_negated=False)
    except PairError as error:
        raise InputError(str(error)) from None
    counts = collections.Counter(name for pair in pairs for name in named_things(pair.caption))
    return sorted(name for name, count in counts.items() if count >= _FEWEST_CAPTIONS)
