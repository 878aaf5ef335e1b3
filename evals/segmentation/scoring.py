"""Runs CLIPSeg over phrases, photo by photo, keeps what every phrase came to, and measures it.

`phrases.jsonl` gets a line a phrase with its pixel counts at every threshold, from which all
metrics are computed; a killed command continues after the last photo that it finished.
"""

import dataclasses
import hashlib
import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evals.images import DataRoots
from evals.models import Model
from evals.segmentation import masks, metrics
from evals.segmentation.clipseg import CLIPSeg
from evals.segmentation.sources import NEGATED, Phrase, PhraseSet
from negclip_jax.common.decoding import MAX_PIXELS, ImageError
from negclip_jax.common.errors import InputError
from negclip_jax.common.problems import first
from negclip_jax.common.storage import Journal
from negclip_jax.data.tokenizer import Tokenizer
from negclip_jax.embeddings.inputs import truncated
from negclip_jax.embeddings.store import EmbeddingStore
from negclip_jax.runtime import console

ROWS = "phrases.jsonl"
_ASPECT = 0.02  # by which a photo may differ from the annotated shape
_BAD_SHOWN = 5
OWN = "CLIPSeg"  # the name of its own text tower
_HEADLINES = ("miou@0.3", "miou@0.5", "fgiou@0.3", "fgiou@0.5", "ap")
_TASK = "Which pixels of the photo does the phrase mean?"
_GROUPS = {"all": "all phrases", "negated": "negated phrases"}


class PhotoError(InputError):
    """A photo that cannot be read, or is not the one that was annotated."""


@dataclasses.dataclass(frozen=True)
class Towers:
    """CLIPSeg and what each text tower says of each phrase."""

    clipseg: CLIPSeg
    # `{model: {phrase: float32 [D]}}`, CLIPSeg's own tower first.
    embeddings: Mapping[str, Mapping[str, np.ndarray]]

    def masks(self, pixels: np.ndarray, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Probabilities by model, float32 `[len(texts), size, size]`, for one photo."""
        rows = [found[text] for found in self.embeddings.values() for text in texts]
        every = self.clipseg.masks(pixels, np.stack(rows))
        parts = np.split(every, len(self.embeddings))
        return dict(zip(self.embeddings, parts, strict=True))


def identity(name: str, phrase: Phrase) -> str:
    """Of a phrase in the set `name`: changes with its text, photo and mask."""
    described = [name, phrase.item, phrase.image, phrase.text, phrase.segmentations, phrase.size]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:20]


def score(
    towers: Towers, sets: Sequence[PhraseSet], roots: DataRoots, out: Path, *, allow_subset: bool
) -> dict[str, dict[str, dict[str, Any]]]:
    """Scores every phrase that no earlier command has; returns all of them, as `collect`.

    Raises InputError at the end, when all others are scored, if a photo cannot be used; with
    `allow_subset` its phrases are left out.
    """
    journal = Journal(out / ROWS)
    done = {row["id"] for row in journal.rows}
    left: list[tuple[PhraseSet, list[Phrase]]] = []
    for found in sets:
        for _, of_photo in itertools.groupby(found.phrases, key=lambda phrase: phrase.image):
            if phrases := [p for p in of_photo if identity(found.name, p) not in done]:
                left.append((found, phrases))
    if total := sum(len(phrases) for _, phrases in left):
        logging.info("%s phrases to segment", f"{total:,}")
    problems: dict[str, str] = {}
    with console.Bar("phrases", total) as bar:
        for found, phrases in left:
            try:
                for row in _rows(towers, found, phrases, roots):
                    journal.append(row)
            except PhotoError as error:
                problems[phrases[0].image] = str(error)
            bar.advance(len(phrases))
    if problems:
        listed = first(list(problems.values()), _BAD_SHOWN, separator="; ")
        message = f"{len(problems)} photos cannot be used: {listed}"
        if not allow_subset:
            raise InputError(f"{message}. Get them again, or give --allow-subset to leave them out")
        logging.warning("%s. Their phrases are left out", message)
    return collect(sets, out)


def collect(sets: Sequence[PhraseSet], out: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """What is scored so far: for each set, rows by item.

    A row has `image`, `text`, `negated`, `positives`, and `tp` and `fp`: T numbers by model.
    """
    done = {row["id"]: row for row in Journal(out / ROWS).rows}
    found = {}
    for each in sets:
        keys = {phrase.item: identity(each.name, phrase) for phrase in each.phrases}
        found[each.name] = {item: done[key] for item, key in keys.items() if key in done}
    return found


def look(
    towers: Towers, phrases: Sequence[Phrase], roots: DataRoots
) -> tuple[Any, list[np.ndarray], dict[str, np.ndarray]]:
    """One photo (PIL), the true masks of its phrases (bool) and the drawn ones by model.

    True masks are as large as they were annotated, drawn ones `[len(phrases), size, size]`. Raises
    PhotoError for a photo that cannot be read or has another shape than the annotated one, and
    InputError for a segmentation that makes no mask.
    """
    try:
        image = roots.open(phrases[0].image)
    except ImageError as error:
        raise PhotoError(str(error)) from error
    truths = []
    for phrase in phrases:
        height, width = phrase.size or image.size[::-1]
        if min(height, width) < 1 or height * width > MAX_PIXELS:
            raise InputError(
                f"phrase {phrase.item}: a photo of {width} x {height} pixels cannot be"
            )
        if abs(image.width * height / (image.height * width) - 1) > _ASPECT:
            raise PhotoError(
                f"{phrase.image} is {image.width} x {image.height} pixels, annotated were "
                f"{width} x {height}"
            )
        try:
            parts = [masks.mask_of(s, height, width) for s in phrase.segmentations]
        except ValueError as error:
            raise InputError(f"phrase {phrase.item} ({phrase.text!r}): {error}") from None
        truths.append(np.logical_or.reduce(parts))
    pixels = towers.clipseg.pixels(image)
    return image, truths, towers.masks(pixels, [phrase.text for phrase in phrases])


def counts(rows: Sequence[Mapping[str, Any]], model: str) -> metrics.Counts:
    """What `metrics.measure` takes, from rows of `score`."""
    tp, fp = (np.array([row[kind][model] for row in rows], np.int64) for kind in ("tp", "fp"))
    return metrics.Counts(tp, fp, np.array([row["positives"] for row in rows], np.int64))


def _rows(
    towers: Towers, found: PhraseSet, phrases: Sequence[Phrase], roots: DataRoots
) -> list[dict[str, Any]]:
    try:
        _, truths, drawn = look(towers, phrases, roots)
    except PhotoError:
        raise
    except InputError as error:
        raise InputError(f"{found.file}: {error}. Correct the file or get it again") from error
    rows = []
    for i, (phrase, truth) in enumerate(zip(phrases, truths, strict=True)):
        truth = masks.resized(truth, towers.clipseg.size)
        counted = {name: metrics.count(each[i], truth) for name, each in drawn.items()}
        row = {"id": identity(found.name, phrase), "set": found.name}
        row |= {key: getattr(phrase, key) for key in ("item", "image", "text", "negated")}
        row["positives"] = int(truth.sum())
        for place, kind in enumerate(("tp", "fp")):
            row[kind] = {name: both[place].tolist() for name, both in counted.items()}
        rows.append(row)
    return rows


def towers(
    clipseg: CLIPSeg,
    tuned: Sequence[Model],
    sets: Sequence[PhraseSet],
    tokenizer: Tokenizer,
    out: Path,
    document: dict[str, Any],
) -> Towers:
    """Every distinct phrase through every text tower; notes those that are too long."""
    texts = list(dict.fromkeys(phrase.text for found in sets for phrase in found.phrases))
    if long := truncated(texts, tokenizer):
        document["warnings"].append(
            f"{len(long)} phrases are longer than {tokenizer.context_length} tokens and were cut, "
            f"the first of them {long[0]!r}"
        )
        logging.warning(document["warnings"][-1])
    embeddings = {}
    for name, model in {OWN: None, **{m.name: m for m in tuned}}.items():
        fingerprint = document["settings"]["models"][name]["fingerprint"]
        path = out / "embeddings" / f"clipseg-{fingerprint}.rows"
        store = EmbeddingStore(path, clipseg.config.projection_dim)
        rows = clipseg.embed(texts, tokenizer, model, store=store)
        embeddings[name] = dict(zip(texts, rows, strict=True))
    return Towers(clipseg, embeddings)


def measure(document: dict[str, Any], found: PhraseSet, rows: Sequence[Mapping], seed: int) -> None:
    """Adds the metrics of a set, and of its negated phrases if it has any."""
    names = list(document["settings"]["models"])
    for group, title in _GROUPS.items():
        part = [row for row in rows if group == "all" or row["negated"]]
        if not part:
            continue
        counted = {name: counts(part, name) for name in names}
        measured = metrics.measure(counted, [row["image"] for row in part], seed=seed)
        for row in measured["rows"].values():
            for name, value in row.items():
                value |= {"chance": None, "headline": name in _HEADLINES}
        key, total, notes = found.name, found.total, [*found.notes]
        if group == "negated":
            key, total, notes = f"{key}_negated", found.total_negated, [*notes, NEGATED]
        document["benchmarks"][key] = {
            "title": f"{found.title}: {title}",
            "task": _TASK,
            "source": found.source,
            "file": found.file,
            "total": total,
            "scored": len(part),
            "subset": len(part) < total,
            "missing": len(found.missing),
            "notes": notes,
            "published": [],
            "rows": {n: {"control": False, "metrics": m} for n, m in measured["rows"].items()},
            "comparisons": measured["comparisons"],
            "errors": {},
        }
        document["curves"][key] = measured["curves"]


def described(base: str, clipseg: CLIPSeg, tuned: Sequence[Model]) -> dict[str, Any]:
    """What tells the models from others, for `results.json`."""
    facts = {
        "weights": f"{base} (transformers' CLIPSeg)",
        "activation": f"{clipseg.config.text.hidden_act} (its config.json)",
    }
    found = {OWN: {"facts": facts, "fingerprint": clipseg.fingerprint}}
    for model in tuned:
        kept = ("weights", "training", "activation")
        facts = {key: model.facts[key] for key in kept if key in model.facts}
        facts["exchanged"] = "text tower and projection"
        found[model.name] = {"facts": facts, "fingerprint": model.fingerprints["text"]}
    return found


def protocol(size: int) -> list[str]:
    """How masks are drawn and measured, for the report."""
    return [
        f"Photo and mask are squashed to {size} x {size} pixels (photo: bilinear, ImageNet's mean "
        "and std; mask: nearest neighbour); a pixel is foreground above the threshold; thresholds "
        "0.02 to 0.98 (timojl/clipseg, metrics.py).",
        "miou@t is the mean over phrases of tp / (1 + tp + fp + fn), fgiou@t the same of pixels "
        "summed over all phrases, ap Simpson's rule over the curve of summed precision and recall: "
        "all as published, with the 1. iou@t is miou@t without the 1. *_best picks its threshold "
        "on these phrases and flatters.",
        "Vision tower and decoder are CLIPSeg's, untouched: only the text tower is exchanged.",
    ]
