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
from typing import Any

import numpy as np
from etils import epath
from jax.sharding import Mesh

from negclip_jax.common.errors import InputError
from negclip_jax.data.examples import stand_in_text
from negclip_jax.data.loader import CachedFeatures, PairLoader
from negclip_jax.data.packing import Ragged
from negclip_jax.data.tokenizer import Tokenizer
from negclip_jax.models.clip import CLIPConfig
from negclip_jax.training.base_text import kept_features

_MOST_PHOTOS = 20_000  # to measure on
_CANDIDATES = 16  # photos of which the one that has least in common lends its residual


@dataclasses.dataclass(frozen=True)
class WithStandIns:
    """Features of photos, and of the stand-ins that follow them, indexed like one array `[U, D]`.

    Attributes:
      photos: an array, or what is indexed like one, `[U - S, D]`.
      stand_ins: float32 `[S, D]`.
    """

    photos: Any
    stand_ins: np.ndarray

    def __getitem__(self, image_B: np.ndarray) -> np.ndarray:
        first = self.photos.shape[0]
        is_photo_B = image_B < first
        rows = self.stand_ins[np.where(is_photo_B, 0, image_B - first)]
        rows[is_photo_B] = self.photos[image_B[is_photo_B]]
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
    kept = kept_features(
        "stand_ins", workdir, listed.followed_by(captions), tokenizer, model, mesh, resumes=resumes
    )
    text = _unit(kept[:])
    text, of_captions = text[: len(texts)], text[len(texts) :]
    image = _unit(loader.cached.features[examples.image_of[sample]])
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
    text_SxD: np.ndarray, caption_NxD: np.ndarray, image_NxD: np.ndarray, lender_S: np.ndarray
) -> tuple[np.ndarray, float]:
    """Unit features that stand for images of these texts, float32 `[S, D]`, and the slope.

    Args:
      text_SxD: the base's unit features of the texts.
      caption_NxD, image_NxD: the same of captions and of their images.
      lender_S: int, whose residual each gets.
    """
    mean_text, mean_image = caption_NxD.mean(axis=0), image_NxD.mean(axis=0)
    x_NxD, y_NxD = caption_NxD - mean_text, image_NxD - mean_image
    slope = float(np.sum(x_NxD * y_NxD) / np.sum(x_NxD**2))
    residual_NxD = y_NxD - slope * x_NxD
    made = mean_image + slope * (text_SxD - mean_text) + residual_NxD[lender_S]
    return _unit(made).astype(np.float32), slope


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


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
