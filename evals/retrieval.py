"""Retrieval: photos for a caption and captions for a photo, among all of a data set's.

Recall@k as CLIP's papers count it: 1 if at least one right entry is among the first k.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evals import scoring
from evals.benchmark import Metric, Problem, Result
from evals.cues import cue_breakdowns, cue_columns
from evals.images import DataRoots, ImageRef
from evals.problem_images import ProblemImages, Views

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
    notes: Sequence[str] = (),
    views: Views | None = None,
) -> Problem:
    """The problem of finding each caption's photo and each photo's captions.

    Photos that are missing are left out together with their captions; that makes the rest easier
    to find, so that a subset's recall does not compare with the whole's. Items are captions.
    """
    pictures = ProblemImages(roots, (record.image for record in records), views)
    kept = [record for record in records if record.image in pictures]
    gallery = _Gallery(kept, pictures, tuple(headlines))
    total = sum(len(record.captions) for record in records)
    notes = [*notes, f"{len(kept):,} images and {len(gallery.captions):,} captions."]
    return Problem(
        images=pictures.refs,
        texts=gallery.texts,
        score=gallery.score,
        total=total,
        scored=len(gallery.captions),
        missing=pictures.missing,
        file=str(file),
        notes=notes,
    )


class _Gallery:
    """All photos and captions of a problem, each caption a row of its own."""

    def __init__(
        self, records: Sequence[Captioned], pictures: ProblemImages, headlines: Sequence[str]
    ):
        self.records, self.pictures, self._headlines = records, pictures, headlines
        self.captions = [caption for record in records for caption in record.captions]
        self.texts = list(dict.fromkeys(self.captions))
        text_rows = {text: row for row, text in enumerate(self.texts)}
        self._text_rows = np.array([text_rows[caption] for caption in self.captions], np.int64)
        counts = [len(record.captions) for record in records]
        self._owner = np.repeat(np.arange(len(records)), counts)
        ends = np.cumsum(counts)
        spans = zip(ends - counts, ends, strict=True)
        self._owned = [np.arange(start, end) for start, end in spans]

    def score(self, images: np.ndarray, texts: np.ndarray) -> Result:
        """The result of unit features `[len(images), D]` and `[len(texts), D]`."""
        rows = [self.pictures.row(record.image) for record in self.records]
        images = self.pictures.features(images)[rows]
        texts = texts[self._text_rows]
        to_images = scoring.rank(texts, images, self._owner[:, None])
        to_texts = scoring.rank(images, texts, self._owned)
        ids = np.array([record.id for record in self.records])
        caption_ids = self._caption_ids()
        metrics = [
            *self._metrics("t2i", to_images, caption_ids, len(images), self._owner),
            *self._metrics("i2t", to_texts, ids, len(texts), None),
        ]
        metrics.sort(key=lambda m: m.name not in self._headlines)
        cues = cue_columns([((caption,), 0) for caption in self.captions])
        columns = self._predictions(to_images, caption_ids) | cues
        return Result(metrics, columns, cue_breakdowns(cues))

    def _caption_ids(self) -> np.ndarray:
        named = (f"{r.id}#{i}" for r in self.records for i in range(len(r.captions)))
        return np.array(list(named))

    def _metrics(
        self,
        direction: str,
        ranks: scoring.Ranks,
        ids: np.ndarray,
        size: int,
        clusters: np.ndarray | None,
    ) -> list[Metric]:
        positives = [1] * len(ids) if direction == "t2i" else [len(p) for p in self._owned]
        if clusters is not None and len(clusters) == len(self.records):
            clusters = None  # one caption a photo: nothing is shared
        metrics = []
        for k in KS:
            name = f"{direction}_recall@{k}"
            chance = scoring.chance_of_recall(size, positives, k)
            for suffix, values in (("", ranks.recall(k)), ("_strict", ranks.recall_strict(k))):
                headline = not suffix and name in self._headlines
                metrics.append(Metric(name + suffix, values, ids, clusters, None, chance, headline))
        return metrics

    def _predictions(self, ranks: scoring.Ranks, ids: np.ndarray) -> Mapping[str, list]:
        """A row a caption: its photo against the best other one."""
        shown = np.array([self.pictures.shown(record.image) for record in self.records])
        strict = ranks.recall_strict(1)
        columns = {name: [] for name in ("images", "scores", "predicted")}
        for i, owner in enumerate(self._owner):
            options = [int(shown[owner])]
            scores = [float(ranks.score[i])]
            if ranks.rival[i] >= 0:
                options.append(int(shown[ranks.rival[i]]))
                scores.append(float(ranks.rival_score[i]))
            columns["images"].append(options)
            columns["scores"].append(scores)
            columns["predicted"].append([j for j, s in enumerate(scores) if s == max(scores)])
        return {
            "item": ids.tolist(),
            "texts": [[caption] for caption in self.captions],
            "answers": [[0]] * len(ids),
            "right": strict.tolist(),
            "rank": (ranks.stable + 1).tolist(),
            **columns,
        }
