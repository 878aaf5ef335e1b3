"""Millions of texts and where each stands, as bytes and numbers instead of Python objects.

A `str` in a dict takes some 150 bytes beside its letters; here it takes 8, and 16 more where it is
to be found again.
"""

import bisect
from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np


class Texts(Sequence[str]):
    """Texts in the order in which they were added."""

    def __init__(self, texts: Iterable[str] = ()):
        self._bytes, self._ends = bytearray(), array("q", [0])
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        self._bytes += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        place %= len(self)
        part = self._bytes[self._ends[place] : self._ends[place + 1]]
        return part.decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def order(self) -> np.ndarray:
        """The places, int64, in which the texts are sorted by their letters; stable."""
        import pyarrow as pa
        import pyarrow.compute as pc

        buffers = [None, pa.py_buffer(self._ends), pa.py_buffer(self._bytes)]
        texts = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(self), buffers)
        return pc.array_sort_indices(texts).to_numpy().astype(np.int64)


class Index:
    """Where each of some texts stands for the first time. It does not see what is added later."""

    def __init__(self, texts: Sequence[str]):
        # Python's own hash: of one process, as is this object. Equal ones are compared as texts.
        hashes = np.fromiter(map(hash, texts), np.int64, len(texts))
        order = np.argsort(hashes, kind="stable")
        # Numbers of a memoryview are Python's, which `bisect` compares faster than NumPy's.
        self._texts, self._hashes, self._order = texts, memoryview(hashes[order]), memoryview(order)

    def places(self, text: str) -> Iterator[int]:
        """The places of a text, in order."""
        wanted = hash(text)
        at = bisect.bisect_left(self._hashes, wanted)
        while at < len(self._hashes) and self._hashes[at] == wanted:
            if self._texts[self._order[at]] == text:
                yield self._order[at]
            at += 1

    def first(self, text: str) -> int:
        """The first place of a text, -1 for one that is not there."""
        return next(self.places(text), -1)

    def repeated(self) -> list[tuple[int, int]]:
        """(place, first place of the same text) of all texts but the first of their kind."""
        hashes, order = np.asarray(self._hashes), np.asarray(self._order)
        found = np.sort(order[1:][hashes[1:] == hashes[:-1]])
        firsts = ((place, self.first(self._texts[place])) for place in found.tolist())
        return [(place, first) for place, first in firsts if place != first]
