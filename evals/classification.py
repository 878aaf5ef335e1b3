"""Zero-shot classification: the nearest class, described by one prompt or by many.

A class embedding is the unit mean of the unit embeddings of its prompts (CLIP's notebooks,
open_clip, CLIP_benchmark); one prompt is a mean of one.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evals import scoring
from evals.benchmark import Problem, Result, by_both_rules
from evals.images import DataRoots, ImageRef, ProblemImages


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
        ids = np.array([item.id for item in kept])
        for name, templates in prompts.items():
            rows = np.array([text_row[text] for text in filled[name]])
            weights = scoring.mean_directions(texts[rows], len(templates))
            ranks[name] = found = scoring.rank(images[image_rows], weights, labels[:, None])
            for k in (1, 5):
                if k < len(classes):
                    metrics += by_both_rules(
                        f"top{k}_{name}",
                        found.recall(k),
                        found.recall_strict(k),
                        [item.image.path for item in kept],
                        items=ids,
                        chance=k / len(classes),
                        headline=k == 1,
                    )
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

    described = [
        f"{name}: {len(t)} prompt(s) a class, {t[0]!r} first" for name, t in prompts.items()
    ]
    return Problem(
        images=pictures.refs,
        texts=every if kept else [],
        score=score,
        total=len(items),
        scored=len(kept),
        missing=pictures.missing,
        file=str(file),
        notes=[f"{len(classes)} classes; {'; '.join(described)}."],
    )
