"""From configuration to loaders: which pairs, from where, tokenized and packed how."""

import hashlib
import logging
from typing import Any

import numpy as np

from negclip_jax.common import storage
from negclip_jax.common.errors import InputError
from negclip_jax.data.examples import Examples, stand_in_text, tokenize_pairs, without_truncated
from negclip_jax.data.images import ImageSource, Preprocessor
from negclip_jax.data.loader import PairLoader
from negclip_jax.data.packing import Packing
from negclip_jax.data.pairs import Pair, read_pairs, split_pairs
from negclip_jax.data.sources import open_images, tfds_name
from negclip_jax.data.statements import read_statements
from negclip_jax.data.tokenizer import Tokenizer
from negclip_jax.runtime import multihost


def read_data(
    *, pairs: str, images: str, caption_mode: str, max_bad_images: float
) -> tuple[list[Pair], ImageSource]:
    """Pairs and where their images are, with pairs whose image is missing left out.

    Raises InputError when more images are missing than `max_bad_images` (a share) allows.
    """
    needs_negated = caption_mode != "original"
    if pairs.startswith("tfds:"):
        if needs_negated:
            raise InputError(
                "data.pairs=tfds:... has no negated captions; data.caption_mode=original"
            )
        from negclip_jax.data import tfds

        all_pairs = tfds.read_tfds_pairs(*tfds_name(pairs))
    else:
        all_pairs = read_pairs(pairs, require_negated=needs_negated)
    source = open_images(images)
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


def loaders(
    *,
    pairs: str,
    images: str,
    caption_mode: str,
    original_fraction: float,
    foils: int,
    statements: str | None,
    text_nouns: str | None,
    true_texts: int,
    false_texts: int,
    truncated: str,
    validation_fraction: float,
    split_by: str,
    split_seed: int,
    max_bad_images: float,
    packing: bool,
    workers: int,
    threads: int,
    kept_pixels_mib: float,
    seed: int,
    keeps_originals: bool,
    batch_sizes: tuple[int, int],
    shards: int,
    tokenizer: Tokenizer,
    preprocess: Preprocessor,
) -> tuple[PairLoader, PairLoader | None]:
    """Loaders of training and of validation pairs; the latter None where nothing is held out.

    Args:
      pairs, images, caption_mode, original_fraction, foils, statements, text_nouns, true_texts,
        false_texts, truncated, validation_fraction, split_by, split_seed, max_bad_images, packing,
        workers, threads, kept_pixels_mib: keys of the section `data`.
      seed: of order and choice of captions.
      keeps_originals: whether a term of the loss compares original captions with the base's; those
        that train on negated ones alone then show the original beside them. Validation always does.
      batch_sizes: pairs of a batch in training and in validation.
      shards: parts of a batch whose captions are packed by themselves: devices x micro-batches.
      tokenizer, preprocess: of the model.

    Raises InputError for whatever cannot be read, also where another process reads something else.
    """
    all_pairs, source = read_data(
        pairs=pairs, images=images, caption_mode=caption_mode, max_bad_images=max_bad_images
    )
    shown = {"caption_mode": caption_mode, "foils": foils}
    all_pairs = without_truncated(all_pairs, tokenizer, **shown, truncated=truncated)
    parts = split_pairs(
        all_pairs, validation_fraction=validation_fraction, by=split_by, seed=split_seed
    )
    names = sorted({pair.image for pair in all_pairs})
    logging.info(
        "%s pairs of %s images: %s to train on, %s to validate",
        *(f"{n:,}" for n in (len(all_pairs), len(names), *map(len, parts))),
    )
    known, options = None, {"true_texts": true_texts, "false_texts": false_texts}
    options["truncated"] = truncated
    if statements is not None:
        known = read_statements(statements, names, tokenizer, **options)
    made = []
    for part, batch_size, is_training in zip(parts, batch_sizes, (True, False), strict=True):
        if not part and not is_training:
            break
        with_original = not is_training or (keeps_originals and caption_mode == "negated")
        texts = {**shown, "statements": known, "with_original": with_original}
        examples = tokenize_pairs(part, names, tokenizer, **texts)
        if text_nouns is not None and is_training:
            rows = _text_rows(text_nouns, tokenizer, texts, options)
            examples = examples.with_stand_ins(rows)
        sizes = (examples.planned_lengths, batch_size * examples.texts, shards)
        longest = examples.longest
        made.append(
            PairLoader(
                examples=examples,
                images=source,
                preprocess=preprocess,
                batch_size=batch_size,
                seed=seed,
                shuffle=is_training,
                original_fraction=original_fraction if caption_mode == "mix" else 0.0,
                workers=workers if is_training else 0,
                threads=threads,
                kept_pixels_mib=kept_pixels_mib,
                max_bad_images=max_bad_images,
                packing=Packing.suited_to(*sizes, longest) if packing else None,
            )
        )
    prints = [[len(x.examples), fingerprint(x.examples)] for x in made]
    multihost.require_same("data", {"pairs and their fingerprint": prints})
    return made[0], made[1] if len(made) > 1 else None


def _text_rows(
    folder: str, tokenizer: Tokenizer, texts: dict[str, Any], options: dict[str, Any]
) -> Examples:
    """Examples of what `python -m data_gen nouns` wrote, with statements where the pairs have any.

    `texts`: of the examples of the pairs, see `tokenize_pairs`; `options`: of `read_statements`.
    """
    path = storage.path(folder)
    if not path.is_dir():
        raise InputError(
            f"data.text_nouns={folder} is no folder: write text rows about nouns with "
            f"`python -m data_gen nouns --nouns={folder} --to=DIR` and give DIR"
        )
    pairs = read_pairs(path / "pairs.jsonl", require_negated=texts["caption_mode"] != "original")
    if photos := [pair.image for pair in pairs if stand_in_text(pair.image) is None]:
        raise InputError(
            f"{path / 'pairs.jsonl'}: {photos[0]!r} is a photo, no text row (text:NUMBER:TEXT); "
            "pairs of photos are for data.pairs"
        )
    shown = {key: texts[key] for key in ("caption_mode", "foils")}
    pairs = without_truncated(pairs, tokenizer, **shown, truncated=options["truncated"])
    names = list(dict.fromkeys(pair.image for pair in pairs))
    known = texts["statements"]
    if known is not None:
        known = read_statements(path / "statements.parquet", names, tokenizer, **options)
    logging.info("%s text rows beside them", f"{len(pairs):,}")
    return tokenize_pairs(pairs, names, tokenizer, **(texts | {"statements": known}))


def fingerprint(examples: Examples) -> str:
    """16 hexadecimal digits that change with any image name or token of the examples.

    Those of earlier versions, which held the texts of examples in another order: all first
    captions, all second ones, foils; each example's number of each text.
    """
    digest = hashlib.sha256("\n".join(examples.images).encode())

    def update(array: np.ndarray, dtype: type = np.int64) -> None:
        digest.update(np.ascontiguousarray(array, dtype).data)

    pairs, tokens = np.arange(len(examples)), examples.tokens
    update(examples.image_of)
    first, (index, truth) = examples.first_text.astype(np.int64), examples.fixed_texts(pairs)
    columns = [first + place for place in examples.captions]
    is_beside, is_foil = examples.original == len(examples.captions), truth != 0
    if is_beside and len(examples.captions) == 1:
        columns.append(index[:, -1])
    for texts in (*columns, index[is_foil], np.array([examples.empty])):
        update(tokens.taken(texts).ids, np.int32)
    if (known := examples.statements) is not None:
        update(tokens.taken(np.arange(examples.first_statement, len(tokens))).ids, np.int32)
    numbers = np.arange(len(columns) * len(pairs)).reshape(len(columns), -1)
    update(numbers[: len(examples.captions)])
    if index.size:
        count = int(is_foil.sum())
        index = np.full(index.shape, numbers.size + count)
        index[is_foil] = numbers.size + np.arange(count)
        if is_beside:
            index[:, -1] = numbers[-1]
        update(index)
    if known is not None:
        update(known.offsets)
        update(known.text)
        update(known.truth, np.bool_)
        update(known.holds_caption, np.bool_)
        for array in (known.polarity, known.unit, known.form):
            update(array)
    return digest.hexdigest()[:16]
