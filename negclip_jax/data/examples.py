"""Tokenized pairs: everything about the examples but their pixels, in arrays."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from negclip_jax.common.errors import InputError
from negclip_jax.data.packing import Ragged
from negclip_jax.data.pairs import Pair
from negclip_jax.data.tokenizer import Tokenizer

CAPTIONS = ("negated", "original", "mix")
_SHORT_PAIRS, _SHORT_SHARE = 8, 0.02


class ImageSource(Protocol):
    """Where images come from: `images.ImageDirectory` or `tfds.TfdsImages`."""

    def open(self, name: str) -> Image.Image:
        """RGB image; raises ImageError that names the file."""

    def missing(self, names: Sequence[str]) -> list[str]:
        """Those of `names` that do not exist."""

    def identity(self, name: str) -> list:
        """What changes whenever the image's bytes do and is cheaper to look up."""

    def read(self, name: str) -> bytes:
        """The encoded image."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """N examples of U distinct images.

    Attributes:
      images: names of distinct images, U.
      image_of: int64 `[N]`, the image of each example.
      texts: token ids of all captions; the last is an empty one.
      captions: int64 `[C, N]`, indices into `texts`: the captions that an example may show, one or
        (negated, original).
      foils: int64 `[N, K]`, indices into `texts`, or None.
      foil_mask: bool `[N, K]`, False where a pair has fewer than K foils, or None.
    """

    images: list[str]
    image_of: np.ndarray
    texts: Ragged
    captions: np.ndarray
    foils: np.ndarray | None
    foil_mask: np.ndarray | None

    def __len__(self) -> int:
        return len(self.image_of)

    @property
    def longest(self) -> int:
        """Tokens of the longest caption."""
        return int(self.texts.lengths.max())

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """Tokens of the captions and foils of each example, int64 `[N, C + K]`."""
        texts = self.captions.T
        if self.foils is not None:
            texts = np.concatenate([texts, self.foils], axis=1)
        return self.texts.lengths[texts]

    @functools.cached_property
    def room(self) -> np.ndarray:
        """Tokens that packing keeps for the captions and foils of each example, as `sizes`.

        Never less than a few short examples need: one of them can take the place of any other
        without changing a batch's shape.
        """
        count = max(_SHORT_PAIRS, int(_SHORT_SHARE * len(self)))
        shortest = np.argsort(self.sizes.sum(axis=1), kind="stable")[:count]
        return np.maximum(self.sizes, self.sizes[shortest].max(axis=0))

    def room_of(self, pairs: np.ndarray, kinds: np.ndarray) -> np.ndarray:
        """What of `room` these examples take, int64 `[B * (1 + K)]`, in the order of `texts_of`."""
        shown = self.room[pairs, kinds][:, None]
        return np.concatenate([shown, self.room[pairs, len(self.captions) :]], axis=1).reshape(-1)

    def texts_of(self, pairs: np.ndarray, kinds: np.ndarray) -> np.ndarray:
        """Texts that these examples show, indices int64 `[B * (1 + K)]`: caption, foils, caption...

        `pairs` and `kinds` are int `[B]`: example, and which of its C captions it shows.
        """
        shown = self.captions[kinds, pairs]
        if self.foils is None:
            return shown
        return np.concatenate([shown[:, None], self.foils[pairs]], axis=1).reshape(-1)


def tokenize_pairs(
    pairs: Sequence[Pair], images: list[str], tokenizer: Tokenizer, *, captions: str, foils: int
) -> Examples:
    """Tokenizes once what training will read many times.

    Args:
      pairs: examples; with captions other than "original" each needs a negated caption.
      images: distinct image names, which may be more than those of `pairs`.
      captions: "negated", "original", or "mix" (both, chosen per epoch).
      foils: K, false captions kept per pair; the first K of each.
    """
    if captions not in CAPTIONS:
        raise InputError(f"data.captions: {captions!r} is none of {', '.join(CAPTIONS)}")
    columns = []
    if captions != "original":
        columns.append([pair.negated for pair in pairs])
    if captions != "negated":
        columns.append([pair.caption for pair in pairs])
    false = [foil for pair in pairs for foil in pair.foils[:foils]]
    ids, offsets = tokenizer.encode_ragged([*itertools.chain(*columns, false), ""])
    number = {name: i for i, name in enumerate(images)}
    n = len(pairs)
    first_foil = n * len(columns)
    return Examples(
        images=images,
        image_of=np.array([number[pair.image] for pair in pairs], np.int64),
        texts=Ragged(ids, offsets),
        captions=np.arange(first_foil).reshape(len(columns), n),
        **_foil_indices(pairs, foils, first_foil, empty=len(offsets) - 2),
    )


def _foil_indices(pairs: Sequence[Pair], count: int, first: int, empty: int) -> dict:
    if not count:
        return {"foils": None, "foil_mask": None}
    mask = np.array([[k < len(pair.foils) for k in range(count)] for pair in pairs])
    indices = np.full(mask.shape, empty)
    indices[mask] = first + np.arange(mask.sum())  # row-major, as the texts were listed
    return {"foils": indices, "foil_mask": mask}
