"""From verdicts to `results.json` and the lines on the terminal.

The number of a prompt is the mean over its pictures, that of a model the mean over prompts.
Pictures of one prompt share its difficulty, so that intervals and differences come from a bootstrap
over prompts.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evals.benchmark import Metric
from evals.text_to_image.judge import Verdict, count_answers
from evals.text_to_image.pictures import Picture
from evals.text_to_image.pipelines import MODELS
from evals.text_to_image.prompts import Prompt
from negclip_jax.common import storage
from negclip_jax.common.statistics import change_text, interval_text

RESULTS = "results.json"
METRICS = {
    "both": "both right",
    "affirmative": "what is asked for is there",
    "negation": "what is denied is absent",
}


def document(
    prompts: Sequence[Prompt],
    pictures: Sequence[Picture],
    verdicts: Mapping[Picture, Verdict],
    *,
    seed: int,
) -> dict[str, Any]:
    """The numbers and every picture, as JSON keeps them.

    Args:
      prompts: in their order.
      pictures: of both models.
      verdicts: of those that were judged.
      seed: of the bootstrap.
    """
    places = {prompt.text: place for place, prompt in enumerate(prompts)}
    stride = 1 + max((picture.index for picture in pictures), default=0)
    of_model = {model: {p: v for p, v in verdicts.items() if p.model == model} for model in MODELS}
    metrics = {
        model: {name: _metric(name, found, places, stride) for name in METRICS}
        for model, found in of_model.items()
        if found
    }
    return {
        "drawn": len(pictures),
        "judged": len(verdicts),
        "blank": sum(picture.blank for picture in pictures),
        "scores": {
            model: {name: _estimate(metric, seed) for name, metric in found.items()}
            for model, found in metrics.items()
        },
        "difference": _differences(metrics, seed),
        "answers": {model: count_answers(found) for model, found in of_model.items()},
        "prompts": [_prompt(prompt, pictures, verdicts) for prompt in prompts],
    }


def _metric(
    name: str, verdicts: Mapping[Picture, Verdict], places: Mapping[str, int], stride: int
) -> Metric:
    """A value a picture, weighted so that every prompt counts the same."""
    prompt = np.array([places[picture.prompt] for picture in verdicts])
    index = np.array([picture.index for picture in verdicts])
    return Metric(
        name,
        np.array([float(getattr(verdict, name)) for verdict in verdicts.values()]),
        items=prompt * stride + index,
        clusters=prompt,
        weights=1 / np.bincount(prompt)[prompt],
        unit="prompts",
    )


def _estimate(metric: Metric, seed: int) -> dict[str, Any]:
    return dataclasses.asdict(metric.estimate(seed=seed))


def _differences(metrics: Mapping[str, Mapping[str, Metric]], seed: int) -> dict[str, Any]:
    """Tuned minus base on the pictures that were judged of both."""
    if len(metrics) < len(MODELS):
        return {}
    base, tuned = (metrics[model] for model in MODELS)
    return {
        name: dataclasses.asdict(tuned[name].compare(base[name], seed=seed))
        for name in METRICS
        if np.intersect1d(base[name].items, tuned[name].items).size
    }


def _prompt(
    prompt: Prompt, pictures: Sequence[Picture], verdicts: Mapping[Picture, Verdict]
) -> dict[str, Any]:
    own = [picture for picture in pictures if picture.prompt == prompt.text]
    judged = {model: [verdicts[p].both for p in own if p.model == model and p in verdicts]
              for model in MODELS}  # fmt: skip
    return {
        **dataclasses.asdict(prompt),
        "score": {model: float(np.mean(held)) if held else None for model, held in judged.items()},
        "pictures": {
            model: [_picture(p, verdicts.get(p)) for p in own if p.model == model]
            for model in MODELS
        },
    }


def _picture(picture: Picture, verdict: Verdict | None) -> dict[str, Any]:
    shown = {name: getattr(picture, name) for name in ("index", "seed", "file", "blank")}
    if verdict is None:
        return shown | {"affirmative": None, "negation": None, "reasons": []}
    reasons = [
        {"asked": asked, "answer": answer, "holds": holds, "plain": was_plain}
        for asked, answer, holds, was_plain in verdict.reasons
    ]
    return shown | {
        "affirmative": verdict.affirmative,
        "negation": verdict.negation,
        "reasons": reasons,
    }


def write(out: Path, content: Mapping[str, Any]) -> None:
    """Replaces `results.json`."""
    storage.write_json(out / RESULTS, content)


def table_text(content: Mapping[str, Any]) -> str:
    """The numbers for a terminal, in percent, under the name of whoever judged."""
    judge = content["judge"]
    if judge is None:
        return f"{content['drawn']:,} pictures, judged by nobody"
    lines = [f"{judge['label']}: {content['judged']:,} of {content['drawn']:,} pictures judged"]
    width = max(map(len, METRICS.values()))
    for name, words in METRICS.items():
        cells = [
            f"{model} {interval_text(found[name])}" for model, found in content["scores"].items()
        ]
        if name in content["difference"]:
            cells.append(change_text(content["difference"][name], interval=True))
        lines.append("  ".join([words.ljust(width), *cells]))
    for model, counts in content["answers"].items():
        if counts["other"]:
            lines.append(
                f"{model}: {counts['other']:,} of {sum(counts.values()):,} answers were no plain "
                "yes or no and count as wrong"
            )
    return "\n".join(lines)
