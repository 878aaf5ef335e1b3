"""The quickstart's runs: a tiny CLIP on a rendered world, on two CPU cores (see `quickstart/`).

    python launch.py --config=configs/quickstart.py:finetune --workdir=runs/finetune \
        --config.model.checkpoint=DIR --config.data.pairs=pairs.json --config.data.images=DIR

Variants: `pretrain` (affirmative captions only, both towers), `published` (the published recipe
at this scale) and `finetune` (the project's own recipe).
"""

from ml_collections import ConfigDict

from configs import common, truth


def get_config(variant: str = "published") -> ConfigDict:
    """The settings of one run; raises ValueError for an unknown variant."""
    if variant not in _VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; choose one of: {', '.join(_VARIANTS)}")
    config = common.base()
    config.model.dtype = "float32"  # so small a model gains nothing from less, on any device
    config.train.batch_size = 128
    config.train.logit_scale_max = 4.6052
    config.data.validation_fraction = 0.05
    config.eval.every = "25 percent"
    config.checkpoint.every = "50 percent"
    config.log.every = "50 steps"
    config.log.tensorboard = False
    _VARIANTS[variant](config)
    return config


def _pretrain(config: ConfigDict) -> None:
    """CLIP's own training: everything is trained, on captions that never say "no"."""
    config.data.caption_mode = "original"
    config.train.total = "2100 steps"
    config.optim.lr = 2e-3
    config.optim.schedule = "cosine"
    config.optim.warmup = "50 steps"
    config.optim.freeze = ()


def _published(config: ConfigDict) -> None:
    """InfoNCE on negated captions alone; vision and final text LayerNorm frozen, constant lr.

    The learning rate is that of a model 1,000 times smaller; the rest is `configs/common.py`.
    """
    config.train.batch_size = 32
    config.train.total = "4000 steps"
    config.optim.lr = 1e-3


def _finetune(config: ConfigDict) -> None:
    """The project's own, `configs/truth.py`, at the learning rate of so small a model."""
    truth.recipe(config)
    config.train.batch_size = 32
    config.train.total = "2680 steps"
    config.optim.lr = 2e-3
    config.optim.schedule = "cosine"
    config.optim.warmup = "50 steps"


_VARIANTS = {"pretrain": _pretrain, "published": _published, "finetune": _finetune}
