"""NegationCLIP's fine-tuning recipe (Park et al., ICCV 2025, arXiv 2501.10913), as released.

    python launch.py --config=configs/negationclip.py:vit_b_32 --workdir=runs/b32 \
        --config.model.checkpoint=openai/clip-vit-base-patch32 \
        --config.data.pairs=negationclip_captions_train2014.json --config.data.images=train2014

Variants: `vit_b_32`, `vit_b_16`, `vit_l_14`, `vit_l_14_336`. The released script has one set of
hyper-parameters for all of them; the variants only name the hub checkpoint and, for the large
ones, recompute activations. Where the released code splits train and validation by caption, this
splits by image; `--config.data.split_by=caption` replicates the release.
"""

from ml_collections import ConfigDict

from configs import common

# variant: (hub id of OpenAI's weights, recompute activations)
VARIANTS = {
    "vit_b_32": ("openai/clip-vit-base-patch32", False),
    "vit_b_16": ("openai/clip-vit-base-patch16", False),
    "vit_l_14": ("openai/clip-vit-large-patch14", True),
    "vit_l_14_336": ("openai/clip-vit-large-patch14-336", True),
}


def get_config(variant: str = "vit_b_32") -> ConfigDict:
    """The recipe for one architecture; raises ValueError for an unknown variant."""
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; choose one of: {', '.join(VARIANTS)}")
    config = common.base()
    config.model.checkpoint, config.model.remat = VARIANTS[variant]
    return config
