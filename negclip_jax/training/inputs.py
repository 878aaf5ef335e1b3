"""From configuration to loaders: which pairs, from where, tokenized and packed how."""

import hashlib
import logging

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from negclip_jax.common import storage
from negclip_jax.common.errors import InputError
from negclip_jax.data.bucket_images import BucketImages
from negclip_jax.data.examples import Examples, ImageSource, tokenize_pairs
from negclip_jax.data.images import ImageDirectory, Preprocessor
from negclip_jax.data.loader import PairLoader
from negclip_jax.data.packing import Packing
from negclip_jax.data.pairs import Pair, read_pairs, split_pairs
from negclip_jax.data.tokenizer import Tokenizer
from negclip_jax.runtime import multihost


def read_data(
    *, pairs: str, images: str, captions: str, max_bad_images: float
) -> tuple[list[Pair], ImageSource]:
    """Pairs and where their images are, with pairs whose image is missing left out.

    Raises InputError when more images are missing than `max_bad_images` (a share) allows.
    """
    needs_negated = captions != "original"
    if pairs.startswith("tfds:"):
        if needs_negated:
            raise InputError("data.pairs=tfds:... has no negated captions; data.captions=original")
        from negclip_jax.data import tfds

        all_pairs = tfds.read_tfds_pairs(*_tfds_name(pairs))
    else:
        all_pairs = read_pairs(pairs, require_negated=needs_negated)
    source = _image_source(images)
    names = {pair.image for pair in all_pairs}
    missing = set(source.missing(sorted(names)))
    listed = {"count": len(missing), "first of them": sorted(missing)[:5]}
    multihost.require_same("set of missing images", listed)
    if missing:
        shown = ", ".join(sorted(missing)[:5])
        found = f"{len(missing)} of {len(names)} images are not in {images}: {shown}"
        if len(missing) > max_bad_images * len(names):
            raise InputError(f"{found}; data.max_bad_images={max_bad_images} allows fewer")
        logging.warning("%s; their pairs are left out", found)
    return [pair for pair in all_pairs if pair.image not in missing], source


def _image_source(images: str) -> ImageSource:
    if images.startswith("tfds:"):
        from negclip_jax.data import tfds

        return tfds.TfdsImages(*_tfds_name(images))
    return BucketImages(images) if storage.is_remote(images) else ImageDirectory(images)


def loaders(
    config: ConfigDict, tokenizer: Tokenizer, preprocess: Preprocessor, mesh: Mesh
) -> tuple[PairLoader, PairLoader | None]:
    """Loaders of training and of validation pairs; the latter None where nothing is held out.

    Raises InputError for whatever cannot be read, also where another process reads something else.
    """
    data = config.data
    pairs, images = read_data(
        pairs=data.pairs,
        images=data.images,
        captions=data.captions,
        max_bad_images=data.max_bad_images,
    )
    train, validation = split_pairs(
        pairs,
        validation_fraction=data.validation_fraction,
        by=data.split_by,
        seed=data.split_seed,
    )
    names = sorted({pair.image for pair in pairs})
    logging.info(
        "%s pairs of %s images: %s to train on, %s to validate",
        *(f"{n:,}" for n in (len(pairs), len(names), len(train), len(validation))),
    )

    def loader(part: list[Pair], batch_size: int, shuffle: bool) -> PairLoader:
        examples = tokenize_pairs(part, names, tokenizer, captions=data.captions, foils=data.foils)
        return PairLoader(
            examples=examples,
            images=images,
            preprocess=preprocess,
            batch_size=batch_size,
            seed=config.seed,
            shuffle=shuffle,
            original_fraction=data.original_fraction if data.captions == "mix" else 0.0,
            workers=data.workers if shuffle else 0,
            threads=data.threads,
            max_bad_images=data.max_bad_images,
            packing=_packing(config, examples, batch_size, mesh),
        )

    batch_size = config.train.batch_size
    eval_size = config.eval.batch_size or batch_size
    found = [loader(train, batch_size, True)]
    if validation:
        found.append(loader(validation, eval_size, False))
    prints = [[len(x.examples), fingerprint(x.examples)] for x in found]
    multihost.require_same("data", {"pairs and their fingerprint": prints})
    return found[0], found[1] if validation else None


def _packing(config: ConfigDict, examples: Examples, batch_size: int, mesh: Mesh) -> Packing | None:
    if not config.data.packing:
        return None
    captions = batch_size * (1 + config.data.foils)
    return Packing.suited_to(examples.room.ravel(), captions, mesh.size * config.train.microbatches)


def fingerprint(examples: Examples) -> str:
    """16 hexadecimal digits that change with any image name or token of the examples."""
    digest = hashlib.sha256("\n".join(examples.images).encode())
    arrays = (examples.image_of, examples.texts.ids, examples.captions, examples.foils)
    for array in arrays:
        digest.update(b"" if array is None else np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def _tfds_name(text: str) -> tuple[str, str]:
    name, _, split = text.removeprefix("tfds:").rpartition("/")
    if not name:
        raise InputError(
            f"cannot read {text!r}: write tfds:NAME/SPLIT, e.g. tfds:coco_captions/train"
        )
    return name, split
