"""Merges on a heap give what the plain algorithm gives, in time that long words cannot blow up."""

import random
import time
from itertools import pairwise

from negclip_jax.data import bpe


def plain(parts: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """OpenAI's loop: the pair of lowest rank, everywhere at once, until none is known."""
    while len(parts) > 1:
        best = min(pairwise(parts), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        joined, i = [], 0
        while i < len(parts):
            if tuple(parts[i : i + 2]) == best:
                joined.append("".join(best))
                i += 2
            else:
                joined.append(parts[i])
                i += 1
        parts = joined
    return parts


def random_merges(rng: random.Random, letters: str) -> dict[tuple[str, str], int]:
    """Ranks in any order: a merge may come before those that make its parts."""
    symbols, pairs = list(letters), []
    for _ in range(rng.randint(1, 12)):
        pair = (rng.choice(symbols), rng.choice(symbols))
        if pair not in pairs:
            pairs.append(pair)
            symbols.append("".join(pair))
    rng.shuffle(pairs)
    return {pair: rank for rank, pair in enumerate(pairs)}


def test_equal_to_the_plain_algorithm_on_random_merges():
    rng = random.Random(0)
    changed = 0
    for _ in range(2000):
        letters = "abc"[: rng.randint(1, 3)]
        ranks = random_merges(rng, letters)
        word = [rng.choice(letters) for _ in range(rng.randint(1, 30))]
        merged = bpe.merge(word, ranks)
        assert merged == plain(list(word), ranks), (word, ranks)
        changed += len(merged) < len(word)
    assert changed > 1000


def test_equal_neighbours_are_joined_from_the_left():
    assert bpe.merge(list("aaaaa"), {("a", "a"): 0}) == ["aa", "aa", "a"]
    assert bpe.merge(["x"], {}) == ["x"]


def test_twenty_thousand_letters_take_a_moment():
    rng = random.Random(1)
    ranks = random_merges(rng, "abcdefgh")
    word = [rng.choice("abcdefgh") for _ in range(20_000)]
    started = time.process_time()
    merged = bpe.merge(word, ranks)
    assert time.process_time() - started < 1.0  # the plain algorithm needs several seconds
    assert "".join(merged) == "".join(word)
