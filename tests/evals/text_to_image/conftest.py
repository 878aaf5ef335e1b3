"""Tiny pipelines, a tuned checkpoint and prompts for the tests of text-to-image."""

import json

import numpy as np
import pytest
from PIL import Image

PROMPTS = [
    {"Prompt": "a man not wearing a hat", "Question1": "Is this a man?",
     "Question2": "Is the man wearing a hat?"},
    {"Prompt": "a room with no <b>window</b>", "Question1": "Is this a room?",
     "Question2": "Is there a window in the room?"},
    {"Prompt": "a dog without a collar", "Question1": "Is this a dog?",
     "Question2": ["Does the dog have a collar?", "Does the dog wear clothes?"]},
]  # fmt: skip


@pytest.fixture(scope="session")
def sd(tiny_vocabulary, tmp_path_factory):
    """Directory of a tiny Stable Diffusion 1.x."""
    from tiny_pipelines import write_pipeline

    return write_pipeline(tmp_path_factory.mktemp("sd") / "sd", tiny_vocabulary)


@pytest.fixture(scope="session")
def sdxl(tiny_vocabulary, tmp_path_factory):
    """Directory of a tiny SDXL."""
    from tiny_pipelines import write_pipeline

    return write_pipeline(tmp_path_factory.mktemp("sdxl") / "sdxl", tiny_vocabulary, xl=True)


@pytest.fixture(scope="session")
def prompt_file(tmp_path_factory):
    """Three prompts in the published layouts, one with markup, one with two questions."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.json"
    path.write_text(json.dumps(PROMPTS))
    return path


@pytest.fixture
def prompts(prompt_file):
    from evals.text_to_image.prompts import read_prompts

    return read_prompts(prompt_file)


@pytest.fixture
def drawn(prompts, tmp_path):
    """`(out, pictures)`: two noise pictures a prompt and model, as `Pictures` leaves them."""
    from evals.text_to_image.pictures import Pictures

    class Painter:
        """Draws noise by seed and model instead of a pipeline."""

        def draw(self, model, prompt, seeds):
            start = len(model)
            rngs = [np.random.default_rng([seed, start]) for seed in seeds]
            return [Image.fromarray(r.integers(0, 256, (32, 32, 3), np.uint8)) for r in rngs]

    out = tmp_path / "out"
    texts = [prompt.text for prompt in prompts]
    return out, Pictures(out, {"steps": 2}, 0).draw(Painter(), texts, 2, batch_size=1)
