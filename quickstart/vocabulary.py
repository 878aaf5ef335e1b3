"""A small vocabulary in CLIP's byte-pair format, made of the words of the quickstart world.

It has the 256 bytes, each inside and at the end of a word, so that any text can be tokenized;
the words below, mostly one token each; and CLIP's start and end token. A bar cuts a word into the
pieces that stay separate tokens, as rare words are cut in CLIP's own vocabulary: "lack|ing" is the
token "lack" inside a word and the token "ing" at its end. The endings also occur in affirmative
words ("stand|ing", "show|s"), so that a model can learn that it is the stem that negates.
"""

import itertools
from collections.abc import Sequence

from negclip_jax.data.tokenizer import END, START, WORD_END, byte_symbols
from negclip_jax.language.inflection import noun
from quickstart.world import COLOURS, KINDS

AFFIRMATIVE = (
    "a an the and with there is are here picture of you can see stand|ing next to just only any it "
    "show show|s"
)
NEGATIVE = (
    "no not without isn aren doesn don hasn lack|s lack|ing missing absent none no|where can|not "
    "free minus but visible sight seen in be which have got for as 't"
)


def words(kinds: Sequence[str] = KINDS) -> list[str]:
    """All words of a world of these kinds, with bars between the pieces."""
    plurals = [noun(kind).many for kind in kinds]
    return [*COLOURS, *kinds, *plurals, *AFFIRMATIVE.split(), *NEGATIVE.split()]


def vocabulary(kinds: Sequence[str] = KINDS) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Symbol-to-id table and merges in order of rank, as `vocab.json` and `merges.txt` hold them.

    The start and end token are the last two ids, as in CLIP.
    """
    letters = list(byte_symbols().values())
    merges: dict[tuple[str, str], None] = {}
    for word in words(kinds):
        pieces = word.split("|")
        for i, piece in enumerate(pieces):
            symbols = [*piece[:-1], piece[-1] + (WORD_END if i == len(pieces) - 1 else "")]
            # The merges that make one token of it, after what the earlier ones do: ranks only
            # grow, so a word added before is still merged in the same way.
            ranks = {pair: rank for rank, pair in enumerate(merges)}
            while len(symbols) > 1:
                pairs = list(itertools.pairwise(symbols))
                best = min(pairs, key=lambda pair, ranks=ranks: ranks.get(pair, len(ranks)))
                merges.setdefault(best)
                ranks.setdefault(best, len(ranks))
                at = pairs.index(best)
                symbols = [*symbols[:at], best[0] + best[1], *symbols[at + 2 :]]
    symbols = [*letters, *(s + WORD_END for s in letters)]
    symbols += dict.fromkeys(a + b for a, b in merges)
    vocab = {symbol: i for i, symbol in enumerate([*symbols, START, END])}
    return vocab, list(merges)
