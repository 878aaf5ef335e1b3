"""`report.html` of text-to-image: the pictures of both encoders side by side, and the numbers.

The page holds small copies of the pictures, so that it can be sent alone; each links to the picture
itself.
"""

from pathlib import Path

from evals.text_to_image.pipelines import MODELS
from evals.text_to_image.scores import METRICS, RESULTS
from negclip_jax.common import strict_json
from negclip_jax.common.page.template import write_page
from negclip_jax.common.page.thumbnails import file_thumbnail

PAGE = "report.html"
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
    content = strict_json.read_json(out / RESULTS)
    judge, scores, prompts = content["judge"], content["scores"], content["prompts"]
    for prompt in prompts:
        prompt["unclear"] = [
            (model, picture, reason)
            for model, pictures in prompt["pictures"].items()
            for picture in pictures
            for reason in picture["reasons"]
            if not reason["plain"]
        ]
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
        protocol=judge and _PROTOCOLS[judge["kind"]],
        scores=scores,
        rows=[
            {"name": n, "title": t, "found": [scores.get(model, {}).get(n) for model in MODELS]}
            for n, t in METRICS.items()
        ],
        models={model: {"facts": content["models"][model]} for model in MODELS},
        prompts=prompts,
        thumbnails={
            picture["file"]: file_thumbnail(out / picture["file"])
            for prompt in prompts
            for pictures in prompt["pictures"].values()
            for picture in pictures
        },
        environment=content["environment"],
    )
