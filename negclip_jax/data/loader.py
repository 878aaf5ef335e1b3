"""Batches as a pure function of (seed, step, pairs).

The step number is the only state of the input: to resume at step n is to ask for batches from n on,
whatever the number of worker processes or hosts was before. Which pair stands where in which batch
is decided here, by counter-based random bits that no library version changes; grain runs the image
work in threads or processes. Captions are tokenized once and gathered per batch, not per record;
with cached features nothing else is left to do.

Several processes load rows of one batch and must agree on its shapes without a word. So the packing
of captions follows the pairs that are planned, and a pair whose image cannot be read, which one
process alone finds out, is replaced by one whose captions fit in the room of the planned ones.
"""

import dataclasses
import functools
import gc
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any

import grain
import numpy as np

from negclip_jax.common.decoding import ImageError
from negclip_jax.common.errors import InputError
from negclip_jax.data.examples import Examples, ImageSource
from negclip_jax.data.images import Preprocessor
from negclip_jax.data.packing import Packing

Batch = dict[str, Any]

_LENGTH_MULTIPLE = 8  # padded rows: few compiled shapes, and aligned
_MAX_REPLACEMENTS = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairLoader:
    """Training or validation batches.

    Attributes:
      examples: tokenized pairs.
      images, preprocess: read an image and turn it into uint8 pixels.
      batch_size: examples of a global batch, B.
      seed: of order and caption choice.
      shuffle: True for training: a new order each epoch, the incomplete last batch dropped. False
        for validation: file order, the last batch padded, with a `mask`.
      original_fraction: share of examples that show their original instead of the negated caption.
      workers: processes; 0 uses threads of this one. The batches are the same.
      threads: that load images when there are no worker processes.
      max_bad_images: share of the distinct images that may fail before the run is stopped.
      packing: several captions a row; None pads each to the longest of all.
      features: float32 `[U, D]`, one row per distinct image, instead of pixels.
      unreadable: bool `[U]`, images that have no feature.
    """

    examples: Examples
    images: ImageSource
    preprocess: Preprocessor
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    original_fraction: float = 0.0
    workers: int = 0
    threads: int = 16
    max_bad_images: float = 0.0
    packing: Packing | None = None
    features: np.ndarray | None = None
    unreadable: np.ndarray | None = None

    def __post_init__(self):
        if self.shuffle and self.batch_size > len(self.examples):
            raise InputError(
                f"train.batch_size={self.batch_size} is larger than the {len(self.examples)} "
                "training pairs; one batch never holds a pair twice"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Full batches of an epoch, or all batches when not shuffling."""
        n, b = len(self.examples), self.batch_size
        return n // b if self.shuffle else -(-n // b)

    def batches(self, start: int, stop: int, rows: np.ndarray | None = None) -> Iterator[Batch]:
        """Batches `start` to `stop - 1`, each a dict of arrays for R elements of the batch.

        Keys: `image` uint8 `[R, H, W, 3]`, or with cached features `feature` float32 `[R, D]`;
        `text`, captions and foils `[R * (1 + K)]`, int32 `[.., T]` or what `Packing.pack` returns;
        with foils `foil_mask` bool `[R, K]`; when not shuffling `mask` bool `[R]`.

        Args:
          start, stop: step numbers.
          rows: rows of the global batch to load, for one of several processes; default all.

        Raises InputError when more images failed than `max_bad_images` allows.
        """
        rows = np.arange(self.batch_size) if rows is None else rows
        if start >= stop:
            return
        read = self._cached if self._is_cached else self._decoded
        batches = iter(read(start, stop, rows))
        try:
            shielded = self.workers and not self._is_cached
            for step, batch in enumerate(_shielded(batches) if shielded else batches, start):
                self._bad_images.check(batch.pop("bad"))
                if shielded:  # workers hand over shared memory: free it for the next batch
                    batch = {name: np.array(x) for name, x in batch.items()}
                yield batch if self._is_cached else self._complete(batch, step, rows)
        finally:
            # By hand: worker processes would stay until this process ends, and exceptions inside
            # grain keep the last batches in reference cycles, and with them shared memory.
            batches.close()
            if self.workers:
                gc.collect()

    def pairs_at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of a batch (-1: padding) and which caption each shows, both int64 `[B]`."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        at = np.arange(batch * self.batch_size, (batch + 1) * self.batch_size)
        if not self.shuffle:
            return np.where(at < len(self.examples), at, -1), np.zeros_like(at)
        order, shows_original = _epoch(
            len(self.examples),
            self.seed,
            epoch,
            self.original_fraction,
            len(self.examples.captions),
        )
        pairs = order[at]
        return pairs, shows_original[pairs].astype(np.int64)

    def load(self, pair: int) -> Batch:
        """Pixels of one pair; one whose image cannot be read is replaced by the next that fits.

        `pair` is then the other pair and `bad` the first; else `bad` is -1. Validation masks such a
        pair (`pair` is -1) instead: a replacement would count another pair twice.
        """
        bad = -1
        for index in self._candidates(pair) if pair >= 0 else ():
            try:
                name = self.examples.images[self.examples.image_of[index]]
                pixels = self.preprocess.uint8(self.images.open(name))
            except ImageError:
                bad = pair
                continue
            return {"image": pixels, "pair": np.int64(index), "bad": np.int64(bad)}
        blank = np.zeros((self.preprocess.size, self.preprocess.size, 3), np.uint8)
        return {"image": blank, "pair": np.int64(-1), "bad": np.int64(bad)}

    @functools.cached_property
    def _bad_images(self) -> "_BadImages":
        # One for all passes: validation reads the same images again and again.
        return _BadImages(self)

    @property
    def _is_cached(self) -> bool:
        return self.features is not None

    def _decoded(self, start: int, stop: int, rows: np.ndarray) -> grain.IterDataset:
        examples = grain.MapDataset.source(_Rows(self, rows, stop))[start * len(rows) :]
        # Two batches ahead are enough to hide the work, and bound the memory.
        if not self.workers:
            # Threads take single examples here, so that they also share the very first batch.
            ahead = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=2 * len(rows))
            return examples.to_iter_dataset(ahead).batch(len(rows))
        # Processes hand over whole batches: one message each, not one per image.
        ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
        processes = grain.MultiprocessingOptions(num_workers=self.workers)
        batched = examples.batch(len(rows)).to_iter_dataset(ahead)
        return batched.mp_prefetch(processes, _start_worker)

    def _cached(self, start: int, stop: int, rows: np.ndarray) -> grain.IterDataset:
        ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        batches = grain.MapDataset.source(_Batches(self, rows, stop))[start:]
        return batches.to_iter_dataset(ahead)

    def from_features(self, step: int, rows: np.ndarray) -> Batch:
        """A whole batch whose images are rows of `features`."""
        pairs, kinds = (x[rows] for x in self.pairs_at(step))
        used = self._readable(pairs)
        feature = self.features[self.examples.image_of[used]]
        feature = np.where(used[:, None] >= 0, feature, np.float32(1))  # any finite vector: masked
        batch = {"feature": feature, "pair": used, "bad": np.where(used != pairs, pairs, -1)}
        return self._complete(batch, step, rows, kinds)

    def _candidates(self, pair: int) -> Iterator[int]:
        """The pair itself, and in training those that may replace it, in the order of trial."""
        yield pair
        if self.shuffle:
            following = np.roll(np.arange(len(self.examples)), -pair)[1:]
            fits = (self.examples.sizes[following] <= self.examples.room[pair]).all(axis=1)
            yield from following[fits][: _MAX_REPLACEMENTS - 1].tolist()

    def _readable(self, pairs: np.ndarray) -> np.ndarray:
        """Pairs with a feature: as they are, replaced, or -1 where validation leaves them out."""
        if self.shuffle:
            return self._replacement[pairs]
        return np.where(self.unreadable[self.examples.image_of[pairs]], -1, pairs)

    @functools.cached_property
    def _replacement(self) -> np.ndarray:
        """The pair that `load` would take for each pair, int64 `[N]`; -1 if there is none."""
        chosen = np.arange(len(self.examples))
        unreadable = self.unreadable[self.examples.image_of]
        if unreadable.all():
            raise InputError("none of the images could be read")
        for pair in np.flatnonzero(unreadable).tolist():
            chosen[pair] = next((c for c in self._candidates(pair) if not unreadable[c]), -1)
        return chosen

    def _complete(
        self, batch: Batch, step: int, rows: np.ndarray, kinds: np.ndarray | None = None
    ) -> Batch:
        """Adds the captions of the pairs that the images belong to."""
        kinds = self.pairs_at(step)[1][rows] if kinds is None else kinds
        pairs = batch.pop("pair")
        if self.shuffle and (pairs < 0).any():
            raise InputError(
                "too many images cannot be read: no pair with short captions is left to take the "
                "place of one of them. Mend or remove them"
            )
        planned = self.pairs_at(step)[0][rows]
        # What validation masks keeps its own captions: they fit, and nobody reads them.
        texts = self.examples.texts_of(np.where(pairs >= 0, pairs, planned), kinds)
        if self.packing is None:
            batch["text"] = self.examples.texts.padded(texts, self._padded_length)
        else:
            room = self.examples.room_of(planned, kinds)
            shape = self._packed_rows(step, rows)
            batch["text"] = self.packing.pack(self.examples.texts, texts, room, shape)
        if self.examples.foil_mask is not None:
            batch["foil_mask"] = self.examples.foil_mask[pairs]
        if not self.shuffle:
            batch["mask"] = pairs >= 0
        return batch

    def _packed_rows(self, step: int, rows: np.ndarray) -> int | None:
        """Packed rows a shard that all processes agree on; None where this is the only one."""
        if len(rows) == self.batch_size:
            return None
        return self.packing.rows_needed(self.examples.room_of(*self.pairs_at(step)))

    def blank_batch(self, step: int, rows: np.ndarray) -> Batch:
        """A batch of the right shapes, for the compiler: no image is read."""
        if self._is_cached:
            batch = self.from_features(step, rows)
        else:
            side = self.preprocess.size
            pixels = np.zeros((len(rows), side, side, 3), np.uint8)
            batch = {"image": pixels, "pair": self.pairs_at(step)[0][rows], "bad": rows}
            batch = self._complete(batch, step, rows)
        del batch["bad"]
        return batch

    @functools.cached_property
    def _padded_length(self) -> int:
        # CLIP's text tower is causal: positions after the end token change nothing.
        return -(-self.examples.longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Random access to the images of examples in the order of batches: what grain reads from."""

    loader: PairLoader
    rows: np.ndarray
    stop: int

    def __len__(self) -> int:
        return self.stop * len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        step, slot = divmod(int(index), len(self.rows))
        return self.loader.load(int(self.loader.pairs_at(step)[0][self.rows[slot]]))

    def __repr__(self) -> str:  # grain prints its source; the default would print every token
        return f"{type(self).__name__}({len(self.loader.examples)} pairs)"


class _Batches(_Rows):
    """Random access to whole batches of cached features."""

    def __len__(self) -> int:
        return self.stop

    def __getitem__(self, index: int) -> Batch:
        return self.loader.from_features(int(index), self.rows)


class _BadImages:
    """Names each failed image once and stops the run when there are too many."""

    def __init__(self, loader: PairLoader):
        self._loader = loader
        self._seen: set[str] = set()
        self._allowed = int(loader.max_bad_images * len(loader.examples.images))

    def check(self, bad: np.ndarray) -> None:
        for pair in bad[bad >= 0]:
            name = self._loader.examples.images[self._loader.examples.image_of[pair]]
            if name not in self._seen:
                self._seen.add(name)
                self._report(name)

    def _report(self, name: str) -> None:
        try:
            self._loader.images.open(name)
            reason = f"{name} could not be read at first"
        except ImageError as error:
            reason = str(error)
        if len(self._seen) > self._allowed:
            raise InputError(
                f"{len(self._seen)} images could not be read, more than the {self._allowed} that "
                f"data.max_bad_images={self._loader.max_bad_images} allows; the last: {reason}"
            )
        instead = "the next readable pair takes its place" if self._loader.shuffle else "left out"
        logging.warning("image %d of bad ones: %s; %s", len(self._seen), reason, instead)


def _shielded(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, from worker processes that no signal stops but the main process does.

    Ctrl-C in a terminal, and Slurm, signal every process, but only the main one knows when to
    stop. Processes inherit blocked signals, so those that the first batch starts are deaf from
    their first moment.
    """
    resource_tracker.ensure_running()  # starting it would unblock signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        first = next(batches, None)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if first is not None:
        yield first
        del first  # it lies in shared memory
        yield from batches


def _start_worker(index: int, count: int) -> None:
    """Makes a worker process end with the main process, even with one that is killed."""
    main_process = multiprocessing.parent_process()

    def exit_with_it() -> None:
        main_process.join()
        os._exit(1)

    threading.Thread(target=exit_with_it, daemon=True).start()


@functools.lru_cache(maxsize=4)
def _epoch(
    n: int, seed: int, epoch: int, original_fraction: float, captions: int
) -> tuple[np.ndarray, np.ndarray]:
    """Order of the pairs in an epoch, int64 `[n]`, and which show their original, bool `[n]`."""
    bits = np.random.Philox(key=[seed, epoch]).random_raw(2 * n)
    order = np.argsort(bits[:n], kind="stable")
    # The upper 53 bits as a float in [0, 1), which is what every generator does.
    shows_original = (bits[n:] >> np.uint64(11)) * 2.0**-53 < original_fraction
    return order, shows_original & (captions > 1)
