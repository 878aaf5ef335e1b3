"""Zero-shot classification: the nearest class, described by one prompt or by many.

A class embedding is the unit mean of the unit embeddings of its prompts (CLIP's notebooks,
open_clip, CLIP_benchmark); one prompt is a mean of one.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evals import scoring
from evals.benchmark import Metric, Problem, Result
from evals.images import DataRoots, ImageRef
from evals.problem_images import ProblemImages


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
    *,
    notes: Sequence[str] = (),
) -> Problem:
    """The problem of naming each photo's class.

    Args:
      classes: names in the order of the labels.
      prompts: sets of templates with `{}` for the class, by name; each set gives `top1_NAME` and
        `top5_NAME`.
    """
    pictures = ProblemImages(roots, (item.image for item in items))
    kept = [item for item in items if item.image in pictures]
    classifier = _Classifier(kept, pictures, tuple(classes), dict(prompts))
    described = [
        f"{name}: {len(t)} prompt(s) a class, {t[0]!r} first" for name, t in prompts.items()
    ]
    return Problem(
        images=pictures.refs,
        texts=classifier.texts if kept else [],
        score=classifier.score,
        total=len(items),
        scored=len(kept),
        missing=pictures.missing,
        file=str(file),
        notes=[*notes, f"{len(classes)} classes; {'; '.join(described)}."],
    )


class _Classifier:
    def __init__(
        self,
        items: Sequence[Labelled],
        pictures: ProblemImages,
        classes: Sequence[str],
        prompts: Mapping[str, Sequence[str]],
    ):
        self._items, self._pictures, self._classes, self._prompts = (
            items,
            pictures,
            classes,
            prompts,
        )
        self._labels = np.array([item.label for item in items], np.int64)
        filled = {n: [t.replace("{}", c) for c in classes for t in ts] for n, ts in prompts.items()}
        self.texts = list(dict.fromkeys(text for texts in filled.values() for text in texts))
        rows = {text: row for row, text in enumerate(self.texts)}
        self._rows = {name: np.array([rows[t] for t in texts]) for name, texts in filled.items()}

    def score(self, images: np.ndarray, texts: np.ndarray) -> Result:
        """The result of unit features `[len(images), D]` and `[len(texts), D]`."""
        rows = [self._pictures.row(item.image) for item in self._items]
        images = images[rows]
        metrics, ranks = [], {}
        for name, templates in self._prompts.items():
            weights = scoring.mean_directions(texts[self._rows[name]], len(templates))
            ranks[name] = scoring.rank(images, weights, self._labels[:, None])
            metrics += self._metrics(name, ranks[name])
        return Result(metrics, self._predictions(ranks), {"class": "by class"})

    def _metrics(self, name: str, ranks: scoring.Ranks) -> list[Metric]:
        ids = np.array([item.id for item in self._items])
        paths = [item.image.path for item in self._items]
        shared = len(set(paths)) < len(paths)
        clusters = np.unique(paths, return_inverse=True)[1] if shared else None
        metrics = []
        for k in (1, 5):
            if k >= len(self._classes):
                continue
            chance = k / len(self._classes)
            rules = ("", ranks.recall(k)), ("_strict", ranks.recall_strict(k))
            for suffix, values in rules:
                headline = k == 1 and not suffix
                label = f"top{k}_{name}{suffix}"
                metrics.append(Metric(label, values, ids, clusters, None, chance, headline))
        return metrics

    def _predictions(self, ranks: Mapping[str, scoring.Ranks]) -> dict[str, list]:
        """A row a photo: its class against the best other one, by the first set of prompts."""
        first = next(iter(self._prompts))
        shown, template = ranks[first], self._prompts[first][0]
        texts, scores, predicted = [], [], []
        for i, label in enumerate(self._labels):
            pair = (self._classes[label], self._classes[shown.rival[i]])
            texts.append([template.replace("{}", name) for name in pair])
            scores.append([float(shown.score[i]), float(shown.rival_score[i])])
            predicted.append([j for j, score in enumerate(scores[-1]) if score == max(scores[-1])])
        columns = {
            "item": [item.id for item in self._items],
            "images": [[self._pictures.row(item.image)] for item in self._items],
            "texts": texts,
            "scores": scores,
            "answers": [[0]] * len(self._items),
            "predicted": predicted,
            "right": shown.recall_strict(1).tolist(),
            "class": [self._classes[label] for label in self._labels],
        }
        return columns | {f"rank_{name}": (r.stable + 1).tolist() for name, r in ranks.items()}
