"""Prepared pairs: checked and tokenized once, kept in files that later starts map into memory.

    FOLDER/head.json           format, fingerprint, counts; of each array its type, size, checksums
    FOLDER/names.u1            names of the distinct images, sorted, in UTF-8, one after the other
    FOLDER/name_ends.i8        where each of them ends
    FOLDER/image_of.i4         image of each pair, in the order of the file
    FOLDER/id_of.i4            number of its image id; empty where all ids are the names of images
    FOLDER/losses.u1           whose captions lose something when they are cut, see `losses_by_cut`
    FOLDER/tokens.u2 or .i4    token ids of the texts of all pairs, see `examples.texts_of`
    FOLDER/text_offsets.i8        where each of them ends

They are written in one pass over the pairs, of which a few thousand are in memory at a time. Names
are numbered in sorted order without holding all of them: those of half a million pairs are sorted
and written at a time, and these runs merged at the end.

What is left to do at a start depends on the images that are there and on the settings of the split:
it is arithmetic on arrays.
"""

import contextlib
import dataclasses
import hashlib
import heapq
import itertools
import json
import logging
import operator
import time
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int, Int32, Shaped, UInt8

from negclip_jax.common import storage, strict_json
from negclip_jax.common.provenance import content_hash
from negclip_jax.data.examples import losses_by_cut, ragged_of, texts_of
from negclip_jax.data.packing import Joined, Ragged
from negclip_jax.data.records import Pair
from negclip_jax.data.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

FORMAT = 1
_HEAD = "head.json"
_CHUNK = 2**13  # pairs that are objects at a time
_RUN, _LONGEST_RUN = 2**19, 2**22  # distinct strings, and all, that are sorted in memory
_READ = 2**12  # strings of each run that are in memory while runs are merged
_OF_A_RUN = ("letters", "lengths", "codes", "numbers")
_LISTED = 2**17  # names at a time
_LOST = 20  # texts that lose a negation, of which one may be shown
# Arrays and their types, of which that of `tokens` is wider for large vocabularies.
KINDS = {"names": "<u1", "name_ends": "<i8", "image_of": "<i4", "id_of": "<i4", "losses": "<u1"}
KINDS |= {"tokens": "<u2", "text_offsets": "<i8"}


class Names(Sequence):
    """Names in a file, those with some numbers of them; strings are made of what is asked for."""

    def __init__(self, folder: Path, chosen: Int[np.ndarray, " U"] | None = None):
        """`chosen`: numbers of the names; None: all."""
        self._folder, self._chosen = folder, chosen
        self._letters, self._ends = (_mapped(folder, n, KINDS[n]) for n in ("names", "name_ends"))

    def __len__(self) -> int:
        return len(self._ends if self._chosen is None else self._chosen)

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if not isinstance(index, slice):
            return self._of(np.array([range(len(self))[index]]))[0]
        return self._of(np.arange(*index.indices(len(self))))

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _LISTED):
            yield from self[start : start + _LISTED]

    def __reduce__(self) -> tuple:
        return Names, (self._folder, self._chosen)

    def only(self, chosen: Int[np.ndarray, " U"]) -> "Names":
        """Those with these numbers of all names of the file."""
        return Names(self._folder, chosen)

    def _of(self, number: Int[np.ndarray, " N"]) -> list[str]:
        number = number if self._chosen is None else self._chosen[number]
        if not len(number):
            return []
        ends = self._ends[number]
        starts = np.where(number > 0, self._ends[number - 1], 0)
        first, last = int(starts.min()), int(ends.max())
        if last - first > 2 * int((ends - starts).sum()):  # far from each other
            places = zip(starts.tolist(), ends.tolist(), strict=True)
            return [self._letters[a:b].tobytes().decode() for a, b in places]
        letters = self._letters[first:last].tobytes()
        places = zip((starts - first).tolist(), (ends - first).tolist(), strict=True)
        return [letters[a:b].decode() for a, b in places]


@dataclasses.dataclass(frozen=True)
class MappedTokens(Ragged):
    """Token ids in the files of a folder; pickles to their place."""

    folder: Path = Path()
    kind: str = KINDS["tokens"]

    @classmethod
    def open(cls, folder: Path, kind: str) -> "MappedTokens":
        """Maps them."""
        ends = _mapped(folder, "text_offsets", KINDS["text_offsets"])
        return cls(_mapped(folder, "tokens", kind), ends, folder, kind)

    def followed_by(self, other: Ragged | Joined) -> Joined:
        """These captions, and then the others; none is copied into memory."""
        return Joined([self]).followed_by(other)

    def __reduce__(self) -> tuple:
        return MappedTokens.open, (self.folder, self.kind)


@dataclasses.dataclass(frozen=True, repr=False)
class Prepared:
    """N pairs of U images, as `write` left them.

    Attributes:
      folder: where they are.
      digest: of all arrays.
      images: names of the distinct images, sorted.
      image_of: the image of each pair.
      id_of: equal for pairs of one image id; None where ids are names of images.
      losses: see `examples.losses_by_cut`.
      tokens: texts of each pair one after the other, and the empty text at the end.
      texts: how many each pair has.
      lost: numbers of some pairs that lose a negation, and their texts.
    """

    folder: Path
    digest: str
    images: Names
    image_of: Int32[np.ndarray, " N"]
    id_of: Int32[np.ndarray, " N"] | None
    losses: UInt8[np.ndarray, " N"]
    tokens: Ragged
    texts: int
    lost: list[tuple[int, str]]

    def __len__(self) -> int:
        return len(self.image_of)

    def first_text(self, rows: Int[np.ndarray, " R"]) -> Int[np.ndarray, " R"]:
        """Of each of these pairs the first text, in four bytes where these are enough."""
        is_small = len(self) * self.texts < 2**31
        return rows * (np.int32 if is_small else np.int64)(self.texts)

    def groups(self, rows: Int[np.ndarray, " R"]) -> Int32[np.ndarray, " R"]:
        """For the split by image: the least image that shares a file or an id with each of `rows`.

        Pairs that share an image file or an image id, directly or through others of
        `rows`, are of one group.
        """
        image = self.image_of[rows]
        if self.id_of is None:
            return image
        number = self.id_of[rows]
        least = np.arange(len(self.images), dtype=np.int32)
        while True:
            of_id = np.full(int(number.max(initial=-1)) + 1, len(least), np.int32)
            np.minimum.at(of_id, number, least[image])
            lower = least.copy()
            np.minimum.at(lower, image, of_id[number])
            lower = lower[lower]  # chains of images and ids halve in each turn
            if np.array_equal(lower, least):
                return least[image]
            least = lower


def fingerprint(content: str, tokenizer: Tokenizer, **settings: Any) -> str:
    """Of all that decides what `write` writes: content of the file, tokenizer, settings."""
    return content_hash([FORMAT, content, tokenizer.fingerprint, settings])[:24]


def find(folder: Path, what: str) -> Prepared | None:
    """What is kept in a folder, if it is whole and of this fingerprint; else the log says why."""
    if not (folder / _HEAD).exists():
        return None
    try:
        head = strict_json.load(folder / _HEAD)
        if not isinstance(head, dict) or head.pop("checksum", None) != content_hash(head):
            raise ValueError(f"{_HEAD} is damaged")
        if (head["format"], head["fingerprint"]) != (FORMAT, what):
            raise ValueError("it is of other pairs, another tokenizer or other settings")
        described = head["arrays"]
        with ThreadPoolExecutor() as threads:
            checked = threads.map(lambda name: _check(folder, name, described[name]), KINDS)
            arrays = dict(zip(KINDS, checked, strict=True))
    except (OSError, ValueError) as error:
        message = "prepared examples in %s cannot be used: %s; they are made again"
        _log.warning(message, folder, error)
        return None
    return Prepared(
        folder,
        content_hash([head["texts"], *(described[name][-1] for name in KINDS)]),
        Names(folder),
        arrays["image_of"],
        arrays["id_of"] if len(arrays["id_of"]) else None,
        arrays["losses"],
        MappedTokens.open(folder, described["tokens"][0]),
        head["texts"],
        head["lost"],
    )


def write(
    pairs: Iterable[Pair],
    folder: Path,
    what: str,
    tokenizer: Tokenizer,
    *,
    caption_mode: str,
    foils: int,
) -> Iterator[int]:
    """Writes prepared pairs into an empty folder; says again and again how many there are.

    `what` is their `fingerprint`; the others are those of `examples.tokenize_pairs`.
    """
    shown, started = {"caption_mode": caption_mode, "foils": foils}, time.monotonic()
    kinds = KINDS | ({} if tokenizer.vocab_size <= 2**16 else {"tokens": "<i4"})
    with contextlib.ExitStack() as files:
        into = {
            name: _Column(files.enter_context(open(_file_of(folder, name, kind), "wb")), kind)
            for name, kind in kinds.items()
        }
        images, ids = _Numbering(folder, "images"), None
        pairs, count, texts, lost = iter(pairs), 0, 1, []

        def append(content: Sequence[str | None]) -> np.ndarray:
            ragged = ragged_of(content, tokenizer)
            into["text_offsets"].append(into["tokens"].count + ragged.offsets[1:])
            into["tokens"].append(ragged.ids)
            return ragged.lengths

        def list_names(names: list[str]) -> None:
            encoded = [name.encode() for name in names]
            ends = np.cumsum([len(name) for name in encoded])
            into["name_ends"].append(into["names"].count + ends)
            into["names"].append(np.frombuffer(b"".join(encoded), np.uint8))

        into["text_offsets"].append(np.zeros(1, np.int64))
        while chunk := list(itertools.islice(pairs, _CHUNK)):
            listed = texts_of(chunk, **shown)
            texts = len(listed) // len(chunk)
            # What fills all positions may be cut, no other text.
            is_full = append(listed).reshape(-1, texts) >= tokenizer.context_length
            full = np.flatnonzero(is_full.any(axis=1))
            found, examples = losses_by_cut([chunk[i] for i in full], tokenizer, **shown)
            losses = np.zeros(len(chunk), np.uint8)
            losses[full] = found
            into["losses"].append(losses)
            lost += [(count + int(full[number]), text) for number, text in examples]
            lost = lost[:_LOST]
            names, own = [pair.image for pair in chunk], [pair.image_id for pair in chunk]
            if ids is None and own != names:
                ids = _Numbering(folder, "ids")
                for earlier in images.added():  # so far all ids were names
                    ids.add(earlier)
            images.add(names)
            if ids is not None:
                ids.add(own)
            count += len(chunk)
            yield count
        append([""])
        for _ in images.finish(into["image_of"], list_names):
            yield count
        for _ in ids.finish(into["id_of"]) if ids is not None else ():
            yield count
    head = {"format": FORMAT, "fingerprint": what, "texts": texts, "lost": lost}
    head["arrays"] = {name: column.described() for name, column in into.items()}
    head = json.loads(json.dumps(head))  # with lists for tuples, as it is read
    head["checksum"] = content_hash(head)
    (folder / _HEAD).write_text(json.dumps(head))
    size = sum(file.stat().st_size for file in folder.iterdir())
    seconds = time.monotonic() - started
    _log.info("%s pairs are prepared: %.1f MB in %.0f s", f"{count:,}", size / 1e6, seconds)


class _Column:
    """An array that grows in a file."""

    def __init__(self, file: BinaryIO, kind: str):
        self.count, self._file, self._dtype = 0, file, np.dtype(kind)
        self._crc, self._sha = 0, hashlib.sha256()

    def append(self, array: Shaped[np.ndarray, " N"]) -> None:
        content = np.ascontiguousarray(array, self._dtype).data
        self._file.write(content)
        self._crc = zlib.crc32(content, self._crc)
        self._sha.update(content)
        self.count += len(array)

    def described(self) -> list:
        """What the head says of it."""
        return [self._dtype.str, self.count, self._crc, self._sha.hexdigest()]


def _file_of(folder: Path, name: str, kind: str) -> Path:
    return folder / f"{name}.{kind[1:]}"


def _check(folder: Path, name: str, described: list) -> Shaped[np.ndarray, " N"]:
    """Maps an array. Raises ValueError where its file is not what the head says, or OSError."""
    kind, count, crc, _ = described
    file = _file_of(folder, name, kind)
    if file.stat().st_size != count * np.dtype(kind).itemsize:
        raise ValueError(f"{file.name} is cut short or too long")
    if int(storage.crc32(file), 16) != crc:
        raise ValueError(f"{file.name} is damaged: its checksum is wrong")
    return _mapped(folder, name, kind)


def _mapped(folder: Path, name: str, kind: str) -> Shaped[np.ndarray, " N"]:
    file = _file_of(folder, name, kind)
    if not file.stat().st_size:  # NumPy maps no empty file
        return np.zeros(0, kind)
    return np.memmap(file, kind, "r").view(np.ndarray)


class _Numbering:
    """Numbers strings in sorted order, more of them than fit into the memory."""

    def __init__(self, folder: Path, name: str):
        self._folder, self._name, self._runs = folder, name, 0
        self._known: dict[str, int] = {}  # of the run that is being collected
        self._codes = array("i")

    def add(self, names: Sequence[str]) -> None:
        """Strings, in order and with repetitions."""
        known = self._known
        self._codes.extend(known.setdefault(name, len(known)) for name in names)
        if len(known) >= _RUN or len(self._codes) >= _LONGEST_RUN:
            self._end_run()

    def added(self) -> Iterator[list[str]]:
        """All that was added so far, in order, in parts."""
        for run in range(self._runs):
            names = list(self._sorted(run))
            for block in _blocks(self._path(run, "codes")):
                yield [names[i] for i in block.tolist()]
        names = list(self._known)
        yield [names[i] for i in self._codes]

    def finish(
        self, numbers: _Column, listed: Callable[[list[str]], None] | None = None
    ) -> Iterator[None]:
        """Appends the number of each string that was added; yields to say that it is at work.

        `listed` is called with the distinct strings, in order and in parts.
        """
        self._end_run()
        runs = range(self._runs)
        with contextlib.ExitStack() as files:
            into = [files.enter_context(open(self._path(i, "numbers"), "wb")) for i in runs]
            pending = [array("i") for _ in runs]
            distinct: list[str] = []
            tagged = (zip(self._sorted(run), itertools.repeat(run)) for run in runs)
            merged = itertools.groupby(heapq.merge(*tagged), key=operator.itemgetter(0))
            for number, (name, same) in enumerate(merged):
                distinct.append(name)
                for _, run in same:
                    pending[run].append(number)
                    if len(pending[run]) == _READ:
                        pending[run].tofile(into[run])
                        del pending[run][:]
                if len(distinct) == _READ:
                    if listed is not None:
                        listed(distinct)
                    distinct = []
                    yield
            if listed is not None and distinct:
                listed(distinct)
            for rest, file in zip(pending, into, strict=True):
                rest.tofile(file)
        for run in runs:
            of_code = np.fromfile(self._path(run, "numbers"), np.intc)
            for block in _blocks(self._path(run, "codes")):
                numbers.append(of_code[block])
            for kind in _OF_A_RUN:
                self._path(run, kind).unlink()
            yield

    def _end_run(self) -> None:
        """Writes the strings of a run, sorted, and which of them was added when."""
        if not self._codes:
            return
        names = list(self._known)
        order = sorted(range(len(names)), key=names.__getitem__)
        rank = np.empty(len(order), np.intc)
        rank[order] = np.arange(len(order), dtype=np.intc)
        encoded = [names[i].encode() for i in order]
        self._path(self._runs, "letters").write_bytes(b"".join(encoded))
        np.array([len(x) for x in encoded], np.intc).tofile(self._path(self._runs, "lengths"))
        rank[np.frombuffer(self._codes, np.intc)].tofile(self._path(self._runs, "codes"))
        self._known, self._codes, self._runs = {}, array("i"), self._runs + 1

    def _sorted(self, run: int) -> Iterator[str]:
        with open(self._path(run, "letters"), "rb") as letters:
            for lengths in _blocks(self._path(run, "lengths"), _READ):
                content, start = letters.read(int(lengths.sum())), 0
                for length in lengths.tolist():
                    yield content[start : start + length].decode()
                    start += length

    def _path(self, run: int, kind: str) -> Path:
        return self._folder / f".{self._name}-{run}-{kind}"


def _blocks(file: Path, size: int = _RUN) -> Iterator[np.ndarray]:
    with open(file, "rb") as stream:
        while len(block := np.fromfile(stream, np.intc, size)):
            yield block
