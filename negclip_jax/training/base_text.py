"""What the base model's text tower says: of captions that a run must not forget, and of nouns.

CLIP's image and text features lie in two separate clouds (Liang et al., 2022, "Mind the gap"). So
what stands for an image that no photo shows is the base's feature of the text of a text row, moved
from one to the other by numbers that are measured on the run's own photos: a stand-in is

    mean_image + slope * (text - mean_text) + residual

of unit features, with the least-squares slope of image on text features, and the residual of a
photo that has little in common with the text: what else there is in a photo than its caption says.
"""

import collections
import dataclasses
import itertools
import logging
from typing import Any, ClassVar

import numpy as np
from etils import epath
from jax.sharding import Mesh

from negclip_jax.common.errors import InputError
from negclip_jax.common.linear_probe import unit
from negclip_jax.data.examples import stand_in_text
from negclip_jax.data.loader import CachedFeatures, PairLoader
from negclip_jax.data.packing import Chosen, Joined, Ragged
from negclip_jax.data.tokenizer import Tokenizer
from negclip_jax.embeddings import encoder
from negclip_jax.embeddings.store import MappedRows
from negclip_jax.models.clip import CLIPConfig
from negclip_jax.runtime import multihost, sharding

_MOST_PHOTOS = 20_000  # to measure on
_CANDIDATES = 16  # photos of which the one that has least in common lends its residual


@dataclasses.dataclass(frozen=True)
class BaseText:
    """The base's text tower, to be asked before the first step: later its weights are gone."""

    workdir: epath.Path  # of the run, to which the features belong
    tokenizer: Tokenizer
    model: tuple[CLIPConfig, dict, str]  # sizes, parameters on the devices, and compute type
    mesh: Mesh  # over which texts are encoded
    resumes: bool  # whether the parameters are those of a checkpoint, no longer the base's

    def features(self, name: str, tokens: Joined) -> MappedRows:
        """The features of texts, float32 `[N, D]`, kept under a name in the run's directory.

        Raises InputError where a run that resumes has lost them.
        """
        path = self.workdir / "base_text" / f"{name}.rows"
        if not self.resumes:  # what a killed run has begun may be of other weights
            if sharding.is_main_process() and path.exists():
                path.rmtree() if path.is_dir() else path.unlink()
            multihost.barrier("former base features removed")
        how = {"computes": not self.resumes}
        return encoder.text_features(tokens, self.tokenizer, path, self.model, self.mesh, **how)


def use_base_text(
    loaders: list[PairLoader],
    base: BaseText,
    *,
    is_frozen: bool,
    anchor_weight: float,
    distill_weight: float,
) -> list[PairLoader]:
    """The loaders, with the base's features of each original caption where a term needs them.

    `is_frozen`: whether nothing that an image passes through is trained. Raises InputError where a
    run that resumes has lost the features, and for distillation of a model whose vision tower is
    trained: there is nothing to compare with.
    """
    if not (anchor_weight or distill_weight):
        return loaders
    if distill_weight and not is_frozen:
        raise InputError(
            f"train.distill_weight={distill_weight} compares with the base on the same images, so "
            "optim.freeze must hold the whole vision tower; train.anchor_weight needs no images"
        )
    used = [x.examples for x in loaders]
    features = base.features("text", Joined([Chosen(x.tokens, x.original_index_N) for x in used]))
    places = np.split(features.places, np.cumsum([len(x) for x in used[:-1]]))
    parts = [dataclasses.replace(features, places=p) for p in places]
    return [dataclasses.replace(x, base_text=p) for x, p in zip(loaders, parts, strict=True)]


@dataclasses.dataclass(frozen=True)
class StandIns:
    """Stand-ins of S texts, indexed like an array float32 `[S, D]`; each is made when read."""

    text: Any  # the base's features of the texts, an array or what is indexed like one, `[S, D]`
    mean_text: np.ndarray  # of unit features, float64 `[D]`
    mean_image: np.ndarray
    slope: float  # of image on text features
    residual_NxD: np.ndarray  # of photos, float64
    lender_S: np.ndarray  # int, whose residual each gets

    def __len__(self) -> int:
        return len(self.lender_S)

    def __getitem__(self, index: np.ndarray | slice) -> np.ndarray:
        moved = self.slope * (unit(self.text[index]) - self.mean_text)
        made = self.mean_image + moved + self.residual_NxD[self.lender_S[index]]
        return unit(made).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class WithStandIns:
    """Features of photos, then of stand-ins, indexed like one array `[U, D]`."""

    photos: Any  # an array, or what is indexed like one, `[U - S, D]`
    stand_ins: Any  # `[S, D]`
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


def use_stand_ins(loader: PairLoader, base: BaseText) -> PairLoader:
    """The loader of training pairs, with features for the images that are no photos.

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
    listed = Ragged(*base.tokenizer.encode_ragged(texts))
    kept = base.features("stand_ins", Joined([listed, captions]))
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

    The base's unit features of captions and of their images are measured; see `StandIns`.
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
    counts = collections.Counter(itertools.chain.from_iterable(tokens))
    weight = {token: np.log(len(tokens) / count) for token, count in counts.items()}
    bits = np.random.Philox(key=[seed, 0]).random_raw(len(texts) * _CANDIDATES)
    drawn = (bits % np.uint64(len(tokens))).astype(np.int64).reshape(-1, _CANDIDATES)
    chosen = np.empty(len(texts), np.int64)
    for i, (a, b) in enumerate(_spans(texts)):
        own = set(texts.ids[a:b].tolist())
        chosen[i] = min(drawn[i].tolist(), key=lambda n: sum(weight[t] for t in own & tokens[n]))
    return chosen


def _spans(texts: Ragged) -> zip:
    return zip(texts.offsets[:-1].tolist(), texts.offsets[1:].tolist(), strict=True)
