"""Values of the right type that make no sense."""

import math

import pytest

from configs import common
from negclip_jax.common.errors import InputError
from negclip_jax.training.ranges import check_ranges


def test_the_defaults_pass():
    check_ranges(common.base())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "model.dtype",
            "float16",
            r"config\.model\.dtype is 'float16'; it must be one of float32,",
        ),
        ("data.workers", -1, r"config\.data\.workers is -1; it must be at least 0"),
        ("data.threads", 0, r"config\.data\.threads is 0; it must be at least 1"),
        ("data.foils", -1, r"config\.data\.foils is -1; it must be at least 0"),
        ("data.original_fraction", 1.5, r"is 1\.5; it must be between 0 and 1"),
        ("data.max_bad_images", -0.1, r"is -0\.1; it must be between 0 and 1"),
        ("train.ema_decay", 1.5, r"config\.train\.ema_decay is 1\.5; it must be between 0 and 1"),
        ("optim.lr", -1.0, r"config\.optim\.lr is -1\.0; it must be at least 0"),
        ("optim.lr", math.nan, r"config\.optim\.lr is nan; it must be at least 0"),
        ("optim.beta2", 2.0, r"config\.optim\.beta2 is 2\.0; it must be between 0 and 1"),
        ("optim.clip_norm", -1.0, r"config\.optim\.clip_norm is -1\.0; it must be at least 0"),
        ("checkpoint.keep", 0, r"config\.checkpoint\.keep is 0; it must be at least 1"),
    ],
)
def test_a_value_out_of_range_is_named(key, value, message):
    config = common.base()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(InputError, match=message):
        check_ranges(config)
