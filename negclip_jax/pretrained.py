"""A CLIP with its tokenizer and preprocessing, usable in three lines.

    from negclip_jax import CLIP
    model = CLIP.from_pretrained("openai/clip-vit-base-patch32")
    model.similarity("street.jpg", ["a street with cars", "a street with no cars"])

For notebooks and small scripts. Training and evaluation take `graphdef` and `params` and call the
model inside their own `jax.jit`.

Shape letters: B images or texts, I images, T texts or tokens of one, D feature dimensions, H and W
the model's image size.
"""

import dataclasses
import functools
import itertools
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float32, Int32
from PIL import Image

from negclip_jax.common.errors import InputError, device_errors
from negclip_jax.common.problems import first
from negclip_jax.data.feature_files import open_features
from negclip_jax.data.images import Preprocessor, is_one_image
from negclip_jax.data.packing import Ragged
from negclip_jax.data.shard_images import ShardImages
from negclip_jax.data.sources import SUFFIXES, kind_of, open_images
from negclip_jax.data.tokenizer import Tokenizer, load_tokenizer
from negclip_jax.embeddings.encoder import compiled
from negclip_jax.interop import readers
from negclip_jax.models import clip
from negclip_jax.models.normalisation import l2_normalise

_COMPUTE_DTYPES = ("float32", "bfloat16")
_BATCH = 64  # raw items encoded at a time: 38 MB of 224-pixel images


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CLIP:
    """A loaded model; made by `CLIP.from_pretrained`.

    Attributes:
      directory: where it was loaded from, with the tokenizer if there is one.
      config: sizes and numerics.
      graphdef: static half of the model: `nnx.merge(graphdef, params)` is the module.
      params: nested dict of float32 arrays, the tree of `models.clip.split`.
      preprocessor: images to pixels.
      dtype: of the computation.
      assumption: what the checkpoint does not say and was assumed, else empty.
    """

    directory: Path
    config: clip.CLIPConfig
    graphdef: nnx.GraphDef
    params: dict[str, Any]
    preprocessor: Preprocessor
    dtype: np.dtype
    assumption: str = ""

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        *,
        dtype: DTypeLike = jnp.float32,
        crop: str = "openai",
        activation: str | None = None,
        base: str | Path | None = None,
    ) -> Self:
        """Loads a CLIP of any layout: weights, tokenizer and preprocessing.

        Args:
          path_or_hub_id: what `interop.readers.read_any` reads: a directory or Hub name of Hugging
            Face, a training run (`WORKDIR@STEP`), a file or directory of open_clip or OpenAI's
            clip.
          dtype: of the computation, float32 or bfloat16; parameters and features stay float32.
          crop: centre-crop convention, "openai" or "transformers", see `data.images`.
          activation: "quick_gelu" or "gelu", for a file of weights that does not say. Where neither
            it nor its name does, one is assumed with a warning.
          base: of a directory of one tower, the checkpoint that the rest comes from; of a file of
            weights alone, one of the same architecture with configuration and tokenizer.

        Raises InputError for a checkpoint, setting or preprocessing file that cannot be used. A
        missing tokenizer is no error until `tokenize` is called.
        """
        if jnp.dtype(dtype).name not in _COMPUTE_DTYPES:
            raise InputError(f"dtype is {dtype!r}; it must be one of {', '.join(_COMPUTE_DTYPES)}")
        config, params, info = readers.read_any(path_or_hub_id, activation=activation, base=base)
        assumption = ""
        if info.activation_source.startswith("assumed"):
            assumption = f"{info.activation}, {info.activation_source}"
            warnings.warn(
                f"{path_or_hub_id}: activation {assumption}; give activation= to say it",
                stacklevel=2,
            )
        preprocessor = dataclasses.replace(info.preprocessor, crop=crop)
        graphdef, _ = clip.abstract(config, dtype=dtype)
        directory, kind = info.tokenizer or info.base or info.path, jnp.dtype(dtype)
        return cls(directory, config, graphdef, _to_device(params), preprocessor, kind, assumption)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The directory's tokenizer; raises InputError if it has none."""
        length, pads = self.config.text.context_length, self.config.text.reads_padding
        return load_tokenizer(self.directory, length, always_pads=pads)

    @property
    def logit_scale(self) -> float:
        """The learned *logarithm* of the scale: logits are `exp(logit_scale)` x cosine."""
        return float(self.params["logit_scale"])

    def preprocess(self, images: Any) -> Float32[np.ndarray, "B H W 3"]:
        """One image or a sequence (PIL, path, uint8 array) to the model's input."""
        return self.preprocessor(_checked(images, "images", "an image (PIL, path, uint8 array)"))

    def tokenize(self, texts: str | Sequence[str]) -> Int32[np.ndarray, "B T"]:
        """One text or a sequence to token ids; long texts are truncated.

        Rows are padded to the context length, as OpenAI's `clip.tokenize` does, which costs three
        times what captions need: `encode_text(texts)` computes no more than they need.
        """
        return self.tokenizer(_checked(texts, "texts", "a text"))

    def encode_image(self, pixels: Any) -> Float32[Array, "B D"]:
        """Projected, unnormalised image features. The first call for a shape compiles.

        `pixels` are preprocessed, float `[B, H, W, 3]`.
        """
        pixels = jnp.asarray(pixels)
        if not jnp.issubdtype(pixels.dtype, jnp.floating):
            raise InputError(f"pixels are {pixels.dtype}, not float: give preprocess(images)")
        return compiled(_encode_image, self.graphdef)(self.params, pixels.astype(jnp.float32))

    def encode_text(self, ids: Any) -> Float32[Array, "B D"]:
        """Projected, unnormalised text features. The first call for a shape compiles.

        `ids` are texts, one or a sequence, of which those of a length share batches that are padded
        to that length and no further; token ids, int `[B, T]`, T up to the context length; or many
        captions packed several to a row, what `data.packing.Packing.pack` returns.
        """
        if isinstance(ids, dict):
            return compiled(_encode_text, self.graphdef)(self.params, ids)
        ids = [ids] if isinstance(ids, str) else ids
        if isinstance(ids, list | tuple) and any(isinstance(text, str) for text in ids):
            return jnp.asarray(self._encode_texts(list(ids)))
        ids = np.asarray(ids)
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
            raise InputError(f"ids are {ids.dtype}{list(ids.shape)}, not int[B, T]")
        vocab_size = self.config.text.vocab_size
        if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
            # JAX would clamp the index and answer with another token's features.
            raise InputError(
                f"ids range from {ids.min()} to {ids.max()}, but the model has {vocab_size} tokens"
            )
        return compiled(_encode_text, self.graphdef)(self.params, ids.astype(np.int32))

    @device_errors("Give fewer texts at a time, or dtype='bfloat16'")
    def _encode_texts(self, texts: list[str]) -> Float32[np.ndarray, "B D"]:
        tokens = Ragged(*self.tokenizer.encode_ragged(texts))
        most, order = self.config.text.context_length, np.argsort(tokens.lengths, kind="stable")
        features = np.empty((len(texts), self.config.projection_dim), np.float32)
        running: list[tuple[np.ndarray, Array]] = []
        for start in range(0, len(order), _BATCH):
            part = order[start : start + _BATCH]
            # Few shapes, because each is compiled: 8 tokens more, 8 rows more, or 1, 2 or 4 rows.
            length = min(most, -(-int(tokens.lengths[part[-1]]) // 8) * 8)
            rows = -(-len(part) // 8) * 8 if len(part) > 4 else 1 << (len(part) - 1).bit_length()
            filled = part[np.minimum(np.arange(rows), len(part) - 1)]
            running.append((part, self.encode_text(tokens.padded(filled, length))))
            if len(running) > 1 or start + _BATCH >= len(order):  # tokens of one, while it computes
                for done, computed in running:
                    features[done] = np.asarray(computed)[: len(done)]
                running = []
        return features

    @device_errors("Give smaller images, or dtype='bfloat16'")
    def embed_images(self, images: Any) -> Float32[np.ndarray, "B D"]:
        """Unit vectors of raw images; takes what `preprocess` takes.

        Images are opened as they are needed, a batch at a time, so that there may be any number.
        Shards, such as `"wds:cc12m-{0000..1242}.tar"`, are all of their images in the order in
        which they are stored, see `data.sources`.
        """
        images = _checked(images, "images", "an image (PIL, path, uint8 array)")
        listed = [images] if is_one_image(images) else images
        waiting = itertools.chain.from_iterable(map(_with_shards_opened, listed))
        rows: list[np.ndarray] = []
        running: list[tuple[Array, int]] = []
        while part := list(itertools.islice(waiting, _BATCH)):
            count = len(part)
            # Of several batches the last is filled up: one shape is compiled.
            part += part[:1] * (_BATCH - count if running else 0)
            pixels = self.preprocess(part)  # while the batch before is computed
            rows += [np.asarray(features)[:n] for features, n in running]
            running = [(self.encode_image(pixels), count)]
        if not running:
            raise InputError("images is empty: give at least one image")
        rows += [np.asarray(features)[:n] for features, n in running]
        return l2_normalise(np.concatenate(rows))

    def embed_texts(self, texts: str | Sequence[str]) -> Float32[np.ndarray, "B D"]:
        """Unit vectors of texts."""
        texts = _checked(texts, "texts", "a text")
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise InputError("texts is empty: give at least one text")
        return l2_normalise(self._encode_texts(texts))

    def similarity(
        self, images: Any, texts: str | Sequence[str], *, features: str | None = None
    ) -> Float32[np.ndarray, "I T"]:
        """Cosine similarity of raw images and texts.

        Args:
          images: what `embed_images` takes; with `features` names in it, or None for all.
          texts: one or a sequence.
          features: file, folder or pattern of image features that another library computed, see
            `data.feature_files`. No photo is then opened, and no vision tower is needed.

        Raises InputError for no image or text, for what is neither, and for features of another
        width or that an image does not have.
        """
        of_texts = self.embed_texts(texts)  # a wrong one is told before photos are opened
        if features is None:
            return self.embed_images(images) @ of_texts.T
        return self._kept_features(images, features) @ of_texts.T

    def _kept_features(self, names: Any, path: str) -> Float32[np.ndarray, "I D"]:
        """Unit vectors of images by their names in a file of features."""
        stored = open_features(str(path))
        stored.require_width(self.config.projection_dim)
        names = stored.names if names is None else [names] if isinstance(names, str) else names
        names = list(map(str, _checked(names, "images", "a name in the file of features")))
        if not names:
            raise InputError("images is empty: give at least one name")
        if unknown := [name for name in names if not stored.usable(name)]:
            raise InputError(
                f"{path} has no feature that can be used of {len(unknown)} images: {first(unknown)}"
            )
        return l2_normalise(stored.features[stored.rows(names)])

    def __repr__(self) -> str:
        text, vision = self.config.text, self.config.vision
        tower = "vision of another library"
        if vision is not None:
            tower = f"vision {vision.layers} x {vision.width}, patch {vision.patch_size} of "
            tower += f"{vision.image_size} px"
        assumed = f"; {self.assumption}" if self.assumption else ""
        millions = sum(leaf.size for leaf in jax.tree.leaves(self.params)) / 1e6
        return (
            f"{type(self).__name__}({str(self.directory)!r}: "
            f"{tower}; text {text.layers} x {text.width}, "
            f"{text.context_length} tokens of {text.vocab_size}; "
            f"D = {self.config.projection_dim}; {millions:.1f} M parameters, {self.dtype}{assumed})"
        )


def from_pretrained(path_or_hub_id: str | Path, **options: Any) -> CLIP:
    """The former spelling of `CLIP.from_pretrained`, for one release."""
    warnings.warn("use CLIP.from_pretrained", DeprecationWarning, stacklevel=2)
    return CLIP.from_pretrained(path_or_hub_id, **options)


def _with_shards_opened(image: Any) -> Iterator[Any]:
    """An image; of a string that names shards their images, one after the other."""
    if not isinstance(image, str) or kind_of(image)[0] not in SUFFIXES:
        yield image
        return
    source = open_images(image)
    assert isinstance(source, ShardImages)  # of these kinds
    yield from (source.open(name) for name in source.names())


def _to_device(params: dict[str, Any]) -> dict[str, Any]:
    # One by one and in place, so that no second copy of the weights is alive on the host.
    for key, value in params.items():
        params[key] = _to_device(value) if isinstance(value, dict) else jnp.asarray(value)
    return params


def _encode_image(model: clip.CLIP, pixels: Array) -> Array:
    return model.encode_image(pixels)


def _encode_text(model: clip.CLIP, ids: Array) -> Array:
    return model.encode_text(ids)


def _checked(items: Any, name: str, what: str) -> Any:
    """`items`, which are one item or can be iterated; InputError for anything else."""
    if isinstance(items, bytes | bytearray | memoryview):
        raise InputError(
            f"{name} is {type(items).__name__}, not {what} or a sequence of them: open encoded "
            "images with PIL.Image.open(io.BytesIO(data))"
        )
    if not isinstance(items, Iterable | os.PathLike | Image.Image):
        raise InputError(f"{name} is {items!r}, not {what} or a sequence of them")
    return items
