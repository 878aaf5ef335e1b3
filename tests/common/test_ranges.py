"""Values out of their range are named with their key and what they may be."""

import math

import pytest

from negclip_jax.common.errors import InputError
from negclip_jax.common.ranges import NOT_NEGATIVE, POSITIVE, SHARE, check_values

CHOICES = {"by": ("auto", "llm")}
RANGES = {"share": SHARE, "tries": POSITIVE, "wait": NOT_NEGATIVE}
GOOD = {"by": "llm", "share": 1.0, "tries": 1, "wait": 0}


@pytest.mark.parametrize("key", ["share", "tries", "wait"])
def test_what_is_right_passes_and_none_too(key):
    check_values(GOOD.get, CHOICES, RANGES)
    check_values({**GOOD, key: None}.get, CHOICES, RANGES)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("by", "guess", "set.by is 'guess'; it must be one of auto, llm"),
        ("by", None, "set.by is None; it must be one of auto, llm"),
        ("share", 1.5, "set.share is 1.5; it must be between 0 and 1"),
        ("share", math.nan, "set.share is nan; it must be between 0 and 1"),
        ("tries", 0, "set.tries is 0; it must be at least 1"),
        ("wait", -0.1, "set.wait is -0.1; it must be at least 0"),
    ],
)
def test_what_is_wrong_is_named(key, value, said):
    with pytest.raises(InputError) as caught:
        check_values({**GOOD, key: value}.get, CHOICES, RANGES, prefix="set.")
    assert str(caught.value) == said
