"""A CLIP in a judge's place."""

import numpy as np
import pytest
import torch
import transformers

from evals.text_to_image.judge import LABEL, StandIn, _verdict
from evals.text_to_image.prompts import Prompt
from negclip_jax.common.errors import InputError

STATEMENTS = ("a photo", "a photo of a man", "a photo of a man with hat")


@pytest.mark.parametrize(
    ("cosines", "affirmative", "negation"),
    [
        ((0.1, 0.3, 0.2), True, True),
        ((0.1, 0.3, 0.4), True, False),
        ((0.4, 0.3, 0.2), False, True),
        ((0.3, 0.3, 0.3), False, False),  # ties fail
    ],
)
def test_nearer_to_the_affirmative_statement(cosines, affirmative, negation):
    verdict = _verdict(STATEMENTS, np.array(cosines))
    assert (verdict.affirmative, verdict.negation) == (affirmative, negation)
    assert (
        verdict.reasons[1][0] == "nearer to “a photo of a man” than to “a photo of a man with hat”"
    )


def test_each_denied_thing_counts():
    statements = (*STATEMENTS, "a photo of a man with tie")
    assert not _verdict(statements, np.array([0.1, 0.3, 0.2, 0.4])).negation
    assert _verdict(statements, np.array([0.1, 0.3, 0.2, 0.1])).negation


def test_verdicts_are_those_of_the_models_cosines(drawn, prompts, tiny_checkpoint, one_device_mesh):
    """By transformers' own CLIP, on the same files."""
    out, pictures = drawn
    judge = StandIn(out, prompts, str(tiny_checkpoint))
    assert judge.verdict(pictures[0]) is None
    judge.look(pictures)
    model = transformers.CLIPModel.from_pretrained(tiny_checkpoint)
    pixels, texts = [], []
    for picture in pictures:
        image = judge._model.preprocess.uint8(
            __import__("PIL.Image").Image.open(out / picture.file)
        )
        mean, std = judge._model.preprocess.mean, judge._model.preprocess.std
        pixels.append((image / 255 - np.array(mean)) / np.array(std))
        prompt = next(p for p in prompts if p.text == picture.prompt)
        texts.append(
            ["a photo", f"a photo of {prompt.affirmative}", f"a photo of {prompt.affirmed[0]}"]
        )
    ids = judge._model.tokenizer([text for row in texts for text in row])
    with torch.no_grad():
        images = model.get_image_features(
            torch.tensor(np.stack(pixels), dtype=torch.float32).permute(0, 3, 1, 2)
        )
        words = model.get_text_features(torch.tensor(ids, dtype=torch.long))
    images, words = (getattr(x, "pooler_output", x).numpy() for x in (images, words))
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    words = (words / np.linalg.norm(words, axis=1, keepdims=True)).reshape(len(pictures), 3, -1)
    cosines = np.einsum("nkd,nd->nk", words, images)
    for picture, row in zip(pictures, cosines, strict=True):
        verdict = judge.verdict(picture)
        if np.abs(row[1] - row[[0, 2]]).min() > 1e-4:
            assert verdict.affirmative == (row[1] > row[0])
            assert verdict.reasons[1][2] == (row[1] > row[2])


def test_it_says_what_it_is(drawn, prompts, tiny_checkpoint):
    judge = StandIn(drawn[0], prompts, str(tiny_checkpoint))
    assert judge.label == LABEL == "CLIP stand-in, not a VQA judge"
    assert judge.described()["neutral"] == "a photo" and "facts" in judge.described()


def test_prompts_that_do_not_negate(tmp_path):
    with pytest.raises(InputError, match=r"1 of 1 prompts do not say what is there .* 'a dog'"):
        StandIn(tmp_path, [Prompt("a dog", affirmative="a dog")], "nothing is loaded")
