"""Tokenized pairs: everything about the examples but their pixels, in arrays."""

import bisect
import dataclasses
import functools
import itertools
import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from negclip_jax.common.errors import InputError
from negclip_jax.data.packing import Ragged
from negclip_jax.data.pairs import Pair
from negclip_jax.data.tokenizer import Tokenizer
from negclip_jax.language.negation import find_cues
from negclip_jax.language.text import tokenize

_log = logging.getLogger(__name__)

CAPTION_MODES = ("negated", "original", "mix")
TRUNCATED = ("drop_lost", "drop", "keep")
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


def without_truncated(
    pairs: Sequence[Pair], tokenizer: Tokenizer, *, caption_mode: str, foils: int, truncated: str
) -> list[Pair]:
    """The pairs without those whose captions say something else once they are cut.

    A model reads the first tokens of a caption, 77 for CLIP. A negation behind them is lost, and
    texts that differ behind them alone become equal: such a pair teaches that "no dog" is "a dog".

    Args:
      pairs, tokenizer, caption_mode, foils: as for `tokenize_pairs`.
      truncated: which pairs are left out: "drop_lost", those that lose a negation or the difference
        between two of their texts; "drop", all with a text that is cut; "keep", none.

    Raises InputError where no pair is left. Says in the log how many are cut and left out.
    """
    room = tokenizer.context_length - tokenizer.special_tokens

    def cut(text: str) -> str:
        """What the model reads of a text, in whole words."""
        # A token is a byte at least: most texts need not be tokenized to know that they fit.
        if len(text.encode()) < room or len(tokenizer.encode(text)) <= room:
            return text
        ends = [token.end for token in tokenize(text)]
        fits = bisect.bisect_right(ends, room, key=lambda end: len(tokenizer.encode(text[:end])))
        return text[: ends[fits - 1]] if fits else ""

    kept, long, lost = [], 0, []
    for pair in pairs:
        shown = [pair.negated] if caption_mode != "original" else []
        shown += [pair.caption] if caption_mode != "negated" else []
        texts = [*shown, *pair.foils[:foils]]
        read = [cut(text) for text in texts]
        if read != texts:
            long += 1
            cues = [[len(find_cues(tokenize(x))) for x in column] for column in (texts, read)]
            is_lost = cues[0] != cues[1] or len(set(read)) < len(set(texts))
            lost += [texts[0]] if is_lost else []
            if truncated == "drop" or (truncated == "drop_lost" and is_lost):
                continue
        kept.append(pair)
    if long:
        _log.warning(
            "%s of %s pairs have a caption that is cut at %d tokens, and %s of them lose a "
            "negation by that%s; data.truncated=%s leaves out %s pairs",
            *(f"{long:,}", f"{len(pairs):,}", tokenizer.context_length, f"{len(lost):,}"),
            f", e.g. {lost[0][:200]!r}" if lost else "",
            *(truncated, f"{len(pairs) - len(kept):,}"),
        )
    if not kept:
        raise InputError(
            f"data.truncated={truncated} leaves out all {len(pairs):,} pairs, whose captions are "
            f"longer than {tokenizer.context_length} tokens: shorten them, or set "
            "data.truncated=keep"
        )
    return kept


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
