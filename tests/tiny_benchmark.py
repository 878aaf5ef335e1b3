"""Small benchmarks for tests of the evaluation, in the shape that real ones have."""

import json

import numpy as np

from evals.benchmark import Benchmark, Metric, Problem, Published, Result
from evals.images import ImageRef

HTML = "<script>alert('&')</script>"


def write_items(folder, images: int, name: str = "tiny.json") -> None:
    """Two items an image: a random word against another, both with markup after them."""
    letters = np.random.default_rng(0).choice([*"abcdefgh"], (2 * images, 2, 8))
    items = [
        {
            "id": f"item {i}",
            "image": f"{i // 2}.png",
            "texts": [f"{''.join(word)} {HTML}" for word in pair],
        }
        for i, pair in enumerate(letters)
    ]
    (folder / name).write_text(json.dumps(items))


def load(roots) -> Problem:
    file = roots.find("tiny.json", download="nowhere")
    every = json.loads(file.read_text())
    missing = roots.missing(item["image"] for item in every)
    items = [item for item in every if item["image"] not in missing]
    images = list(dict.fromkeys(item["image"] for item in items))
    texts = [text for item in items for text in item["texts"]]

    def score(image_rows: np.ndarray, text_rows: np.ndarray) -> Result:
        rows = image_rows[[images.index(item["image"]) for item in items]]
        scores = np.einsum("nd,nkd->nk", rows, text_rows.reshape(len(items), 2, -1))
        return result(scores)

    def result(scores: np.ndarray) -> Result:
        right = (scores[:, 0] > scores[:, 1]).astype(float)
        ids = np.array([item["id"] for item in items])
        clusters = np.array([images.index(item["image"]) for item in items])
        accuracy = Metric("accuracy", right, ids, clusters, None, 0.5, headline=True)
        other = Metric("accuracy_strict", right, ids, clusters, None, 0.5)
        columns = {
            "item": ids.tolist(),
            "images": [[images.index(item["image"])] for item in items],
            "texts": [item["texts"] for item in items],
            "scores": scores.tolist(),
            "answers": [[0]] * len(items),
            "predicted": [[int(np.argmax(row))] for row in scores],
            "right": right.tolist(),
            "parity": ["even" if i % 2 else "odd" for i in range(len(items))],
        }
        return Result([accuracy, other], columns, {"parity": "by parity"})

    return Problem(
        images=[ImageRef(name) for name in images],
        texts=texts,
        score=score,
        total=len(every),
        scored=len(items),
        missing=missing,
        file=str(file),
        notes=[f"a note with {HTML}"],
        controls={"takes the first": lambda: result(np.array([[1.0, 0.0]] * len(items)))},
    )


def load_kept(roots) -> Problem:
    """The same questions the other way round, as something that is to be kept."""
    problem = load(roots)

    def score(images: np.ndarray, texts: np.ndarray) -> Result:
        return problem.score(-images, texts)

    fields = dict(images=problem.images, texts=problem.texts, total=problem.total)
    return Problem(**fields, score=score, scored=problem.scored, missing=problem.missing)


def load_broken(roots) -> Problem:
    """One item whose photo is there and cannot be read."""

    def score(images: np.ndarray, texts: np.ndarray) -> Result:
        raise AssertionError("features of an image that nobody can read")

    return Problem([ImageRef("bad.png")], ["x"], score=score, total=1, scored=1)


COMMON = {"source": "here", "licence": "none", "download": "nowhere"}
PUBLISHED = (Published("somebody's", "accuracy", 0.75, "a paper"),)
BENCHMARK = Benchmark(
    name="tiny", title="Tiny", load=load, task="Which?", published=PUBLISHED, **COMMON
)
KEPT = Benchmark(name="kept", title="Kept", load=load_kept, retention=True, **COMMON)
BROKEN = Benchmark(name="broken", title="Broken", load=load_broken, **COMMON)
