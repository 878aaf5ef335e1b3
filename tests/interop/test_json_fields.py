import dataclasses

import pytest

from negclip_jax.interop.json_fields import fields, typed


@dataclasses.dataclass
class Section:
    width: int = 3
    image_size: int = 8
    token_id: int = 5
    eps: float = 0.5
    name: str = "gelu"


KEYS = {"w": "width", "their_size": "image_size", "i": "token_id", "e": "eps", "n": "name"}


def test_values_that_are_absent_keep_their_default():
    section = {"w": 7, "e": 1, "other": None}
    assert fields(section, KEYS, "text.", Section()) == {"width": 7, "eps": 1}


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("w", "7", "text.w is '7', which is not one whole number"),
        ("w", True, "is True"),
        ("w", 0, "too small"),
        ("e", float("inf"), "not finite"),
        ("n", 3, "not a name"),
    ],
)
def test_values_of_another_type(key, value, reason):
    with pytest.raises(ValueError, match=reason):
        fields({key: value}, KEYS, "text.", Section())


def test_sizes_may_be_written_twice():
    assert typed([8, 8], 3, "image_size") == 8
    with pytest.raises(ValueError, match=r"\[8, 9\]"):
        typed([8, 9], 3, "image_size")
    assert typed(0, 3, "token_id") == 0
