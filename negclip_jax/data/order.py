"""Random orders and choices: pure functions of seed and epoch, whatever the number of examples.

Up to `MOST_KEPT` examples an epoch's order is the sort of random keys, and lies in memory. Beyond
it the place of an example is computed: a Feistel network over the smallest power of two that holds
all places (Luby and Rackoff, 1988), applied again where it leaves the range (cycle walking; Black
and Rogaway, 2002), less than once on average. Its round function is SplitMix64's output. Six rounds
pass the tests of `tests/data/test_order.py` (each place once; chi-square of where blocks of places
go, of the distance of neighbours, and between epochs), two fail them.

Shape letters: B places, or pairs at them.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int64, Integer, UInt64

MOST_KEPT = 2**22  # examples
_ROUNDS = 6  # even: the halves then end where they began
_AHEAD = 2**16  # places that are computed at a time
# Pairs, whether they show their original caption, random bits.
Drawn = tuple[Int64[np.ndarray, " B"], Bool[np.ndarray, " B"], UInt64[np.ndarray, " B"]]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # increment of SplitMix64


def random_bits(seed: UInt64[Any, "*#B"], number: Integer[Any, "*#B"]) -> UInt64[Any, "..."]:
    """Output of these numbers of SplitMix64 (Steele, Lea and Flood, 2014) with these seeds.

    Numbers are taken modulo 2**64. Shapes broadcast, those of NumPy's scalars too.
    """
    z = seed + (np.asarray(number).astype(np.uint64) + np.uint64(1)) * _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _key(*parts: int) -> UInt64[np.ndarray, "1"]:
    """A seed of integers: each changes all of it."""
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = random_bits(key, np.array([part % 2**64], np.uint64))
    return key


def permuted(
    place: Int[np.ndarray, "*B"], n: int, seed: int, epoch: int = 0
) -> Int64[np.ndarray, "*B"]:
    """Where a random permutation of 0..n-1 takes these places."""
    bits = max(2, (n - 1).bit_length())
    widths = [bits // 2, bits - bits // 2]
    keys = random_bits(_key(seed, epoch, 0), np.arange(_ROUNDS))

    def network(x: np.ndarray) -> np.ndarray:
        high, low = x >> np.uint64(widths[1]), x & np.uint64(2 ** widths[1] - 1)
        for number, key in enumerate(keys):
            shift = np.uint64(64 - widths[number % 2])
            high, low = low, high ^ (random_bits(key, low) >> shift)
        return high << np.uint64(widths[1]) | low

    found = network(np.asarray(place).astype(np.uint64))
    while (outside := found >= n).any():
        found[outside] = network(found[outside])
    return found.astype(np.int64)


def held_out(n: int, count: int, seed: int) -> Bool[np.ndarray, " {n}"]:
    """Which of n things are the `count` that a seed chooses."""
    if n > MOST_KEPT:
        blocks = (np.arange(start, min(start + _AHEAD, n)) for start in range(0, n, _AHEAD))
        return np.concatenate([permuted(block, n, seed) < count for block in blocks])
    # From Philox' raw bits: `Generator.permutation` may change between versions.
    bits = np.random.Philox(key=seed % 2**64).random_raw(n)
    chosen = np.zeros(n, bool)
    chosen[np.argsort(bits, kind="stable")[:count]] = True
    return chosen


def drawn(
    n: int, seed: int, epoch: int, places: slice, original_fraction: float, *, shuffle: bool
) -> Drawn:
    """Of consecutive places of an epoch: their pairs, which show their original, random bits.

    The slice has a start, and a stop that may lie beyond the n pairs of an epoch.
    `original_fraction` is the share of pairs that show their original caption. Where pairs are not
    shuffled, place i is pair i, and -1 beyond them. Bits are of the pair, not of the place.
    """
    if n > MOST_KEPT:
        start = places.start // _AHEAD
        blocks = range(start, -(-places.stop // _AHEAD))
        parts = [_computed(n, seed, epoch, block, original_fraction, shuffle) for block in blocks]
        within = slice(places.start - start * _AHEAD, places.stop - start * _AHEAD)
        order, shows_original, bits = (
            np.concatenate(part)[within] for part in zip(*parts, strict=True)
        )
        return order, shows_original, bits
    order, shows_original, bits = _kept(n, seed, original_fraction)(epoch)
    if shuffle:
        pairs = order[places]
    else:
        place = np.arange(places.start, places.stop)
        pairs = np.where(place < n, place, -1)
    return pairs, shows_original[pairs], bits[pairs]


@functools.lru_cache(maxsize=32)
def _kept(n: int, seed: int, original_fraction: float) -> Callable[[int], Drawn]:
    """A function of an epoch, which keeps the last two: its order, and what `drawn` returns."""

    @functools.lru_cache(maxsize=2)
    def of_epoch(epoch: int) -> Drawn:
        order, original, bits = np.random.Philox(key=[seed, epoch]).random_raw(3 * n).reshape(3, n)
        return np.argsort(order, kind="stable"), _is_chosen(original, original_fraction), bits

    return of_epoch


@functools.lru_cache(maxsize=32)
def _computed(
    n: int, seed: int, epoch: int, block: int, original_fraction: float, shuffle: bool
) -> Drawn:
    place = np.arange(block * _AHEAD, (block + 1) * _AHEAD)
    pairs = np.where(place < n, place, -1)
    if shuffle:
        pairs[place < n] = permuted(place[place < n], n, seed, epoch)
    original, bits = (random_bits(_key(seed, epoch, purpose), pairs) for purpose in (1, 2))
    return pairs, _is_chosen(original, original_fraction), bits


def _is_chosen(bits: UInt64[np.ndarray, " B"], share: float) -> Bool[np.ndarray, " B"]:
    # The upper 53 bits as a float in [0, 1), which is what every generator does.
    return (bits >> np.uint64(11)) * 2.0**-53 < share
