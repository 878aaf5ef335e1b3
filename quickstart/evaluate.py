"""Ask models the questions of a held-out world and count right answers, with 95 % intervals.

    python -m quickstart.evaluate --model=base=exported/base --model=tuned=exported/tuned \\
        --world=runs/quickstart/world/heldout --out=runs/quickstart/evaluation.json

A model is a Hugging Face CLIP directory. Every image and every distinct caption is encoded once.
"""

import argparse
import collections
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from negclip_jax.common import linear_probe
from negclip_jax.common.arguments import Parser
from negclip_jax.common.errors import device_errors, say
from negclip_jax.common.progress import told
from negclip_jax.common.statistics import wilson
from negclip_jax.common.tables import aligned
from negclip_jax.language.inflection import noun
from quickstart.questions import ROWS, Question, Scene, build, describe, distinct, read_scenes

# Scores (file name, caption) pairs: higher means a better match; float [N].
Scorer = Callable[[Sequence[tuple[str, str]]], np.ndarray]
_AT_A_TIME = {"image": 256, "text": 2048}  # whole batches, after each of which progress is told


def credit(scores: Sequence[float]) -> float:
    """What a choice earns when its first score is the true one's: ties share the point."""
    best = max(scores)
    return float(scores[0] == best) / sum(score == best for score in scores)


def answer(questions: Sequence[Question], score: Scorer) -> np.ndarray:
    """Points for each question, float64 [N] between 0 and 1.

    A score that is not a number loses against every number.
    """
    pairs = [(q.image, text) for q in questions for choice in q.choices for text in choice]
    scores = iter(np.nan_to_num(np.asarray(score(pairs), np.float64), nan=-np.inf))
    earned = (
        math.prod(credit([next(scores) for _ in choice]) for choice in question.choices)
        for question in questions
    )
    return np.fromiter(earned, np.float64, len(questions))


def tally(points: Iterable[float]) -> dict[str, float]:
    """Accuracy, its interval, the number of questions, and how many tie: their point is shared."""
    points = list(points)
    low, high = wilson(sum(points), len(points))
    return {
        "accuracy": round(sum(points) / len(points), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "n": len(points),
        "tied": int(sum(0 < value < 1 for value in points)),
    }


def tables(questions: Sequence[Question], points: np.ndarray) -> dict[str, Any]:
    """`rows`: a tally per row; `groups`: the same for the sub-rows of each row."""
    rows, groups = collections.defaultdict(list), collections.defaultdict(list)
    for question, value in zip(questions, points, strict=True):
        rows[question.row].append(value)
        if question.group:
            groups[question.row, question.group].append(value)
            if ": " in question.group:  # "new word: lacking, after" also counts as "new word"
                groups[question.row, question.group.split(": ")[0]].append(value)
    nested = collections.defaultdict(dict)
    for row, group in sorted(groups):
        nested[row][group] = tally(groups[row, group])
    return {"rows": {row: tally(rows[row]) for row in ROWS if row in rows}, "groups": dict(nested)}


class CosineScorer:
    """Unit features of a CLIP read from a directory; called, it scores pairs by their cosine.

    Every image and every distinct text is encoded once. Raises what reading the directory raises.
    """

    def __init__(self, directory: str | Path, images: Path):
        from negclip_jax import CLIP  # here, so that scoring rules can be used without jax

        self._name, self._folder = str(directory), images
        self._model = CLIP.from_pretrained(self._name)
        self._known: dict[str, dict[str, np.ndarray]] = {"image": {}, "text": {}}

    def images(self, files: Sequence[str]) -> np.ndarray:
        """float64 `[N, D]` of files in the folder of images."""
        return self._features("image", files)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """float64 `[N, D]`."""
        return self._features("text", texts)

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        files, texts = zip(*pairs, strict=True)
        return np.sum(self.images(files) * self.texts(texts), axis=1)

    def _features(self, kind: str, names: Sequence[str]) -> np.ndarray:
        known = self._known[kind]
        if new := [name for name in dict.fromkeys(names) if name not in known]:
            is_text = kind == "text"
            embed = self._model.embed_texts if is_text else self._model.embed_images
            size = _AT_A_TIME[kind]
            what = f"{self._name}: batches of {size} {kind}s"
            for start in told(range(0, len(new), size), what):
                part = new[start : start + size]
                rows = embed(part if is_text else [self._folder / name for name in part])
                known |= zip(part, rows.astype(np.float64), strict=True)
        return np.stack([known[name] for name in names])


def retrieval(scenes: Sequence[Scene], encoder: CosineScorer) -> dict[str, list[float]]:
    """Points of each scene and of each affirmative caption that is looked for among its group.

    As in `recall_at_1` a first place that several share is shared.
    """
    points = collections.defaultdict(list)
    for group in distinct(scenes):
        scores = encoder.images([scene.image for scene in group]) @ encoder.texts(
            [describe(scene.objects) for scene in group]
        ).T  # fmt: skip
        for i in range(len(group)):
            for row, found in (("image_to_text", scores[i]), ("text_to_image", scores[:, i])):
                points[row].append(credit([found[i], *np.delete(found, i)]))
    return points


def axes(scenes: Sequence[Scene], encoder: CosineScorer) -> dict[str, float]:
    """alpha, beta and gamma of "there is an X" and "there is no X", means over kinds.

    See `evals.polarity`.
    """
    from evals import polarity

    kinds, present = _kinds(scenes)
    said = [[f"there is {noun(k).a}" for k in kinds], [f"there is no {noun(k).one}" for k in kinds]]
    features = (encoder.texts(texts)[None] for texts in said)
    images = encoder.images([scene.image for scene in scenes])
    means = polarity.axes(images, present, *features)[0].mean(axis=0)
    return dict(zip(("alpha", "beta", "gamma"), means.round(4).tolist(), strict=True))


def probe(directory: str | Path, train: Path, heldout: Path, seed: int) -> dict[str, Any]:
    """What a model's image side allows: the questions that name one kind, asked of its images.

    "There is an X" beats "there is no X" on an image where the image's vector lies on one side of
    a plane. So the planes that tell best where X is, fitted on the training scenes
    (`evals.polarity`), are what rows of polarity and existence can be held against; not a strict
    bound, as another loss finds them.

    Returns:
      A tally per row of both splits, as "train" and "heldout"; "train" well above "heldout" says
      that the planes know the scenes, not the kinds.
    """
    scenes, features = {}, {}
    for split, folder in (("train", train), ("heldout", heldout)):
        scenes[split] = read_scenes(folder / "instances.json", seed)
        encoder = CosineScorer(directory, folder / "images")
        features[split] = encoder.images([scene.image for scene in scenes[split]])
    kinds, present = _kinds(scenes["train"])
    weights, thresholds = linear_probe.fit(features["train"], present)
    number, found = {kind: i for i, kind in enumerate(kinds)}, {}
    for split, rows in features.items():
        points = collections.defaultdict(list)
        for scene, scores in zip(scenes[split], rows @ weights - thresholds, strict=True):
            if scene.is_annotated and {scene.absent[0], scene.present[0]} <= number.keys():
                x, y = (scores[number[kind]] for kind in (scene.absent[0], scene.present[0]))
                points["existence"].append(float(x < y))
                points["absent_polarity"].append(float(x < 0))
                points["present_polarity"].append(float(y > 0))
                points["both_polarities"].append(float(x < 0 < y))
        found[split] = {row: tally(values) for row, values in points.items()}
    return found


def _kinds(scenes: Sequence[Scene]) -> tuple[list[str], np.ndarray]:
    """The kinds that are in some scene and not in all, and bool `[N, K]` where they are."""
    kinds = sorted({kind for scene in scenes for kind in scene.present})
    present = np.array([[kind in scene.present for kind in kinds] for scene in scenes])
    told = present.any(axis=0) & ~present.all(axis=0)
    return [k for k, is_told in zip(kinds, told, strict=True) if is_told], present[:, told]


def gallery(scenes: Sequence[Scene], scorers: Mapping[str, Scorer], size: int) -> list[dict]:
    """For some scenes, true and false captions and each model's score of them."""
    shown = []
    for scene in scenes[:size]:
        x, (y, z) = noun(scene.absent[0]), (noun(name) for name in scene.present[:2])
        texts = [
            (f"{y.a} with no {x.one}", True),
            (f"{y.a} with no {z.one}", False),
            (f"there is no {x.one}", True),
            (f"there is no {y.one}", False),
            (f"there is {y.a}", True),
            (f"there is {x.a}", False),
        ]
        pairs = [(scene.image, text) for text, _ in texts]
        scores, captions = {name: score(pairs) for name, score in scorers.items()}, []
        for i, (text, is_true) in enumerate(texts):
            found = {name: round(float(values[i]), 4) for name, values in scores.items()}
            captions.append({"text": text, "true": is_true, "scores": found})
        shown.append({"image": scene.image, "captions": captions})
    return shown


def evaluate(
    models: Mapping[str, str], world: Path, seed: int, shown: int, train: Path | None = None
) -> dict[str, Any]:
    """Everything the report needs, for models given as name to directory.

    With `train`, the training split, also what the image side of the first model allows.
    """
    scenes = read_scenes(world / "instances.json", seed)
    questions = build(scenes)
    scorers = {name: CosineScorer(where, world / "images") for name, where in models.items()}
    results = {}
    for name, encoder in scorers.items():
        results[name] = tables(questions, answer(questions, encoder))
        results[name]["rows"] |= {k: tally(v) for k, v in retrieval(scenes, encoder).items()}
        results[name]["axes"] = axes(scenes, encoder)
    examples = {row: [q.choices for q in questions if q.row == row][:3] for row in ROWS}
    found = {"models": results, "gallery": gallery(scenes, scorers, shown), "examples": examples}
    if train is not None:
        found["probe"] = probe(next(iter(models.values())), train, world, seed)
    return found


def table_text(results: Mapping[str, Any]) -> str:
    """The table for a terminal, one line per row and one column per model, in percent."""
    percent, models = "{accuracy:6.1%} [{low:5.1%}, {high:5.1%}]", [*results]
    lines = [["", *models]]
    for row in ROWS:
        if all(row in results[name]["rows"] for name in models):
            cells = (percent.format_map(results[name]["rows"][row]) for name in models)
            lines.append([row, *(cell.replace("%", "") for cell in cells)])
    tied = [
        f"{name}: {cell['tied']} of {cell['n']} answers of {row} tie and share their point"
        for name in models
        for row, cell in results[name]["rows"].items()
        if cell["tied"]
    ]
    return "\n".join([aligned(lines, right=True), *tied])


def _named_model(text: str) -> tuple[str, str]:
    name, equals, directory = text.partition("=")
    if not (name and equals and directory):
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=DIRECTORY")
    return name, directory


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("python -m quickstart.evaluate", __doc__)
    add = parser.add_argument
    add("--model", type=_named_model, action="append", required=True, metavar="NAME=DIR")
    add("--world", type=Path, required=True, help="folder with instances.json and images/")
    add("--train", type=Path, help="training split, to fit a linear probe of the first model on")
    add("--out", type=Path, required=True, help="JSON file to write")
    add("--seed", type=int, default=0, help="which objects are asked about")
    add("--gallery", type=int, default=12, help="scenes to keep for the report's gallery")
    args = parser.parse_args(argv)
    if len(dict(args.model)) < len(args.model):
        parser.error("two models have one name: give each --model a NAME of its own")
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.open("a").close()  # a folder that takes no file is found before the work
        with device_errors():
            models = dict(args.model)
            results = evaluate(models, args.world, args.seed, args.gallery, args.train)
        args.out.write_text(json.dumps(results, indent=1), encoding="utf-8")
    except (OSError, ValueError) as error:
        sys.exit(f"quickstart.evaluate: {error}")
    print("\nRight answers on held-out scenes, percent [95 % interval]\n")
    say(table_text(results["models"]))
    for name, found in results["models"].items():
        told = ", ".join(f"{axis} {value:+.3f}" for axis, value in found["axes"].items())
        say(f"{name}: {told}")
    for split, rows in results.get("probe", {}).items():
        cells = ", ".join(f"{row} {100 * found['accuracy']:.1f}" for row, found in rows.items())
        say(f"linear probe of the first model's images, {split} scenes: {cells}")


if __name__ == "__main__":
    main()
