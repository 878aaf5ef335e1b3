"""What the values of a configuration must be, what its durations are in steps, and what may change.

A configuration is known here by its *settings*: `{"section.key": value}`.
"""

import dataclasses
import json
import logging
import math
import re
from collections.abc import Mapping
from typing import Any

from etils import epath
from flax.traverse_util import flatten_dict

from negclip_jax.common.errors import InputError
from negclip_jax.common.ranges import NOT_NEGATIVE, POSITIVE, SHARE, check_values
from negclip_jax.common.renamed_keys import with_new_keys
from negclip_jax.data import mixture
from negclip_jax.data.examples import CAPTION_MODES, TRUNCATED
from negclip_jax.data.images import CROPS
from negclip_jax.data.sources import kind_of
from negclip_jax.runtime import multihost, sharding, workdir
from negclip_jax.runtime.profiling import parse_steps
from negclip_jax.runtime.writers import WandbWriter

Settings = Mapping[str, Any]

_REQUIRED = ("model.checkpoint", "data.pairs")
DTYPES = ("float32", "bfloat16")
_CHOICES = {"model.dtype": DTYPES, "data.truncated": TRUNCATED, "data.crop": CROPS}
SCHEDULES = ("constant", "cosine", "linear")  # of `optim.learning_rate`
_SHARES = ("data.original_fraction", "data.max_bad_images", "train.ema_decay", "optim.beta1")
_SHARES += ("optim.beta2",)
_POSITIVE = ("data.threads", "train.image_choice_scale_max", "optim.lora_rank", "checkpoint.keep")
_POSITIVE += ("runtime.timeout", "runtime.heartbeat_timeout")
_NOT_NEGATIVE = ("data.foils", "data.true_texts", "data.false_texts", "data.workers", "optim.eps")
_NOT_NEGATIVE += ("data.kept_pixels_mib", "train.logit_block_mib", "train.foil_weight", "optim.lr")
_NOT_NEGATIVE += ("train.anchor_weight", "train.distill_weight", "train.image_choice_weight")
_NOT_NEGATIVE += ("optim.end_lr", "optim.clip_norm", "optim.weight_decay", "optim.lora_alpha")
_NOT_NEGATIVE += ("mesh.min_shard_size", "runtime.made_scenes")
_RANGES = dict.fromkeys(_SHARES, SHARE) | dict.fromkeys(_POSITIVE, POSITIVE)
_RANGES |= dict.fromkeys(_NOT_NEGATIVE, NOT_NEGATIVE)
# Keys that may change between a run and its continuation without changing what it computes.
_FREE = ("train.total", "eval.", "checkpoint.", "log.", "mesh.", "runtime.", "data.workers")
_FREE += ("data.threads", "data.pairs", "data.images", "data.max_bad_images", "model.checkpoint")
_FREE += ("model.remat", "model.scan", "data.packing", "data.cache_", "train.microbatches")
# That of the data says whether pairs were left out: `data_fingerprint`.
_FREE += ("train.logit_block_mib", "data.truncated", "data.statements", "data.text_nouns")
_FREE += ("data.kept_pixels_mib", "data.examples_dir", "data.fields", "data.sources")
# Keys that may differ between processes: paths, for what they lead to is compared, and speed.
_OF_ONE_HOST = ("data.pairs", "data.images", "data.workers", "data.threads", "model.checkpoint")
_OF_ONE_HOST += ("eval.data", "data.statements", "data.kept_pixels_mib", "runtime.process_id")
_OF_ONE_HOST += ("runtime.compilation_cache", "data.text_nouns", "data.sources")

# What a run did whose `config.json` is older than the key.
ADDED_KEYS = {"data.truncated": "keep", "data.statements": None, "data.true_texts": 1}
ADDED_KEYS |= {"runtime.unroll_blocks": False, "runtime.deterministic": False}
ADDED_KEYS |= {"data.kept_pixels_mib": 0.0, "data.false_texts": 3}
ADDED_KEYS |= {"data.fields": "", "data.sources": "", "train.image_choice_weight": 0.0}
ADDED_KEYS |= {"data.examples_dir": "{workdir}/examples"}
ADDED_KEYS |= {"data.features": None, "train.image_choice_scale_max": None}
ADDED_KEYS |= {"train.overfit_batch": False, "runtime.debug_nans": False, "runtime.made_scenes": 0}
ADDED_KEYS |= {"optim.lora_rank": None, "optim.lora_alpha": None}
ADDED_KEYS |= {"optim.lora_matrices": ["text/blocks/.*"]}
ADDED_KEYS |= {"data.text_nouns": None, "train.anchor_weight": 0.0, "train.distill_weight": 0.0}

_DURATION = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:e[0-9]+)?)\s*([a-z]+)\s*")


def check_settings(settings: Settings) -> None:
    """InputError for the first value that is missing or makes no sense; None may switch off."""
    sources = mixture.parse(settings["data.sources"]) if settings["data.sources"] else {}
    missing = [k for k in _REQUIRED if settings[k] is None and not (sources and k == "data.pairs")]
    if missing:
        if "data.pairs" in missing and settings["data.images"] is settings["data.features"] is None:
            missing.append("data.images")
        told = [f"config.{key} is not set: pass --config.{key}=..." for key in missing]
        raise InputError("; ".join(told))
    if sources and settings["data.pairs"] is not None:
        raise InputError("config.data.pairs is set beside data.sources: make it one of the sources")
    if sources and settings["data.features"] is not None:
        raise InputError("config.data.features is of one source: it does not go with data.sources")
    for name, source in (sources or {"": {"pairs": settings["data.pairs"]}}).items():
        holds_images = kind_of(source["pairs"])[0] in ("wds", "parquet")
        holds_images |= settings["data.features"] is not None
        if (source.get("images") or settings["data.images"]) is None and not holds_images:
            where = f"data.sources: {name} has no images=..., and " if name else ""
            raise InputError(f"{where}config.data.images is not set: pass --config.data.images=...")
        if (mode := source.get("caption_mode", CAPTION_MODES[0])) not in CAPTION_MODES:
            modes = ", ".join(CAPTION_MODES)
            raise InputError(f"data.sources: {name}: caption_mode={mode} is none of {modes}")
    choices = {k: x for k, x in _CHOICES.items() if k != "model.dtype" or settings[k] is not None}
    check_values(settings.__getitem__, choices, _RANGES, prefix="config.")
    for key, names in (("data.caption_mode", CAPTION_MODES), ("optim.schedule", SCHEDULES)):
        if settings[key] not in names:
            raise InputError(f"{key}: {settings[key]!r} is none of {', '.join(names)}")
    has_false_texts = settings["data.statements"] is not None or settings["data.foils"]
    has_false_texts = has_false_texts or any("statements" in x for x in sources.values())
    if settings["train.objective"] == "truth" and not has_false_texts:
        raise InputError(
            "train.objective=truth has no text that is known to be false: set data.statements to "
            "what python -m data_gen export has written, or data.foils"
        )
    for key in ("train.total", "eval.every", "checkpoint.every", "log.every", "optim.warmup"):
        # Whether it can be read, before anything is known that it depends on.
        StepUnits(1, 1, None if key == "train.total" else 1).steps(settings[key], key)
    parse_steps(settings["log.profile_steps"])
    if settings["log.wandb"] is not None:
        WandbWriter.package()


def of_all_processes(settings: Settings) -> Settings:
    """The settings that must be the same in all processes of a run."""
    return {key: value for key, value in settings.items() if key not in _OF_ONE_HOST}


@dataclasses.dataclass(frozen=True)
class StepUnits:
    """Converts durations such as "15 epochs", "100_000 examples" or "10 percent" into steps."""

    batch_size: int  # examples a step
    steps_per_epoch: int  # full batches in one pass over the training pairs
    total_steps: int | None = None  # until it is known, "percent" has no meaning

    @classmethod
    def of(cls, batch_size: int, steps_per_epoch: int, total: str) -> "StepUnits":
        """Of a run of that length, `train.total`; raises InputError as `steps` does."""
        units = cls(batch_size, steps_per_epoch)
        return dataclasses.replace(units, total_steps=units.steps(total, "train.total"))

    def steps(self, duration: str, what: str) -> int:
        """Steps of a duration, rounded to the nearest; at least 1 unless the duration is zero.

        Raises InputError naming the configuration key `what`.
        """
        units = {"step": 1.0, "epoch": float(self.steps_per_epoch), "example": 1 / self.batch_size}
        if self.total_steps is not None:
            units["percent"] = self.total_steps / 100
        match = _DURATION.fullmatch(duration)
        unit = units.get(match[2].rstrip("s")) if match else None
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


def record_or_compare(
    path: epath.Path,
    description: dict[str, Any],
    *,
    defaults: Settings,
    resumes: bool,
    allow_change: bool,
) -> None:
    """Writes down what a run is, or refuses to resume it as another one.

    What decides the result must be what it was: half a run with another recipe would be neither,
    and its curves would not say so. Keys of speed, length and logging may change.

    Args:
      description: what `config.json` is to hold: the sections of the configuration, and digests of
        the files that decide a run.
      defaults: settings of a run whose `config.json` lacks the key.
      allow_change: go on all the same, with a warning for each difference.
    """
    description = json.loads(json.dumps(description))  # tuples become lists, as in the file
    if resumes:
        old = with_new_keys(flatten_dict(workdir.read_config(path), sep="."))
        old = {**defaults, **old}
        new = flatten_dict(description, sep=".")
        # A longer run is another one where the learning rate depends on the end.
        depends_on_end = new["optim.schedule"] != "constant" or "percent" in new["optim.warmup"]
        free = tuple(key for key in _FREE if not (depends_on_end and key == "train.total"))
        changed = workdir.differences(old, new)
        lines = [f"{key}: {a!r} -> {b!r}" for key, (a, b) in changed.items()]
        fatal = [line for line in lines if not line.startswith(free)]
        if fatal and not allow_change:
            raise InputError(
                f"{path} was started differently: {'; '.join(fatal)}. Use another --workdir, or "
                "--config.runtime.allow_config_change=True to continue it all the same"
            )
        for line in lines:
            logging.warning("changed since the start of this run: %s", line)
    multihost.barrier("configurations compared")  # before the file that all of them read changes
    if sharding.is_main_process():
        workdir.record(path, description)
