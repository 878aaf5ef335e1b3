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

CAPTION_MODES = ("negated", "original", "mix")
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


@dataclasses.dataclass(frozen=True, repr=False)
class Examples:
    """N examples of U distinct images. An example shows one of its C captions, and its K foils.

    Attributes:
      images: names of distinct images, U.
      image_of: int64 `[N]`, the image of each example.
      tokens: token ids of all captions and foils; the last is an empty one.
      caption_index_CxN: int64, indices into `tokens`: the captions that an example may show, one
        or (negated, original).
      foil_index_NxK: int64, indices into `tokens`, or None.
      foil_mask_NxK: False where a pair has fewer than K foils, or None.
    """

    images: list[str]
    image_of: np.ndarray
    tokens: Ragged
    caption_index_CxN: np.ndarray
    foil_index_NxK: np.ndarray | None
    foil_mask_NxK: np.ndarray | None

    def __len__(self) -> int:
        return len(self.image_of)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of the captions and foils of each example, int64 `[N, C + K]`."""
        index = self.caption_index_CxN.T
        if self.foil_index_NxK is not None:
            index = np.concatenate([index, self.foil_index_NxK], axis=1)
        return self.tokens.lengths[index]

    @functools.cached_property
    def reserved_lengths(self) -> np.ndarray:
        """Tokens that packing reserves for the captions and foils of each example, as `lengths`.

        Never less than a few short examples need: one of them can take the place of any other
        without changing a batch's shape.
        """
        count = max(_SHORT_PAIRS, int(_SHORT_SHARE * len(self)))
        shortest = np.argsort(self.lengths.sum(axis=1), kind="stable")[:count]
        return np.maximum(self.lengths, self.lengths[shortest].max(axis=0))

    def reserved_of(self, pairs: np.ndarray, caption_choice_B: np.ndarray) -> np.ndarray:
        """`reserved_lengths` of these examples, int64 `[B * (1 + K)]`, as `token_index`."""
        shown = self.reserved_lengths[pairs, caption_choice_B][:, None]
        foils = self.reserved_lengths[pairs, len(self.caption_index_CxN) :]
        return np.concatenate([shown, foils], axis=1).reshape(-1)

    def token_index(self, pairs: np.ndarray, caption_choice_B: np.ndarray) -> np.ndarray:
        """Which of `tokens` these examples show, int64 `[B * (1 + K)]`: caption, foils, caption...

        Args:
          pairs: int `[B]`, examples.
          caption_choice_B: int, which of its C captions each shows.
        """
        shown = self.caption_index_CxN[caption_choice_B, pairs]
        if self.foil_index_NxK is None:
            return shown
        return np.concatenate([shown[:, None], self.foil_index_NxK[pairs]], axis=1).reshape(-1)


def tokenize_pairs(
    pairs: Sequence[Pair], images: list[str], tokenizer: Tokenizer, *, caption_mode: str, foils: int
) -> Examples:
    """Tokenizes once what training will read many times.

    Args:
      pairs: examples; with a mode other than "original" each needs a negated caption.
      images: distinct image names, which may be more than those of `pairs`.
      tokenizer: of the model.
      caption_mode: "negated", "original", or "mix" (both, chosen per epoch).
      foils: K, false captions kept per pair; the first K of each.
    """
    if caption_mode not in CAPTION_MODES:
        modes = ", ".join(CAPTION_MODES)
        raise InputError(f"data.caption_mode: {caption_mode!r} is none of {modes}")
    columns = []
    if caption_mode != "original":
        columns.append([pair.negated for pair in pairs])
    if caption_mode != "negated":
        columns.append([pair.caption for pair in pairs])
    false = [foil for pair in pairs for foil in pair.foils[:foils]]
    ids, offsets = tokenizer.encode_ragged([*itertools.chain(*columns, false), ""])
    number = {name: i for i, name in enumerate(images)}
    first_foil = len(pairs) * len(columns)
    foil_mask = foil_index = None
    if foils:
        foil_mask = np.array([[k < len(pair.foils) for k in range(foils)] for pair in pairs])
        foil_index = np.full(foil_mask.shape, len(offsets) - 2)  # the empty text
        # Row-major, as the texts were listed.
        foil_index[foil_mask] = first_foil + np.arange(foil_mask.sum())
    return Examples(
        images=images,
        image_of=np.array([number[pair.image] for pair in pairs], np.int64),
        tokens=Ragged(ids, offsets),
        caption_index_CxN=np.arange(first_foil).reshape(len(columns), len(pairs)),
        foil_index_NxK=foil_index,
        foil_mask_NxK=foil_mask,
    )
