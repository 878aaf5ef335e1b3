"""`report.html` of text-to-image: the pictures of both encoders side by side, and the numbers.

Made from `results.json` and the pictures beside it. The page holds small copies, so that it can be
sent to somebody alone; each links to the picture itself.
"""

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from evals import pages, plots
from evals.text_to_image.pipelines import MODELS
from evals.text_to_image.scores import METRICS, RESULTS, difference_text

PAGE, _TEMPLATE = "report.html", "text_to_image.html"
_SIDE, _QUALITY = 176, 72  # of a small copy: pixels of the longer side, JPEG quality
_ANSWER_SHOWN = 300  # characters
_COLOURS = {model: plots.colour(i) for i, model in enumerate(MODELS)}
_PROTOCOLS = {
    "vqa": "A visual question answering model was asked two questions about each picture: what the "
    "prompt asks for must be answered by a plain yes, what it denies by a plain no; any other "
    "answer is wrong (protocol of SpaceVLM).",
    "clip_stand_in": "No visual question answering model has seen these pictures. A CLIP compared "
    "them with statements: a picture must be nearer to the affirmative one than to “a photo”, and "
    "than to the prompt without its negating word. Compare models, and do not compare these "
    "numbers with those of a judge.",
}


def write(out: Path) -> Path:
    """Makes the page from `results.json` in `out`; a picture that is gone is left out."""
    content = json.loads((out / RESULTS).read_text(encoding="utf-8"))
    judge = content["judge"]
    prompts = content["prompts"]
    if content["scores"]:
        prompts = sorted(prompts, key=_gain)
    page = pages.render(
        _TEMPLATE,
        judge=judge and judge | {"protocol": _PROTOCOLS[judge["kind"]]},
        drawn=f"{content['drawn']:,}",
        unfinished=_unfinished(content),
        notes=content["notes"],
        rows=[_row(content, name) for name in METRICS] if content["scores"] else [],
        other_answers=_other_answers(content),
        models=[
            {"name": model, "colour": _COLOURS[model], "facts": content["models"][model]}
            for model in MODELS
        ],
        prompts=[_prompt(out, prompt) for prompt in prompts],
        environment=content["environment"],
    )
    (out / PAGE).write_text(page, encoding="utf-8")
    return out / PAGE


def _gain(prompt: Mapping[str, Any]) -> float:
    """Tuned minus base; what cannot be compared goes between losses and wins."""
    base, tuned = (prompt["score"][model] for model in MODELS)
    return 0.0 if None in (base, tuned) else tuned - base


def _unfinished(content: Mapping[str, Any]) -> str:
    judged, drawn = content["judged"], content["drawn"]
    if content["judge"] is None or judged == drawn:
        return ""
    return (
        f"{judged:,} of {drawn:,} pictures are judged, and the numbers are theirs alone; the same "
        "command continues."
    )


def _other_answers(content: Mapping[str, Any]) -> list[str]:
    return [
        f"{counts['other']:,} of {sum(counts.values()):,} answers about pictures of {model} were "
        "no plain yes or no and count as wrong"
        for model, counts in content["answers"].items()
        if counts["other"]
    ]


def _row(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = [content["scores"].get(model, {}).get(name) for model in MODELS]
    change = content["difference"].get(name)
    return {
        "title": METRICS[name],
        "cells": [_cell(model, value) for model, value in zip(MODELS, found, strict=True)],
        "change": change and difference_text(change),
        "separable": bool(change and change["separable"]),
        "plot": plots.intervals(found),
    }


def _cell(model: str, value: Mapping[str, Any] | None) -> dict[str, Any]:
    cell = {"model": model, "colour": _COLOURS[model], "value": None}
    if value is None:
        return cell
    percent = {key: f"{100 * value[key]:.1f}" for key in ("value", "low", "high")}
    return cell | percent | {"n": value["n"], "method": value["method"]}


def _prompt(out: Path, prompt: Mapping[str, Any]) -> dict[str, Any]:
    questions = [prompt["present"], *prompt["absent"]]
    return {
        "text": prompt["text"],
        "asked": " ".join(filter(None, questions)),
        "sides": [_side(out, prompt, model) for model in MODELS],
        "others": [
            f"{model}, picture {picture['index'] + 1}: {reason['asked']} "
            f"“{_shortened(reason['answer'])}”"
            for model in MODELS
            for picture in prompt["pictures"][model]
            for reason in picture["reasons"]
            if not reason["plain"]
        ],
    }


def _side(out: Path, prompt: Mapping[str, Any], model: str) -> dict[str, Any]:
    pictures = [_picture(out, picture) for picture in prompt["pictures"][model]]
    return {
        "model": model,
        "colour": _COLOURS[model],
        "right": sum(bool(picture["both"]) for picture in pictures),
        "judged": sum(picture["judged"] for picture in pictures),
        "pictures": pictures,
    }


def _picture(out: Path, picture: Mapping[str, Any]) -> dict[str, Any]:
    lines = [f"{r['asked']} {_shortened(r['answer'])}" for r in picture["reasons"]]
    return {
        **{name: picture[name] for name in ("index", "file", "blank", "affirmative", "negation")},
        "judged": picture["affirmative"] is not None,
        "both": picture["affirmative"] and picture["negation"],
        "title": "\n".join([f"seed {picture['seed']}", *lines]),
        "uri": _small(out / picture["file"]),
    }


def _shortened(text: str) -> str:
    return text if len(text) <= _ANSWER_SHOWN else text[:_ANSWER_SHOWN] + "…"


def _small(path: Path) -> str:
    """A picture as a JPEG data URI; empty where it is gone."""
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except OSError:
        return ""
    small.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
