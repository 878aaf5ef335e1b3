"""Encodes each distinct image and text once, over all benchmarks and all devices.

The items of all benchmarks are known before the first is encoded, in the order in which the
benchmarks need them. A tower works through them in batches of one shape (one compiled program),
across the borders of benchmarks, and stores each batch before the next: all texts, then images. So
a benchmark can be scored as soon as its own images are done, and what a kill leaves is found again.

Several processes run the same batches: which items are left is what the main process's store says,
every batch is filled up to full size, and every process receives all features. None can wait for a
batch that another does not run.
"""

import contextlib
import functools
import hashlib
import math
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from evals.images import DataRoots, ImageRef
from evals.inputs import Images, Texts
from evals.models import Model
from evals.store import EmbeddingStore
from negclip_jax.common.errors import InputError
from negclip_jax.models import clip
from negclip_jax.runtime import console, multihost, sharding

IMAGES_PER_DEVICE, TEXTS_PER_DEVICE = 64, 256
_BAD_SHOWN = 5


class Encoder:
    """Unit features of the images and texts of several benchmarks under one model."""

    def __init__(
        self,
        model: Model,
        images: Sequence[ImageRef],
        texts: Sequence[str],
        roots: DataRoots,
        *,
        cache: Path,
        in_memory: dict[str, EmbeddingStore] | None = None,
        mesh: Mesh | None = None,
    ):
        """Finds out what is left to encode; nothing is computed yet.

        Args:
          model: to encode with.
          images, texts: of all benchmarks, in the order of need; repetitions are dropped.
          roots: where photos are.
          cache: folder of the stores and of the images' digests.
          in_memory: where given, stores are kept in this dict and not on disk.
          mesh: that the parameters lie on; None where they are NumPy arrays.
        """
        params = model.params
        if mesh is None:
            mesh = sharding.make_mesh(data=-1, fsdp=1)
            everywhere = jax.tree.map(lambda _: sharding.replicated(mesh), params)
            params = sharding.put(params, everywhere)
        graphdef, _ = clip.abstract(model.config, dtype=model.dtype)

        def tower(kind: str, inputs: Images | Texts, per_device: int) -> _Tower:
            name, dim = f"{kind}-{model.fingerprints[kind]}", model.config.projection_dim
            if in_memory is not None:
                store = in_memory.setdefault(name, EmbeddingStore(None, dim))
            else:
                writes = sharding.is_main_process()
                store = EmbeddingStore(cache / f"{name}.bin" if writes else None, dim)
            return _Tower(inputs, store, graphdef, params, mesh, per_device, model.name)

        distinct = list(dict.fromkeys(texts))
        refs = Images(list(dict.fromkeys(images)), roots, model.preprocess, cache)
        self._images = tower("image", refs, IMAGES_PER_DEVICE)
        self._texts = tower("text", Texts(distinct, model.tokenizer), TEXTS_PER_DEVICE)
        self.truncated = self._texts.inputs.truncated

    @property
    def pending(self) -> tuple[int, int]:
        """How many images and how many texts are still to encode."""
        return self._images.pending, self._texts.pending

    @property
    def distinct(self) -> tuple[int, int]:
        """How many images and texts there are that differ in bytes and in token ids."""
        return self._images.distinct, self._texts.distinct

    def features(
        self, images: Sequence[ImageRef], texts: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Unit rows float32 `[N, D]` and `[M, D]`.

        Raises InputError that names images which cannot be read; others can still be asked for.
        """
        # All texts first, so that there is one bar at a time.
        self._texts.finish()
        return self._images.features(images), self._texts.features(texts)

    def unusable_images(self, images: Sequence[ImageRef]) -> dict[ImageRef, str]:
        """Those of the images that cannot be encoded, with the reason; encodes all of them."""
        self._texts.finish()
        return self._images.unusable(images)

    def close(self) -> None:
        """Ends progress bars and the threads that decode."""
        self._images.close()
        self._texts.close()


class _Tower:
    """One tower: encodes its items in order, batch by batch, as far as is asked for."""

    def __init__(
        self,
        inputs: Images | Texts,
        store: EmbeddingStore,
        graphdef: nnx.GraphDef,
        params: dict[str, Any],
        mesh: Mesh,
        per_device: int,
        label: str,
    ):
        self.inputs, self._store, self._params, self._mesh = inputs, store, params, mesh
        self._label = f"{label}: {inputs.name}"
        self._resources, self._bar = contextlib.ExitStack(), None
        by_key = {key: item for item, key in reversed(inputs.keys.items())}
        order = list(dict.fromkeys(inputs.keys.values()))
        self.distinct = len(order)
        _take_from_main(store, order)
        self._left = [by_key[key] for key in order if key not in store]
        self._place = {inputs.keys[item]: i for i, item in enumerate(self._left)}
        self._size = _batch_size(len(self._left), mesh.size, per_device)
        self._batches = inputs.batches(self._left, self._size, mesh)
        self._resources.callback(self._batches.close)
        self._done, self._bad = 0, set()
        self._encode = _compiled(inputs.encode, graphdef, mesh)

    @property
    def pending(self) -> int:
        """Items that are not encoded yet."""
        return len(self._left) - self._done

    def features(self, items: Sequence[Hashable]) -> np.ndarray:
        """Unit rows float32 `[N, D]`; encodes up to the last of these items."""
        keys = [self.inputs.keys[item] for item in items]
        last = max((self._place.get(key, -1) for key in keys), default=-1)
        while self._done <= last:
            self._encode_next()
        bad = dict.fromkeys(i for i, key in zip(items, keys, strict=True) if key in self._bad)
        if bad:
            reasons = [self.inputs.why_bad(item) for item in list(bad)[:_BAD_SHOWN]]
            raise InputError(f"{len(bad)} {self.inputs.name} cannot be used: {'; '.join(reasons)}")
        return self._store.rows(keys)

    def unusable(self, items: Sequence[Hashable]) -> dict[Hashable, str]:
        """What is wrong with those items that have no features; encodes all that are left."""
        self.finish()
        return {i: self.inputs.why_bad(i) for i in items if self.inputs.keys[i] in self._bad}

    def finish(self) -> None:
        """Encodes all items that are left."""
        while self.pending:
            self._encode_next()

    def close(self) -> None:
        """Ends the bar and the threads."""
        self._resources.close()

    def _encode_next(self) -> None:
        if self._bar is None:
            bar = console.Bar(self._label, len(self._left))
            self._bar = self._resources.enter_context(bar)
        part = self._left[self._done : self._done + self._size]
        batch = sharding.to_global(self._mesh, next(self._batches))
        rows = np.asarray(self._encode(self._params, batch))[: len(part)]
        keys = [self.inputs.keys[item] for item in part]
        sound = np.isfinite(rows).all(axis=1)
        self._store.add([k for k, ok in zip(keys, sound, strict=True) if ok], rows[sound])
        self._bad.update(k for k, ok in zip(keys, sound, strict=True) if not ok)
        self._done += len(part)
        self._bar.advance(len(part))
        if self._done == len(self._left):
            self.close()


@functools.lru_cache(16)
def _compiled(encode: Callable, graphdef: nnx.GraphDef, mesh: Mesh) -> Callable:
    """Function of parameters and batch to unit rows; one for all models of one architecture."""

    def unit_rows(params: dict, batch: dict[str, jax.Array]) -> jax.Array:
        encoded = encode(nnx.merge(graphdef, params), batch)
        return encoded / jnp.linalg.norm(encoded, axis=-1, keepdims=True)

    return jax.jit(unit_rows, out_shardings=sharding.replicated(mesh))


def _batch_size(items: int, devices: int, per_device: int) -> int:
    """Equal batches, as few as the devices take, with hardly a row to fill up."""
    batches = max(1, math.ceil(items / (devices * per_device)))
    return max(1, math.ceil(items / (batches * devices))) * devices


def _take_from_main(store: EmbeddingStore, keys: Sequence[bytes]) -> None:
    """Gives every process what the main process's store holds of these keys."""
    digest = hashlib.sha256(b"".join(keys)).hexdigest()[:16]
    multihost.require_same("items to encode", {"how many, and their digest": [len(keys), digest]})
    if jax.process_count() == 1 or not keys:
        return
    from jax.experimental import multihost_utils

    known = np.array([key in store for key in keys])
    rows = np.zeros((len(keys), store.dim), np.float32)
    rows[known] = store.rows([key for key, there in zip(keys, known, strict=True) if there])
    known, rows = multihost_utils.broadcast_one_to_all((known, rows))
    if not sharding.is_main_process():
        there = np.flatnonzero(known)
        store.add([keys[i] for i in there], np.asarray(rows)[there])
