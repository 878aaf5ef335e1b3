"""Weight-space ensembling: mixtures of a base and a fine-tuned model, and which one to take.

Mixtures (1 - alpha) x base + alpha x tuned keep most of what the base could do and most of what
fine-tuning taught (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, arXiv
2109.01903). The curve puts the mean over negation benchmarks against the mean over those that
measure retention; the best alpha is the one with the most negation among those that lose at most
the stated retention.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from evals.models import Model
from evals.results import headlines
from negclip_jax.common.errors import InputError
from negclip_jax.interop.parameters import interpolate


def row_name(alpha: float) -> str:
    """A mixture's name in every table."""
    return f"alpha {alpha:g}"


@dataclasses.dataclass(frozen=True)
class Mixtures:
    """Mixtures of two models at several alphas, made one at a time."""

    base: Model
    tuned: Model  # of the same architecture, with the same input
    alphas: Sequence[float]  # in [0, 1], ascending, with 0 as the reference for retention

    def __post_init__(self):
        base, tuned = self.base, self.tuned
        for name in ("config", "preprocess"):
            ours, theirs = getattr(base, name), getattr(tuned, name)
            if ours != theirs:
                raise InputError(
                    f"{base.name} and {tuned.name} cannot be mixed: their {name} differs "
                    f"({ours} and {theirs})"
                )
        outside = [a for a in self.alphas if not 0 <= a <= 1]
        if outside or 0 not in self.alphas:
            raise InputError(
                f"--alphas={','.join(f'{a:g}' for a in self.alphas)}: values must lie between 0 "
                "and 1, with 0, the base, among them"
            )

    def __iter__(self) -> Iterator[Model]:
        for alpha in self.alphas:
            params = interpolate(self.base.params, self.tuned.params, alpha)
            yield dataclasses.replace(
                self.base, name=row_name(alpha), params=params, facts=self._facts(alpha)
            )

    def described(self) -> dict[str, dict[str, Any]]:
        """For the settings of `Results`: no mixture is made for it."""
        sources = {m.name: m.fingerprints for m in (self.base, self.tuned)}
        return {
            row_name(alpha): {"facts": self._facts(alpha), "fingerprint": sources}
            for alpha in self.alphas
        }

    def _facts(self, alpha: float) -> dict[str, str]:
        sources = [model.facts["weights"] for model in (self.base, self.tuned)]
        mixed = f"{1 - alpha:.3g} x {sources[0]} + {alpha:.3g} x {sources[1]}"
        return self.base.facts | {"weights": mixed}


def check_kinds(retention: Mapping[str, bool]) -> None:
    """Raises InputError unless there are benchmarks of both kinds; `{name: measures retention}`."""
    if not any(retention.values()) or all(retention.values()):
        lacking = "negation" if all(retention.values()) else "retention"
        raise InputError(
            f"--interpolate needs benchmarks of negation and of retention; among "
            f"{', '.join(retention)} none measures {lacking} (coco_retrieval and the zeroshot ones "
            "measure retention)"
        )


def curve(
    benchmarks: Mapping[str, Any],
    alphas: Sequence[float],
    retention: Mapping[str, bool],
    max_loss: float,
) -> dict[str, Any]:
    """The curve of negation against retention and its best point.

    `benchmarks` is the section of `results.json`, `retention` says which of them measure it, and
    `max_loss`, in [0, 1], how much of it may be lost against alpha 0. Returns `points` with
    `alpha`, `negation`, `retention` (means of the first headline metrics, in [0, 1]), the names
    that they are means of, `max_loss`, and `best`, an alpha.
    """
    kinds = {
        "negation": [name for name, keeps in retention.items() if not keeps],
        "retention": [name for name, keeps in retention.items() if keeps],
    }
    points = [{"alpha": alpha} for alpha in alphas]
    for point in points:
        for kind, names in kinds.items():
            entries = [(benchmarks[n]["rows"], headlines(benchmarks[n])[0]) for n in names]
            found = [rows[row_name(point["alpha"])]["metrics"][metric] for rows, metric in entries]
            point[kind] = float(np.mean([each["value"] for each in found]))
            if ties := sum(each.get("ties", 0) for each in found):
                point["ties"] = point.get("ties", 0) + ties
    reference = next(p["retention"] for p in points if p["alpha"] == 0)
    kept = [p for p in points if reference - p["retention"] <= max_loss + 1e-12]
    # Of equal negation the smaller alpha: it is nearer to what users of the base rely on.
    best = max(kept, key=lambda p: (p["negation"], -p["alpha"]))
    return {"points": points, "benchmarks": kinds, "max_loss": max_loss, "best": best["alpha"]}


def best_alpha_text(found: Mapping[str, Any]) -> str:
    """The result of `curve` as one line for a terminal and the report."""
    by_alpha = {point["alpha"]: point for point in found["points"]}
    base, best = by_alpha[0], by_alpha[found["best"]]
    tied = f". At it {best['ties']:,} items tie" if best.get("ties") else ""
    gain, change = (100 * (best[k] - base[k]) for k in ("negation", "retention"))
    return (
        f"best alpha {found['best']:g}: negation {gain:+.1f}, retention {change:+.1f} points "
        f"against alpha 0, of which at most {100 * found['max_loss']:.1f} may be lost. Chosen on "
        f"these benchmarks: their numbers at this alpha flatter it a little{tied}"
    )
