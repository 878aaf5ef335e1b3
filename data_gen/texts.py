"""The texts that a run exports, with their truth, and what says that the false ones are false."""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_gen.annotations import ABSENT, PRESENT, UNSURE, InstanceVerifier
from data_gen.records import read_manifest
from data_gen.statements import AFFIRMS, Statement, exported
from negclip_jax.common.provenance import content_hash
from negclip_jax.language.mentions import find_same, mentioned, named_categories
from negclip_jax.language.negation import PEOPLE, find_cues, governs
from negclip_jax.language.text import tokenize
from negclip_jax.language.vocabulary import canonical

# What says that a false text is false, strongest first.
BOXES, VERDICT, CAPTION, NOTHING, CONTRADICTED = SOURCES = (
    "boxes", "verdict", "caption", "nothing", "contradicted",
)  # fmt: skip
_FIELDS = ("text", "truth", "unit", "writer", "form", "rests_on")
Claims = list[tuple[str, bool]]  # objects, and whether a text says that they are there
Known = Mapping[str, tuple[str, str]]  # what says which state of an object of one image


def texts(
    run: Path, boxes: InstanceVerifier | None = None, only: Container[str] | None = None
) -> Iterator[tuple[Mapping[str, Any], list[dict[str, Any]]]]:
    """Each exported pair of a run with its texts, in the order of the tables; a shard is in memory.

    A text has `text_id`, `image_id`, `file_name`, `text`, `truth`, `unit`, `writer`, `form`,
    whether it is a `foil` of the pair, and in `rests_on` which of SOURCES says that it is false;
    None for true ones. `boxes`: annotations that come before what the run knows. `only`: the
    `pair_id`s of the pairs that are asked for; default: all.
    """
    for pair, said, false, captions, labels in exported(run, read_manifest(run)["config"]):
        if only is not None and pair["pair_id"] not in only:
            continue  # written all the same: what comes after it depends on it
        found = []
        if all(statement.text != pair["negated_caption"] for statement in said or ()):
            writer = "llm" if pair["rewriter"] == "llm" else "grammar"
            found.append(
                (pair["negated_caption"], True, pair["pair_id"], writer, pair["rewriter"], None)
            )
        for s in said or ():
            # Of two objects the first is affirmed and the second denied; of one it is the polarity.
            affirms = (True, False) if len(s.objects) == 2 else (s.polarity == AFFIRMS,)
            claims = list(zip(s.objects, affirms, strict=True))
            source = None if s.truth else rests_on(claims, _labels_of(s), s.image_id, boxes)
            found.append((s.text, s.truth, s.unit, s.writer, s.form, source))
        if false and not said:
            known = known_of((label.object, label.state, label.source) for label in labels)
            for text in false:
                claims = _claims(text, pair["object"])
                affirms = claims and all(is_there for _, is_there in claims)
                form = "foil that affirms" if affirms else "foil that denies"
                source = rests_on(claims, known, pair["image_id"], boxes, captions)
                found.append((text, False, pair["pair_id"], "grammar", form, source))
        about = {"image_id": pair["image_id"], "file_name": pair["file_name"]}
        rows = [about | dict(zip(_FIELDS, row, strict=True)) for row in found]
        for row in rows:
            row["text_id"] = content_hash([row["image_id"], row["text"]])[:16]
            row["foil"] = row["text"] in false
        yield pair, rows


def rests_on(
    claims: Claims,
    known: Known,
    image_id: str,
    boxes: InstanceVerifier | None = None,
    captions: Sequence[str] = (),
) -> str:
    """Which of SOURCES says that a text with these claims is false of an image.

    A text without claims changes what a caption says. That a caption names an object is weak: words
    have senses.
    """
    found = NOTHING if claims else CAPTION
    for name, says_present in claims:
        source, state = BOXES, boxes.verdict(image_id, name)[0] if boxes else UNSURE
        if state == UNSURE:
            source, state = known.get(canonical(name), (NOTHING, UNSURE))
        if state == (ABSENT if says_present else PRESENT):
            return source
        if state in (ABSENT, PRESENT):
            found = CONTRADICTED
        elif found == NOTHING and not says_present and mentioned(name, captions):
            found = CAPTION
    return found


def known_of(labels: Iterable[tuple[str, str, str]]) -> Known:
    """What is known of objects, from (object, state, source) of labels: by boxes, else verdicts."""
    known: dict[str, tuple[str, str]] = {}
    for name, state, source in labels:
        if state in (ABSENT, PRESENT) and known.get(name, (NOTHING,))[0] != BOXES:
            known[name] = (BOXES if source == "boxes" else VERDICT, state)
    return known


def _labels_of(statement: Statement) -> Known:
    """What a statement's own labels say: "OBJECT=STATE@SOURCE"."""
    parts = (label.rpartition("@")[::2] for label in statement.label)
    return known_of(
        (canonical(o), state, s) for what, s in parts for o, _, state in [what.rpartition("=")]
    )


def _claims(foil: str, absent: str) -> Claims:
    """What a foil says of objects; nothing where it changes only what the caption says of one.

    `absent`: the object of its pair, which some foils affirm.
    """
    tokens = tokenize(foil)
    cues = find_cues(tokens)
    found = []
    for name in sorted(named_categories(foil) | {absent, "person"}):
        spans = find_same(name, tokens)
        denied = [span for span in spans if any(governs(cue, tokens, *span) for cue in cues)]
        if denied or (name == "person" and any(cue.kind == PEOPLE for cue in cues)):
            found.append((name, False))
        elif spans and name == absent:
            found.append((name, True))
    return found
