"""Durations in steps, epochs, examples and percent."""

import pytest

from negclip_jax.common.errors import InputError
from negclip_jax.training.durations import Clock

CLOCK = Clock(batch_size=32, steps_per_epoch=50, total_steps=400)


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ("500 steps", 500),
        ("1 step", 1),
        ("15 epochs", 750),
        ("0.5 epochs", 25),
        ("1_000 examples", 31),
        ("100_000 examples", 3125),
        ("1_008 examples", 32),
        ("1 examples", 1),
        ("10 percent", 40),
        ("2.5 percent", 10),
        ("1e3 steps", 1000),
        ("  7  steps ", 7),
        ("0 steps", 0),
        ("0 epochs", 0),
        ("0.001 percent", 1),
    ],
)
def test_steps_of_a_duration(duration, steps):
    assert CLOCK.steps(duration, "eval.every") == steps


@pytest.mark.parametrize(
    "duration",
    ["", "5", "steps", "5 minutes", "-5 steps", "five steps", "5 steps 3", "1,000 steps"],
)
def test_what_cannot_be_read_names_key_and_units(duration):
    with pytest.raises(InputError, match=r"eval\.every: cannot read .*steps, epochs, examples"):
        CLOCK.steps(duration, "eval.every")


def test_percent_needs_a_length():
    with pytest.raises(InputError, match=r"train\.total: cannot read '10 percent'"):
        Clock(batch_size=32, steps_per_epoch=50).steps("10 percent", "train.total")


def test_due_at_multiples_and_at_the_end():
    assert [step for step in range(1, 401) if CLOCK.due(step, 150)] == [150, 300, 400]
    assert not any(CLOCK.due(step, 0) for step in range(1, 401))
