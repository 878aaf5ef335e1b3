"""From configuration to loaders: which pairs, from where, tokenized and packed how."""

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from negclip_jax.common import atomic_files, remote, storage
from negclip_jax.common.errors import InputError
from negclip_jax.common.progress import told
from negclip_jax.common.provenance import content_hash
from negclip_jax.data import prepared
from negclip_jax.data.examples import (
    Examples,
    examples_of,
    kept_of,
    stand_in_text,
    tokenize_pairs,
    without_truncated,
)
from negclip_jax.data.feature_files import ImageFeatures, open_features
from negclip_jax.data.images import ImageSource, Preprocessor
from negclip_jax.data.loader import PairLoader
from negclip_jax.data.mixture import MixedImages, Mixture, Source, parse
from negclip_jax.data.order import MOST_KEPT
from negclip_jax.data.packing import Packing
from negclip_jax.data.pairs import about_how_many, content_of, iter_pairs, read_pairs
from negclip_jax.data.prepared import Prepared
from negclip_jax.data.records import JoinedNames, held_out
from negclip_jax.data.sources import SUFFIXES, kind_of, open_images
from negclip_jax.data.statements import read_statements
from negclip_jax.data.tokenizer import Tokenizer
from negclip_jax.runtime import console, multihost, sharding

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
    features: str | None = None,
) -> tuple[Prepared, np.ndarray, ImageSource]:
    """Prepared pairs, which of them have an image (int, ascending), and where images are.

    Raises InputError when more images are missing than `max_bad_images` (a share) allows.
    """
    shown = {"caption_mode": caption_mode, "foils": foils}
    kept = _prepared(pairs, fields, examples_dir, tokenizer, **shown)
    images = features or (pairs if images is None else images)
    source = open_features(features) if features else open_images(images)
    missing = _missing(kept, source, images, examples_dir)
    named = [kept.images[i] for i in missing[:_SHOWN]]
    multihost.require_same("set of missing images", {"count": len(missing), "first of them": named})
    is_there = np.ones(len(kept.images), bool)
    is_there[missing] = False
    if missing:
        found = f"{len(missing)} of {len(is_there)} images are not in {images}: {', '.join(named)}"
        if len(missing) > max_bad_images * len(is_there):
            raise InputError(f"{found}; data.max_bad_images={max_bad_images} allows fewer")
        logging.warning("%s; their pairs are left out", found)
    return kept, _flagged(is_there[kept.image_of]), source


def _missing(
    kept: Prepared, source: ImageSource, images: str, examples_dir: epath.Path
) -> list[int]:
    """Numbers of images that are not there, ascending; what was found once in shards is kept."""
    version = source.version()
    memo = examples_dir / f"missing-{content_hash([kept.digest, images, version])[:24]}.json"
    if version is not None:
        with contextlib.suppress(OSError, ValueError, TypeError):
            found = json.loads(storage.read_text(memo))
            if sorted({i for i in found if 0 <= i < len(kept.images)}) == found:
                return found
    found = []
    for start in told(range(0, len(kept.images), _NAMES), "parts of the list of images"):
        names = kept.images[start : start + _NAMES]
        if absent := set(source.missing(names)):
            found += [start + i for i, name in enumerate(names) if name in absent]
    if version is not None and sharding.is_main_process():
        storage.write_json(memo, found)
    return found


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

    found = None
    if sharding.is_main_process():
        found = opened()
        if found is None:
            far = storage.is_remote(place)
            writing = remote.uploaded(place) if far else atomic_files.whole_directory(Path(place))
            with writing as folder:
                read, done = iter_pairs(pairs, **reading), 0
                with console.Bar("pairs checked and tokenized", about_how_many(pairs)) as bar:
                    for count in prepared.write(read, folder, what, tokenizer, **shown):
                        bar.advance(count - done)
                        done = count
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


def _flagged(flags: np.ndarray) -> np.ndarray:
    """Numbers of those that are true, in four bytes each where these are enough."""
    return np.flatnonzero(flags).astype(np.int32 if len(flags) < 2**31 else np.int64)


@dataclasses.dataclass(frozen=True)
class _Source:
    """What was read of one source."""

    caption_mode: str  # what it says, or the section `data`; so are the next three
    statements: str | None
    original_fraction: float
    weight: Fraction
    place: str  # what the user calls the place of its images
    kept: Prepared
    parts: list[np.ndarray]  # pairs to train on and to validate
    names: Sequence[str]  # of its images
    number: np.ndarray | None  # of each image of `kept` among these; None where they are the same
    images: ImageSource

    def image_of(self, pairs: np.ndarray) -> np.ndarray:
        """The image of each of these pairs, of `names`."""
        image = self.kept.image_of[pairs]
        return image if self.number is None else self.number[image]


def loaders(
    *,
    sources: str,
    original_fraction: float,
    text_nouns: str | None,
    true_texts: int,
    false_texts: int,
    truncated: str,
    foils: int,
    packing: bool,
    workers: int,
    threads: int,
    kept_pixels_mib: float,
    max_bad_images: float,
    seed: int,
    keeps_originals: bool,
    repeats_first: bool = False,
    batch_sizes: tuple[int, int],
    shards: int,
    tokenizer: Tokenizer,
    preprocess: Preprocessor,
    **of_source: Any,
) -> tuple[PairLoader, dict[str, PairLoader]]:
    """Loaders of training pairs, and of the validation pairs of each source that holds out some.

    Args, beside keys of the section `data`:
      of_source: those of its keys that a source may have itself, and examples_dir.
      seed: of order and choice of captions.
      keeps_originals: whether a term of the loss compares original captions with the base's; those
        that train on negated ones alone then show the original beside them. Validation always does.
      repeats_first: see `PairLoader`; of training.
      batch_sizes: pairs of a batch in training and in validation.
      shards: parts of a batch whose captions are packed by themselves: devices x micro-batches.

    Returns the second by the name of the source, "" where there is one that has none.

    Raises InputError for whatever cannot be read, also where another process reads something else.
    """
    usual = of_source | {"original_fraction": original_fraction, "weight": Fraction(1)}
    usual |= {"foils": foils, "truncated": truncated, "max_bad_images": max_bad_images}
    named = parse(sources) if sources else {"": {}}
    read = {name: _read(name, tokenizer, **(usual | own)) for name, own in named.items()}
    _keep_apart(read)
    options = {"true_texts": true_texts, "false_texts": false_texts, "truncated": truncated}
    names: Sequence[str] = next(iter(read.values())).names
    images: ImageSource = next(iter(read.values())).images
    if sources:
        names = JoinedNames([(f"{name}:", source.names) for name, source in read.items()])
        images = MixedImages({name: source.images for name, source in read.items()})
    train: list[Source] = []
    validation: dict[str, Examples] = {}
    first = 0
    for name, source in read.items():
        mode, known = source.caption_mode, None
        if source.statements is not None:
            known = read_statements(source.statements, source.names, tokenizer, **options)
            known = known.placed(first, len(names))
        for part, is_training in zip(source.parts, (True, False), strict=True):
            beside = not is_training or (keeps_originals and mode == "negated")
            image_of = source.image_of(part)
            image_of = image_of + np.int32(first) if first else image_of
            stated = None if known is None else known.compared_among(image_of)
            texts = {"caption_mode": mode, "foils": foils, "statements": stated}
            texts |= {"with_original": beside}
            first_text, tokens = source.kept.first_text(part), source.kept.tokens
            examples = examples_of(names, image_of, tokens, first_text, **texts)
            examples = dataclasses.replace(examples, digest=source.kept.digest)
            if not is_training:
                validation |= {name: examples} if len(part) else {}
                continue
            if text_nouns is not None and not train:
                rows = _text_rows(text_nouns, tokenizer, texts, options)
                examples = examples.with_stand_ins(rows)
            fraction = source.original_fraction if mode == "mix" else 0.0
            train.append(Source(name, examples, source.weight, fraction))
        first += len(source.names)
    usual = {"images": images, "preprocess": preprocess, "seed": seed, "threads": threads}
    usual |= {"kept_pixels_mib": kept_pixels_mib, "max_bad_images": max_bad_images}

    def loader(examples: Examples | Mixture, size: int, **more: Any) -> PairLoader:
        sizes = (examples.planned_lengths, size * examples.texts, shards, examples.longest)
        packs = Packing.suited_to(*sizes) if packing else None
        return PairLoader(examples=examples, batch_size=size, packing=packs, **usual, **more)

    examples, fraction = train[0].examples, train[0].original_fraction
    if sources:
        examples, fraction = Mixture(train, batch_sizes[0], seed), 0.0
    options = {"original_fraction": fraction, "repeats_first": repeats_first}
    made = loader(examples, batch_sizes[0], workers=workers, **options)
    _log_how_often(made)
    held = {name: loader(x, batch_sizes[1], shuffle=False) for name, x in validation.items()}
    used = [made.examples, *validation.values()]
    prints = [[len(examples), fingerprint(examples, brief=True)] for examples in used]
    multihost.require_same("data", {"pairs and their fingerprint": prints})
    return made, held


def _read(
    name: str,
    tokenizer: Tokenizer,
    *,
    truncated: str,
    validation_fraction: float,
    split_by: str,
    split_seed: int,
    statements: str | None,
    original_fraction: float,
    weight: Fraction,
    **of_data: Any,
) -> _Source:
    """Reads and divides the pairs of a source, "" where there is but one.

    Pairs from which the cut takes meaning are left out. `of_data`: see `read_data`.
    """
    kept, rows, images = read_data(tokenizer=tokenizer, **of_data)
    example = next((text for row, text in kept.lost if row in rows), None)
    is_kept = kept_of(kept.losses[rows], tokenizer.context_length, truncated, example)
    rows = rows if is_kept.all() else rows[is_kept]
    groups = kept.groups(rows) if split_by == "image" else None
    how = {"validation_fraction": validation_fraction, "by": split_by, "seed": split_seed}
    is_held_out = held_out(groups, len(rows), **how)
    parts = [rows[~is_held_out], rows[is_held_out]] if is_held_out.any() else [rows, rows[:0]]
    is_used = np.zeros(len(kept.images), bool)
    is_used[kept.image_of[rows]] = True
    names, number = kept.images, None
    if not is_used.all():
        names, number = names.only(_flagged(is_used)), np.cumsum(is_used, dtype=np.int32) - 1
    logging.info(
        "%s%s pairs of %s images: %s to train on, %s to validate",
        f"source {name}: " if name else "",
        *(f"{n:,}" for n in (sum(map(len, parts)), len(names), *map(len, parts))),
    )
    said = (of_data["caption_mode"], statements, original_fraction, weight)
    place = of_data["images"] or of_data["pairs"]
    return _Source(*said, place, kept, parts, names, number, images)


def _keep_apart(read: dict[str, _Source]) -> None:
    """Takes out of training what shows an image that another source of the same images holds out.

    Replaces the sources in `read`.
    """
    for name, source in read.items():
        held: set[str] = set()
        for other in (x for n, x in read.items() if n != name and x.place == source.place):
            names = other.names
            held |= {names[i] for i in np.unique(other.image_of(other.parts[1])).tolist()}
        if not held:
            continue
        is_held = np.array([x in held for x in source.names], bool)
        train = source.parts[0]
        kept = train[~is_held[source.image_of(train)]]
        if left := len(train) - len(kept):
            message = (
                "source %s: %s pairs are left out, as another source validates on their images"
            )
            logging.info(message, name, f"{left:,}")
        if not len(kept):
            raise InputError(f"source {name}: other sources hold out all of its images")
        read[name] = dataclasses.replace(source, parts=[kept, source.parts[1]])


def _log_how_often(loader: PairLoader) -> None:
    """Says which shares the sources have, and of `train.overfit_batch` what it repeats."""
    examples, size = loader.examples, loader.batch_size
    if isinstance(examples, Mixture):
        for source, share in zip(examples.sources, examples.shares, strict=True):
            passes = float(share) * size * examples.steps_per_epoch / len(source.examples)
            message = "source %s: %.2f%% of the examples, %.3g passes over its pairs in an epoch"
            logging.info(message, source.name, 100 * float(share), passes)
    if loader.repeats_first:
        shown = len(set(examples.image_of[loader.pairs_at(0)[0]].tolist()))
        message = "train.overfit_batch: every step trains on the same %d examples of %d images%s"
        shared = "; captions of one image cannot be told apart, and hold the loss up"
        logging.info(message, size, shown, shared if shown < size else "")


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


def of_data(loader: PairLoader) -> str:
    """`fingerprint` of its examples, and of features that it reads in place of photos."""
    found, images = fingerprint(loader.examples), loader.images
    return content_hash([found, images.digest])[:16] if isinstance(images, ImageFeatures) else found


def fingerprint(examples: Examples | Mixture, *, brief: bool = False) -> str:
    """16 hexadecimal digits that change with any image name or token of the examples.

    Up to `MOST_KEPT` examples they are those of earlier versions, which held the texts of examples
    in another order: all first captions, all second ones, foils; each example's number of each
    text. Beyond that, and where it is `brief`, for comparison between the processes of a run, the
    digest of the prepared file stands for its names and tokens.
    """
    if isinstance(examples, Mixture):
        sources = zip(examples.sources, examples.shares, strict=True)
        parts = [
            (s.name, str(share), s.original_fraction, fingerprint(s.examples, brief=brief))
            for s, share in sources
        ]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    digest, known = hashlib.sha256(), examples.statements

    def update(array: np.ndarray, dtype: type = np.int64) -> None:
        digest.update(np.ascontiguousarray(array, dtype).data)

    if examples.digest is None or (len(examples) <= MOST_KEPT and not brief):
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
