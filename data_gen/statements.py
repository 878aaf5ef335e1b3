"""Statements: short texts and captions of which each says something true or false of a photo.

A unit is four texts in one form of words: an object that is absent denied (true) and affirmed
(false), an object that is there denied (false) and affirmed (true). Written by one pen, with only
the objects exchanged, no form tells which texts are true. Nor may an object: one that is mostly
absent in the texts would make "no chair" true without the photo. So present objects are chosen
against those that were absent in other units, and a unit that would tip the balance is left out.
"""

import collections
import itertools
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from data_gen.annotations import UNSURE, certain, expected
from data_gen.labels import LARGE, Label, of_part, settled
from data_gen.records import read_rows, read_table, shuffled, table_paths
from negclip_jax.common import atomic_files
from negclip_jax.common.errors import InputError
from negclip_jax.common.progress import told
from negclip_jax.common.provenance import content_hash
from negclip_jax.data.pairs import Pair
from negclip_jax.language.grammar import BY_NAME, NOT_OF_TWO, THING, Grammar, Shape, Template
from negclip_jax.language.inflection import noun
from negclip_jax.language.mentions import mentioned
from negclip_jax.language.negation import AFTER, ALONE, BEFORE, cue_of
from negclip_jax.language.twins import affirmed, exchanged, of_scene, place_of
from negclip_jax.language.vocabulary import canonical

AFFIRMS, DENIES, BOTH = "affirms", "denies", "both"
Row = Mapping[str, Any]  # of the table "pairs", or what `row_of` makes
# Of the balance: what an object's numbers may differ by, and times the root of the lesser.
_SLACK, _SPREAD = 5, 2
_PAIRS_A_WRITE = 5000  # whose statements are one row group


class Statement(NamedTuple):
    """A text about a photo, with its truth; a row of `statements.parquet`."""

    image: str  # file name
    image_id: str  # as in the pairs
    caption_id: str | None  # of the caption that the text holds; None where it holds none
    unit: str  # of the texts that differ in objects and negation alone
    text: str
    truth: bool
    polarity: str  # whether it affirms things, denies one, or both
    objects: tuple[str, ...]  # what is affirmed or denied beside the caption
    form: str  # the template, or the cue and its place in an LLM's sentence
    writer: str  # "grammar" or "llm"
    label: tuple[str, ...]  # what its truth rests on, "OBJECT=STATE@SOURCE"


_TYPES = {bool: pa.bool_(), tuple[str, ...]: pa.list_(pa.string())}  # others: text
SCHEMA = pa.schema((n, _TYPES.get(t, pa.string())) for n, t in Statement.__annotations__.items())


class Facts(NamedTuple):
    """What is surely in an image, what surely is not, and what says so of each object."""

    present: Sequence[str]
    absent: Sequence[str]
    rests: Mapping[str, str]
    seen: Container[str] | None = None  # what needs no caption that names it; None: all present

    @classmethod
    def of(cls, labels: Sequence[Label]) -> "Facts":
        """The facts that the labels of one image agree about."""
        told = (label for label in labels if label.state != UNSURE)  # beside a box, a doubt is none
        rests = {label.object: f"{label.object}={label.state}@{label.source}" for label in told}
        # A verifier was asked about the object by its name.
        seen = {row.object for row in labels if row.source != "boxes" or row.size in (None, LARGE)}
        return cls(*settled(labels), rests, seen)


class Balance:
    """How often each object was the absent one of a unit, and how often the present one.

    The numbers may differ as those of independent draws would, by a multiple of their root: where
    they must be equal, what other images lack of an object tells what one has.
    """

    def __init__(self) -> None:
        self._uses = collections.defaultdict[str, list[int]](lambda: [0, 0])  # present, absent

    def owed(self, name: str) -> int:
        """How much more often it was absent than present."""
        present, absent = self._uses[name]
        return absent - present

    def allows(self, absent: str, present: str) -> bool:
        """Whether the numbers of both would still differ by no more than chance."""
        return all(
            step * self.owed(name) + 1 <= _SLACK + _SPREAD * math.sqrt(min(self._uses[name]))
            for name, step in ((absent, 1), (present, -1))
        )

    def count(self, absent: str, present: str) -> None:
        self._uses[absent][1] += 1
        self._uses[present][0] += 1


class _Form(NamedTuple):
    """A form of words: what it is called, who writes it, and both of its texts about an object."""

    name: str
    writer: str
    deny: Callable[[str], str | None]
    affirm: Callable[[str], str | None]
    holds_caption: bool
    is_own: bool = False  # of the pair
    # Of two objects: what the pair says is there, and where.
    contrast: tuple[Template, str, str] | None = None


@dataclass
class Pen:
    """Writes the statements of one image after another, in the order of a run's tables."""

    grammar: Grammar  # of the run's own writer
    seed: int  # of the run
    units: int = 0  # that were written
    unbalanced: int = 0  # and left out, as they would have made an object tell the truth
    # Of a pair's own words and of others, with captions and without: foils are but the first.
    balances: dict[tuple[bool, bool], Balance] = field(
        default_factory=lambda: collections.defaultdict(Balance)
    )

    def write(
        self, pairs: Sequence[Row], facts: Facts, captions: Sequence[str]
    ) -> Iterator[tuple[Row, list[Statement] | None]]:
        """Each pair with its statements; None where nothing is known to be in the photo.

        `pairs`, accepted rows, `facts` and `captions` are all those of one image.
        """
        there, absent, rests, seen = facts
        present = certain(there, captions, seen)
        denied = [p["object"] for p in pairs if not p["question"]]
        denied = [name for name in dict.fromkeys(denied) if canonical(name) in absent]
        rests = {name: rests[canonical(name)] for name in denied} | rests
        # What else one half-expects there may stand in for an object that the balance refuses. What
        # a model alone sees, and no caption names, is a wrong answer more often than not elsewhere.
        around = expected(frozenset(present), tuple(captions))
        present = [
            name
            for name in present
            if name in around or not rests[name].endswith("@mllm") or mentioned(name, captions)
        ]
        spare = [name for name in absent if name in around and not mentioned(name, captions)]
        found = collections.defaultdict(list)
        forms = [
            (p, form) for p in pairs if p["object"] in denied for form in self._forms(p, present)
        ]
        # First the pairs' own forms, while the balance allows the most.
        for pair, form in sorted(forms, key=lambda item: not item[1].is_own):
            found[pair["pair_id"]] += self._unit(pair, form, [*denied, *spare], present, rests)
        for pair in pairs:
            yield pair, found[pair["pair_id"]] if there else None

    def _forms(self, pair: Row, present: Sequence[str]) -> Iterator[_Form]:
        """The pair's own form, or another beside the caption, and one of the object alone."""
        caption, obj, key = pair["caption"], pair["object"], f"{self.seed}/{pair['pair_id']}"
        template = BY_NAME.get(pair["rewriter"].removeprefix("template:"))
        own = of_scene(pair["negated_caption"], obj)
        if template is None and affirmed(own, obj):
            cue, place = cue_of(own) or ("", "")

            def deny(name: str) -> str | None:
                return own if name == obj else exchanged(own, obj, name)

            def affirm(name: str) -> str | None:
                denied = deny(name)
                return denied and affirmed(denied, name)

            yield _Form(f"llm {cue} {place}", "llm", deny, affirm, True, True)
        elif there := self._there(pair, template, present):
            name = f"a {template.name}"
            yield _Form(name, "grammar", str, str, False, True, (template, *there))
        else:
            is_own = template is not None and bool(template.affirmed)
            if not is_own:
                fits = [*self._fitting(AFTER, caption), *self._fitting(BEFORE, caption)]
                template = self.grammar.draw(fits, key, "beside") if fits else None
            if template:
                yield _filled(template, caption, is_own)
            if template and template.position == ALONE:
                return
        if fits := self._fitting(ALONE, ""):
            yield _filled(self.grammar.draw(fits, key, "alone"), caption, False)

    @staticmethod
    def _there(
        pair: Row, template: Template | None, present: Sequence[str]
    ) -> tuple[str, str] | None:
        """What a pair without its caption says is there, and where: "a cat on a sofa, no dog"."""
        if template is None or template.position == ALONE:
            return None
        own, absent, caption = pair["negated_caption"], pair["object"], pair["caption"]
        for name in present:
            places = [place_of(name, caption, sure) for sure in (True, False)]
            for place in (*places, "", None):  # older runs told less, or more
                if template.contrast(name, absent, caption, place) == own:
                    return name, place
        return None

    def _fitting(self, position: str, caption: str, shape: Shape | None = None) -> list[Template]:
        return [t for t in self.grammar.fitting(position, caption, False, shape) if t.affirmed]

    def _unit(
        self, pair: Row, form: _Form, absent: list[str], present: list[str], rests: Row
    ) -> list[Statement]:
        """The four texts of a form about something absent and something that is there; [] if none.

        Absent is the pair's own object, or one of `absent` where the balance refuses it. Beside a
        caption the present one is none that it names: "a dog, with no dog in sight" is never true.
        """
        key = (self.seed, pair["pair_id"], form.name)
        balance = self.balances[form.is_own, form.holds_caption]
        there = [
            name
            for name in sorted(shuffled(present, *key), key=balance.owed, reverse=True)
            if not (form.holds_caption and mentioned(name, [pair["caption"]]))
        ]
        away = sorted(shuffled(dict.fromkeys(absent), *key), key=balance.owed)
        away.sort(key=pair["object"].__ne__)
        tried: Iterable[tuple[str, str]] = itertools.product(away, there)
        if form.contrast:
            tried = [(pair["object"], form.contrast[1])]
        for name, other in tried:
            if not balance.allows(name, other):
                continue
            # Of those who are compared with one more of them: a foil is none of these texts.
            others = [
                n for n in there if n != other and self.balances[False, False].allows(name, n)
            ]
            if form.contrast:
                balance.count(name, other)
                self.units += 1
                about = (form.contrast[0], pair["caption"], form.contrast[2])
                return _statements(pair, self._contrast(name, other, others, *about), rests)
            texts = [write(obj) for obj in (name, other) for write in (form.deny, form.affirm)]
            if not all(texts):
                continue
            balance.count(name, other)
            self.units += 1
            denies = BOTH if form.holds_caption else DENIES
            rows = [
                (form, texts[0], True, denies, (name,)),
                (form, texts[1], False, AFFIRMS, (name,)),
                (form, texts[2], False, denies, (other,)),
                (form, texts[3], True, AFFIRMS, (other,)),
            ]
            fits = self._fitting(AFTER, "", THING) + self._fitting(BEFORE, "", THING)
            fits = [template for template in fits if template.name not in NOT_OF_TWO]
            if fits and not form.holds_caption:
                template = self.grammar.draw(fits, repr(key), "contrast")
                rows += self._contrast(name, other, others, template)
            return _statements(pair, rows, rests)
        self.unbalanced += bool(there)
        return []

    def _contrast(
        self,
        absent: str,
        present: str,
        others: Sequence[str],
        template: Template,
        like: str = "",
        place: str = "",
    ) -> Iterator[tuple[_Form, str, bool, str, tuple[str, str]]]:
        """ "A dog but no cat" and "a cat but no dog", of which one is true, in the style of `like`.

        `place`: where both are said to be. In the plain style, whose captions are no sentences, a
        thing without a place is none either. Where a second object is there, "a bird but no cat"
        and "a dog but no bird" as well: else whatever affirms a thing that is there would be true.
        """
        form = _Form(f"a {template.name}", "grammar", str, str, False)
        said = [(present, absent, True), (absent, present, False)]
        if others:
            self.balances[False, False].count(absent, others[0])
            said += [(others[0], absent, True), (present, others[0], False)]
        nowhere = None if self.grammar.style == "plain" else ""
        for i, (first, last, truth) in enumerate(said):
            where = place if i < 2 and place != "" else nowhere
            text = template.contrast(first, last, like, where)
            yield form, text, truth, BOTH, (first, last)


def row_of(number: int, pair: Pair, rewriter: str) -> dict[str, Any]:
    """What `Pen` reads of a row of the table "pairs", for a pair that no run wrote."""
    about = {"pair_id": str(number), "caption_id": str(number), "image_id": pair.image_id}
    about |= {"file_name": pair.image, "caption": pair.caption, "negated_caption": pair.negated}
    return about | {"object": pair.object, "question": None, "rewriter": rewriter}


def _statements(
    pair: Row, rows: Iterable[tuple[_Form, str, bool, str, tuple[str, ...]]], rests: Row
) -> list[Statement]:
    """The statements of a unit from form, text, truth, polarity and objects of each."""
    found = []
    for form, text, truth, polarity, objects in rows:
        caption = pair["caption_id"] if form.holds_caption else None
        unit, label = f"{pair['pair_id']}-{form.name}", tuple(rests[obj] for obj in objects)
        about = (pair["file_name"], pair["image_id"], caption, unit, text, truth, polarity)
        found.append(Statement(*about, objects, form.name, form.writer, label))
    return found


def _filled(template: Template, caption: str, is_own: bool) -> _Form:
    return _Form(
        template.name,
        "grammar",
        lambda name: template.fill(caption, noun(name)),
        lambda name: template.affirm(caption, noun(name)),
        template.position != ALONE,
        is_own,
    )


def pen_of(config: Mapping[str, Any]) -> Pen:
    """The pen of a run, from its settings or those in its manifest. Raises InputError."""
    return Pen(grammar_of(config, of_pairs=False), config["seed"])


def grammar_of(config: Mapping[str, Any], *, of_pairs: bool = True) -> Grammar:
    """The grammar that the writer "template" and foils use. Raises InputError.

    `of_pairs`: with the settings that are about pairs alone.
    """
    rewrite = config["rewrite"]  # runs of earlier versions lack some of its keys
    hold_out = tuple(name for name in rewrite.get("hold_out", "").split(",") if name)
    shares = (rewrite["before"], rewrite["statements"]) if of_pairs else ()
    try:
        return Grammar(rewrite.get("style", "natural"), hold_out, *shares)
    except ValueError as error:
        raise InputError(f"rewrite.hold_out: {error}") from None


class Exported(NamedTuple):
    """An accepted pair of a run with what is said beside it."""

    pair: Row
    statements: list[Statement] | None  # None where nothing is known to be in its photo
    foils: list[str]  # false texts in the pair's own words
    captions: Sequence[str]  # of its photo
    labels: Sequence[Label]


def exported(run: Path, config: Mapping[str, Any]) -> Iterator[Exported]:
    """The accepted pairs of a run with the settings `config`, in order of the tables.

    One shard of the tables at a time is in memory.
    """
    kept, pen = keeper(run, config["export"]["max_per_object"]), pen_of(config)
    affirm = config["rewrite"].get("affirm", False)
    for part in told(table_paths(run, "items"), "shards"):
        captions, pairs, labels = (collections.defaultdict(list) for _ in range(3))
        for image, text in read_rows(run, "items", ["image_id", "caption"], part.name):
            captions[image].append(text)
        for row in filter(kept, read_table(run, "pairs", part=part.name).to_pylist()):
            pairs[row["image_id"]].append(row)
        for _, label in of_part(run, part.name):
            labels[label.image_id].append(label)
        for image, texts in captions.items():
            for pair, found in pen.write(pairs[image], Facts.of(labels[image]), texts):
                yield Exported(pair, found, foils(pair, found, affirm), texts, labels[image])


def keeper(run: Path, max_per_object: int | None) -> Callable[[Row], bool]:
    """Whether to export a row of "pairs": an accepted one; of too many of an object those with
    the least hash."""
    if max_per_object is None:
        return lambda row: row["accepted"]

    def place(pair: str) -> tuple[str, str]:
        return content_hash([pair]), pair

    least = collections.defaultdict[str, list[tuple[str, str]]](list)
    for pair, name, accepted in read_rows(run, "pairs", ["pair_id", "object", "accepted"]):
        if accepted:
            least[name].append(place(pair))
            if len(least[name]) > 2 * max_per_object:
                least[name] = sorted(least[name])[:max_per_object]
    last = {name: max(sorted(found)[:max_per_object], default=()) for name, found in least.items()}
    return lambda row: row["accepted"] and place(row["pair_id"]) <= last[row["object"]]


def foils(pair: Row, statements: Sequence[Statement] | None, affirm: bool) -> list[str]:
    """The false statements in a pair's own words, those that affirm only with `affirm`.

    Where nothing is known to be in the photo (None), the foils that the run wrote.
    """
    if statements is None:
        return list(pair["foils"] or ())
    own = {s.unit for s in statements if s.text == pair["negated_caption"]}
    false = [s for s in statements if s.unit in own and not s.truth]
    return [s.text for s in sorted(false, key=lambda s: s.polarity == AFFIRMS)][: 1 + affirm]


def write(path: Path, every: Iterable[Sequence[Statement] | None]) -> int:
    """Writes the statements of many pairs as they come; returns how many there are.

    Raises OSError where the file cannot be written, and whatever `every` does: a former file stays.
    """
    number, pairs = 0, iter(every)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        atomic_files.whole_file(path) as unfinished,
        pq.ParquetWriter(unfinished, SCHEMA, compression="zstd", store_schema=False) as writer,
    ):
        while several := list(itertools.islice(pairs, _PAIRS_A_WRITE)):
            columns = list(zip(*(text for said in several for text in said or ()), strict=True))
            columns = columns or [()] * len(SCHEMA)
            arrays = [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
            writer.write_table(pa.table(arrays, SCHEMA))
            number += len(columns[0])
    return number
