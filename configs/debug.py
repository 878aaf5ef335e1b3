"""Does it run at all? Seconds on a laptop, with scenes and a tiny CLIP that it makes itself.

    python launch.py --config=configs/debug.py --workdir=runs/debug

The loss falls from 3.5 and ends with a checkpoint; `runs/debug/profile` holds a trace of three
steps, and TensorBoard shows that and the curves. It goes the way of a real run (frozen vision
tower, feature cache, packed captions, foils), so that what fails here fails there: set the keys of
your run beside it. See docs/guides/debugging.md.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """Settings of a hundred steps on 96 scenes."""
    config = common.base()
    config.model.dtype = "float32"
    config.runtime.made_scenes = 96
    config.data.foils = 1
    config.train.batch_size = 32
    config.train.total = "100 steps"
    config.train.logit_scale_max = 4.6052
    config.optim.lr = 2e-3
    config.eval.every = "50 percent"
    config.checkpoint.every = "50 percent"
    config.log.every = "10 steps"
    config.log.profile_steps = "11-13"
    return config
