"""Means over pictures, then prompts; intervals over prompts; partial judging."""

import json

import numpy as np
import pytest

from evals.text_to_image import scores
from evals.text_to_image.judge import Verdict
from evals.text_to_image.pictures import Picture
from evals.text_to_image.prompts import Prompt
from negclip_jax.common import storage

PROMPTS = [Prompt("no a", "Is it?", ("Is a?",)), Prompt("no b", "Is it?", ("Is b?",))]


def picture(model, prompt, index):
    return Picture(model, prompt.text, index, f"{model}-{prompt.text}-{index}.png", 7, "ab")


def verdict(affirmative, negation, was_plain=True):
    answer = "no" if was_plain else "perhaps"
    return Verdict(affirmative, negation, (("Is it?", answer, affirmative, was_plain),))


def table(rows):
    """`{(model, prompt's place, index): (affirmative, negation)}` to pictures and verdicts."""
    pictures = {picture(m, PROMPTS[p], i): v for (m, p, i), v in rows.items()}
    return list(pictures), {p: verdict(*v) for p, v in pictures.items() if v is not None}


FULL = {
    ("base", 0, 0): (True, True),
    ("base", 0, 1): (True, False),
    ("base", 1, 0): (False, True),
    ("base", 1, 1): (False, False),
    ("tuned", 0, 0): (True, True),
    ("tuned", 0, 1): (True, True),
    ("tuned", 1, 0): (True, True),
    ("tuned", 1, 1): (True, False),
}


def test_scores_are_products_per_picture():
    found = scores.document(PROMPTS, *table(FULL), seed=0)
    values = {m: {n: e["value"] for n, e in s.items()} for m, s in found["scores"].items()}
    assert values["base"] == pytest.approx({"both": 0.25, "affirmative": 0.5, "negation": 0.5})
    assert values["tuned"] == pytest.approx({"both": 0.75, "affirmative": 1, "negation": 0.75})
    assert found["difference"]["both"]["difference"] == pytest.approx(0.5)
    assert (found["difference"]["both"]["gained"], found["difference"]["both"]["lost"]) == (2, 0)
    assert found["scores"]["base"]["negation"]["method"] == "Wilson"
    assert [p["score"] for p in found["prompts"]] == [
        {"base": 0.5, "tuned": 1.0},
        {"base": 0.0, "tuned": 0.5},
    ]


def test_every_prompt_counts_the_same_however_many_pictures_are_judged():
    rows = FULL | {("base", 0, 1): None}
    found = scores.document(PROMPTS, *table(rows), seed=0)
    assert found["scores"]["base"]["both"]["value"] == pytest.approx((1 + 0) / 2)
    assert found["scores"]["base"]["both"]["n"] == 3
    assert found["difference"]["both"]["n"] == 3  # the pictures that were judged of both
    assert (found["judged"], found["drawn"]) == (7, 8)
    assert found["prompts"][0]["pictures"]["base"][1]["affirmative"] is None


def test_intervals_are_over_prompts_and_wider_than_over_pictures():
    """Forty prompts of eight pictures that all agree: 40 draws, not 320."""
    prompts = [Prompt(f"no {i}") for i in range(40)]
    right = np.random.default_rng(0).integers(0, 2, 40).astype(bool)
    verdicts = {
        Picture(model, prompt.text, index, "", 0, "ab"): verdict(bool(ok), bool(ok))
        for model in ("base", "tuned")
        for prompt, ok in zip(prompts, right, strict=True)
        for index in range(8)
    }
    estimate = scores.document(prompts, list(verdicts), verdicts, seed=0)["scores"]["base"]["both"]
    assert estimate["method"] == "bootstrap over 40 prompts"
    width = estimate["high"] - estimate["low"]
    assert width == pytest.approx(2 * 1.96 * np.sqrt(right.var() / 40), rel=0.1)


def test_nothing_judged():
    found = scores.document(PROMPTS, *table(dict.fromkeys(FULL)), seed=0)
    assert found["scores"] == {} and found["difference"] == {} and found["judged"] == 0
    text = scores.table_text(found | {"judge": None})
    assert text == "8 pictures, judged by nobody"


def test_one_model_judged():
    rows = {key: value if key[0] == "base" else None for key, value in FULL.items()}
    found = scores.document(PROMPTS, *table(rows), seed=0)
    assert set(found["scores"]) == {"base"} and found["difference"] == {}


def test_the_terminal_names_the_judge_and_counts_other_answers(tmp_path):
    pictures, verdicts = table(FULL)
    verdicts[pictures[0]] = verdict(False, True, was_plain=False)
    found = scores.document(PROMPTS, pictures, verdicts, seed=0)
    text = scores.table_text(found | {"judge": {"label": "CLIP stand-in, not a VQA judge"}})
    assert text.startswith("CLIP stand-in, not a VQA judge: 8 of 8 pictures judged\n")
    assert "base: 1 of 4 answers were no plain yes or no" in text
    assert "both right" in text and "(3 up, 0 down" in text
    storage.write_json(tmp_path / scores.RESULTS, found)
    written = json.loads((tmp_path / scores.RESULTS).read_text())
    assert written == json.loads(json.dumps(found))
