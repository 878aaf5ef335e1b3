"""Configuration values of the right type that make no sense, found before anything is computed."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from negclip_jax.common.errors import InputError

SHARE = (0, 1)
POSITIVE = (1, math.inf)  # a count of at least one
NOT_NEGATIVE = (0, math.inf)


def check_values(
    value_of: Callable[[str], Any],
    choices: Mapping[str, Sequence[str]],
    ranges: Mapping[str, tuple[float, float]],
    *,
    prefix: str = "",
) -> None:
    """InputError for the first value that is none of its choices or out of its range.

    Least and greatest value of `ranges` are allowed, and None, which switches something off.
    `prefix`: how dotted keys are spelled in messages, e.g. "config.".
    """
    for key, allowed in choices.items():
        if (value := value_of(key)) not in allowed:
            raise InputError(f"{prefix}{key} is {value!r}; it must be one of {', '.join(allowed)}")
    for key, (low, high) in ranges.items():
        value = value_of(key)
        if value is not None and not low <= value <= high:
            limits = f"at least {low}" if high == math.inf else f"between {low} and {high}"
            raise InputError(f"{prefix}{key} is {value}; it must be {limits}")
