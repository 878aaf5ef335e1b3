"""Features of images that no photo shows, made of the base model's features of what is in them.

CLIP's image and text features lie in two separate clouds (Liang et al., 2022, "Mind the gap"). So
the text of a text row is moved from one to the other, by numbers that are measured on the run's own
photos: a stand-in is

    mean_image + slope * (text - mean_text) + residual

of unit features, with the least-squares slope of image on text features, and the residual of a
photo that has little in common with the text: what else there is in a photo than its caption says.
"""

import dataclasses
import logging
from typing import Any, ClassVar

import numpy as np
from etils import epath
from jax.sharding import Mesh

from negclip_jax.common.errors import InputError
from negclip_jax.common.linear_probe import unit
from negclip_jax.data.examples import stand_in_text
from negclip_jax.data.loader import CachedFeatures, PairLoader
from negclip_jax.data.packing import Joined, Ragged
from negclip_jax.data.tokenizer import Tokenizer
from negclip_jax.models.clip import CLIPConfig
from negclip_jax.training.base_text import kept_features

_MOST_PHOTOS = 20_000  # to measure on
_CANDIDATES = 16  # photos of which the one that has least in common lends its residual


@dataclasses.dataclass(frozen=True)
class StandIns:
    """Stand-ins of S texts, indexed like an array float32 `[S, D]`; each is made when it is read.

    Attributes:
      text: the base's features of the texts, an array or what is indexed like one, `[S, D]`.
      mean_text, mean_image: of unit features, float64 `[D]`.
      slope: of image on text features.
      residual_NxD: of photos, float64.
      lender_S: int, whose residual each gets.
    """

    text: Any
    mean_text: np.ndarray
    mean_image: np.ndarray
    slope: float
    residual_NxD: np.ndarray
    lender_S: np.ndarray

    def __len__(self) -> int:
        return len(self.lender_S)

    def __getitem__(self, index: np.ndarray | slice) -> np.ndarray:
        moved = self.slope * (unit(self.text[index]) - self.mean_text)
        made = self.mean_image + moved + self.residual_NxD[self.lender_S[index]]
        return unit(made).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class WithStandIns:
    """Features of photos, and of the stand-ins that follow them, indexed like one array `[U, D]`.

    Attributes:
      photos: an array, or what is indexed like one, `[U - S, D]`.
      stand_ins: the same of the stand-ins, `[S, D]`.
    """

    photos: Any
    stand_ins: Any
    dtype: ClassVar = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        """U and D."""
        return self.photos.shape[0] + len(self.stand_ins), self.photos.shape[1]

    def __getitem__(self, image_B: np.ndarray) -> np.ndarray:
        first = self.photos.shape[0]
        is_photo_B = image_B < first
        rows = np.empty((len(image_B), self.photos.shape[1]), np.float32)
        rows[is_photo_B] = self.photos[image_B[is_photo_B]]
        if not is_photo_B.all():
            rows[~is_photo_B] = self.stand_ins[image_B[~is_photo_B] - first]
        return rows


def use_stand_ins(
    loader: PairLoader,
    workdir: epath.Path,
    tokenizer: Tokenizer,
    model: tuple[CLIPConfig, dict, str],
    mesh: Mesh,
    *,
    resumes: bool,
) -> PairLoader:
    """The loader, with features for the images of its examples that are no photos.

    Args:
      loader: of training pairs.
      workdir: of the run, which keeps the base's text features: later its weights are gone.
      tokenizer: of the model.
      model: sizes, parameters on the devices of `mesh`, and compute type.
      mesh: over which texts are encoded.
      resumes: whether the parameters are those of a checkpoint, no longer the base's.

    Raises InputError where there are no cached features, or no original captions, to measure on.
    """
    examples = loader.examples
    if not examples.stand_ins:
        return loader
    if loader.cached is None:
        raise InputError(
            "data.text_nouns needs a frozen vision tower (optim.freeze) and data.cache_features: "
            "what stands for an image is a feature"
        )
    if examples.original is None:
        raise InputError(
            "data.text_nouns measures on original captions: show them too, with "
            "data.caption_mode=mix or train.anchor_weight"
        )
    texts = [stand_in_text(name) or "" for name in examples.images[len(examples.photos) :]]
    is_usable_U = ~loader.cached.unreadable
    of_photos = np.flatnonzero(examples.image_of < len(examples.photos))
    of_photos = of_photos[is_usable_U[examples.image_of[of_photos]]]
    sample = of_photos[:: -(-len(of_photos) // _MOST_PHOTOS)]
    captions = examples.tokens.taken(examples.original_index_N[sample])
    listed = Ragged(*tokenizer.encode_ragged(texts))
    tokens = Joined([listed, captions])
    kept = kept_features("stand_ins", workdir, tokens, tokenizer, model, mesh, resumes=resumes)
    text, of_captions = (
        dataclasses.replace(kept, places=places) for places in np.split(kept.places, [len(texts)])
    )
    of_captions = unit(of_captions[:])
    image = unit(loader.cached.features[examples.image_of[sample]])
    lender = least_in_common(listed, captions, loader.seed)
    made, slope = stand_ins(text, of_captions, image, lender)
    gap = np.linalg.norm(image.mean(axis=0) - of_captions.mean(axis=0))
    logging.info(
        "%s images that no photo shows: slope %.3f, gap %.3f, measured on %s captions",
        *(f"{len(made):,}", slope, gap, f"{len(sample):,}"),
    )
    features = WithStandIns(loader.cached.features, made)
    unreadable = np.pad(loader.cached.unreadable, (0, len(made)))
    return dataclasses.replace(loader, cached=CachedFeatures(features, unreadable))


def stand_ins(
    text_SxD: Any, caption_NxD: np.ndarray, image_NxD: np.ndarray, lender_S: np.ndarray
) -> tuple[StandIns, float]:
    """What stands for images of these texts, unit features, and the slope.

    Args:
      text_SxD: the base's features of the texts, see `StandIns.text`.
      caption_NxD, image_NxD: its unit features of captions and of their images.
      lender_S: int, whose residual each gets.
    """
    mean_text, mean_image = caption_NxD.mean(axis=0), image_NxD.mean(axis=0)
    x_NxD, y_NxD = caption_NxD - mean_text, image_NxD - mean_image
    slope = float(np.sum(x_NxD * y_NxD) / np.sum(x_NxD**2))
    residual_NxD = y_NxD - slope * x_NxD
    return StandIns(text_SxD, mean_text, mean_image, slope, residual_NxD, lender_S), slope


def least_in_common(texts: Ragged, captions: Ragged, seed: int) -> np.ndarray:
    """For each text the one of some captions, drawn at random, that shares least with it, int64.

    What is shared counts by how rare it is among the captions (inverse document frequency).
    """
    tokens = [frozenset(captions.ids[a:b].tolist()) for a, b in _spans(captions)]
    weight: dict[int, float] = {}
    for ids in tokens:
        for token in ids:
            weight[token] = weight.get(token, 0) + 1
    weight = {token: np.log(len(tokens) / count) for token, count in weight.items()}
    bits = np.random.Philox(key=[seed, 0]).random_raw(len(texts) * _CANDIDATES)
    drawn = (bits % np.uint64(len(tokens))).astype(np.int64).reshape(-1, _CANDIDATES)
    chosen = np.empty(len(texts), np.int64)
    for i, (a, b) in enumerate(_spans(texts)):
        own = set(texts.ids[a:b].tolist())
        chosen[i] = min(drawn[i].tolist(), key=lambda n: sum(weight[t] for t in own & tokens[n]))
    return chosen


def _spans(texts: Ragged) -> zip:
    return zip(texts.offsets[:-1].tolist(), texts.offsets[1:].tolist(), strict=True)
