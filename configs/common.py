"""Every configuration key, declared once, with its unit and the reason for its default.

The other files in this folder start from `base()` and change values; none adds a key. Durations
are strings such as "15 epochs", "500 steps", "100_000 examples" or "10 percent" (of the run).
`None` switches a thing off. Paths may lie in a bucket: `gs://...`. Rules are ordered
`(regex, value)` pairs over parameter names such as `text/blocks/3/attn/query/kernel`: the first
that matches the whole name wins, a name that no rule covers and a rule that matches no name are
errors.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from negclip_jax.common.renamed_keys import new_key


class Section(ConfigDict):
    """Answers to the old names of keys that were renamed as well, with a warning."""

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(new_key(key, self._fields))

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(new_key(key, self._fields), value)

    def get_type(self, key: str) -> type:
        """Type of the values of a key."""
        return super().get_type(new_key(key, self._fields))


def base() -> ConfigDict:
    """The published recipe, with nothing architecture-specific in it."""
    config = ConfigDict()
    # Data order, choice of captions and where adapters start; nothing else in a run is random.
    config.seed = 0
    _what_is_computed(config)
    _what_is_trained(config)
    _how_it_runs(config)
    return config


def _what_is_computed(config: ConfigDict) -> None:
    config.model = model = ConfigDict()
    model.checkpoint = placeholder(str)  # required: Hugging Face directory or hub id
    # Compute type, "float32" or "bfloat16"; parameters, optimizer state and loss are float32. None:
    # what a run began with, and at its beginning "bfloat16" on TPUs and on NVIDIA's GPUs from
    # compute capability 8.0 (A100) on, else "float32".
    model.dtype = placeholder(str)
    model.remat = False  # recompute whole blocks in the backward pass: less memory, slower
    # Blocks in a loop, compiled once. On an H200 False took a fifth less time a step and a quarter
    # more memory, but JAX 0.11.2 could not run what it read back from the compilation cache: try it
    # with runtime.compilation_cache="".
    model.scan = True

    config.data = data = Section()
    # required: COCO json, jsonl, parquet, csv, tsv, CC-Neg's .pt, "wds:cc12m-{0000..1242}.tar",
    # "parquet:train-*.parquet", "arrayrecord:train-*" (of JSON) or "tfds:NAME/SPLIT"
    data.pairs = placeholder(str)
    # image directory, or as for pairs; images are then named SHARD/MEMBER or FILE/ROW. Required
    # unless pairs are "wds:..." or "parquet:..." that hold their images.
    data.images = placeholder(str)
    # Image features that another library computed, in place of images: a Parquet, safetensors or
    # npy file, or a pattern, see negclip_jax/data/feature_files.py. The vision tower stays frozen.
    data.features = placeholder(str)
    # Where the parts of a pair are called otherwise, "caption=title,foils=wrong_1,foils=wrong_2": a
    # column, a key (OUTER.INNER inside), of tars the suffix of a member ("txt", "json.KEY").
    data.fields = ""
    # Several sources in place of data.pairs, "coco: pairs=FILE images=DIR weight=0.7; plain:
    # pairs=wds:TARS caption_mode=original weight=0.3"; a source may also have fields, statements
    # and original_fraction; what it does not say is as this section has it. Every batch holds the
    # shares that the weights say; an epoch is one pass over the first source.
    data.sources = ""
    data.caption_mode = "negated"  # "negated", "original" (affirmative control run), or "mix"
    data.original_fraction = 0.5  # "mix" only: share of pairs that show their original caption
    data.foils = 0  # false captions per pair, used as hard negatives
    # Parquet of texts that are known to be true or false of an image (python -m data_gen export):
    # beside its caption an example shows so many of each kind, others in each epoch. One and three
    # are what held existence, both polarities and multiple choice together in the quickstart.
    data.statements = placeholder(str)
    # Folder of text rows (python -m data_gen nouns), examples without a photo: what they say is
    # there is seen in the base's own features of its name. They teach negation of nouns that no
    # photo denies; for a frozen vision tower, whose features are cached.
    data.text_nouns = placeholder(str)
    data.true_texts = 1
    data.false_texts = 3
    # Pairs with captions beyond the model's positions (77): "drop_lost" leaves out those that lose
    # a negation by the cut, "drop" all of them, "keep" none.
    data.truncated = "drop_lost"
    data.validation_fraction = 0.2
    data.split_by = "image"  # "caption" replicates the published split, which leaks images
    data.split_seed = 42
    data.crop = "openai"  # "openai" rounds the crop offset, "transformers" floors it
    data.exact_resize = False  # True: Pillow's, bit-equal to CLIP's own and five times slower
    data.max_bad_images = 0.01  # share of images that may be missing or unreadable
    # Several captions a row instead of padding; same result. None: wherever the model allows it,
    # not for SigLIP, which reads the padding.
    data.packing = placeholder(bool)
    data.cache_features = True  # of a frozen vision tower: computed once; same result
    data.cache_dir = "{workdir}/features"
    # Pairs, checked and tokenized once: later starts, and other runs with the same folder here,
    # map them into memory. Some 100 bytes a pair.
    data.examples_dir = "{workdir}/examples"
    data.workers = 0  # processes that load images; 0: threads of this process
    data.threads = 16  # threads that load images when workers is 0
    # Decoded pixels are kept in memory where those of all images fit into this, so that a trained
    # vision tower decodes a photo once; without worker processes.
    data.kept_pixels_mib = 1024.0

    config.train = train = ConfigDict()
    train.batch_size = 512  # pairs a step, over all devices; the loss contrasts all of them
    train.total = "15 epochs"
    # Every step trains on the first batch: a model that can learn brings the loss to near zero.
    train.overfit_batch = False
    # The loss, by its name in negclip_jax/training/objectives.py. None: the one that the model was
    # made with, "contrastive" (InfoNCE) for CLIP and "sigmoid" for SigLIP. "truth" contrasts each
    # true text of an image with all that are known to be false of it: for data.statements.
    train.objective = placeholder(str)
    train.microbatches = 1  # gradient cache: exact big-batch gradient in this many parts
    train.logit_block_mib = 64.0  # of logits a device holds at a time; beyond it, in blocks of rows
    # Of the choice of each statement between an image of which it is true and one of which it is
    # false: more learnt of the same texts. For a frozen vision tower, whose features are cached.
    # None: as much as the run's own photos ask for, `image_features.show_opposites`.
    train.image_choice_weight = placeholder(float)
    train.image_choice_weight = 0.0
    # Its factor on cosines is at most this one, that of the other terms is the model's.
    train.image_choice_scale_max = placeholder(float)
    train.foil_weight = 1.0  # of the choice between an image's true texts and its own false ones
    # Against forgetting, for original captions: of the squared distance of their features from the
    # base's, and of the divergence from its softmax over the batch. 3 or 2 held retrieval to one
    # point in the quickstart; on images that are hard to tell 3 was too much.
    train.anchor_weight = 0.0
    train.distill_weight = 0.0
    train.logit_scale_max = placeholder(float)  # upper bound, ln(100)=4.6052 in most CLIP code
    train.ema_decay = placeholder(float)  # per step; keeps averaged weights beside the others


def _what_is_trained(config: ConfigDict) -> None:
    config.optim = optim = ConfigDict()
    optim.lr = 1e-6
    optim.schedule = "constant"  # after warm-up: "constant", "cosine" or "linear" (to end_lr)
    optim.warmup = "0 steps"
    optim.end_lr = 0.0
    optim.beta1 = 0.9
    optim.beta2 = 0.999
    optim.eps = 1e-8
    optim.clip_norm = placeholder(float)  # global norm of the gradient
    optim.weight_decay = 0.01
    # Patterns of what is not trained, () for nothing. None: the vision tower with its projection,
    # and as in the released recipe the final text LayerNorm: "vision/.*", "visual_projection" (not
    # in SigLIP) and "text/ln_final/.*". Layers have numbers: "text/blocks/[0-5]/.*" leaves the
    # first six as they are. The recipe decays every other parameter.
    optim.freeze = placeholder(tuple)
    # LoRA: train adapters of this rank (4 in most published work) and nothing else; an export holds
    # the merged weights. Wants some ten times the learning rate. None: the parameters themselves.
    optim.lora_rank = placeholder(int)
    optim.lora_alpha = placeholder(float)  # kernels move by alpha / rank times B A; None: the rank
    # Patterns of the kernels that have adapters, where optim.freeze leaves them: attention and MLP
    # of the text tower. "text/blocks/.*/attn/.*" or "text/blocks/(6|7|8)/.*" are fewer.
    optim.lora_matrices = ("text/blocks/.*",)
    optim.weight_decay_rules = ((".*", 1.0),)  # multipliers of weight_decay
    optim.lr_rules = ((".*", 1.0),)  # multipliers of lr


def _how_it_runs(config: ConfigDict) -> None:
    config.eval = evaluation = ConfigDict()
    evaluation.every = "1 epochs"  # validation loss and every evaluator; also before the first step
    evaluation.batch_size = placeholder(int)  # pairs; None: train.batch_size
    evaluation.benchmarks = ""  # names with commas between them, see python -m evals --help
    evaluation.benchmark_files = ""  # Python files with more of them, see evals/benchmark_files.py
    evaluation.data = placeholder(str)  # folders with their files and photos, commas between
    evaluation.allow_subset = False  # score the items whose photos are there

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every = "1 epochs"
    checkpoint.keep = 1  # most recent ones kept, beside the best
    checkpoint.best = "val/loss"  # smallest value wins

    config.log = log = ConfigDict()
    log.every = "10 steps"  # one read of the device and one progress line per window
    log.tensorboard = True
    log.wandb = placeholder(str)  # project name
    # "11-13" or "11", counted from 1: trace these steps, for TensorBoard and Perfetto.
    log.profile_steps = placeholder(str)

    config.mesh = mesh = ConfigDict()
    mesh.data = -1  # devices along the batch; -1: all that fsdp leaves
    mesh.fsdp = 1  # devices that also share parameters and optimizer state
    mesh.rules = ((".*", "fsdp"),)  # "fsdp" or "replicate"
    mesh.min_shard_size = 65_536  # elements; smaller parameters are replicated

    config.runtime = runtime = Section()
    # jax.distributed: "off"; "auto" on TPU pods, Slurm and MPI, where JAX finds the others; else
    # "HOST:PORT" of process 0, the same in all processes, with the next two.
    runtime.distributed = "off"
    runtime.process_id = placeholder(int)  # of this process, from 0
    runtime.num_processes = placeholder(int)
    # Several processes end together. Seconds that one waits for another (which may download the
    # weights meanwhile) or for an input, and seconds without a heartbeat after which one is dead.
    runtime.timeout = 600.0
    runtime.heartbeat_timeout = 60.0
    runtime.compilation_cache = "{workdir}/compilation_cache"  # "": off
    # GPUs: XLA unrolls every loop of the training step, its blocks (and train.microbatches) among
    # them, as model.scan=False does, in a program that the compilation cache keeps. Not measured:
    # there was no GPU where this was added. If a run crashes with it (jax issue 31149), leave it.
    runtime.unroll_blocks = False
    # GPUs: sums in a fixed order and no choice of kernels by trial, so that equal runs on equal
    # devices are equal to the last bit (--xla_gpu_deterministic_ops in XLA_FLAGS, for all programs
    # of launch.py). Slower; by how much, and whether cuDNN's attention allows it, was not measured.
    runtime.deterministic = False
    # So many scenes of the quickstart's world, with negated captions, and a tiny CLIP with random
    # weights, made by launch.py in {workdir}/made, in place of data.pairs, data.images and
    # model.checkpoint: configs/debug.py. 0: none.
    runtime.made_scenes = 0
    # Where a loss, gradient or parameter is not finite, name the operation that made it so, and its
    # line. Each step is waited for and the state before it is kept: slower, for finding faults.
    runtime.debug_nans = False
    # Continue a run although keys that change its result differ from those it was started with.
    runtime.allow_config_change = False
