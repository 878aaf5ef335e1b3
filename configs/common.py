"""Every configuration key, declared once, with its unit and the reason for its default.

The other files in this folder start from `base()` and change values; none adds a key. Durations
are strings such as "15 epochs", "500 steps", "100_000 examples" or "10 percent" (of the run).
`None` switches a thing off. Rules are ordered `(regex, value)` pairs over parameter names such as
`text/blocks/3/attn/query/kernel`: the first that matches the whole name wins, a name that no rule
covers and a rule that matches no name are errors.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def base() -> ConfigDict:
    """The published recipe, with nothing architecture-specific in it."""
    config = ConfigDict()
    config.seed = 0  # data order and choice of captions; nothing else in a run is random

    config.model = ConfigDict()
    config.model.checkpoint = placeholder(str)  # required: Hugging Face directory or hub id
    config.model.dtype = "float32"  # compute type: "float32" or "bfloat16"; parameters stay float32
    config.model.remat = False  # recompute blocks in the backward pass: less memory, a third slower

    config.data = ConfigDict()
    config.data.pairs = placeholder(
        str
    )  # required: COCO json, jsonl, parquet, or "tfds:NAME/SPLIT"
    config.data.images = placeholder(str)  # required: image directory, or "tfds:NAME/SPLIT"
    config.data.captions = "negated"  # "negated", "original" (affirmative control run), or "mix"
    config.data.original_fraction = (
        0.5  # "mix" only: share of pairs that show their original caption
    )
    config.data.foils = 0  # false captions per pair, used as hard negatives
    config.data.validation_fraction = 0.2
    config.data.split_by = "image"  # "caption" replicates the published split, which leaks images
    config.data.split_seed = 42
    config.data.crop = "openai"  # "openai" rounds the crop offset, "transformers" floors it
    config.data.exact_resize = (
        False  # True: Pillow's, bit-equal to CLIP's own and five times slower
    )
    config.data.max_bad_images = 0.01  # share of images that may be missing or unreadable
    config.data.packing = True  # several captions a row instead of padding; same result
    config.data.cache_features = True  # of a frozen vision tower: computed once; same result
    config.data.cache_dir = "{workdir}/features"
    config.data.workers = 0  # processes that load images; 0: threads of this process
    config.data.threads = 16  # threads that load images when workers is 0

    config.train = ConfigDict()
    config.train.batch_size = 512  # pairs a step, over all devices; the loss contrasts all of them
    config.train.total = "15 epochs"
    config.train.microbatches = 1  # gradient cache: exact big-batch gradient in this many parts
    config.train.foil_weight = 1.0  # of the choice between a caption and its foils (data.foils > 0)
    config.train.logit_scale_max = placeholder(
        float
    )  # upper bound, ln(100)=4.6052 in most CLIP code
    config.train.ema_decay = placeholder(
        float
    )  # per step; keeps averaged weights beside the others

    config.optim = ConfigDict()
    config.optim.lr = 1e-6
    config.optim.schedule = (
        "constant"  # after warm-up: "constant", "cosine" or "linear" (to end_lr)
    )
    config.optim.warmup = "0 steps"
    config.optim.end_lr = 0.0
    config.optim.beta1 = 0.9
    config.optim.beta2 = 0.999
    config.optim.eps = 1e-8
    config.optim.clip_norm = placeholder(float)  # global norm of the gradient
    config.optim.weight_decay = 0.01
    # The released recipe freezes the final text LayerNorm too, and decays every other parameter.
    config.optim.freeze = ("vision/.*", "visual_projection", "text/ln_final/.*")
    config.optim.weight_decay_rules = ((".*", 1.0),)  # multipliers of weight_decay
    config.optim.lr_rules = ((".*", 1.0),)  # multipliers of lr

    config.eval = ConfigDict()
    config.eval.every = (
        "1 epochs"  # validation loss and every evaluator; also before the first step
    )
    config.eval.batch_size = placeholder(int)  # pairs; None: train.batch_size
    config.eval.benchmarks = ""  # names with commas between them, see python -m evals --help
    config.eval.data = placeholder(str)  # folders with their files and photos, commas between
    config.eval.allow_subset = False  # score the items whose photos are there

    config.checkpoint = ConfigDict()
    config.checkpoint.every = "1 epochs"
    config.checkpoint.keep = 1  # most recent ones kept, beside the best
    config.checkpoint.best = "val/loss"  # smallest value wins

    config.log = ConfigDict()
    config.log.every = "10 steps"  # one read of the device and one progress line per window
    config.log.tensorboard = True
    config.log.wandb = placeholder(str)  # project name

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices along the batch; -1: all that fsdp leaves
    config.mesh.fsdp = 1  # devices that also share parameters and optimizer state
    config.mesh.rules = ((".*", "fsdp"),)  # "fsdp" or "replicate"
    config.mesh.min_shard_size = 65_536  # elements; smaller parameters are replicated

    config.runtime = ConfigDict()
    # jax.distributed: "off"; "auto" on TPU pods and Slurm; else "HOST:PORT" with the next two.
    config.runtime.distributed = "off"
    config.runtime.process_id = placeholder(int)
    config.runtime.num_processes = placeholder(int)
    config.runtime.compilation_cache = "{workdir}/compilation_cache"  # "": off
    # Continue a run although keys that change its result differ from those it was started with.
    config.runtime.allow_config_change = False
    return config
