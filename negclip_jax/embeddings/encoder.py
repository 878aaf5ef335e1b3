"""Encodes each distinct image and text once, over all devices, and keeps what was computed.

A tower works through its items in batches of one shape (one compiled program) and stores each batch
when the next is on its way, so what a kill leaves is found again. With several benchmarks all items
are known before the first is encoded, in the order in which the benchmarks need them: a benchmark
can be scored as soon as its own images are done.

Several processes run the same batches: which items are left is what the main process's store says,
every batch is filled up to full size, and every process receives all features. None can wait for a
batch that another does not run.

Stores hold features as the model gives them, not their unit vectors: training normalises by itself,
and a decoder such as CLIPSeg's reads them as they are.

Shape letters: N images or texts (N images, M texts), U distinct images, B of a batch, D features.
"""

import collections
import contextlib
import functools
import hashlib
import itertools
import logging
import math
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
import PIL
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Bool, Float32

from negclip_jax.common.errors import InputError
from negclip_jax.data.feature_files import ImageFeatures
from negclip_jax.data.images import ImageRef, ImageSource, Preprocessor
from negclip_jax.data.packing import Joined, Ragged
from negclip_jax.data.tokenizer import Tokenizer
from negclip_jax.embeddings.inputs import Images, PhotoNames, Texts
from negclip_jax.embeddings.store import EmbeddingStore, MappedRows, Rows, first_of_equals
from negclip_jax.models import clip
from negclip_jax.models.normalisation import l2_normalise
from negclip_jax.runtime import console, multihost, sharding

IMAGES_PER_DEVICE, TEXTS_PER_DEVICE = 64, 256
_TRAINING_IMAGES_PER_DEVICE = 32
_BAD_SHOWN = 5
# SigLIP's vision tower has no projection after it.
Features = Float32[jax.Array, "B D"]
TOWERS = {"image": ("vision", "visual_projection"), "text": ("text", "text_projection")}


class Model(Protocol):
    """What is encoded with."""

    name: str  # in progress bars
    config: clip.CLIPConfig
    params: dict[str, Any]  # as `interop.readers.read_any` returns them, or on devices
    dtype: str  # of the computation, "float32" or "bfloat16"
    preprocess: Preprocessor
    tokenizer: Tokenizer
    fingerprints: dict[str, str]  # of both towers, see `fingerprint`


def fingerprint(
    tower: str, config: clip.CLIPConfig, params: dict, dtype: str, preprocess: Preprocessor | None
) -> str:
    """Of all that an embedding of an "image" or "text" depends on but the item; names a store.

    `config` and `params` are of the whole model; `preprocess` is ignored for texts.
    """
    numerics = f"{getattr(config, TOWERS[tower][0])} {dtype} {jax.default_backend()}"
    numerics += f" {jax.__version__}"
    sha = hashlib.sha256()
    # Pillow's resize gives the same bytes within one version only.
    read = preprocess if tower == "image" else "token ids"
    sha.update(repr((numerics, read, PIL.__version__)).encode())
    leaves = jax.tree_util.tree_leaves_with_path(of_tower(tower, params))
    for name, leaf in sorted((jax.tree_util.keystr(path), leaf) for path, leaf in leaves):
        array = leaf if isinstance(leaf, np.ndarray) else sharding.to_host(leaf)
        sha.update(f"{name}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()[:24]


def of_tower(tower: str, tree: dict) -> dict:
    """The part of a tree of parameters that an "image" or a "text" passes through."""
    return {name: tree[name] for name in TOWERS[tower] if name in tree}


@functools.lru_cache(16)
def compiled(
    encode: Callable[[clip.CLIP, Any], Features], graphdef: nnx.GraphDef, mesh: Mesh | None = None
) -> Callable[[dict, Any], Features]:
    """Compiled `encode(model, batch)` as a function of parameters and batch.

    One for all models of one architecture. The parameters are an argument: closed over, they would
    be copied into the program as constants, and could not be split over hosts. With a `mesh` the
    result is whole on every device.
    """

    def run(params: dict, batch: Any) -> Features:
        return encode(nnx.merge(graphdef, sharding.whole(mesh, params)), batch)

    return jax.jit(run) if mesh is None else jax.jit(run, out_shardings=sharding.replicated(mesh))


class Tower:
    """Encodes "images" or "texts" in order, as far as asked for; `distinct` of them differ."""

    def __init__(
        self,
        inputs: Images | Texts,
        store: EmbeddingStore,
        model: tuple[clip.CLIPConfig, dict, str],
        mesh: Mesh,
        *,
        label: str,
        per_device: int,
        shared: bool = False,
    ):
        """Finds out what is left to encode; nothing is computed yet.

        Args:
          inputs: all items.
          store: of this tower and weights. Items without a usable embedding are tried again.
          model: sizes, parameters on the devices of `mesh`, and compute type.
          mesh: over which a batch of at most `per_device` items a device is split; features come
            out whole on every device.
          label: of the progress bar.
          shared: whether the processes read one store, as training does. Else each receives what
            process 0 has. In a shared one an item that has no embedding is not tried again, and
            batches have one size whatever is left: what a killed run continues has the same bits.
        """
        self.inputs, self.store, self.label, self.name = inputs, store, label, inputs.name
        config, params, dtype = model
        graphdef, _ = clip.abstract(config, dtype=dtype)
        self._encode = functools.partial(compiled(inputs.encode, graphdef, mesh), params)
        self._mesh = mesh
        self._resources, self._bar = contextlib.ExitStack(), None
        # Of items with one key the first is encoded.
        self._first = first_of_equals(inputs.keys)
        rows = np.flatnonzero(self._first == np.arange(len(self._first)))
        self.distinct, keys = len(rows), inputs.keys[rows]
        _agree(store, keys, shared)
        self._left = rows[~store.has(keys) | (False if shared else store.without(keys))]
        self._size = _batch_size(len(rows if shared else self._left), mesh.size, per_device)
        self._batches = inputs.batches(self._left, self._size, mesh)
        self._resources.callback(self._batches.close)
        self._started = self._done = 0
        self._running: collections.deque[Features] = collections.deque()

    @property
    def pending(self) -> int:
        """Items that are not encoded yet."""
        return len(self._left) - self._done

    def features(self, items: Sequence[Hashable]) -> Float32[np.ndarray, "N D"]:
        """Unit rows; encodes up to the last of these items.

        Raises InputError that names items without an embedding; others can still be asked for.
        """
        asked = self.inputs.rows_of(items)
        # Those that are left are encoded in ascending order of their rows.
        firsts = self._first[asked]
        last = firsts[np.isin(firsts, self._left)].max(initial=-1)
        while self._done < len(self._left) and self._left[self._done] <= last:
            self.encode_next()
        keys = self.inputs.keys[asked]
        if bad := list(dict.fromkeys(itertools.compress(items, self.store.without(keys)))):
            reasons = [self.inputs.why_bad(item) for item in bad[:_BAD_SHOWN]]
            raise InputError(f"{len(bad)} {self.name} cannot be used: {'; '.join(reasons)}")
        rows = self.store.rows(keys)
        zero = np.flatnonzero(~rows.any(axis=1))
        if len(zero):
            raise InputError(
                f"{len(zero)} {self.name} cannot be used: {items[zero[0]]!r}: all of its "
                "features are 0, which have no direction"
            )
        return l2_normalise(rows)

    def unusable(self, items: Sequence[Hashable]) -> dict[Hashable, str]:
        """What is wrong with those items that have no embedding; encodes all that are left."""
        self.finish()
        without = self.store.without(self.inputs.keys[self.inputs.rows_of(items)])
        return {item: self.inputs.why_bad(item) for item in itertools.compress(items, without)}

    def finish(self) -> None:
        """Encodes all items that are left."""
        while self.pending:
            self.encode_next()

    def close(self) -> None:
        """Ends the bar and the threads."""
        self._resources.close()

    def encode_next(self) -> None:
        """Stores one more batch, while the devices work on the one behind it."""
        if self._bar is None:
            bar = console.Bar(self.label, len(self._left))
            self._bar = self._resources.enter_context(bar)
        while len(self._running) < 2 and self._started < len(self._left):
            batch = sharding.to_global(self._mesh, next(self._batches))
            self._running.append(self._encode(batch))
            self._started += self._size
        part = self._left[self._done : self._done + self._size]
        rows = np.asarray(self._running.popleft())[: len(part)]
        keys = self.inputs.keys[part]
        # An item that was tried again in vain is in the store already.
        new = np.flatnonzero(~self.store.has(keys) | np.isfinite(rows).all(axis=1))
        self.store.add([keys[i].tobytes() for i in new], rows[new])
        self._done += len(part)
        self._bar.advance(len(part))
        if not self.pending:
            self.close()


def _batch_size(items: int, devices: int, per_device: int) -> int:
    """Equal batches, as few as the devices take, with hardly a row to fill up."""
    batches = max(1, math.ceil(items / (devices * per_device)))
    return max(1, math.ceil(items / (batches * devices))) * devices


def _agree(store: EmbeddingStore, keys: Rows, shared: bool) -> None:
    """Gives every process what the main process's store holds of these keys.

    Processes whose items differ would run batches of other shapes, and wait for each other.
    """
    if multihost.is_single_process():
        return
    digest = hashlib.sha256(keys.tobytes()).hexdigest()[:16]
    left = int((~store.has(keys)).sum()) if shared else "those of process 0"
    described = {"how many, and their digest": [len(keys), digest], "of them to compute": left}
    multihost.require_same("items to encode", described)
    if shared or not len(keys):
        return
    known = store.has(keys)
    rows = np.zeros((len(keys), store.dim), np.float32)
    rows[known] = store.rows(keys[known])
    known, rows = sharding.from_main((known, rows))
    if not sharding.is_main_process():
        store.add([key.tobytes() for key in keys[known]], rows[known])


class GivenImages:
    """Images whose features a file holds, in place of a `Tower` that would compute them."""

    name, pending = "images", 0

    def __init__(
        self,
        images: Sequence[ImageRef],
        features: ImageFeatures,
        name_of: Callable[[str], str | None],
    ):
        """`name_of` a path is what the file calls the image; None where it has no feature."""
        self.distinct, self._file, self._name_of = len(images), features, name_of
        if not multihost.is_single_process():
            described = {f"digest of {features.path}": features.digest}
            multihost.require_same("image features", described)

    def features(self, items: Sequence[ImageRef]) -> Float32[np.ndarray, "N D"]:
        """As `Tower.features`."""
        if bad := self.unusable(items):
            reasons = "; ".join(list(bad.values())[:_BAD_SHOWN])
            raise InputError(f"{len(bad)} {self.name} cannot be used: {reasons}")
        rows = self._file.rows(self._name_of(ref.path) for ref in items)
        return l2_normalise(self._file.features[rows])

    def unusable(self, items: Sequence[ImageRef]) -> dict[ImageRef, str]:
        """What is wrong with those that have none."""
        found, path = {}, self._file.path
        for ref in items:
            if ref.box is not None:
                found[ref] = (
                    f"{ref.path}: {path} holds features of whole photos, not of their parts"
                )
            elif self._name_of(ref.path) is None:
                found[ref] = f"{ref.path} has no feature in {path}"
        return found

    def close(self) -> None:
        """Nothing."""


class Encoder:
    """Unit features of the images and texts of several benchmarks under one model.

    `images` and `texts` are the towers, which say how many items there are and how many are left;
    `truncated` are texts that are longer than the model reads.
    """

    def __init__(
        self,
        model: Model,
        images: Sequence[ImageRef],
        texts: Sequence[str],
        source: ImageSource,
        *,
        cache: Path,
        in_memory: dict[str, EmbeddingStore] | None = None,
        mesh: Mesh | None = None,
        given: tuple[ImageFeatures, Callable[[str], str | None]] | None = None,
    ):
        """Finds out what is left to encode; nothing is computed yet.

        Args:
          model: to encode with.
          images, texts: in the order of need; repetitions are dropped.
          source: where images are, unless features of them are `given`, see `GivenImages`.
          cache: folder of the images' digests and of the stores, if these are not `in_memory`.
          mesh: that the parameters lie on; None where they are NumPy arrays.

        Raises InputError where the model has no vision tower and nothing is given in its place.
        """
        params = model.params
        if images and given is None and model.config.vision is None:
            raise InputError(clip.NO_VISION)
        if mesh is None:
            mesh = sharding.make_mesh(data=-1, fsdp=1)
            everywhere = jax.tree.map(lambda _: sharding.replicated(mesh), params)
            params = sharding.put(params, everywhere)

        def tower(inputs: Images | Texts, per_device: int) -> Tower:
            name = f"{inputs.tower}-{model.fingerprints[inputs.tower]}"
            dim = model.config.projection_dim
            if in_memory is not None:
                store = in_memory.setdefault(name, EmbeddingStore(None, dim))
            else:
                main = sharding.is_main_process()
                store = EmbeddingStore(cache / f"{name}.rows" if main else None, dim)
            parts, label = (model.config, params, model.dtype), f"{model.name}: {inputs.name}"
            return Tower(inputs, store, parts, mesh, label=label, per_device=per_device)

        distinct, refs = list(dict.fromkeys(texts)), list(dict.fromkeys(images))
        self.images: Tower | GivenImages
        if given is None:
            self.images = tower(Images(refs, source, model.preprocess, cache), IMAGES_PER_DEVICE)
        else:
            self.images = GivenImages(refs, *given)
        self.texts = tower(Texts(distinct, model.tokenizer), TEXTS_PER_DEVICE)
        self.truncated = self.texts.inputs.truncated

    def features(
        self, images: Sequence[ImageRef], texts: Sequence[str]
    ) -> tuple[Float32[np.ndarray, "N D"], Float32[np.ndarray, "M D"]]:
        """Unit rows of N images and M texts; InputError names images that cannot be read."""
        # All texts first, so that there is one bar at a time.
        self.texts.finish()
        return self.images.features(images), self.texts.features(texts)

    def unusable_images(self, images: Sequence[ImageRef]) -> dict[ImageRef, str]:
        """Those of the images that cannot be encoded, with the reason; encodes all of them."""
        self.texts.finish()
        return self.images.unusable(images)

    def close(self) -> None:
        """Ends progress bars and the threads that decode."""
        self.images.close()
        self.texts.close()


def image_features(
    names: Sequence[str],
    source: ImageSource,
    preprocess: Preprocessor,
    root: epath.Path,
    model: tuple[clip.CLIPConfig, dict, str],
    mesh: Mesh,
    *,
    threads: int,
) -> tuple[MappedRows, Bool[np.ndarray, " U"]]:
    """Features of a frozen tower for training; what `root` does not hold is computed into it.

    Images are read in the order in which they are stored, whatever order `names`, all different,
    come in. All processes see one `root`, on a disk or in a bucket, and process 0 writes there.
    `model` has sizes, parameters on the devices of `mesh`, and compute type. Returns unnormalised
    features, memory-mapped, and which images have none.
    """
    order = source.storage_order(names)
    inputs = Images(
        PhotoNames(names, order), source, preprocess, root, threads=threads, shared=True
    )
    path = root / f"image-{fingerprint('image', *model, preprocess)}.rows"
    kept, without = _kept(inputs, path, model, mesh, _TRAINING_IMAGES_PER_DEVICE)
    place = np.argsort(order)
    return MappedRows(kept.rows, kept.places[place]), without[place]


def text_features(
    tokens: Ragged | Joined,
    tokenizer: Tokenizer,
    path: epath.Path,
    model: tuple[clip.CLIPConfig, dict, str],
    mesh: Mesh,
    *,
    computes: bool,
) -> MappedRows:
    """Features of texts for training, unnormalised and memory-mapped; see `image_features`.

    What the store at `path`, which all processes see, lacks is an InputError unless one `computes`.
    """
    inputs = Texts(range(len(tokens)), tokenizer, tokens)
    return _kept(inputs, path, model, mesh, TEXTS_PER_DEVICE, computes=computes)[0]


def _kept(
    inputs: Images | Texts,
    path: epath.Path,
    model: tuple[clip.CLIPConfig, dict, str],
    mesh: Mesh,
    per_device: int,
    computes: bool = True,
) -> tuple[MappedRows, Bool[np.ndarray, " U"]]:
    """Features of all items in the store at `path`, and which have none, as `image_features`."""
    multihost.require_same("feature cache", {"name": path.name})

    def opened() -> EmbeddingStore:
        return EmbeddingStore(path, model[0].projection_dim, writes=sharding.is_main_process())

    store = opened()
    label = f"{inputs.tower} features"
    tower = Tower(inputs, store, model, mesh, label=label, per_device=per_device, shared=True)
    if tower.pending and computes:
        waited = multihost.within_time(f"the next {inputs.name} of the feature cache")
        with contextlib.closing(tower), waited as keep_alive:
            while tower.pending:
                keep_alive()
                tower.encode_next()
        store.finish()
        multihost.barrier(f"{label} written")
        if not sharding.is_main_process():
            store = opened()
    keys = inputs.keys
    lacking = int((~store.has(keys)).sum())
    if lacking:
        again = "Start the run again to compute them again, or delete it"
        restore = "Restore it, or start over in another --workdir"
        raise InputError(
            f"{path} is damaged: it lacks {lacking} of the {len(keys)} embeddings that were "
            f"written. {again if computes else restore}"
        )
    logging.info("%s of %s %s come from %s", label, f"{len(keys):,}", inputs.name, path)
    return store.mapped(keys), store.without(keys)
