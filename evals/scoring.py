"""The rules: what a choice or a ranking earns, with the answer at any position.

Every number exists under two rules. *Official* is what the published script computes, its handling
of ties included. *Strict* shares the point among all options that tie for the best (with two
options a tie is half), which is the expected score when ties are broken by chance; it never looks
at positions, so that a scorer that knows nothing lands on chance wherever the answers stand.

Scores are inner products taken in float64 and rounded to float32, so that what is equal on paper
is equal here, whatever the order of summation; a score that is not a number loses.

Shape letters: N items, K options of an item, of which A are true and B false; I images, T texts;
Q queries, G entries of a gallery; D feature dimensions; R rows of any kind.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Float64, Int

ROWS = 512  # queries scored at once against a whole gallery


def inner(
    images: Float[np.ndarray, "I D"],
    image_rows: Int[np.ndarray, " N"],
    texts: Float[np.ndarray, "T D"],
    text_rows: Int[np.ndarray, " N"],
) -> Float32[np.ndarray, " N"]:
    """Scores of pairs of rows of `images` and `texts`."""
    scores = np.empty(len(image_rows), np.float32)
    for start in range(0, len(image_rows), 1 << 13):  # bounded memory
        part = slice(start, start + (1 << 13))
        left = images[image_rows[part]].astype(np.float64)
        scores[part] = np.einsum("nd,nd->n", left, texts[text_rows[part]].astype(np.float64))
    return _comparable(scores)


def credit(
    scores: Float[np.ndarray, "N K"], answers: Int[np.ndarray, " N"]
) -> Float64[np.ndarray, " N"]:
    """Strict points: 1 over the number of best options if the answer is among them.

    `scores` are padded with NaN where an item has fewer than K options; each of `answers` is the
    index of a real option.
    """
    real = ~np.isnan(scores)
    best = np.max(scores, axis=1, where=real, initial=-np.inf)
    tied = real & (scores == best[:, None])
    return tied[np.arange(len(scores)), answers] / tied.sum(1)


def official(
    scores: Float[np.ndarray, "N K"], answers: Int[np.ndarray, " N"], rule: str
) -> Float64[np.ndarray, " N"]:
    """Official points, 0 or 1; arguments as `credit`.

    Rules: "argmax" takes the first of the best options, as `np.argmax` and `torch.argmax` do, so
    that a tie is right or wrong by position; "greater" wants the answer above every other option,
    so that a tie is wrong.
    """
    rows = np.arange(len(scores))
    if rule == "argmax":
        return (np.nanargmax(scores, axis=1) == answers).astype(np.float64)
    if rule == "greater":
        others = scores.copy()
        others[rows, answers] = np.nan
        beaten = ~(others >= scores[rows, answers][:, None])  # padding is NaN: never better
        return beaten.all(1).astype(np.float64)
    raise ValueError(f"there is no rule {rule!r}: argmax or greater")


def all_above(
    true: Float[np.ndarray, "N A"], false: Float[np.ndarray, "N B"]
) -> Float64[np.ndarray, " N"]:
    """Strict points for "every true score above every false one".

    Where a true ones and b false ones tie at the boundary, the
    chance that random order puts all a first is a! b! / (a + b)!.
    """
    low, high = true.min(1), false.max(1)
    a = (true == low[:, None]).sum(1)
    b = (false == low[:, None]).sum(1)
    order = np.array([1 / math.comb(i + j, i) for i, j in zip(a, b, strict=True)])
    return np.where(low > high, 1.0, np.where(low < high, 0.0, order))


@dataclasses.dataclass(frozen=True)
class Ranks:
    """Where the best positive of each query stands in its gallery."""

    better: Int[np.ndarray, " Q"]  # entries that score higher
    tied: Int[np.ndarray, " Q"]  # entries that score as high
    tied_positives: Int[np.ndarray, " Q"]  # and positives among them
    stable: Int[np.ndarray, " Q"]  # rank, from 0, in a stable sort by falling score
    score: Float32[np.ndarray, " Q"]  # of the best positive
    rival: Int[np.ndarray, " Q"]  # the best entry that is no positive; -1 where there is none
    rival_score: Float32[np.ndarray, " Q"]  # then -inf

    def recall(self, k: int) -> Float64[np.ndarray, " Q"]:
        """Official recall@k: 1 where a positive is among the first k.

        The published scripts leave ties to their sort; here the gallery's order decides.
        """
        return (self.stable < k).astype(np.float64)

    def recall_strict(self, k: int) -> Float64[np.ndarray, " Q"]:
        """Chance that random order among ties puts a positive into the first k."""
        places = np.clip(k - self.better, 0, self.tied)
        return np.array(
            [
                1 - math.comb(t - p, n) / math.comb(t, n)
                for t, p, n in zip(self.tied, self.tied_positives, places, strict=True)
            ]
        )

    def predictions(self) -> dict[str, list]:
        """Columns of `Result.predictions`: each query's positive against the best other entry."""
        found = self.rival >= 0
        scores = [
            [float(s) for s in (own, rival)[: 1 + found.any()]]
            for own, rival in zip(self.score, self.rival_score, strict=True)
        ]
        return {
            "scores": scores,
            "answers": [[0]] * len(scores),
            "predicted": [[i for i, s in enumerate(row) if s == max(row)] for row in scores],
            "right": self.recall_strict(1).tolist(),
            "right_official": self.recall(1).tolist(),
        }


def rank(
    queries: Float[np.ndarray, "Q D"],
    gallery: Float[np.ndarray, "G D"],
    positives: Sequence[Sequence[int]],
) -> Ranks:
    """Ranks the gallery for each query, some at a time; `positives[q]` are its right rows."""
    wide = gallery.astype(np.float64).T
    parts = []
    for start in range(0, len(queries), ROWS):
        chunk = queries[start : start + ROWS].astype(np.float64)
        own = positives[start : start + len(chunk)]
        scores = _comparable((chunk @ wide).astype(np.float32))
        counts = np.array([len(p) for p in own])
        rows = np.repeat(np.arange(len(own)), counts)
        columns = np.concatenate([np.sort(np.asarray(p, np.int64)) for p in own])
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        right = scores[rows, columns]  # of all positives, one query's after another's
        best = np.maximum.reduceat(right, starts)
        at_best = right == best[rows]
        # In a stable sort the first of the best positives stands behind equal entries before it.
        first = np.minimum.reduceat(np.where(at_best, columns, scores.shape[1]), starts)
        equal = scores == best[:, None]
        better = (scores > best[:, None]).sum(1)
        before = (equal & (np.arange(scores.shape[1]) < first[:, None])).sum(1)
        tied, tied_positives = equal.sum(1), np.add.reduceat(at_best.astype(np.int64), starts)
        scores[rows, columns] = np.nan  # what is left are rivals
        only_right = counts >= scores.shape[1]
        scores[only_right] = -np.inf
        rival = np.nanargmax(scores, axis=1)
        rival_score = scores[np.arange(len(scores)), rival]
        rival = np.where(only_right, -1, rival)
        parts.append((better, tied, tied_positives, better + before, best, rival, rival_score))
    return Ranks(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def chance_of_recall(size: int, positives: Sequence[int], k: int) -> float:
    """Mean recall@k of a random order of `size` entries for queries with so many positives."""
    missed = [math.comb(size - p, min(k, size)) / math.comb(size, min(k, size)) for p in positives]
    return float(1 - np.mean(missed))


def mean_directions(
    features: Float[np.ndarray, "R D"], count: int
) -> Float32[np.ndarray, "R//{count} D"]:
    """Unit mean of every `count` unit rows: the prompts of a class, the frames of a video."""
    mean = features.reshape(-1, count, features.shape[-1]).astype(np.float64).mean(1)
    norm = np.linalg.norm(mean, axis=-1, keepdims=True)
    return (mean / np.maximum(norm, np.finfo(np.float32).tiny)).astype(np.float32)


def _comparable(scores: Float32[np.ndarray, "*N"]) -> Float32[np.ndarray, "*N"]:
    return np.where(np.isnan(scores), np.float32(-np.inf), scores)
