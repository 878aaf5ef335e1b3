"""Three models of which the second was tuned in its text tower alone, the third in both."""

import dataclasses

import numpy as np
import pytest

from evals.search.folder import PhotoFolder
from evals.search.live import Live


@pytest.fixture(scope="session")
def three_models(tiny_model, other_model):
    rng = np.random.default_rng(7)
    projection = tiny_model.params["text_projection"]
    text = rng.standard_normal(projection.shape).astype(np.float32)
    params = tiny_model.params | {"text_projection": text}
    base = dataclasses.replace(tiny_model, name="base")
    return [base, dataclasses.replace(base, name="text <b>tuned</b>", params=params), other_model]


@pytest.fixture(scope="session")
def live(three_models, photos, tmp_path_factory):
    """They, and 12 photos."""
    from tiny_runs import use_one_device

    with pytest.MonkeyPatch.context() as patch:
        use_one_device(patch)
        cache = tmp_path_factory.mktemp("live")
        yield Live(three_models, PhotoFolder(photos.data), cache=cache)
