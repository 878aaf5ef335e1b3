"""`results.json` of segmentation: what was segmented, by what, and what it scored."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.models import Model
from evals.segmentation import metrics, scoring
from evals.segmentation.clipseg import CLIPSeg
from evals.segmentation.phrases import NEGATED, PhraseSet
from negclip_jax.common.errors import InputError
from negclip_jax.data.tokenizer import Tokenizer
from negclip_jax.embeddings.store import EmbeddingStore

RESULTS = "results.json"
OWN = "CLIPSeg"  # the name of its own text tower
_HEADLINES = ("miou@0.3", "miou@0.5", "fgiou@0.3", "fgiou@0.5", "ap")
_TASK = "Which pixels of the photo does the phrase mean?"
_GROUPS = {"all": "all phrases", "negated": "negated phrases"}


def towers(
    clipseg: CLIPSeg,
    tuned: Sequence[Model],
    sets: Sequence[PhraseSet],
    tokenizer: Tokenizer,
    out: Path,
    document: dict[str, Any],
) -> scoring.Towers:
    """Every distinct phrase through every text tower; notes those that are too long."""
    texts = list(dict.fromkeys(phrase.text for found in sets for phrase in found.phrases))
    room = tokenizer.context_length - 2
    long = [text for text in texts if len(tokenizer.encode(text)) > room]
    if long:
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
    return scoring.Towers(clipseg, embeddings)


def measure(document: dict[str, Any], found: PhraseSet, rows: Sequence[Mapping], seed: int) -> None:
    """Adds the metrics of a set, and of its negated phrases if it has any."""
    names = list(document["settings"]["models"])
    for group, title in _GROUPS.items():
        part = [row for row in rows if group == "all" or row["negated"]]
        if not part:
            continue
        measured = metrics.measure(
            {name: scoring.counts(part, name) for name in names},
            [row["image"] for row in part],
            seed=seed,
        )
        for row in measured["rows"].values():
            for name, value in row.items():
                value |= {"chance": None, "headline": name in _HEADLINES}
        total = found.total if group == "all" else found.total_negated
        key = found.name if group == "all" else f"{found.name}_negated"
        document["benchmarks"][key] = {
            "title": f"{found.title}: {title}",
            "task": _TASK,
            "source": found.source,
            "file": found.file,
            "total": total,
            "scored": len(part),
            "subset": len(part) < total,
            "missing": len(found.missing),
            "notes": [*found.notes, *([NEGATED] if group == "negated" else [])],
            "published": [],
            "rows": {n: {"control": False, "metrics": m} for n, m in measured["rows"].items()},
            "comparisons": measured["comparisons"],
            "errors": {},
        }
        document["curves"][key] = measured["curves"]


def described(base: str, clipseg: CLIPSeg, tuned: Sequence[Model]) -> dict[str, Any]:
    config = clipseg.config
    facts = {
        "weights": f"{base} (transformers' CLIPSeg)",
        "activation": f"{config.text.hidden_act} (its config.json)",
    }
    own = {"facts": facts, "fingerprint": clipseg.fingerprint}
    others = {
        model.name: {
            "facts": {k: model.facts[k] for k in ("weights", "training") if k in model.facts}
            | {"activation": model.facts["activation"], "exchanged": "text tower and projection"},
            "fingerprint": model.fingerprints["text"],
        }
        for model in tuned
    }
    return {OWN: own, **others}


def protocol(size: int) -> list[str]:
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


def require_same(out: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
    """Raises InputError where `out` holds results of other models or settings."""
    path = out / RESULTS
    try:
        out.mkdir(parents=True, exist_ok=True)
        if overwrite:
            for name in (RESULTS, scoring.ROWS):
                (out / name).unlink(missing_ok=True)
        old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except OSError as error:
        raise InputError(f"cannot write to --out={out}: {error.strerror or error}") from error
    except ValueError:
        raise InputError(f"{path} is damaged: remove it, or give --overwrite") from None
    if old is not None and (not isinstance(old, dict) or old.get("settings") != settings):
        raise InputError(
            f"{out} holds results of other models or another --size: give another --out, or "
            "--overwrite to replace them"
        )
