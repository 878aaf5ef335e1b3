"""Packed captions, cached features and logits in blocks: the losses do not change."""

import functools

import jax
import numpy as np
import pytest
from tiny_runs import read_metrics

from negclip_jax.runtime import sharding
from negclip_jax.training.loop import train

CHANGES = {
    "train.total": "6 steps",
    "data.caption_mode": "mix",
    "data.foils": 1,
    "eval.every": "3 steps",
    "checkpoint.every": "6 steps",
}

ONE_ROW_MIB = 16 * 4 / 2**20  # of the logits of 16 pairs


@pytest.fixture(scope="module")
def setting(request, make_config, tmp_path_factory):
    """Function of packing and caching to metrics, on some devices in some micro-batches."""
    devices, microbatches = request.param

    @functools.cache
    def metrics(packing: bool, cache: bool) -> dict:
        workdir = tmp_path_factory.mktemp("same") / "run"
        changes = {"data.packing": packing, "data.cache_features": cache}
        changes["train.logit_block_mib"] = ONE_ROW_MIB if packing or cache else 64.0
        with pytest.MonkeyPatch.context() as patch:
            make_mesh = functools.partial(sharding.make_mesh, devices=jax.devices()[:devices])
            patch.setattr(sharding, "make_mesh", make_mesh)
            train(
                make_config(CHANGES | changes | {"train.microbatches": microbatches}),
                str(workdir),
            )
        log = (workdir / "train.log").read_text()
        assert ("(packed)" in log, "(padded)" in log) == (packing, not packing)
        assert (workdir / "features").exists() == cache
        return read_metrics(workdir)

    return metrics


ONE, FOUR = (1, 1), (4, 2)  # devices, micro-batches
# Packing and the cache; both at once first, where what either changes is seen too.
ALONE = [(setting, packing, not packing) for setting in (ONE, FOUR) for packing in (True, False)]


@pytest.mark.parametrize(
    ("setting", "packing", "cache"),
    [(ONE, True, True), pytest.param(FOUR, True, True, marks=pytest.mark.slow)]
    + [pytest.param(*each, marks=pytest.mark.long) for each in ALONE],
    indirect=["setting"],
    ids=str,
)
def test_losses_are_those_of_padded_rows_and_decoded_images(setting, packing, cache):
    expected, ours = setting(False, False), setting(packing, cache)
    losses = [expected[step]["loss"] for step in range(1, 7)]
    assert max(losses) - min(losses) > 0.05, "nothing is learned: proves little"
    for step in range(1, 7):
        np.testing.assert_allclose(ours[step]["loss"], losses[step - 1], rtol=1e-6)
    for step in (0, 3, 6):
        value = ours[step]["val/loss"]
        np.testing.assert_allclose(value, expected[step]["val/loss"], rtol=1e-6)
