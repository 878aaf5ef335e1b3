"""Reading part of a layout; the rest is tested through the layouts."""

import numpy as np
import pytest
from interop import tiny

from negclip_jax.interop import openai, parameters
from negclip_jax.interop.files import CheckpointError, StoredTensor


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return tiny.load(tiny.saved(tmp_path_factory.mktemp("hf")))


def stored(places, take):
    return {
        name: StoredTensor(slot.shape, "float32", lambda name=name: take(name))
        for name, slot in places.items()
    }


def read(tensors, config, keys):
    return parameters.read_params(
        tensors, keys, config, where="here", authority="the model", advice="Look again."
    )


def test_a_part_of_a_layout_is_read_as_a_part_of_the_tree(loaded):
    config, params = loaded
    tensors = stored(*parameters.export_tensors(params, config, openai.KEYS))
    part = {key.name.split(".")[0] for key in openai.TEXT_KEYS}
    text = {name: t for name, t in tensors.items() if name.split(".")[0] in part}
    result = read(text, config, openai.TEXT_KEYS)
    assert set(result) == {"text", "text_projection"}
    tiny.assert_equal_params(result["text"], params["text"])
    tiny.assert_equal_params(read(tensors, config, openai.KEYS), params)


def test_values_of_a_fused_tensor_that_are_not_finite(loaded):
    config, params = loaded
    places, take = parameters.export_tensors(params, config, openai.KEYS)
    name = "transformer.resblocks.1.attn.in_proj_bias"
    bad = np.array(take(name))
    bad[[0, 40, 95]] = np.nan  # one of the query, one of the key, one of the value
    tensors = stored(places, take) | {name: StoredTensor(bad.shape, "float32", lambda: bad)}
    with pytest.raises(CheckpointError) as caught:
        read(tensors, config, openai.KEYS)
    assert f"with NaN or infinity (1): {name} (3 of 96 values)" in str(caught.value)
    assert str(caught.value).endswith("Look again.")
