"""What a run will cost: calls, tokens, hours and money, before any of it is spent.

Rates come from a run of the same settings in `--out`, even a small one (`--sample=200` makes it),
whose answers the big run then finds in its cache; without one, from the assumptions below, which
are named as such.
"""

from dataclasses import dataclass
from pathlib import Path

from data_gen.build import Roles, images_together
from data_gen.engines.cache import read_statistics
from data_gen.generate import prepare
from data_gen.manifest import counts, read_manifest
from data_gen.records import count_values
from data_gen.settings import Settings
from negclip_jax.common.errors import InputError

# The published run kept 35.5 % of its captions (147K of 414K), if it tried them all.
ABSENT_SHARE = 0.355
ASKED_SHARE = 0.81  # of the usable ones in waves of two, at that share and five captions an image
USABLE_SHARE = 0.8  # of the proposed objects, after the local filter
ACCEPTED_SHARE = 0.9  # of the rewrites
IMAGE_TOKENS = 600  # a photo, between 300 (Qwen3-VL) and 2,341 (LLaVA-NeXT)
CAPTION_TOKENS = 14
_PROMPTS = {"propose": 170, "verify": 25, "rewrite": 180}
_ANSWERS = {"propose": 30, "verify": 1, "rewrite": 20}


@dataclass(frozen=True)
class Stage:
    """What one stage asks: calls, and tokens in and out."""

    calls: float = 0
    prompt: float = 0
    completion: float = 0


def plan(config: Settings, run: Path | None) -> str:
    """The estimate as a table. Raises InputError for input that cannot be used."""
    job = prepare(config)
    images, captions = len(job.ingested.images), job.ingested.captions
    measured = run is not None and counts(run).get("images", 0)
    if measured:
        stages, pairs, hours = _measured(config, run, images)
        basis = f"rates measured on {measured} images of {run}"
        if verdicts := count_values(run, "verdicts", "verdict"):
            share = verdicts["absent"] / verdicts.total()
            basis += f" ({share:.1%} of {verdicts.total():,} verdicts absent)"
    else:
        stages, pairs, hours = *_assumed(config, job.roles, images, captions), None
        basis = "rates assumed (data_gen/plan.py); --sample=200 --out=DIR measures them"
    lines = [
        f"{images:,} images, {captions:,} captions; {basis}",
        "",
        f"{'stage':<10}{'calls':>14}{'prompt tokens':>18}{'answer tokens':>18}{'cost':>12}",
    ]
    total = 0.0
    for name, stage in sorted(stages.items()):
        role, prices = "mllm" if name == "verify" else "llm", config.prices
        inputs, outputs = prices[f"{role}_input"], prices[f"{role}_output"]
        cost = (stage.prompt * inputs + stage.completion * outputs) / 1e6
        total += cost
        lines.append(
            f"{name:<10}{stage.calls:>14,.0f}{stage.prompt:>18,.0f}{stage.completion:>18,.0f}"
            f"{cost:>12,.2f}"
        )
    calls = sum(stage.calls for stage in stages.values())
    each = calls / max(pairs, 1)
    lines += ["", f"{pairs:,.0f} pairs, {each:.1f} calls a pair, cost {total:,.2f}"]
    if hours is not None:
        many = config.engine.concurrency
        lines.append(
            f"{hours:,.2f} hours of waiting if requests went one by one, "
            f"{hours / many:,.2f} at {many} in flight"
        )
    elif calls:
        lines.append("hours: unknown until a sample has measured the latency")
    if not calls:
        lines.append("no model is asked: minutes on one core, and free")
    return "\n".join(lines)


def _measured(
    config: Settings, run: Path, images: int
) -> tuple[dict[str, Stage], float, float | None]:
    manifest = read_manifest(run)
    if manifest["config"]["pipeline"] != config.pipeline:
        raise InputError(
            f"{run} is of pipeline {manifest['config']['pipeline']}; give another --out"
        )
    done = counts(run)
    factor = images / done["images"]
    statistics = read_statistics(run / "cache.sqlite")
    stages = {
        stage: Stage(*(factor * s[n] for n in ("calls", "prompt_tokens", "completion_tokens")))
        for stage, s in statistics.items()
        if stage != "probe"
    }
    # One request at a time; a server that takes many at once divides it.
    seconds = sum(s["calls"] * s["latency_ms_p50"] for s in statistics.values()) / 1000 * factor
    return stages, done.get("accepted", 0) * factor, seconds / 3600 or None


def _assumed(
    config: Settings, roles: Roles, images: int, captions: int
) -> tuple[dict[str, Stage], float]:
    per_image = config.propose.unit == "image"
    asked = config.propose.number * USABLE_SHARE if per_image else captions / max(images, 1)
    absent = asked * ABSENT_SHARE
    served = min(captions / max(images, 1), absent * config.assign.captions_per_object)
    rewrites = images * (served if per_image else absent)
    stages: dict[str, Stage] = {}
    together = images_together(config, roles, None)
    if roles.propose == "llm":
        calls = images / together if per_image else captions
        prompt = _PROMPTS["propose"] * calls + CAPTION_TOKENS * captions
        lists = images if per_image else captions
        stages["propose"] = Stage(calls, prompt, _ANSWERS["propose"] * lists)
    if roles.verify == "mllm":
        share = ASKED_SHARE if config.verify.questions_per_round else 1.0
        one_by_one = asked * share  # and what captions name, where too few of these are there
        one_by_one += max(config.propose.present - one_by_one * (1 - ABSENT_SHARE), 0)
        calls = images if config.verify.method in ("auto", "multi") else images * one_by_one
        prompt = calls * (_PROMPTS["verify"] + IMAGE_TOKENS)
        stages["verify"] = Stage(calls, prompt, _ANSWERS["verify"] * images * asked)
    if roles.rewrite == "llm":
        calls = images / together if config.rewrite.unit == "image" and per_image else rewrites
        calls += rewrites * (1 - ACCEPTED_SHARE) * (config.rewrite.tries - 1)
        prompt = _PROMPTS["rewrite"] * calls + 2 * CAPTION_TOKENS * rewrites
        stages["rewrite"] = Stage(calls, prompt, _ANSWERS["rewrite"] * rewrites)
    return stages, rewrites * ACCEPTED_SHARE
