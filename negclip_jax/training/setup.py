"""Turns a configuration into the parts of a run.

`prepare` alone knows the whole configuration. It hands each section, as keyword arguments, to the
one factory that it is for: a key that no factory takes is a TypeError that names it.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import optax
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from ml_collections import ConfigDict

from negclip_jax.checkpoints.manager import Checkpoints, abstract_of
from negclip_jax.checkpoints.restore import digests_of_files, restore_frozen, save_frozen
from negclip_jax.common import remote, storage
from negclip_jax.common.errors import InputError
from negclip_jax.data.loader import PairLoader
from negclip_jax.data.mixture import Mixture
from negclip_jax.interop import readers
from negclip_jax.models import clip
from negclip_jax.models.flops import StepFlops
from negclip_jax.models.lora import fold
from negclip_jax.runtime import compilation_cache, multihost, sharding, workdir
from negclip_jax.training import image_features, inputs, optim, patterns
from negclip_jax.training.base_text import BaseText, use_base_text, use_stand_ins
from negclip_jax.training.config import (
    ADDED_KEYS,
    DTYPES,
    Settings,
    StepUnits,
    check_settings,
    of_all_processes,
    record_or_compare,
)
from negclip_jax.training.evaluation import EvalContext, Evaluator, validation_of
from negclip_jax.training.objectives import check_objective
from negclip_jax.training.step import CompiledStep, Objective, TrainState, make_train_step

_REPEATED = ("eval", "checkpoint", "log")  # sections with a key `every`
_OF_OBJECTIVE = ("microbatches", "logit_block_mib", "foil_weight", "image_choice_scale_max")
_OF_STEP = ("logit_scale_max", "ema_decay")


@dataclasses.dataclass
class Run:
    """Everything the loop needs."""

    workdir: epath.Path
    mesh: Mesh
    units: StepUnits  # converts durations; knows the length of the run
    eval_every: int  # steps, as the next two; 0: never
    checkpoint_every: int
    log_every: int
    best: str  # name of the metric whose smallest value has its checkpoint kept
    loader: PairLoader
    checkpoints: Checkpoints
    train_step: CompiledStep  # `(state, frozen, batch) -> (state, metrics)`
    step_flops: StepFlops  # of a batch
    state: TrainState  # to begin with
    frozen: dict  # parameters that never change
    dtype: str  # of the computation
    validation: Evaluator | None  # the loss on held-out pairs; None where nothing is held out
    context: EvalContext  # for evaluators


def prepare(config: ConfigDict, directory: str) -> Run:
    """Reads everything, places it on the devices and compiles the step.

    Raises InputError for whatever is wrong with files or settings, before anything is computed.
    """
    settings = flatten_dict(config.to_dict(), sep=".")
    check_settings(settings)
    path, checkpoints = _open_run(directory, of_all_processes(settings), config.checkpoint)
    resumes = checkpoints.latest_step is not None
    mesh, train = sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp), config.train
    sizes = _batch_sizes(train, config.eval, mesh)
    if kept := config.runtime.compilation_cache:
        compilation_cache.use(kept.format(workdir=path))

    # The model as shapes: its weights are read when everything else has been found right.
    model, data = config.model.to_dict(), config.data.to_dict()
    weights = model.pop("checkpoint")
    model["dtype"] = dtype = _compute_type(model["dtype"], path, mesh, resumes)
    base, base_files = _base_files(path, weights, resumes)
    model_config, base_info = readers.read_base(base)
    graphdef, abstract = clip.abstract(model_config, **model)
    said = train.objective, data["packing"], config.optim.freeze
    loss, data["packing"], freeze = _of_family(model_config, abstract, *said)

    # Examples, and what the run is told of them: another run in the same directory is an error.
    tokenizer = base_info.load_tokenizer()
    rules = {"crop": data.pop("crop"), "exact": data.pop("exact_resize")}
    preprocess = dataclasses.replace(base_info.preprocessor, **rules)
    cache = {key: data.pop(key) for key in ("cache_features", "cache_dir")}
    keeping = {key: train[key] for key in ("anchor_weight", "distill_weight")}
    data["examples_dir"] = storage.path(data["examples_dir"].format(workdir=path))
    loader, held_out = inputs.loaders(
        **data,
        seed=config.seed,
        keeps_originals=any(keeping.values()),
        repeats_first=train.overfit_batch,
        batch_sizes=sizes,
        shards=mesh.size * train.microbatches,
        tokenizer=tokenizer,
        preprocess=preprocess,
    )
    chosen = {"train.objective": loss, "optim.freeze": freeze}
    chosen |= {"data.packing": data["packing"], "model.dtype": dtype}
    description = unflatten_dict(settings | chosen, sep=".") | {"base_files": base_files}
    description["data_fingerprint"] = inputs.of_data(loader)
    defaults = ADDED_KEYS | {"train.objective": model_config.objective}
    how = {"resumes": resumes, "allow_change": config.runtime.allow_config_change}
    record_or_compare(path, description, defaults=defaults, **how)
    shares = loader.examples.share_of if isinstance(loader.examples, Mixture) else {}
    units = StepUnits.of(train.batch_size, loader.steps_per_epoch, train.total)
    every = {f"{s}_every": units.steps(config[s].every, f"{s}.every") for s in _REPEATED}

    # Parameters and optimizer state, on their devices.
    section = config.optim.to_dict() | {"freeze": freeze}
    alpha = section.pop("lora_alpha")
    abstract, trainable, schedule, tx = optim.of_section(abstract, units, **section)
    state, frozen = _restore_or_load(
        *(path, checkpoints),
        lambda: optim.begun(readers.read_any(weights)[1], abstract, config.seed, alpha),
        *(abstract, placements_of(abstract, config.mesh, mesh), trainable, tx, mesh),
        ema=train.ema_decay is not None,
    )

    # What frozen parameters determine is computed once, before the first step.
    whole = (model_config, fold(patterns.merge(frozen, state.params)), dtype)
    loaders = [loader, *held_out.values()]
    is_frozen = image_features.are_constant(trainable)
    image_features.check_source(loader.images, weights, is_frozen=is_frozen)
    if is_frozen:
        loaders = image_features.use_cache(path, loaders, whole, mesh, **cache)
    base_text = BaseText(path, tokenizer, whole, mesh, resumes)
    loaders[0] = use_stand_ins(loaders[0], base_text)
    loaders, probes, choice = image_features.show_opposites(loaders, train.image_choice_weight)
    loader, *others = use_base_text(loaders, base_text, is_frozen=is_frozen, **keeping)

    objective = Objective(
        *(graphdef, preprocess.mean, preprocess.std),
        mesh=mesh,
        name=loss,
        sources=tuple(shares),
        image_choice_weight=choice,
        **keeping,
        **{key: train[key] for key in _OF_OBJECTIVE},
    )
    step = make_train_step(objective, tx, schedule=schedule, **{k: train[k] for k in _OF_STEP})
    train_step = _compiled(step, state, frozen, loader, mesh, config.runtime)
    return Run(
        *(path, mesh, units),
        **every,
        best=config.checkpoint.best,
        loader=loader,
        checkpoints=checkpoints,
        train_step=train_step,
        step_flops=StepFlops.of(model_config, trainable),
        state=state,
        frozen=frozen,
        validation=validation_of(held_out, others, probes, objective, mesh, shares),
        dtype=dtype,
        context=EvalContext(graphdef, mesh, preprocess, tokenizer),
    )


def _open_run(
    directory: str, settings: Settings, checkpoint: ConfigDict
) -> tuple[epath.Path, Checkpoints]:
    """The run's directory and checkpoints; all processes of a run do the same in the same place."""
    multihost.require_same("configuration", settings)
    multihost.require_same("installed packages", workdir.environment()["packages"])
    path = workdir.create(directory)
    multihost.require_one_folder(path)
    checkpoints = Checkpoints(path, keep=checkpoint.keep, best=checkpoint.best)
    # What a killed or damaged run left is cleared away; all processes see the same newest one.
    checkpoints.skip_damaged()
    multihost.require_same("newest checkpoint", {"step": checkpoints.latest_step})
    checkpoints.remove_superseded()
    return path, checkpoints


def _batch_sizes(train: ConfigDict, evaluation: ConfigDict, mesh: Mesh) -> tuple[int, int]:
    """Pairs of a batch in training and in evaluations; InputError where devices cannot share it."""
    size, eval_size = train.batch_size, evaluation.batch_size
    sizes = size, size if eval_size is None else eval_size
    for size, section in zip(sizes, ("train", "eval"), strict=True):
        sharding.check_batch(mesh, size, train.microbatches, f"{section}.batch_size")
    return sizes


def _compute_type(asked: str | None, path: epath.Path, mesh: Mesh, resumes: bool) -> str:
    """`model.dtype`: unless it is set that of the run, for half of it on other devices must not
    compute otherwise; at its beginning the one that the devices are made for."""
    if asked is not None:
        return asked
    old = flatten_dict(workdir.read_config(path), sep=".") if resumes else {}
    began = old.get("model.dtype")
    dtype = began if began in DTYPES else sharding.fast_dtype(mesh)
    why = "with which this run began" if began == dtype else "which these devices are made for"
    kind = mesh.devices.flat[0].device_kind
    logging.info(
        "model.dtype=%s, %s (%s); parameters, optimizer state and loss are float32",
        *(dtype, why, kind),
    )
    return dtype


def _of_family(
    model: clip.CLIPConfig,
    abstract: dict,
    objective: str | None,
    packing: bool | None,
    freeze: Sequence[str] | None,
) -> tuple[str, bool, tuple[str, ...]]:
    """These three keys of the configuration: what is not set follows from the model's family."""
    loss = check_objective(objective or model.objective, abstract)
    packs = not model.text.reads_padding if packing is None else packing
    frozen = patterns.freeze_of(abstract, freeze)
    chosen = [f"train.objective={loss}"] if objective is None else []
    chosen += [f"data.packing={packs}"] if packing is None else []
    chosen += [f"optim.freeze={frozen}"] if freeze is None else []
    if chosen:
        family = type(model).__name__.removesuffix("Config")
        logging.info("%s, as follows from the model, a %s", ", ".join(chosen), family)
    return loss, packs, frozen


def placements_of(shapes: dict, section: ConfigDict, mesh: Mesh) -> dict:
    """Where each parameter lies: section `mesh`."""
    rules = patterns.resolve(shapes, section.rules, "mesh.rules")
    return sharding.of_parameters(mesh, shapes, rules, min_shard_size=section.min_shard_size)


def _base_files(path: epath.Path, name: str, resumes: bool) -> tuple[Path, dict[str, str]]:
    """Configuration, tokenizer and preprocessor files, copied so that a run needs nothing else.

    Returns their folder and their digests: a digit that changed would silently change numbers.
    """
    base = path / "base"
    if not resumes:
        if sharding.is_main_process():
            with remote.uploaded(base) as folder:
                readers.copy_base(name, folder)
        multihost.barrier("base files copied")
    elif not base.exists():
        raise InputError(f"{base} is gone: restore it, or start over in another --workdir")
    copy = remote.local_copy(base)
    return copy, digests_of_files(copy)


def _restore_or_load(
    path: epath.Path,
    checkpoints: Checkpoints,
    load: Callable[[], dict],
    abstract: dict,
    placements: dict,
    trainable: dict,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    *,
    ema: bool,
) -> tuple[TrainState, dict]:
    """State and frozen parameters: of the newest checkpoint, else of the weights to start from."""
    trained_shapes, frozen_shapes = patterns.partition(abstract, trainable)
    if not trained_shapes:
        raise InputError("optim.freeze leaves nothing to train")
    counts = (sum(x.size for x in jax.tree.leaves(x)) for x in (trained_shapes, frozen_shapes))
    logging.info("%.2f M parameters trained, %.2f M frozen", *(count / 1e6 for count in counts))
    trained_places, frozen_places = patterns.partition(placements, trainable)
    state_places = TrainState.placements(trained_shapes, tx, trained_places, mesh, ema=ema)

    def create(params: dict) -> TrainState:
        return TrainState.create(params, tx, ema=ema)

    step = checkpoints.latest_step
    if step is not None:
        # Only shapes and placements are built: orbax reads each array straight to its devices,
        # also where the mesh is not the one that saved it.
        frozen = restore_frozen(path, abstract_of(frozen_shapes, frozen_places))
        shapes = jax.eval_shape(create, trained_shapes)
        logging.info("continuing from step %d in %s", step, path)
        return checkpoints.restore(step, abstract_of(shapes, state_places)), frozen
    params = load()
    if not multihost.is_single_process():
        sha = hashlib.sha256()
        for leaf in jax.tree.leaves(params):
            sha.update(np.ascontiguousarray(leaf).data)
        digest = {"digest of the weights": sha.hexdigest()[:16]}
        multihost.require_same("model.checkpoint", digest)
    trained, frozen = patterns.partition(params, trainable)
    frozen = sharding.put(frozen, frozen_places)
    save_frozen(path, frozen)
    trained = sharding.put(trained, trained_places)
    return jax.jit(create, out_shardings=state_places)(trained), frozen


def _compiled(
    step: Callable,
    state: TrainState,
    frozen: dict,
    loader: PairLoader,
    mesh: Mesh,
    runtime: ConfigDict,
) -> CompiledStep:
    """The step for a batch of the right shapes: what does not fit fails before the first one."""
    options = {"unroll": runtime.unroll_blocks, "names_nans": runtime.debug_nans}
    compiled = CompiledStep(step, state, frozen, mesh, **options)
    blank = loader.blank_batch(int(state.step), sharding.local_rows(mesh, loader.batch_size))
    compiled.compiled_for(state, frozen, sharding.to_global(mesh, blank))
    return compiled
