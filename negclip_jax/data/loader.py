"""Batches as a pure function of (seed, step, pairs).

The step number is the only state of the input: to resume at step n is to ask for batches from n on,
whatever the number of worker processes or hosts was before. Which pair stands where in which batch
is decided here, by counter-based random bits that no library version changes; grain runs the image
work in threads or processes. Captions are tokenized once and gathered per batch, not per record;
with cached features nothing else is left to do.

Several processes load rows of one batch and must agree on its shapes without communication. So the
packing of captions follows the pairs that are planned, and a pair whose image cannot be read, which
one process alone finds out, is replaced by one whose captions fit into what was reserved for the
planned ones.

Shape letters: B pairs of a batch, R of them loaded here; N pairs of U images in all; D features.
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
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from typing import Any

import grain
import numpy as np
from jaxtyping import Bool, Float32, Int, Int64, UInt8

from negclip_jax.common.decoding import ImageError
from negclip_jax.common.errors import InputError
from negclip_jax.data import order
from negclip_jax.data.examples import Examples
from negclip_jax.data.images import ImageSource, Preprocessor
from negclip_jax.data.mixture import Mixture, Planned
from negclip_jax.data.packing import Packing

Batch = dict[str, Any]

_LENGTH_MULTIPLE = 8  # padded rows: few compiled shapes, and aligned
_MAX_REPLACEMENTS = 100
_TRIED = 1024  # pairs that are looked at together for one that fits


@dataclasses.dataclass(frozen=True)
class CachedFeatures:
    """Image features that stand for pixels, or pixels that were decoded before.

    Attributes:
      features: one row per distinct image; an array, or what is indexed like one
        (`embeddings.store.MappedRows`).
      unreadable: images that have none.
    """

    features: Float32[Any, "U D"] | UInt8[Any, "U H W 3"]
    unreadable: Bool[np.ndarray, " U"]


# Without a repr, which grain would print with every token.
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class PairLoader:
    """Training or validation batches.

    Attributes:
      examples: tokenized pairs, of one source or of several.
      images, preprocess: read an image and turn it into uint8 pixels.
      batch_size: examples of a global batch, B.
      seed: of order and caption choice.
      shuffle: True for training: a new order each epoch, the incomplete last batch dropped. False
        for validation: file order, the last batch padded, with a `mask`.
      original_fraction: share of examples that show their original instead of the negated caption.
      workers: processes; 0 uses threads of this one. The batches are the same.
      threads: that load images when there are no worker processes.
      kept_pixels_mib: of decoded pixels that may be kept in memory. Where those of all images fit
        and more than an epoch is asked for, all are decoded at once; not in worker processes.
      max_bad_images: share of the distinct images that may fail before the run is stopped.
      packing: several captions a row; None pads each to the longest of all.
      cached: image features, which batches then hold instead of pixels.
      base_text: the base's features of each example's original caption, where a term of the loss
        compares with them; an array, or what is indexed like one.
      shows_opposites: whether batches hold features of images of which the statements shown have
        the other truth; with cached features only.
      repeats_first: whether every batch is the first one, its texts too.
    """

    examples: Examples | Mixture
    images: ImageSource
    preprocess: Preprocessor
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    original_fraction: float = 0.0
    workers: int = 0
    threads: int = 16
    kept_pixels_mib: float = 0.0
    max_bad_images: float = 0.0
    packing: Packing | None = None
    cached: CachedFeatures | None = None
    base_text: Float32[Any, "N D"] | None = None
    shows_opposites: bool = False
    repeats_first: bool = False
    # Names of bad images, over all passes: validation reads the same images again and again.
    _reported: set[str] = dataclasses.field(default_factory=set, init=False, compare=False)
    # With cached features, of a pair whose image is bad: the pair that takes its place, or -1.
    _replacement: dict[int, int] = dataclasses.field(
        default_factory=dict, init=False, compare=False
    )

    def __post_init__(self):
        if self.shuffle and self.batch_size > len(self.examples):
            raise InputError(
                f"train.batch_size={self.batch_size} is larger than the {len(self.examples)} "
                "training pairs; one batch never holds a pair twice"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Full batches of an epoch, or all batches when not shuffling."""
        if isinstance(self.examples, Mixture):
            return self.examples.steps_per_epoch
        n, b = len(self.examples), self.batch_size
        return n // b if self.shuffle else -(-n // b)

    def batches(
        self, start: int, stop: int, rows: Int[np.ndarray, " R"] | None = None
    ) -> Iterator[Batch]:
        """Batches `start` to `stop - 1`, each a dict of arrays for R elements of the batch.

        Keys: `image` uint8 `[R, H, W, 3]`, or with cached features `feature` float32 `[R, D]`;
        `text`, the texts of each example one after the other `[R * M]`, int32 `[.., T]` or what
        `Packing.pack` returns; where M > 1 `truth` int8 and `holds_caption` bool `[R, M]`, see
        `examples.Shown`; when not shuffling `mask` bool `[R]`; when not shuffling or with base
        features `is_affirmative` bool `[R, M]`, and with these `base_text` float32 `[R, D]`; of
        several sources `source` int32 `[R]`, the number of each example's; with
        opposites, for each text, `opposite` float32 `[R, M, D]` and `has_opposite` bool.

        `rows` are those of the global batch to load, for one of several processes; default all.

        Raises InputError when more images failed than `max_bad_images` allows.
        """
        rows = np.arange(self.batch_size) if rows is None else rows
        if start >= stop:
            return
        needed = len(self.examples.images) * self.preprocess.size**2 * 3
        keeps = not self.workers and needed <= self.kept_pixels_mib * 2**20
        is_whole = self.cached is not None or (keeps and stop - start > self.steps_per_epoch)
        has_workers = self.workers and not is_whole
        if is_whole and self.cached is None:
            _ = self._kept  # before grain's threads ask for it side by side
        batches = iter(self._read(start, stop, rows, is_whole))
        try:
            for step, batch in enumerate(_shielded(batches) if has_workers else batches, start):
                self._check_bad(batch.pop("bad"))
                if has_workers:  # workers hand over shared memory: free it for the next batch
                    batch = {name: np.array(x) for name, x in batch.items()}
                yield batch if is_whole else self._with_captions(batch, step, rows)
        finally:
            # By hand: worker processes would stay until this process ends, and exceptions inside
            # grain keep the last batches in reference cycles, and with them shared memory.
            batches.close()
            if self.workers:
                gc.collect()

    def pairs_at(self, step: int) -> Planned:
        """Pairs of a batch (-1: padding), which caption each shows, and its random bits."""
        step = 0 if self.repeats_first else step
        if isinstance(self.examples, Mixture):
            return self.examples.pairs_at(step)
        epoch, batch = divmod(step, self.steps_per_epoch)
        places = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
        is_mix = self.shuffle and len(self.examples.captions) > 1
        pairs, shows_original, bits = order.drawn(
            len(self.examples),
            self.seed,
            epoch if self.shuffle else 0,
            places,
            self.original_fraction if is_mix else 0.0,
            shuffle=self.shuffle,
        )
        return pairs, shows_original.astype(np.int64), bits

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

    def blank_batch(self, step: int, rows: Int[np.ndarray, " R"]) -> Batch:
        """A batch of the right shapes, for the compiler: no image is read."""
        if self.cached is not None:
            batch = self._whole(rows, step)
        else:
            image = np.zeros((len(rows), self.preprocess.size, self.preprocess.size, 3), np.uint8)
            batch = {"image": image, "pair": self.pairs_at(step)[0][rows], "bad": rows}
            batch = self._with_captions(batch, step, rows)
        del batch["bad"]
        return batch

    def _read(
        self, start: int, stop: int, rows: Int[np.ndarray, " R"], is_whole: bool
    ) -> grain.IterDataset:
        """Images with `pair` and `bad` in batches; with `is_whole`, complete batches."""
        if is_whole:
            complete = functools.partial(self._whole, rows)
            whole = grain.MapDataset.range(start, stop).map(complete)
            return whole.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
        # One number for each image of all steps: those of a step stand one after the other.
        size = len(rows)
        single = grain.MapDataset.range(start * size, stop * size)
        single = single.map(functools.partial(self._of_pixels, rows))
        # Two batches ahead are enough to hide the work, and bound the memory.
        if not self.workers:
            # Threads take single examples here, so that they also share the very first batch.
            ahead = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=2 * size)
            return single.to_iter_dataset(ahead).batch(size)
        # Processes hand over whole batches: one message each, not one per image.
        ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
        processes = grain.MultiprocessingOptions(num_workers=self.workers)
        return single.batch(size).to_iter_dataset(ahead).mp_prefetch(processes, _start_worker)

    def _of_pixels(self, rows: Int[np.ndarray, " R"], number: int) -> Batch:
        step, row = divmod(int(number), len(rows))
        return self.load(int(self.pairs_at(step)[0][rows[row]]))

    def _whole(self, rows: Int[np.ndarray, " R"], step: int) -> Batch:
        """A complete batch whose images are cached features, or else kept pixels."""
        planned, image_of = self.pairs_at(step)[0][rows], self.examples.image_of
        stored = self.cached or self._kept
        if self.shuffle:
            pairs = self._instead_of(planned, stored.unreadable)
        else:
            pairs = np.where(stored.unreadable[image_of[planned]], -1, planned)
        values = stored.features[image_of[pairs]]
        values[pairs < 0] = 0 if self.cached is None else 1  # any finite vector: masked
        images = {"image" if self.cached is None else "feature": values, "pair": pairs}
        images["bad"] = np.where(pairs != planned, planned, -1)
        return self._with_captions(images, step, rows)

    @functools.cached_property
    def _kept(self) -> CachedFeatures:
        """Pixels of all images in place of features."""
        names, size = self.examples.images, self.preprocess.size
        pixels = np.zeros((len(names), size, size, 3), np.uint8)
        unreadable = np.zeros(len(names), bool)
        logging.info("%d images are decoded once, %d MiB", len(names), pixels.nbytes >> 20)

        def decode(image: int) -> None:
            try:
                pixels[image] = self.preprocess.uint8(self.images.open(names[image]))
            except ImageError:
                unreadable[image] = True

        with ThreadPoolExecutor(self.threads) as threads:
            list(threads.map(decode, range(len(names))))
        return CachedFeatures(pixels, unreadable)

    def _with_captions(self, images: Batch, step: int, rows: Int[np.ndarray, " R"]) -> Batch:
        """Everything that a batch holds: images, and the captions of the pairs they belong to.

        `images` holds `image` or `feature`, and `pair`, those that were read: int64 `[R]`, -1 where
        none was.
        """
        batch, examples = dict(images), self.examples
        pairs, (planned, choice, bits) = batch.pop("pair"), self.pairs_at(step)
        if self.shuffle and (pairs < 0).any():
            raise InputError(
                "too many images cannot be read: no pair with short captions is left to take the "
                "place of one of them. Mend or remove them"
            )
        # What validation masks keeps the planned texts: they fit, and are never read.
        texts = examples.shown(planned, choice, bits)
        reserved = examples.reserved_of(planned, choice, texts)
        texts = {k: x[rows] for k, x in vars(texts).items()}
        # A replacement shows its own captions, in what was reserved for those of the planned pair,
        # and no statements, for which there may be no room.
        replaced = (pairs >= 0) & (pairs != planned[rows])
        if replaced.any():
            instead = examples.shown(pairs[replaced], choice[rows][replaced], None)
            for name, values in vars(instead).items():
                texts[name][replaced] = values
        index = texts["index_BxM"].ravel()
        if self.packing is None:
            # CLIP's text tower is causal: positions after the end token change nothing.
            length = -(-examples.longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
            batch["text"] = examples.tokens.padded(index, length)
        else:
            # A process that loads a part of the batch plans the whole: all need one shape.
            is_part = len(rows) < self.batch_size
            count = self.packing.rows_needed(reserved.ravel()) if is_part else None
            room = reserved[rows].ravel()
            batch["text"] = self.packing.pack(examples.tokens, index, room, count)
        if examples.texts > 1:
            batch["truth"] = texts["truth_BxM"]
            batch["holds_caption"] = texts["holds_caption_BxM"]
        if self.shows_opposites:
            image_RxM = texts["opposite_BxM"]
            has_RxM = (image_RxM >= 0) & ~self.cached.unreadable[image_RxM]
            found = self.cached.features[image_RxM[has_RxM]]
            batch["opposite"] = np.ones((*has_RxM.shape, found.shape[-1]), np.float32)  # or: masked
            batch["opposite"][has_RxM] = found
            batch["has_opposite"] = has_RxM
        if not self.shuffle or self.base_text is not None:
            batch["is_affirmative"] = texts["is_affirmative_BxM"]
        if self.base_text is not None:
            batch["base_text"] = self.base_text[pairs]
        if not self.shuffle:
            batch["mask"] = pairs >= 0
        if isinstance(examples, Mixture):
            batch["source"] = examples.source_of(pairs)
        return batch

    def _candidates(self, pair: int) -> Iterator[int]:
        """The pair itself, and in training those that may replace it, in the order of trial."""
        yield pair
        if not self.shuffle:
            return
        first, stop = 0, len(self.examples)
        if isinstance(self.examples, Mixture):
            first, stop = self.examples.neighbours(pair)
        n, count = stop - first, _MAX_REPLACEMENTS - 1
        reserved = self.examples.reserved_lengths_of(np.array([pair]))
        for start in range(1, n, _TRIED):
            following = first + (pair - first + np.arange(start, min(start + _TRIED, n))) % n
            fits = (self.examples.lengths_of(following) <= reserved).all(axis=1)
            found = following[fits][:count].tolist()
            yield from found
            count -= len(found)

    def _instead_of(
        self, planned: Int64[np.ndarray, " R"], unreadable: Bool[np.ndarray, " U"]
    ) -> Int64[np.ndarray, " R"]:
        """The pair that `load` would take for each planned one; -1 if there is none.

        The same choice as from pixels: a run with cached features sees the same pairs.
        """
        image_of, chosen = self.examples.image_of, planned.copy()
        for row in np.flatnonzero(unreadable[image_of[planned]]).tolist():
            pair = int(planned[row])
            if pair not in self._replacement:
                if not self._replacement and unreadable[image_of].all():
                    raise InputError("none of the images could be read")
                candidates = (c for c in self._candidates(pair) if not unreadable[image_of[c]])
                self._replacement[pair] = next(candidates, -1)
            chosen[row] = self._replacement[pair]
        return chosen

    def _check_bad(self, bad: Int64[np.ndarray, " R"]) -> None:
        """Names each failed image once and stops the run when there are too many."""
        allowed = int(self.max_bad_images * len(self.examples.images))
        for pair in bad[bad >= 0]:
            name = self.examples.images[self.examples.image_of[pair]]
            if name in self._reported:
                continue
            self._reported.add(name)
            count = len(self._reported)
            try:
                self.images.open(name)
                reason = f"{name} could not be read at first"
            except ImageError as error:
                reason = str(error)
            if count > allowed:
                raise InputError(
                    f"{count} images could not be read, more than the {allowed} that "
                    f"data.max_bad_images={self.max_bad_images} allows; the last: {reason}"
                )
            instead = "the next readable pair takes its place" if self.shuffle else "left out"
            logging.warning("image %d of bad ones: %s; %s", count, reason, instead)


def _shielded(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, from worker processes that no signal stops but the main process does.

    Ctrl-C in a terminal, and Slurm, signal every process, but only the main one knows when to
    stop. Workers inherit blocked signals: the first batch, which starts them, is asked for while
    signals are blocked, so that they never see SIGINT or SIGTERM.
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
    watch = threading.Thread(target=lambda: (main_process.join(), os._exit(1)), daemon=True)
    watch.start()
