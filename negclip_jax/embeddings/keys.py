"""Numbers by key for many millions of keys: sorted arrays in place of dictionaries.

A key is 16 bytes of a SHA-256 (`embeddings.store.key`). A dictionary takes some 150 bytes for each,
these arrays 24.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt8, UInt64

KEY_BYTES = 16
MISSING = -2  # number of a key that is not there; a store has -1 for what is in no file yet
Rows = UInt8[np.ndarray, "N 16"]
_RECENT = 2**18  # keys that wait to be sorted in, and no more than an eighth of all


def as_array(keys: Sequence[bytes] | Rows) -> Rows:
    """Keys as one array."""
    if isinstance(keys, np.ndarray):
        return keys
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES)


def first_of_equals(keys: Rows) -> Int64[np.ndarray, " N"]:
    """For each key the first row that has the same one."""
    front, back = _halves(keys)
    order = np.lexsort((back, front))  # stable
    starts = np.ones(len(order), bool)
    starts[1:] = (np.diff(front[order]) != 0) | (np.diff(back[order]) != 0)
    found = np.empty(len(order), np.int64)
    found[order] = order[np.flatnonzero(starts)[np.cumsum(starts) - 1]]
    return found


class KeyIndex:
    """Numbers by key. The last one that is added under a key counts."""

    def __init__(self) -> None:
        self._front, self._back = np.zeros(0, np.uint64), np.zeros(0, np.uint64)
        self._numbers = np.zeros(0, np.int64)
        self._recent: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._numbers) + len(self._recent)

    def add(self, keys: Sequence[bytes] | Rows, numbers: Int64[np.ndarray, " N"]) -> None:
        """Keeps numbers under these keys."""
        keys = as_array(keys)
        is_many = len(keys) > _RECENT
        if is_many:
            self._sort_in_recent()
        place = self._place(keys)
        known = place >= 0
        self._numbers[place[known]] = numbers[known]
        keys, numbers = keys[~known], numbers[~known]
        if is_many:
            keys, numbers = keys[::-1], numbers[::-1]
            is_last = first_of_equals(keys) == np.arange(len(keys))
            self._sort_in(keys[is_last], numbers[is_last])
            return
        content = keys.tobytes()
        named = (content[i : i + KEY_BYTES] for i in range(0, len(content), KEY_BYTES))
        self._recent |= zip(named, numbers.tolist(), strict=True)
        if len(self._recent) > max(_RECENT, len(self._numbers) // 8):
            self._sort_in_recent()

    def find(self, keys: Sequence[bytes] | Rows) -> Int64[np.ndarray, " N"]:
        """The number of each key, `MISSING` where there is none."""
        keys = as_array(keys)
        place = self._place(keys)
        found = np.full(len(keys), MISSING)
        found[place >= 0] = self._numbers[place[place >= 0]]
        if self._recent:
            content = keys.tobytes()
            for i in np.flatnonzero(place < 0).tolist():
                key = content[i * KEY_BYTES : (i + 1) * KEY_BYTES]
                found[i] = self._recent.get(key, MISSING)
        return found

    def _place(self, keys: Rows) -> Int64[np.ndarray, " N"]:
        """Where keys are in the sorted arrays, -1 for those that are not."""
        front, back = _halves(keys)
        if not len(self._front):
            return np.full(len(front), -1)
        # In ascending order, as a search that jumps about in the memory takes three times as long.
        order, last = np.argsort(front), len(self._front) - 1
        place = np.empty(len(front), np.int64)
        place[order] = np.searchsorted(self._front, front[order])

        def holds(part: np.ndarray, wanted: np.ndarray) -> np.ndarray:
            return (place <= last) & (part[np.minimum(place, last)] == wanted)

        # Keys of one first half follow each other; there are hardly ever two.
        while (passed := holds(self._front, front) & ~holds(self._back, back)).any():
            place[passed] += 1
        return np.where(holds(self._front, front), place, -1)

    def _sort_in_recent(self) -> None:
        numbers = np.fromiter(self._recent.values(), np.int64, len(self._recent))
        keys, self._recent = as_array(list(self._recent)), {}
        self._sort_in(keys, numbers)

    def _sort_in(self, keys: Rows, numbers: Int64[np.ndarray, " N"]) -> None:
        """Adds keys that are not there yet, each once."""
        front, back = _halves(keys)
        self._front = np.concatenate([self._front, front])
        self._back = np.concatenate([self._back, back])
        self._numbers = np.concatenate([self._numbers, numbers])
        order = np.argsort(self._front, kind="stable")
        self._front, self._back = self._front[order], self._back[order]
        self._numbers = self._numbers[order]


def _halves(keys: Rows) -> tuple[UInt64[np.ndarray, " N"], UInt64[np.ndarray, " N"]]:
    front, back = np.ascontiguousarray(keys).view(np.uint64).reshape(-1, 2).T
    return np.ascontiguousarray(front), np.ascontiguousarray(back)
