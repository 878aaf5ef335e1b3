"""Batches as a pure function of (seed, step, pairs).

The step number is the only state of the input: to resume at step n is to ask for batches from n on,
whatever the number of worker processes or hosts was before. Grain runs the image work in threads
or processes; which pair stands where in which batch is decided here, by counter-based random bits
that no library version changes.
"""

import dataclasses
import functools
import gc
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from typing import Protocol

import grain
import numpy as np
from PIL import Image

from negclip_jax.data.images import ImageError, Preprocessor
from negclip_jax.data.pairs import Pair
from negclip_jax.data.tokens import Tokenizer
from negclip_jax.errors import InputError

Batch = dict[str, np.ndarray]

CAPTIONS = ("negated", "original", "mix")
_LENGTH_MULTIPLE = 8  # text lengths are rounded up to it: few compiled shapes, aligned rows
_MAX_REPLACEMENTS = 100


class ImageSource(Protocol):
    """Where images come from: `images.ImageDirectory` or `tfds.TfdsImages`."""

    def open(self, name: str) -> Image.Image:
        """RGB image; raises ImageError that names the file."""

    def missing(self, names: Sequence[str]) -> list[str]:
        """Those of `names` that do not exist."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """Tokenized pairs: everything about N examples but their pixels.

    Attributes:
      images: names for an `ImageSource`, N.
      texts: int32 `[C, N, T]`; the captions that an example may show: one, or (negated, original).
      foils: int32 `[N, K, T]`, or None.
      foil_mask: bool `[N, K]`, or None.
    """

    images: list[str]
    texts: np.ndarray
    foils: np.ndarray | None
    foil_mask: np.ndarray | None

    def __len__(self) -> int:
        return len(self.images)


def tokenize_pairs(
    pairs: Sequence[Pair], tokenizer: Tokenizer, *, captions: str, foils: int
) -> Examples:
    """Tokenizes once what training will read many times.

    Rows are cut to the longest caption, rounded up to a multiple of 8: CLIP's text tower is causal,
    so positions after the end token change nothing.

    Args:
      pairs: examples; with captions other than "original" each needs a negated caption.
      captions: "negated", "original", or "mix" (both, chosen per epoch).
      foils: K, false captions kept per pair; the first K of each.
    """
    if captions not in CAPTIONS:
        raise InputError(f"data.captions: {captions!r} is none of {', '.join(CAPTIONS)}")
    columns = []
    if captions != "original":
        columns.append(tokenizer([pair.negated for pair in pairs]))
    if captions != "negated":
        columns.append(tokenizer([pair.caption for pair in pairs]))
    texts = np.stack(columns)
    foil_ids, foil_mask = _tokenize_foils(pairs, tokenizer, foils) if foils else (None, None)
    length = _needed_length([texts] if foil_ids is None else [texts, foil_ids])
    return Examples(
        images=[pair.image for pair in pairs],
        texts=np.ascontiguousarray(texts[..., :length]),
        foils=None if foil_ids is None else np.ascontiguousarray(foil_ids[..., :length]),
        foil_mask=foil_mask,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairLoader:
    """Training or validation batches.

    Attributes:
      examples: what `tokenize_pairs` made.
      images, preprocess: read an image and turn it into uint8 pixels.
      batch_size: examples of a global batch, B.
      seed: of order and caption choice.
      shuffle: True for training: a new order each epoch, the incomplete last batch dropped. False
        for validation: file order, the last batch padded, with a `mask`.
      original_fraction: share of examples that show the second of two captions.
      workers: processes; 0 uses threads of this one. The batches are the same.
      threads: that load images when there are no worker processes.
      max_bad_images: share of the distinct images that may fail before the run is stopped.
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
        """Batches `start` to `stop - 1`, each a dict of arrays with one row per element of `rows`.

        Keys: `image` uint8 `[R, H, W, 3]`, `text` int32 `[R, T]`, with foils `foil` int32
        `[R, K, T]` and `foil_mask` bool `[R, K]`, when not shuffling `mask` bool `[R]`.

        Args:
          start, stop: step numbers.
          rows: rows of the global batch to load, for one of several processes; default all.

        Raises InputError when more images failed than `max_bad_images` allows.
        """
        rows = np.arange(self.batch_size) if rows is None else rows
        examples = grain.MapDataset.source(_Rows(self, rows, stop))[start * len(rows) :]
        batches = iter(self._read(examples, len(rows)))
        try:
            for batch in _shielded(batches) if self.workers else batches:
                self._bad_images.check(batch.pop("bad"))
                if self.workers:  # they hand over shared memory: free it for the next batch
                    batch = {name: np.array(x) for name, x in batch.items()}
                yield batch
        finally:
            # By hand: worker processes would stay until this process ends, and exceptions inside
            # grain keep the last batches in reference cycles, and with them shared memory.
            batches.close()
            if self.workers:
                gc.collect()

    @functools.cached_property
    def _bad_images(self) -> "_BadImages":
        # One for all passes: validation reads the same images again and again.
        return _BadImages(self)

    def _read(self, examples: grain.MapDataset, rows: int) -> grain.IterDataset:
        # Two batches ahead are enough to hide the work, and bound the memory.
        if not self.workers:
            # Threads take single examples here, so that they also share the very first batch.
            ahead = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=2 * rows)
            return examples.to_iter_dataset(ahead).batch(rows)
        # Processes hand over whole batches: one message each, not one per image.
        ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
        processes = grain.MultiprocessingOptions(num_workers=self.workers)
        return examples.batch(rows).to_iter_dataset(ahead).mp_prefetch(processes, _start_worker)

    def pair_at(self, step: int, row: int) -> tuple[int, int]:
        """Index of the pair in that row of that batch (-1: padding), and of its caption."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        at = batch * self.batch_size + row
        if not self.shuffle:
            return (at if at < len(self.examples) else -1), 0
        order, shows_original = _epoch(
            len(self.examples), self.seed, epoch, self.original_fraction, len(self.examples.texts)
        )
        pair = int(order[at])
        return pair, int(shows_original[pair])

    def load(self, pair: int, caption: int) -> Batch:
        """One example; a pair whose image cannot be read is replaced by the next that can.

        `bad` holds the index of the pair whose image failed, or -1. Validation masks such a pair
        instead: a replacement would count another pair twice.
        """
        bad = -1
        for offset in range(min(_MAX_REPLACEMENTS, len(self.examples)) if self.shuffle else 1):
            index = (pair + offset) % len(self.examples)
            try:
                pixels = self.preprocess.uint8(self.images.open(self.examples.images[index]))
            except ImageError:
                bad = pair if bad < 0 else bad
                continue
            return self._example(index, caption, pixels, bad)
        return self._example(-1, caption, None, bad)

    def _example(self, index: int, caption: int, pixels: np.ndarray | None, bad: int) -> Batch:
        if pixels is None:
            pixels = np.zeros((self.preprocess.size, self.preprocess.size, 3), np.uint8)
        example = {
            "image": pixels,
            "text": self.examples.texts[caption, index],
            "bad": np.int64(bad),
        }
        if self.examples.foils is not None:
            example["foil"] = self.examples.foils[index]
            example["foil_mask"] = self.examples.foil_mask[index]
        if not self.shuffle:
            example["mask"] = np.bool_(index >= 0)
        return example


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Random access to single examples in the order of batches: what grain reads from."""

    loader: PairLoader
    rows: np.ndarray
    stop: int

    def __len__(self) -> int:
        return self.stop * len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        step, slot = divmod(int(index), len(self.rows))
        pair, caption = self.loader.pair_at(step, int(self.rows[slot]))
        if pair < 0:
            return self.loader._example(-1, caption, None, -1)
        return self.loader.load(pair, caption)

    def __repr__(self) -> str:  # grain prints its source; the default would print every token
        return f"{type(self).__name__}({len(self.loader.examples)} pairs)"


class _BadImages:
    """Names each failed image once and stops the run when there are too many."""

    def __init__(self, loader: PairLoader):
        self._loader = loader
        self._seen: set[str] = set()
        self._allowed = int(loader.max_bad_images * len(set(loader.examples.images)))

    def check(self, bad: np.ndarray) -> None:
        for pair in bad[bad >= 0]:
            name = self._loader.examples.images[pair]
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


def _tokenize_foils(
    pairs: Sequence[Pair], tokenizer: Tokenizer, count: int
) -> tuple[np.ndarray, np.ndarray]:
    mask = np.array([[k < len(pair.foils) for k in range(count)] for pair in pairs])
    # An absent foil still needs a row with an end token; the mask keeps it out of the loss.
    texts = [pair.foils[k] if k < len(pair.foils) else "" for pair in pairs for k in range(count)]
    return tokenizer(texts).reshape(len(pairs), count, -1), mask


def _needed_length(ids: Sequence[np.ndarray]) -> int:
    context = ids[0].shape[-1]
    used = max(int(np.flatnonzero(x.reshape(-1, context).any(axis=0))[-1]) + 1 for x in ids)
    return min(context, -(-used // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE)
