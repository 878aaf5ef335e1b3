"""What ranks a gallery: retrieval, of photos for a caption and back, and zero-shot classification.

Recall@k as CLIP's papers count it: 1 if at least one right entry is among the first k. A class
embedding is the unit mean of the unit embeddings of its prompts (CLIP's notebooks, open_clip,
CLIP_benchmark); one prompt is a mean of one.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evals import scoring
from evals.benchmark import Problem, Result, by_both_rules
from evals.cues import cue_breakdowns, cue_columns
from evals.images import DataRoots, ImageRef, ProblemImages, Views

KS = (1, 5, 10)
HEADLINES = ("t2i_recall@5", "i2t_recall@5")


@dataclasses.dataclass(frozen=True)
class Captioned:
    """A photo with its captions; `id` is unique in the data set."""

    id: str
    image: ImageRef
    captions: tuple[str, ...]


def retrieval_problem(
    roots: DataRoots,
    file: Path,
    records: Sequence[Captioned],
    *,
    headlines: Sequence[str] = HEADLINES,
    views: Views | None = None,
) -> Problem:
    """The problem of finding each caption's photo and each photo's captions.

    Photos that are missing are left out together with their captions; that makes the rest easier
    to find, so that a subset's recall does not compare with the whole's. Items are captions.
    """
    pictures = ProblemImages(roots, (record.image for record in records), views)
    kept = [record for record in records if record.image in pictures]
    captions = [caption for record in kept for caption in record.captions]
    distinct = list(dict.fromkeys(captions))
    text_row = {text: row for row, text in enumerate(distinct)}

    def score(images: np.ndarray, texts: np.ndarray) -> Result:
        counts = [len(record.captions) for record in kept]
        owner = np.repeat(np.arange(len(kept)), counts)
        ids = [record.id for record in kept]
        caption_ids = [f"{r.id}#{i}" for r in kept for i in range(len(r.captions))]
        images = pictures.features(images)[[pictures.row(record.image) for record in kept]]
        rows = texts[[text_row[caption] for caption in captions]]
        to_images = scoring.rank(rows, images, owner[:, None])
        owned = np.split(np.arange(len(captions)), np.cumsum(counts)[:-1])
        to_texts = scoring.rank(images, rows, owned)
        metrics = []
        for direction, ranks, items, clusters, size, positives in (
            ("t2i", to_images, caption_ids, owner, len(images), [1] * len(captions)),
            ("i2t", to_texts, ids, np.arange(len(ids)), len(captions), counts),
        ):
            for k in KS:
                name, points = f"{direction}_recall@{k}", (ranks.recall(k), ranks.recall_strict(k))
                described = {"items": np.array(items), "headline": name in headlines}
                described["chance"] = scoring.chance_of_recall(size, positives, k)
                metrics += by_both_rules(name, *points, clusters, **described)
        metrics.sort(key=lambda m: m.name not in headlines)
        # A row a caption.
        shown = [pictures.shown(record.image) for record in kept]
        cues = cue_columns([((caption,), 0) for caption in captions])
        pairs = zip(owner, to_images.rival, strict=True)
        columns = {
            "item": caption_ids,
            "images": [[shown[i] for i in pair if i >= 0] for pair in pairs],
            "texts": [[caption] for caption in captions],
            **to_images.predictions(),
            "rank": (to_images.stable + 1).tolist(),
            **cues,
        }
        titles = {name: f"{title}: t2i recall@1" for name, title in cue_breakdowns(cues).items()}
        return Result(metrics, columns, titles)

    total = sum(len(record.captions) for record in records)
    notes = [f"{len(kept):,} images and {len(captions):,} captions."]
    described = {"missing": pictures.missing, "file": str(file), "notes": notes}
    return Problem(pictures.refs, distinct, score, total, len(captions), **described)


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A photo and the index of its class; `id` is unique in the data set."""

    id: str
    image: ImageRef
    label: int


def classification_problem(
    roots: DataRoots,
    file: Path,
    items: Sequence[Labelled],
    classes: Sequence[str],
    prompts: Mapping[str, Sequence[str]],
) -> Problem:
    """The problem of naming each photo's class, of `classes` in the order of the labels.

    `prompts` are sets of templates with `{}` for the class, by name: `top1_NAME`, `top5_NAME`.
    """
    pictures = ProblemImages(roots, (item.image for item in items))
    kept = [item for item in items if item.image in pictures]
    filled = {n: [t.replace("{}", c) for c in classes for t in ts] for n, ts in prompts.items()}
    every = list(dict.fromkeys(text for texts in filled.values() for text in texts))
    text_row = {text: row for row, text in enumerate(every)}
    image_rows = [pictures.row(item.image) for item in kept]

    def score(images: np.ndarray, texts: np.ndarray) -> Result:
        metrics, ranks = [], {}
        labels = np.array([item.label for item in kept], np.int64)
        ids, photos = np.array([item.id for item in kept]), [item.image.path for item in kept]
        for name, templates in prompts.items():
            rows = np.array([text_row[text] for text in filled[name]])
            weights = scoring.mean_directions(texts[rows], len(templates))
            ranks[name] = found = scoring.rank(images[image_rows], weights, labels[:, None])
            for k in (1, 5):
                if k < len(classes):
                    points = found.recall(k), found.recall_strict(k)
                    described = {"items": ids, "chance": k / len(classes), "headline": k == 1}
                    metrics += by_both_rules(f"top{k}_{name}", *points, photos, **described)
        # A row a photo: its class against the best other one, by the first set of prompts.
        first = next(iter(prompts))
        pairs = [
            (classes[item.label], classes[rival])
            for item, rival in zip(kept, ranks[first].rival, strict=True)
        ]
        columns = {
            "item": ids.tolist(),
            "images": [[row] for row in image_rows],
            "texts": [[prompts[first][0].replace("{}", name) for name in pair] for pair in pairs],
            **ranks[first].predictions(),
            "class": [name for name, _ in pairs],
            **{f"rank_{name}": (found.stable + 1).tolist() for name, found in ranks.items()},
        }
        return Result(metrics, columns, {"class": f"by class: top1 {first}"})

    used = [f"{name}: {len(t)} prompt(s) a class, {t[0]!r} first" for name, t in prompts.items()]
    notes = [f"{len(classes)} classes; {'; '.join(used)}."]
    about = {"missing": pictures.missing, "file": str(file), "notes": notes}
    return Problem(pictures.refs, every if kept else [], score, len(items), len(kept), **about)
