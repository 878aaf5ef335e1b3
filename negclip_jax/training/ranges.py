"""Ranges of configuration values, checked before anything is read or computed."""

import math

from ml_collections import ConfigDict

from negclip_jax.common.ranges import check_values

_CHOICES = {"model.dtype": ("float32", "bfloat16")}
_RANGES = {
    "data.original_fraction": (0, 1),
    "data.foils": (0, math.inf),
    "data.max_bad_images": (0, 1),
    "data.workers": (0, math.inf),
    "data.threads": (1, math.inf),
    "train.logit_block_mib": (0, math.inf),
    "train.ema_decay": (0, 1),
    "optim.lr": (0, math.inf),
    "optim.end_lr": (0, math.inf),
    "optim.beta1": (0, 1),
    "optim.beta2": (0, 1),
    "optim.eps": (0, math.inf),
    "optim.clip_norm": (0, math.inf),
    "optim.weight_decay": (0, math.inf),
    "checkpoint.keep": (1, math.inf),
    "mesh.min_shard_size": (0, math.inf),
    "runtime.timeout": (1, math.inf),
    "runtime.silence": (1, math.inf),
}


def check_ranges(config: ConfigDict) -> None:
    """InputError for the first value that makes no sense; None, where allowed, switches off."""
    check_values(lambda key: _value(config, key), _CHOICES, _RANGES, prefix="config.")


def _value(config: ConfigDict, key: str) -> object:
    section, name = key.split(".")
    return config[section][name]
