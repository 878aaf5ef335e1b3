"""From verdicts to `results.json`, `report.html` and the lines on the terminal.

The number of a prompt is the mean over its pictures, that of a model the mean over prompts.
Pictures of one prompt share its difficulty, so that intervals and differences come from a bootstrap
over prompts.

The page holds small copies of the pictures, so that it can be sent alone; each links to the picture
itself.
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
from negclip_jax.common import strict_json
from negclip_jax.common.page.template import write_page
from negclip_jax.common.page.thumbnails import file_thumbnail
from negclip_jax.common.statistics import change_text, interval_text
from negclip_jax.common.tables import aligned

RESULTS = "results.json"
PAGE = "report.html"
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
    """The numbers and every picture, as JSON keeps them; `verdicts` of those judged."""
    places = {prompt.text: place for place, prompt in enumerate(prompts)}
    stride = 1 + max((picture.index for picture in pictures), default=0)
    of_model = {model: {p: v for p, v in verdicts.items() if p.model == model} for model in MODELS}
    metrics: dict[str, dict[str, Metric]] = {}
    for model, found in of_model.items():
        if not found:
            continue
        place = np.array([places[picture.prompt] for picture in found])
        items = place * stride + np.array([picture.index for picture in found])
        weights = 1 / np.bincount(place)[place]  # every prompt counts the same
        metrics[model] = {}
        for name in METRICS:
            values = np.array([float(getattr(verdict, name)) for verdict in found.values()])
            metrics[model][name] = Metric(name, values, items, place, weights, unit="prompts")
    difference = {}  # tuned minus base on the pictures that were judged of both
    if len(metrics) == len(MODELS):
        base, tuned = (metrics[model] for model in MODELS)
        if np.intersect1d(base["both"].items, tuned["both"].items).size:
            difference = {name: tuned[name].compare(base[name], seed=seed) for name in METRICS}
    described = []
    for prompt in prompts:
        shown: dict[str, list[dict[str, Any]]] = {model: [] for model in MODELS}
        judged: dict[str, list[bool]] = {model: [] for model in MODELS}
        for picture in (picture for picture in pictures if picture.prompt == prompt.text):
            row = {name: getattr(picture, name) for name in ("index", "seed", "file", "blank")}
            row |= {"affirmative": None, "negation": None, "reasons": []}
            if verdict := verdicts.get(picture):
                row |= {"affirmative": verdict.affirmative, "negation": verdict.negation}
                keys = ("asked", "answer", "holds", "plain")
                row["reasons"] = [dict(zip(keys, r, strict=True)) for r in verdict.reasons]
                judged[picture.model].append(verdict.both)
            shown[picture.model].append(row)
        score = {model: float(np.mean(held)) if held else None for model, held in judged.items()}
        described.append(dataclasses.asdict(prompt) | {"score": score, "pictures": shown})
    return {
        "drawn": len(pictures),
        "judged": len(verdicts),
        "blank": sum(picture.blank for picture in pictures),
        "scores": {
            model: {n: dataclasses.asdict(m.estimate(seed=seed)) for n, m in found.items()}
            for model, found in metrics.items()
        },
        "difference": {name: dataclasses.asdict(change) for name, change in difference.items()},
        "answers": {model: count_answers(found) for model, found in of_model.items()},
        "prompts": described,
    }


def write_report(out: Path) -> Path:
    """Makes the page from `results.json` in `out`; a picture that is gone is left out."""
    content = strict_json.read_json(out / RESULTS)
    judge, scores, prompts = content["judge"], content["scores"], content["prompts"]
    thumbnails = {}
    for prompt in prompts:
        shown = [(m, p) for m, pictures in prompt["pictures"].items() for p in pictures]
        thumbnails |= {p["file"]: file_thumbnail(out / p["file"]) for _, p in shown}
        reasons = ((m, p, reason) for m, p in shown for reason in p["reasons"])
        prompt["unclear"] = [row for row in reasons if not row[2]["plain"]]
        base, tuned = (prompt["score"][model] for model in MODELS)
        # What cannot be compared goes between losses and wins.
        prompt["gain"] = 0.0 if None in (base, tuned) else tuned - base
    if scores:
        prompts = sorted(prompts, key=lambda prompt: prompt["gain"])
    return write_page(
        out / PAGE,
        Path(__file__).with_name("page.html"),
        **{key: content[key] for key in ("judged", "drawn", "notes", "answers", "difference")},
        judge=judge,
        scores=scores,
        rows=[
            {"name": n, "title": t, "found": [scores.get(model, {}).get(n) for model in MODELS]}
            for n, t in METRICS.items()
        ],
        models={model: {"facts": content["models"][model]} for model in MODELS},
        prompts=prompts,
        thumbnails=thumbnails,
        environment=content["environment"],
    )


def table_text(content: Mapping[str, Any]) -> str:
    """The numbers for a terminal, in percent, under the name of whoever judged."""
    judge = content["judge"]
    if judge is None:
        return f"{content['drawn']:,} pictures, judged by nobody"
    lines = [f"{judge['label']}: {content['judged']:,} of {content['drawn']:,} pictures judged"]
    rows = []
    for name, words in METRICS.items():
        found = {model: interval_text(each[name]) for model, each in content["scores"].items()}
        rows.append([words, *(f"{model} {text}" for model, text in found.items())])
        if name in content["difference"]:
            rows[-1].append(change_text(content["difference"][name], interval=True))
    lines.append(aligned(rows))
    for model, counts in content["answers"].items():
        if counts["other"]:
            lines.append(
                f"{model}: {counts['other']:,} of {sum(counts.values()):,} answers were no plain "
                "yes or no and count as wrong"
            )
    return "\n".join(lines)
