"""Several sources of pairs in one run: the key `data.sources`, and their examples as one.

    coco: pairs=negated.json images=train2014 weight=0.7
    plain: pairs=wds:cc12m-{0000..1242}.tar caption_mode=original weight=0.3

A source a line, or with semicolons between them: its name, and words KEY=VALUE as in a shell. What
a source does not say of itself is as the section `data` has it.

Of the first n places of all batches, of B each, source s has those in [U(s-1), U(s)), with
U(s) = floor(n (w_1 + ... + w_s) + 1/2) and weights that add up to one: never more than one example
beside its share, whatever n. Each source goes round in epochs of its own. An epoch ends before the
first batch that it could not fill, so that no batch holds a pair twice, and the next begins with a
new order. All of it follows from seed and step number.

Shape letters as in `data.examples`.
"""

import bisect
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import math
import re
import shlex
import threading
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64, UInt64
from PIL import Image

from negclip_jax.common.decoding import ImageError
from negclip_jax.common.errors import InputError
from negclip_jax.data import order
from negclip_jax.data.examples import Examples, Shown
from negclip_jax.data.images import ImageSource
from negclip_jax.data.packing import Joined
from negclip_jax.data.statements import Statements

KEYS = ("pairs", "images", "fields", "caption_mode", "original_fraction", "statements")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")
_RESERVED = ("text", "loss", "share")  # of stand-ins and of metrics
_RECENT = 8  # steps whose places are kept
_lock = threading.Lock()
# Of a batch its pairs, which caption each shows, and random bits.
Planned = tuple[Int64[np.ndarray, " B"], Int64[np.ndarray, " B"], UInt64[np.ndarray, " B"]]


def parse(text: str) -> dict[str, dict[str, Any]]:
    """For each source of `data.sources` its weight and what else it says; raises InputError."""
    sources: dict[str, dict[str, Any]] = {}
    for line in _lines(text):
        name, colon, first = line[0].partition(":")
        if not colon or not _NAME.fullmatch(name) or name in _RESERVED:
            raise InputError(
                f"data.sources: cannot read {line[0][:100]!r}: a source begins with a name and a "
                "colon, as in coco: pairs=FILE images=DIR weight=0.7"
            )
        if name in sources:
            raise InputError(f"data.sources names {name} twice: each source has its own name")
        source: dict[str, Any] = {}
        for word in filter(None, [first, *line[1:]]):
            key, sign, value = word.partition("=")
            if not sign or key not in (*KEYS, "weight") or key in source:
                what = "twice" if key in source else "no such key"
                raise InputError(
                    f"data.sources: {name} has {word[:100]!r} ({what}): write KEY=VALUE, of the "
                    f"keys {', '.join(KEYS)} and weight"
                )
            source[key] = value
        if "pairs" not in source:
            raise InputError(f"data.sources: {name} has no pairs=...")
        source["weight"] = _weight(name, source.get("weight"))
        if "original_fraction" in source:
            source["original_fraction"] = _share(name, source["original_fraction"])
        sources[name] = source
    if not sources:
        raise InputError("data.sources names no source")
    return sources


def _lines(text: str) -> list[list[str]]:
    lexer = shlex.shlex(text.replace("\n", " ; "), posix=True, punctuation_chars=";")
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        words = list(lexer)
    except ValueError as error:
        raise InputError(f"data.sources cannot be read: {str(error).lower()}") from None
    lines: list[list[str]] = [[]]
    for word in words:
        lines[-1].append(word) if word.strip(";") else lines.append([])
    return [line for line in lines if line]


def _weight(name: str, text: str | None) -> Fraction:
    try:
        is_ratio = text is not None and re.fullmatch(r"\d{1,18}/\d{1,18}", text)
        weight = Fraction(text if is_ratio else str(float(text or "")))
    except (ValueError, ZeroDivisionError):
        weight = Fraction(0)
    if weight <= 0:
        said = "no weight" if text is None else f"the weight {text!r}"
        raise InputError(f"data.sources: {name} has {said}; write a number above 0, as weight=0.3")
    return weight


def _share(name: str, text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (share := float(text)) <= 1:
            return share
    raise InputError(f"data.sources: {name} has original_fraction={text}: write 0 to 1")


@dataclasses.dataclass(frozen=True, repr=False)
class Source:
    """Examples of one source, whose images are numbered among those of all sources.

    Attributes:
      name: of the source.
      examples: to train on.
      weight: of the source; only ratios count.
      original_fraction: share of its pairs that show their original caption.
    """

    name: str
    examples: Examples
    weight: Fraction
    original_fraction: float


class Mixture:
    """Examples of several sources, numbered one source after the other; answers as `Examples`.

    Where sources show different numbers of texts, the others have empty ones at the end.

    Attributes:
      sources: in the order of `data.sources`; the images of the first one are those of all.
      starts: int64 `[S + 1]`, the first example of each, and their number.
    """

    def __init__(self, sources: Sequence[Source], batch_size: int, seed: int):
        """Raises InputError for a source that gives a batch no example, or has too few pairs."""
        self.sources, self.batch_size, self.seed = tuple(sources), batch_size, seed
        parts = [source.examples for source in sources]
        self.starts = np.cumsum([0, *map(len, parts)])
        self.images, self.stand_ins = parts[0].images, parts[0].stand_ins
        self.image_of = np.concatenate([part.image_of for part in parts])
        self.tokens = Joined([part.tokens for part in parts])
        total = sum(source.weight for source in sources)
        self.shares = [source.weight / total for source in sources]
        self._ends = [Fraction(0), *itertools.accumulate(self.shares)]
        # Of its name: another source beside it changes nothing about a source's order.
        digests = [hashlib.sha256(f"{seed} {source.name}".encode()).digest() for source in sources]
        self._seeds = [int.from_bytes(digest[:8], "little") >> 1 for digest in digests]
        self._first_steps = [[0] for _ in sources]  # of each source's epochs, as far as known
        self._recent: dict[int, tuple] = {}
        for source, share in zip(sources, self.shares, strict=True):
            wanted = math.ceil(share * batch_size) + 1
            if share * batch_size < 1:
                raise InputError(
                    f"data.sources: {source.name} has {float(share):.2%} of the examples, less "
                    f"than one of a batch of {batch_size}: raise its weight or train.batch_size"
                )
            if len(source.examples) < wanted:
                raise InputError(
                    f"data.sources: {source.name} has {len(source.examples):,} training pairs, and "
                    f"a batch may hold {wanted:,} of them: give it a smaller weight"
                )

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which the first source is gone through once, on average."""
        return math.floor(len(self.sources[0].examples) / (self.shares[0] * self.batch_size))

    @property
    def share_of(self) -> dict[str, Fraction]:
        """Of each source by its name, adding up to one."""
        return {x.name: share for x, share in zip(self.sources, self.shares, strict=True)}

    @property
    def photos(self) -> Sequence[str]:
        return self.sources[0].examples.photos

    @property
    def texts(self) -> int:
        """How many an example shows at most, M."""
        return max(source.examples.texts for source in self.sources)

    @property
    def longest(self) -> int:
        return max(source.examples.longest for source in self.sources)

    @property
    def original(self) -> int | None:
        """Not None where all sources show their original captions."""
        shown = [source.examples.original for source in self.sources]
        return None if None in shown else shown[0]

    @property
    def statements(self) -> Statements | None:
        """Not None where a source has any: those of the first that has."""
        found = (source.examples.statements for source in self.sources)
        return next((known for known in found if known is not None), None)

    @property
    def original_index_N(self) -> Int64[np.ndarray, " N"]:
        parts = zip(self.sources, self.tokens.starts, strict=False)
        return np.concatenate([s.examples.original_index_N + first for s, first in parts])

    @functools.cached_property
    def planned_lengths(self) -> Int64[np.ndarray, " L"]:
        """As `Examples.planned_lengths`: of each source as many as its share of a large batch."""
        samples = []
        for source, share in zip(self.sources, self.shares, strict=True):
            lengths, texts = source.examples.planned_lengths, source.examples.texts
            count = max(1, round(share * 20_000))
            chosen = np.linspace(0, len(lengths) - 1, count * texts).astype(np.int64)
            samples += [lengths[chosen], np.zeros(count * (self.texts - texts), np.int64)]
        return np.concatenate(samples)

    def source_of(self, pairs: Int[np.ndarray, " B"]) -> Int32[np.ndarray, " B"]:
        """Number of the source of each example."""
        return (np.searchsorted(self.starts, pairs, "right") - 1).astype(np.int32)

    def neighbours(self, pair: int) -> tuple[int, int]:
        """First and last example, exclusively, of the source of an example."""
        source = int(self.source_of(np.array([pair]))[0])
        return int(self.starts[source]), int(self.starts[source + 1])

    def pairs_at(self, step: int) -> Planned:
        """As `loader.PairLoader.pairs_at`."""
        with _lock:
            if step not in self._recent:
                self._recent[step] = self._pairs_at(step)
                while len(self._recent) > _RECENT:
                    del self._recent[next(iter(self._recent))]
            return self._recent[step]

    def _pairs_at(self, step: int) -> Planned:
        found = []
        for number, source in enumerate(self.sources):
            first, stop = self.count(number, step), self.count(number, step + 1)
            steps = self._epochs_until(number, step)
            epoch = bisect.bisect_right(steps, step) - 1
            begin = self.count(number, steps[epoch])
            pairs, shows_original, bits = order.drawn(
                len(source.examples),
                self._seeds[number],
                epoch,
                slice(first - begin, stop - begin),
                source.original_fraction if len(source.examples.captions) > 1 else 0.0,
                shuffle=True,
            )
            found.append((pairs + self.starts[number], shows_original.astype(np.int64), bits))
        # Spread over the batch, and so over devices.
        place = order.permuted(np.arange(self.batch_size), self.batch_size, self.seed, step)
        return tuple(np.concatenate(x)[place] for x in zip(*found, strict=True))

    def count(self, number: int, step: int) -> int:
        """Examples of a source in all batches before a step."""
        places = step * self.batch_size
        ends = [math.floor(places * self._ends[i] + Fraction(1, 2)) for i in (number, number + 1)]
        return ends[1] - ends[0]

    def _epochs_until(self, number: int, step: int) -> list[int]:
        """The first steps of a source's epochs, up to the one that a step is in, or further."""
        steps, n = self._first_steps[number], len(self.sources[number].examples)
        rate = self.shares[number] * self.batch_size
        while steps[-1] <= step:
            whole = self.count(number, steps[-1]) + n
            guess = max(steps[-1] + 1, math.floor(whole / rate) - 2)
            while self.count(number, guess + 1) <= whole:
                guess += 1
            steps.append(guess)
        return steps

    def shown(
        self,
        pairs: Int[np.ndarray, " B"],
        caption_choice_B: Int[np.ndarray, " B"],
        bits_B: UInt64[np.ndarray, " B"] | None,
    ) -> Shown:
        size = len(pairs), self.texts
        found = Shown(
            np.zeros(size, np.int64),
            np.zeros(size, np.int8),
            *np.zeros((2, *size), bool),
            np.full(size, -1),
        )
        for examples, first, start, at in self._by_source(pairs):
            bits = None if bits_B is None else bits_B[at]
            own = examples.shown(pairs[at] - first, caption_choice_B[at], bits)
            found.index_BxM[at] = start + examples.empty
            found.index_BxM[at, : examples.texts] = start + own.index_BxM
            for name in vars(own).keys() - {"index_BxM"}:
                getattr(found, name)[at, : examples.texts] = getattr(own, name)
        return found

    def reserved_of(
        self, pairs: Int[np.ndarray, " B"], caption_choice_B: Int[np.ndarray, " B"], shown: Shown
    ) -> Int64[np.ndarray, "B M"]:
        reserved = np.zeros(shown.index_BxM.shape, np.int64)
        for examples, first, start, at in self._by_source(pairs):
            own = {name: x[at, : examples.texts] for name, x in vars(shown).items()}
            own["index_BxM"] = own["index_BxM"] - start
            choice = caption_choice_B[at]
            found = examples.reserved_of(pairs[at] - first, choice, Shown(**own))
            reserved[at] = examples.tokens.lengths_of(np.array([examples.empty]))
            reserved[at, : examples.texts] = found
        return reserved

    def lengths_of(self, pairs: Int[np.ndarray, " B"]) -> Int64[np.ndarray, "B C_plus_K"]:
        """Of examples of one source."""
        ((examples, first, _, _),) = self._by_source(pairs)
        return examples.lengths_of(pairs - first)

    def reserved_lengths_of(self, pairs: Int[np.ndarray, " B"]) -> Int64[np.ndarray, "B C_plus_K"]:
        """Of examples of one source."""
        ((examples, first, _, _),) = self._by_source(pairs)
        return examples.reserved_lengths_of(pairs - first)

    def _by_source(
        self, pairs: Int[np.ndarray, " B"]
    ) -> list[tuple[Examples, int, int, Bool[np.ndarray, " B"]]]:
        """Of each source among these examples: its own, its first example and text, and where."""
        number = self.source_of(pairs)
        return [
            (self.sources[i].examples, int(self.starts[i]), int(self.tokens.starts[i]), number == i)
            for i in np.unique(number).tolist()
        ]


class MixedImages(ImageSource):
    """Images of several sources, called `SOURCE:NAME`."""

    def __init__(self, sources: Mapping[str, ImageSource]):
        self.sources = dict(sources)

    def open(self, name: str) -> Image.Image:
        source, own = self._found(name)
        return source.open(own)

    def read(self, name: str) -> bytes:
        source, own = self._found(name)
        return source.read(own)

    def identity(self, name: str) -> list:
        return self.identities([name])[0]

    def identities(self, names: Sequence[str]) -> list[list]:
        found: list[list] = [[]] * len(names)
        for source, at, own in self._by_source(names):
            for i, value in zip(at, source.identities(own), strict=True):
                found[i] = value
        return found

    def missing(self, names: Iterable[str]) -> list[str]:
        names = list(dict.fromkeys(names))
        absent = set()
        for source, at, own in self._by_source(names):
            lacking = set(source.missing(own))
            absent |= {names[i] for i, name in zip(at, own, strict=True) if name in lacking}
        return [name for name in names if name in absent]

    def storage_order(self, names: Sequence[str]) -> Int64[np.ndarray, " N"]:
        """Indices of names, source by source, each in its own order."""
        parts = [np.array(at)[s.storage_order(own)] for s, at, own in self._by_source(names)]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def _found(self, name: str) -> tuple[ImageSource, str]:
        source, _, own = name.partition(":")
        if source not in self.sources:
            raise ImageError(f"{name}: there is no source of this name.")
        return self.sources[source], own

    def _by_source(self, names: Sequence[str]) -> list[tuple[ImageSource, list[int], list[str]]]:
        found: dict[str, tuple[list[int], list[str]]] = {}
        for i, name in enumerate(names):
            source, _, own = name.partition(":")
            at, owns = found.setdefault(source, ([], []))
            at.append(i)
            owns.append(own)
        return [(self.sources[source], at, owns) for source, (at, owns) in found.items()]
