"""From configuration to loaders: which pairs, from where, tokenized and packed how."""

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from negclip_jax.common import atomic_files, remote, storage
from negclip_jax.common.errors import InputError
from negclip_jax.data import prepared
from negclip_jax.data.examples import (
    Examples,
    examples_of,
    kept_of,
    stand_in_text,
    tokenize_pairs,
    without_truncated,
)
from negclip_jax.data.images import ImageSource, Preprocessor
from negclip_jax.data.loader import PairLoader
from negclip_jax.data.order import MOST_KEPT
from negclip_jax.data.packing import Packing
from negclip_jax.data.pairs import content_of, iter_pairs, read_pairs
from negclip_jax.data.prepared import Prepared
from negclip_jax.data.records import held_out
from negclip_jax.data.sources import SUFFIXES, kind_of, open_images
from negclip_jax.data.statements import read_statements
from negclip_jax.data.tokenizer import Tokenizer
from negclip_jax.runtime import multihost, sharding

_NAMES = 2**18  # whose images are looked for at a time
_SHOWN = 5


def read_data(
    *,
    pairs: str,
    images: str | None,
    caption_mode: str,
    foils: int,
    max_bad_images: float,
    examples_dir: epath.Path,
    tokenizer: Tokenizer,
    fields: str = "",
) -> tuple[Prepared, np.ndarray, ImageSource]:
    """Prepared pairs, which of them have an image (int, ascending), and where images are.

    Raises InputError when more images are missing than `max_bad_images` (a share) allows.
    """
    shown = {"caption_mode": caption_mode, "foils": foils}
    kept = _prepared(pairs, fields, examples_dir, tokenizer, **shown)
    images = pairs if images is None else images
    source, missing, named = open_images(images), [], []
    for start in range(0, len(kept.images), _NAMES):
        names = kept.images[start : start + _NAMES]
        if absent := set(source.missing(names)):
            missing += [start + i for i, name in enumerate(names) if name in absent]
            named += sorted(absent)[: _SHOWN - len(named)]
    multihost.require_same("set of missing images", {"count": len(missing), "first of them": named})
    is_there = np.ones(len(kept.images), bool)
    is_there[missing] = False
    if missing:
        found = f"{len(missing)} of {len(is_there)} images are not in {images}: {', '.join(named)}"
        if len(missing) > max_bad_images * len(is_there):
            raise InputError(f"{found}; data.max_bad_images={max_bad_images} allows fewer")
        logging.warning("%s; their pairs are left out", found)
    return kept, _flagged(is_there[kept.image_of]), source


def _prepared(
    pairs: str, fields: str, examples_dir: epath.Path, tokenizer: Tokenizer, **shown: Any
) -> Prepared:
    """Prepared pairs that `examples_dir` holds; made by process 0 where it does not.

    `shown`: caption_mode and foils.
    """
    needs_negated = shown["caption_mode"] != "original"
    if pairs.startswith("tfds:") and needs_negated:
        raise InputError("data.pairs=tfds:... has no negated captions; data.caption_mode=original")
    memo = examples_dir / "digests.json"
    reading = {"require_negated": needs_negated, "fields": fields}
    version, digest = content_of(pairs, **reading)
    # Shards are known by the pairs that are read from them.
    described = json.dumps([pairs, reading]) if kind_of(pairs)[0] in SUFFIXES else pairs
    known = {}
    with contextlib.suppress(OSError, ValueError):
        known = dict(json.loads(storage.read_text(memo)))
    content = known.get(described, [None])
    with storage.announced(f"the digest of {pairs}"):
        content = content[1] if content[0] == version else digest()
    multihost.require_same("data", {"pairs and their fingerprint": content})
    options = shown | ({"fields": fields} if fields else {})
    what = prepared.fingerprint(content, tokenizer, **options)
    place = examples_dir / f"pairs-{what}"

    def opened() -> Prepared | None:
        try:
            copy = remote.local_copy(place)
        except InputError:  # there is nothing in the bucket
            return None
        found = prepared.find(copy, what)
        if found is None and storage.is_remote(place):
            remote.forget_copy(copy)
        return found

    found = opened() if sharding.is_main_process() else None
    if sharding.is_main_process():
        if found is None:
            where = Path(place)
            far = storage.is_remote(place)
            writing = remote.uploaded(place) if far else atomic_files.whole_directory(where)
            with writing as folder:
                read = iter_pairs(pairs, **reading)
                for count in prepared.write(read, folder, what, tokenizer, **shown):
                    multihost.from_main("prepared examples", count)  # no process waits too long
        if known.get(described) != [version, content]:
            storage.write_json(memo, known | {described: [version, content]})
        multihost.from_main("prepared examples", None)
    else:
        while multihost.from_main("prepared examples", None) is not None:
            pass
    found = found or opened()
    if found is None:
        raise InputError(f"{place} cannot be read after it was written: is the disk damaged?")
    logging.info("%s prepared pairs come from %s", f"{len(found):,}", place)
    return found


def _divided(
    kept: Prepared, rows: np.ndarray, tokenizer: Tokenizer, truncated: str, **how: Any
) -> tuple[list[np.ndarray], Sequence[str], np.ndarray | None]:
    """Pairs to train on and to validate, without those that the cut takes meaning from.

    Also the names of their images, and where not all are used, the number of each among these.
    `how`: see `records.held_out`.
    """
    example = next((text for row, text in kept.lost if row in rows), None)
    is_kept = kept_of(kept.losses[rows], tokenizer.context_length, truncated, example)
    rows = rows if is_kept.all() else rows[is_kept]
    groups = kept.groups(rows) if how["by"] == "image" else None
    is_held_out = held_out(groups, len(rows), **how)
    parts = [rows[~is_held_out], rows[is_held_out]] if is_held_out.any() else [rows, rows[:0]]
    is_used = np.zeros(len(kept.images), bool)
    is_used[kept.image_of[rows]] = True
    if is_used.all():
        return parts, kept.images, None
    return parts, kept.images.only(_flagged(is_used)), np.cumsum(is_used, dtype=np.int32) - 1


def _flagged(flags: np.ndarray) -> np.ndarray:
    """Numbers of those that are true, in four bytes each where these are enough."""
    return np.flatnonzero(flags).astype(np.int32 if len(flags) < 2**31 else np.int64)


def loaders(
    *,
    pairs: str,
    images: str | None,
    fields: str,
    caption_mode: str,
    original_fraction: float,
    foils: int,
    statements: str | None,
    text_nouns: str | None,
    true_texts: int,
    false_texts: int,
    truncated: str,
    examples_dir: epath.Path,
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
      pairs, images, fields, caption_mode, original_fraction, foils, statements, text_nouns,
        true_texts, false_texts, truncated, validation_fraction, split_by, split_seed,
        max_bad_images, packing, workers, threads, kept_pixels_mib: keys of the section `data`.
      seed: of order and choice of captions.
      examples_dir: where prepared pairs are kept.
      keeps_originals: whether a term of the loss compares original captions with the base's; those
        that train on negated ones alone then show the original beside them. Validation always does.
      batch_sizes: pairs of a batch in training and in validation.
      shards: parts of a batch whose captions are packed by themselves: devices x micro-batches.
      tokenizer, preprocess: of the model.

    Raises InputError for whatever cannot be read, also where another process reads something else.
    """
    shown = {"caption_mode": caption_mode, "foils": foils}
    kept, rows, source = read_data(
        pairs=pairs,
        images=images,
        fields=fields,
        **shown,
        max_bad_images=max_bad_images,
        examples_dir=examples_dir,
        tokenizer=tokenizer,
    )
    how = {"validation_fraction": validation_fraction, "by": split_by, "seed": split_seed}
    parts, names, number = _divided(kept, rows, tokenizer, truncated, **how)
    logging.info(
        "%s pairs of %s images: %s to train on, %s to validate",
        *(f"{n:,}" for n in (sum(map(len, parts)), len(names), *map(len, parts))),
    )
    known, options = None, {"true_texts": true_texts, "false_texts": false_texts}
    options["truncated"] = truncated
    if statements is not None:
        known = read_statements(statements, names, tokenizer, **options)
    made = []
    for part, batch_size, is_training in zip(parts, batch_sizes, (True, False), strict=True):
        if not len(part) and not is_training:
            break
        with_original = not is_training or (keeps_originals and caption_mode == "negated")
        texts = {**shown, "statements": known, "with_original": with_original}
        image_of, first_text = kept.image_of[part], kept.first_text(part)
        image_of = image_of if number is None else number[image_of]
        examples = examples_of(names, image_of, kept.tokens, first_text, **texts)
        examples = dataclasses.replace(examples, digest=kept.digest)
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

    Up to `MOST_KEPT` examples they are those of earlier versions, which held the texts of examples
    in another order: all first captions, all second ones, foils; each example's number of each
    text. Beyond that the digest of the prepared file stands for its names and tokens.
    """
    digest, known = hashlib.sha256(), examples.statements

    def update(array: np.ndarray, dtype: type = np.int64) -> None:
        digest.update(np.ascontiguousarray(array, dtype).data)

    if examples.digest is None or len(examples) <= MOST_KEPT:
        _update_by_columns(examples, digest, update)
    else:
        shown = (examples.digest, examples.captions, examples.fixed, examples.original)
        others = examples.images[len(examples.photos) :]
        digest.update(repr((shown, len(examples.photos), others)).encode())
        update(examples.image_of, np.int32)
        update(examples.first_text)
        beyond = 1 + examples.empty  # texts that the prepared file does not hold
        update(examples.tokens.taken(np.arange(beyond, len(examples.tokens))).ids, np.int32)
    if known is not None:
        for array in (known.offsets, known.text):
            update(array)
        for array in (known.truth, known.holds_caption):
            update(array, np.bool_)
        for array in (known.polarity, known.unit, known.form):
            update(array)
    return digest.hexdigest()[:16]


def _update_by_columns(examples: Examples, digest: Any, update: Callable) -> None:
    digest.update("\n".join(examples.images).encode())
    pairs, tokens = np.arange(len(examples)), examples.tokens
    update(examples.image_of)
    first, (index, truth) = examples.first_text.astype(np.int64), examples.fixed_texts(pairs)
    columns = [first + place for place in examples.captions]
    is_beside, is_foil = examples.original == len(examples.captions), truth != 0
    if is_beside and len(examples.captions) == 1:
        columns.append(index[:, -1])
    for texts in (*columns, index[is_foil], np.array([examples.empty])):
        update(tokens.taken(texts).ids, np.int32)
    if examples.statements is not None:
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
