"""Statements for pairs that data_gen did not write, such as the file that NegationCLIP released.

What a pair denies is read from its negated caption; what is there from the boxes, or where there
are none from what the captions of the photo name.
"""

import itertools
import json
import os
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from data_gen.annotations import ABSENT, PRESENT, InstanceVerifier
from data_gen.labels import of_image
from data_gen.records import Caption, ImageItem
from data_gen.statements import Facts, Pen, Row, Statement, row_of, write
from negclip_jax.common.errors import InputError
from negclip_jax.common.packed import Texts
from negclip_jax.common.progress import told
from negclip_jax.data.pairs import Pair, PairError, iter_pairs
from negclip_jax.language.grammar import NATURAL
from negclip_jax.language.inflection import singular
from negclip_jax.language.mentions import find_same, mentioned, named_categories
from negclip_jax.language.negation import cue_of, find_cues, governs
from negclip_jax.language.text import tokenize
from negclip_jax.language.vocabulary import CATEGORIES, canonical
from negclip_jax.language.wordnet import is_thing


def write_statements(
    pairs_file: str | os.PathLike, path: Path, instances: str | None = None, seed: int = 0
) -> dict[str, int]:
    """Writes the statements of a file of pairs; returns how many of what there were.

    `pairs_file`: as for training. `instances`: COCO's JSON of the same images; those that it does
    not know are as without. `seed`: of the choice of objects and forms. Raises InputError for files
    that cannot be read, and where no statement can be written.
    """
    pen, unparsed = Pen(NATURAL, seed), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent) as file:
        pairs = _Pairs(pairs_file, file)
        boxes = InstanceVerifier(instances, pairs.asked()) if instances else None

        def written() -> Iterator[list[Statement] | None]:
            nonlocal unparsed
            for rows in pairs.of_images():
                captions = [row["caption"] for row in rows]
                usable = [row for row in rows if row["object"] is not None]
                unparsed += len(rows) - len(usable)
                for _, found in pen.write(usable, _facts(usable, captions, boxes), captions):
                    yield found
            if not pen.units:
                raise InputError(
                    f"{pairs_file}: no statement can be written, for no photo is anything known to "
                    "be there and anything denied; give the boxes too, --instances=FILE"
                )

        counts = {"texts": write(path, written()), "pairs": len(pairs), "unparsed": unparsed}
    return counts | {"units": pen.units, "unbalanced": pen.unbalanced}


class _Pairs:
    """The pairs of a file, kept in another one: in memory are names of images and places alone."""

    def __init__(self, pairs_file: str | os.PathLike, kept: BinaryIO):
        self._file, self._images, self._starts = kept, Texts(), array("q")
        try:
            for pair in iter_pairs(pairs_file):
                self._images.append(pair.image)
                self._starts.append(kept.tell())
                row = [pair.image, pair.caption, pair.negated, pair.object, pair.image_id]
                kept.write(json.dumps(row).encode() + b"\n")
        except PairError as error:
            raise InputError(str(error)) from None

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> Pair:
        self._file.seek(self._starts[number])
        image, caption, negated, named, image_id = json.loads(self._file.readline())
        return Pair(image, caption, negated, (), named, image_id=image_id)

    def asked(self) -> Iterator[tuple[str, str]]:
        """Id and name of the image of each pair."""
        return ((pair.image_id, pair.image) for pair in map(self.__getitem__, range(len(self))))

    def of_images(self) -> Iterator[list[Row]]:
        """The rows of one image after another, sorted by its name."""
        ordered = map(int, told(self._images.order(), "pairs"))
        for _, group in itertools.groupby(ordered, key=self._images.__getitem__):
            rows = []
            for number in group:
                pair = self[number]
                # A caption that denies something itself would be denied with it.
                obj = None if cue_of(pair.caption) else denied(pair.negated, pair.object)
                rows.append(row_of(number, pair, "llm") | {"object": obj})
            yield rows


def denied(text: str, named: str | None = None) -> str | None:
    """The object that a text denies; None for a text that denies none, or more than one.

    A category of COCO by any of its names, or else a thing that WordNet knows. `named`: what the
    file says that it is.
    """
    tokens = tokenize(text)
    cues = find_cues(tokens)

    def is_denied(first: int, last: int) -> bool:
        return any(governs(cue, tokens, first, last) for cue in cues)

    for names in ([named] if named else [], CATEGORIES):
        found = [n for n in names if any(is_denied(*span) for span in find_same(n, tokens))]
        if found:
            return found[0] if len(found) == 1 else None
    things = [singular(token.word) for i, token in enumerate(tokens) if is_denied(i, i)]
    things = [word for word in things if is_thing(word)]
    return things[0] if len(things) == 1 else None


def _facts(rows: list[Row], captions: list[str], boxes: InstanceVerifier | None) -> Facts:
    """What is known of one image."""
    objects = {canonical(row["object"]) for row in rows}
    if boxes is not None and rows:
        told = tuple(Caption(str(i), text) for i, text in enumerate(captions))
        item = ImageItem(rows[0]["image_id"], rows[0]["file_name"], told)
        labels = of_image(item, boxes, [])
        if any(label.source == "boxes" for label in labels):
            present, absent, rests, seen = Facts.of(labels)
            # Of what the file does not annotate the pair alone knows.
            other = sorted(objects - set(rests))
            rests = {**rests, **{name: f"{name}={ABSENT}@pair" for name in other}}
            return Facts(present, [*absent, *other], rests, seen)
    there = sorted({name for text in captions for name in named_categories(text)})
    there = [name for name in there if canonical(name) not in objects]
    absent = [name for name in sorted(objects) if not mentioned(name, captions)]
    rests = {name: f"{name}={PRESENT}@caption" for name in there}
    return Facts(there, absent, rests | {name: f"{name}={ABSENT}@pair" for name in absent})
