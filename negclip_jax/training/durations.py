"""Durations in the unit that fits the thought: steps, epochs, examples or a share of the run."""

import dataclasses
import math
import re

from negclip_jax.common.errors import InputError

_PATTERN = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:e[0-9]+)?)\s*([a-z]+)\s*")


@dataclasses.dataclass(frozen=True)
class Clock:
    """Converts durations such as "15 epochs" into steps.

    Attributes:
      batch_size: examples a step.
      steps_per_epoch: full batches in one pass over the training pairs.
      total_steps: length of the run; None until it is known, then "percent" has no meaning.
    """

    batch_size: int
    steps_per_epoch: int
    total_steps: int | None = None

    def steps(self, duration: str, what: str) -> int:
        """Steps of a duration, rounded to the nearest; at least 1 unless the duration is zero.

        Raises InputError naming the configuration key `what`.
        """
        match = _PATTERN.fullmatch(duration)
        unit = self._units().get(match[2].rstrip("s")) if match else None
        if match is None or unit is None:
            raise InputError(
                f"{what}: cannot read {duration!r}; write a number and one of "
                "steps, epochs, examples, percent, as in '15 epochs'"
            )
        amount = float(match[1].replace("_", ""))
        return max(1, math.floor(amount * unit + 0.5)) if amount else 0

    def due(self, step: int, every: int) -> bool:
        """True at each multiple of `every` and at the end of the run; never when `every` is 0."""
        return bool(every) and (step % every == 0 or step == self.total_steps)

    def _units(self) -> dict[str, float]:
        units = {
            "step": 1.0,
            "epoch": float(self.steps_per_epoch),
            "example": 1 / self.batch_size,
        }
        if self.total_steps is not None:
            units["percent"] = self.total_steps / 100
        return units
