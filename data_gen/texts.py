"""The texts of a run with their truth values, and what the falsehood of the false ones rests on."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_gen.annotations import ABSENT, PRESENT, UNSURE, InstanceVerifier
from data_gen.labels import Label
from data_gen.records import read_table, table_paths
from negclip_jax.common.provenance import content_hash
from negclip_jax.language.mentions import find_same, mentioned, named_categories
from negclip_jax.language.negation import PEOPLE, find_cues, governs
from negclip_jax.language.text import tokenize
from negclip_jax.language.vocabulary import canonical

# What says that a false text is false, strongest first.
BOXES, VERDICT, CAPTION, NOTHING, CONTRADICTED = SOURCES = (
    "boxes", "verdict", "caption", "nothing", "contradicted",
)  # fmt: skip
_COLUMNS = ["pair_id", "image_id", "file_name", "caption", "object", "question"]
_COLUMNS += ["negated_caption", "foils", "rewriter", "accepted"]


def parts(run: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Shard by shard, the name of its files and its accepted pairs: one shard is in memory."""
    for path in table_paths(run, "pairs"):
        rows = read_table(run, "pairs", _COLUMNS, path.name).to_pylist()
        yield path.name, [row for row in rows if row["accepted"]]


def texts(pairs: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The true and the false texts of accepted pairs.

    Each has `text_id`, `image_id`, `file_name`, `text`, `truth`, `writer` and `form`, and as
    `claims` what it says of objects: (name, whether it says that it is there).
    """
    for pair in pairs:
        writer = pair["rewriter"].partition(":")[0]
        told = [(pair["negated_caption"], True, writer, pair["rewriter"])]
        told += [(foil, False, "foil", "") for foil in pair["foils"] or ()]
        for text, truth, who, form in told:
            claims = [] if truth else _claims(text, pair["object"])
            if not form:
                affirms = claims and all(is_there for _, is_there in claims)
                form = "foil that affirms" if affirms else "foil that denies"
            yield {
                "text_id": content_hash([pair["image_id"], text])[:16],
                "image_id": pair["image_id"],
                "file_name": pair["file_name"],
                "text": text,
                "truth": truth,
                "writer": who,
                "form": form,
                "claims": claims,
            }


def _claims(foil: str, absent: str) -> list[tuple[str, bool]]:
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


def rests_on(
    text: Mapping[str, Any],
    captions: Sequence[str],
    known: Mapping[tuple[str, str], tuple[str, str]],
    boxes: InstanceVerifier | None = None,
) -> str:
    """Which of SOURCES says that a false text is false.

    Args:
      text: one of `texts`.
      captions: of its photo. That one names an object is weak: words have senses.
      known: of its photo or more of them, see `known_of`.
      boxes: further annotations, which come first.
    """
    found = NOTHING if text["claims"] else CAPTION
    for name, says_present in text["claims"]:
        source, state = BOXES, boxes.verdict(text["image_id"], name)[0] if boxes else UNSURE
        if state == UNSURE:
            source, state = known.get((text["image_id"], canonical(name)), (NOTHING, UNSURE))
        if state == (ABSENT if says_present else PRESENT):
            return source
        if state in (ABSENT, PRESENT):
            found = CONTRADICTED
        elif found == NOTHING and not says_present and mentioned(name, captions):
            found = CAPTION
    return found


def known_of(labels: Iterable[Label]) -> dict[tuple[str, str], tuple[str, str]]:
    """(what says so, state) by image and object: of what boxes say, else of verdicts."""
    known: dict[tuple[str, str], tuple[str, str]] = {}
    for label in labels:
        about = (label.image_id, label.object)
        if label.state in (ABSENT, PRESENT) and known.get(about, NOTHING)[0] != BOXES:
            known[about] = (BOXES if label.source == "boxes" else VERDICT, label.state)
    return known
