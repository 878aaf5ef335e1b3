"""What the two towers read: images as pixels, texts as packed token ids, in batches of one shape.

`Images` and `Texts` answer the same questions: under which key the embedding of each item is kept
(`keys`, uint8 `[N, 16]`), which item is which row (`rows_of`), what a batch of rows looks like
(`batches`), what a model does with it (`encode`, traced inside `jax.jit`, equal where it does the
same), and why an item has no embedding (`why_bad`). There may be millions: nothing but arrays is
kept of each, as long as no item is asked for by itself.

SHA-256 of images are kept, so that a later start reads none of them again:

    FOLDER/digests.bin    `MAGIC`, the CRC-32 of what follows (4 bytes, little-endian), and records
                          of 48 bytes: a hash of the image's name, ascending, one of what says that
                          it is the same (`ImageSource.identity`), and its SHA-256

Some 50 bytes an image, memory-mapped: 10 M take 480 MB of a file and no memory. Earlier versions
kept `digests.json`, 130 bytes an image of text and 600 of Python objects; it is still read.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Float32, Int64, UInt8

from negclip_jax.common import storage
from negclip_jax.common.decoding import ImageError
from negclip_jax.data.images import ImageRef, ImageSource, Preprocessor
from negclip_jax.data.packing import Chosen, Joined, Packing, Ragged
from negclip_jax.data.tar_index import hashed
from negclip_jax.data.tokenizer import Tokenizer
from negclip_jax.embeddings.store import KEY_BYTES, Rows, key
from negclip_jax.models import clip
from negclip_jax.models.normalisation import normalise_pixels
from negclip_jax.runtime import sharding

_AHEAD = 2  # batches decoded while the devices compute
_TEXTS_AT_ONCE = 2**16  # whose token ids are in memory
_IMAGES_AT_ONCE = 2**17  # whose names and identities are objects
MAGIC = b"negclip.digests.1\n\0\0"
_RECORD = np.dtype([("name", "<u8"), ("identity", "<u8"), ("digest", "u1", 32)])

Batch = dict[str, np.ndarray]


def as_rows(keys: Iterable[bytes]) -> Rows:
    """Keys, taken one by one, as one array."""
    joined = bytearray()
    for part in keys:
        joined += part
    return np.frombuffer(joined, np.uint8).reshape(-1, KEY_BYTES)


def truncated(texts: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """Those of the texts that are longer than a model reads."""
    room = tokenizer.context_length - tokenizer.special_tokens
    return [text for text in texts if len(tokenizer.encode(text)) > room]


@dataclasses.dataclass(frozen=True)
class EncodeImages:
    """Features of a batch of `Images`, NaN where bad."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, model: clip.CLIP, batch: dict[str, jax.Array]) -> Float32[jax.Array, "B D"]:
        features = model.encode_image(normalise_pixels(batch["pixels"], self.mean, self.std))
        return jnp.where(batch["bad"][:, None], jnp.nan, features)


@dataclasses.dataclass(frozen=True)
class EncodeTexts:
    """Features of a batch of `Texts`."""

    packed: bool

    def __call__(self, model: clip.CLIP, batch: dict[str, jax.Array]) -> Float32[jax.Array, "B D"]:
        return model.encode_text(batch if self.packed else batch["ids"])


class PhotoNames(Sequence):
    """Whole images by their names, in another order; each is made when it is asked for."""

    def __init__(
        self, names: Sequence[str], order: Int64[np.ndarray, " N"], make: Callable = ImageRef
    ):
        self.names, self.order, self._make = names, order, make

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self._make(self.names[i]) for i in self.order[index].tolist()]
        return self._make(self.names[int(self.order[index])])


class _Items:
    """Items by their rows."""

    items: Sequence[Hashable]
    keys: Rows

    def rows_of(self, items: Sequence[Hashable]) -> Int64[np.ndarray, " M"]:
        """Rows of these items."""
        return np.array([self._row[item] for item in items], np.int64)

    @functools.cached_property
    def _row(self) -> dict[Hashable, int]:
        return {item: row for row, item in enumerate(self.items)}


class Images(_Items):
    """Distinct images, decoded by threads ahead of the devices."""

    name, tower = "images", "image"

    def __init__(
        self,
        refs: Sequence[ImageRef],
        source: ImageSource,
        preprocess: Preprocessor,
        digests: epath.Path | Path,
        *,
        threads: int = 16,
        shared: bool = False,
    ):
        """Reads every file once for its digest, unless the folder `digests` knows it.

        Where all processes see one folder (`shared`), each reads its share of the files. `threads`
        decode.
        """
        self._source, self._preprocess, self._threads = source, preprocess, threads
        self.encode = EncodeImages(tuple(preprocess.mean), tuple(preprocess.std))
        self.unreadable: dict[ImageRef, str] = {}
        self.items = refs
        if isinstance(refs, PhotoNames):  # distinct
            found = image_digests(source, PhotoNames(refs.names, refs.order, str), digests, shared)
            boxes, row = itertools.repeat(None, len(refs)), range(len(refs))
        else:
            paths = {path: i for i, path in enumerate(dict.fromkeys(ref.path for ref in refs))}
            found = image_digests(source, list(paths), digests, shared)
            boxes, row = (ref.box for ref in refs), [paths[ref.path] for ref in refs]
        self.keys = as_rows(
            key(found[i].tobytes().hex().encode(), json.dumps(box).encode())
            for i, box in zip(row, boxes, strict=True)
        )

    def batches(self, rows_N: Int64[np.ndarray, " N"], size: int, mesh: Mesh) -> Iterator[Batch]:
        """This process's rows of each batch: `pixels` uint8 `[r, H, W, 3]`, `bad` bool `[r]`.

        Bad are images that cannot be read, noted in `unreadable`, and the rows that fill up the
        last batch.
        """

        def pixels(ref: ImageRef | None) -> tuple[np.ndarray, bool]:
            if ref is not None:
                try:
                    return self._preprocess.uint8(ref.open(self._source)), False
                except ImageError as error:
                    self.unreadable[ref] = str(error).rstrip(".")
            return np.zeros((self._preprocess.size, self._preprocess.size, 3), np.uint8), True

        def stacked(items: list[concurrent.futures.Future]) -> Batch:
            images, bad = zip(*(future.result() for future in items), strict=True)
            return {"pixels": np.stack(images), "bad": np.array(bad)}

        rows = sharding.local_rows(mesh, size)
        waiting: collections.deque[list] = collections.deque()
        pool = concurrent.futures.ThreadPoolExecutor(self._threads)
        try:
            for start in range(0, len(rows_N), size):
                part = rows_N[start : start + size].tolist()
                wanted = [self.items[part[r]] if r < len(part) else None for r in rows]
                waiting.append([pool.submit(pixels, ref) for ref in wanted])
                if len(waiting) > _AHEAD:
                    yield stacked(waiting.popleft())
            while waiting:
                yield stacked(waiting.popleft())
        finally:  # what is still waiting is not decoded for a batch that is not asked for
            pool.shutdown(wait=False, cancel_futures=True)

    def why_bad(self, ref: ImageRef) -> str:
        """What is wrong with an image whose features are not finite."""
        if ref not in self.unreadable and ref in self._row:  # only one of equal files is opened
            own, *others = self.keys[self.rows_of([ref, *self.unreadable])]
            bad = zip(self.unreadable, others, strict=True)
            same = next((r for r, other in bad if np.array_equal(other, own)), None)
            if same is not None:
                return f"{ref.path} is a copy of a bad file: {self.unreadable[same]}"
        return self.unreadable.get(ref, f"{ref.path}: its features are not finite")


class Texts(_Items):
    """Distinct texts, tokenized once; those of the same token ids have the same key."""

    name, tower = "texts", "text"

    def __init__(
        self,
        texts: Sequence[Hashable],
        tokenizer: Tokenizer,
        tokens: Ragged | Joined | Chosen | None = None,
    ):
        # Models that read the padding (SigLIP) have it in every caption: nothing to be packed.
        self.encode = EncodeTexts(packed=not tokenizer.always_pads)
        self.items = texts
        self._tokens = Ragged(*tokenizer.encode_ragged(texts)) if tokens is None else tokens
        self.keys = as_rows(map(key, self._bytes()))
        if tokens is not None:
            return
        full = np.flatnonzero(self._tokens.lengths == tokenizer.context_length)
        self.truncated = truncated([texts[i] for i in full], tokenizer)

    def _bytes(self) -> Iterator[bytes]:
        """The token ids of each text."""
        for start in range(0, len(self.items), _TEXTS_AT_ONCE):
            end = min(start + _TEXTS_AT_ONCE, len(self.items))
            part = self._tokens.taken(np.arange(start, end))
            for first, end in itertools.pairwise(part.offsets.tolist()):
                yield part.ids[first:end].tobytes()

    def batches(self, rows_N: Int64[np.ndarray, " N"], size: int, mesh: Mesh) -> Iterator[Batch]:
        """This process's share of each batch, packed as `data.packing` says or `ids` `[r, T]`.

        The last batch is filled up with its last text.
        """
        rows = np.asarray(rows_N)
        parts = rows[np.minimum(np.arange(-(-len(rows) // size) * size), len(rows) - 1)]
        parts = parts.reshape(-1, size)
        if not self.encode.packed:
            local = sharding.local_rows(mesh, size)
            length = int(self._tokens.lengths_of(np.zeros(1, np.int64))[0])  # that of every row
            yield from ({"ids": self._tokens.padded(part[local], length)} for part in parts)
            return
        # All batches are known, so there is one number of rows that fits each: one program.
        lengths = self._tokens.lengths_of(parts)
        packing = Packing.suited_to(lengths.ravel(), size, mesh.size)
        packing = dataclasses.replace(packing, rows=1, row_step=1)
        fullest = max(packing.rows_needed(part) for part in lengths)
        packing = dataclasses.replace(packing, rows=fullest)
        for part in parts:
            packed = packing.pack(self._tokens, part)
            yield {name: x[sharding.local_rows(mesh, len(x))] for name, x in packed.items()}

    def why_bad(self, text: Hashable) -> str:
        """What is wrong with a text whose features are not finite."""
        return f"{text!r}: its features are not finite"


def image_digests(
    source: ImageSource, names: Sequence[str], folder: epath.Path | Path, shared: bool = False
) -> UInt8[np.ndarray, "N 32"]:
    """SHA-256 of each image; those that `folder` knows are not read again.

    Where all processes see one folder (`shared`), each reads its share and process 0 writes.
    """
    index, count = sharding.process_place() if shared else (0, 1)
    path = epath.Path(folder) / "digests.bin"
    before = _kept(path)
    # Neighbours, which lie side by side in a shard where names come in the order of storage.
    share = -(-len(names) // count)
    mine = slice(index * share, min(len(names), (index + 1) * share))
    now = np.zeros(len(names), _RECORD)
    asked = range(0, len(names)) if index == 0 else range(mine.start, max(mine.start, mine.stop))
    for start in range(asked.start, asked.stop, _IMAGES_AT_ONCE):
        part = names[start : min(start + _IMAGES_AT_ONCE, asked.stop)]
        rows = now[start : start + len(part)]
        rows["name"] = hashed(part)
        rows["identity"] = hashed([str(identity) for identity in source.identities(part)])
    place = np.minimum(np.searchsorted(before["name"], now["name"]), max(0, len(before) - 1))
    known = np.zeros(len(names), bool)
    if len(before):
        known = (before["name"][place] == now["name"]) & (
            before["identity"][place] == now["identity"]
        )
        now["digest"][known] = before["digest"][place[known]]
    changed = np.arange(len(names))[mine][~known[mine]].tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        hashes = pool.map(lambda i: hashlib.sha256(source.read(names[i])).digest(), changed)
        for i, digest in zip(changed, hashes, strict=True):
            now["digest"][i] = np.frombuffer(digest, np.uint8)
    if count > 1:
        own = np.zeros((share, 32), np.uint8)
        own[: len(now[mine])] = now["digest"][mine]
        now["digest"] = sharding.from_all(own).reshape(-1, 32)[: len(names)]
    if index == 0 and (changed or not known.all() or not path.exists()):
        _write(path, before, now)
    return now["digest"]


def _kept(path: epath.Path) -> np.ndarray:
    """The records of a file; of the one of an earlier version where there is no other."""
    try:
        if storage.is_remote(path):
            content = np.frombuffer(path.read_bytes(), np.uint8)
        else:
            content = np.memmap(path, np.uint8, "r").view(np.ndarray)
        head, rows = content[: len(MAGIC) + 4].tobytes(), content[len(MAGIC) + 4 :]
        if head[: len(MAGIC)] != MAGIC or len(rows) % _RECORD.itemsize:
            raise ValueError("it is no file of digests")
        if zlib.crc32(rows) != int.from_bytes(head[len(MAGIC) :], "little"):
            raise ValueError("its checksum is wrong")
        return rows.view(_RECORD)
    except FileNotFoundError:
        return _earlier(path.with_name("digests.json"))
    except ValueError:
        logging.warning("%s is damaged: all images are read again", path)
        return np.zeros(0, _RECORD)


def _earlier(path: epath.Path) -> np.ndarray:
    try:
        before = dict(json.loads(storage.read_text(path)))
        digests = bytes.fromhex("".join(digest for _, digest in before.values()))
        rows = np.zeros(len(before), _RECORD)
        rows["digest"] = np.frombuffer(digests, np.uint8).reshape(-1, 32)
        rows["name"] = hashed(list(before))
        rows["identity"] = hashed([str(identity) for identity, _ in before.values()])
        return rows[np.argsort(rows["name"], kind="stable")]
    except FileNotFoundError:
        pass
    except (ValueError, TypeError):
        logging.warning("%s is damaged: all images are read again", path)
    return np.zeros(0, _RECORD)


def _write(path: epath.Path, before: np.ndarray, now: np.ndarray) -> None:
    """Writes the new records, and the former ones of other images."""
    order = np.argsort(now["name"], kind="stable")
    now = now[order]
    other = before[~np.isin(before["name"], now["name"])]
    place = np.searchsorted(now["name"], other["name"])
    rows = np.insert(now, place, other) if len(other) else now
    path.parent.mkdir(parents=True, exist_ok=True)
    content = rows.tobytes()
    storage.write_whole(path, MAGIC + zlib.crc32(content).to_bytes(4, "little") + content)
