"""Turns a configuration into the parts of a run: each section goes to the one factory it is for."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from negclip_jax.checkpoints import manager
from negclip_jax.checkpoints.frozen import restore_frozen, save_frozen
from negclip_jax.common import remote
from negclip_jax.common.errors import InputError
from negclip_jax.data.images import Preprocessor
from negclip_jax.data.loader import PairLoader
from negclip_jax.data.tokenizer import load_tokenizer
from negclip_jax.interop import huggingface
from negclip_jax.models import clip
from negclip_jax.runtime import compilation_cache, multihost, sharding, workdir
from negclip_jax.training import image_features, inputs, optim, patterns
from negclip_jax.training import state as train_state
from negclip_jax.training.compiled import CompiledStep
from negclip_jax.training.durations import Clock
from negclip_jax.training.evaluation import EvalContext, ValidationLoss
from negclip_jax.training.ranges import check_ranges
from negclip_jax.training.state import TrainState
from negclip_jax.training.step import Objective, make_train_step
from negclip_jax.training.work import StepWork

# Keys that may change between a run and its continuation without changing what it computes.
_FREE = ("train.total", "eval.", "checkpoint.", "log.", "mesh.", "runtime.", "data.workers")
_FREE += ("data.threads", "data.pairs", "data.images", "data.max_bad_images", "model.checkpoint")
_FREE += ("model.remat", "model.scan", "data.packing", "data.cache_", "train.microbatches")
_FREE += ("train.logit_block_mib",)
# Keys that may differ between processes: paths, for what they lead to is compared, and speed.
_OF_ONE_HOST = ("data.pairs", "data.images", "data.workers", "data.threads", "model.checkpoint")
_OF_ONE_HOST += ("eval.data", "runtime.process_id", "runtime.compilation_cache")


@dataclasses.dataclass
class Run:
    """Everything the loop needs."""

    config: ConfigDict
    workdir: epath.Path
    mesh: Mesh
    clock: Clock
    loader: PairLoader
    checkpoints: manager.Checkpoints
    train_step: Callable
    step_flops: StepWork
    state: TrainState
    frozen: dict
    validation: ValidationLoss | None
    context: EvalContext


def prepare(config: ConfigDict, directory: str) -> Run:
    """Reads everything, places it on the devices and compiles the step.

    Raises InputError for whatever is wrong with files or settings, before anything is computed.
    """
    _require(config, "model.checkpoint", "data.pairs", "data.images")
    check_ranges(config)
    multihost.require_same("configuration", _of_all_processes(config))
    multihost.require_same("installed packages", workdir.environment()["packages"])
    path = workdir.create(directory)
    multihost.require_one_folder(path)
    mesh = sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
    _check_batches(config, mesh)
    if config.runtime.compilation_cache:
        compilation_cache.use(config.runtime.compilation_cache.format(workdir=path))

    checkpoints = _open_checkpoints(config, path)
    resumes = checkpoints.latest_step is not None
    base = _base_files(path, config.model.checkpoint, resumes)
    model_config = huggingface.read_config(base)
    tokenizer = load_tokenizer(base, context_length=model_config.text.context_length)
    preprocess = _preprocessor(config.data, base, model_config.vision.image_size)
    loader, validation_loader = inputs.loaders(config, tokenizer, preprocess, mesh)
    _compare_with_start(config, path, loader, base, resumes)
    clock = _clock(config, loader)

    options = {name: config.model[name] for name in ("dtype", "remat", "scan")}
    graphdef, abstract = clip.abstract(model_config, **options)
    objective = _objective(config.train, graphdef, preprocess, mesh)
    trainable = patterns.trainable(abstract, config.optim.freeze)
    schedule, tx = _optimizer(config.optim, abstract, trainable, clock)
    state, frozen = _restore_or_load(
        config, path, checkpoints, (model_config, abstract, trainable), tx, mesh
    )
    if image_features.are_constant(trainable):
        loader, validation_loader = image_features.use_cache(
            config.data,
            path,
            [loader, validation_loader],
            objective,
            patterns.merge(frozen, state.params),
            f"{model_config.vision} {config.model.dtype}",
            mesh,
        )
    step = make_train_step(
        objective,
        tx,
        schedule=schedule,
        logit_scale_max=config.train.logit_scale_max,
        ema_decay=config.train.ema_decay,
    )
    compiled = CompiledStep(step, state, frozen, mesh)
    rows = sharding.local_rows(mesh, loader.batch_size)
    blank = loader.blank_batch(int(state.step), rows)
    compiled.compiled_for(state, frozen, sharding.to_global(mesh, blank))
    return Run(
        config=config,
        workdir=path,
        mesh=mesh,
        clock=clock,
        loader=loader,
        checkpoints=checkpoints,
        train_step=compiled,
        step_flops=StepWork.of(model_config, trainable),
        state=state,
        frozen=frozen,
        validation=_validation(validation_loader, objective, mesh),
        context=EvalContext(graphdef, mesh, preprocess, tokenizer),
    )


def _preprocessor(data: ConfigDict, base: Path, image_size: int) -> Preprocessor:
    preprocess = Preprocessor.from_directory(base, crop=data.crop, default_size=image_size)
    return dataclasses.replace(preprocess, exact=data.exact_resize)


def _objective(
    train: ConfigDict, graphdef: nnx.GraphDef, preprocess: Preprocessor, mesh: Mesh
) -> Objective:
    return Objective(
        graphdef,
        preprocess.mean,
        preprocess.std,
        microbatches=train.microbatches,
        mesh=mesh,
        logit_block_mib=train.logit_block_mib,
        foil_weight=train.foil_weight,
    )


def _require(config: ConfigDict, *keys: str) -> None:
    for key in keys:
        section, name = key.split(".")
        if config[section][name] is None:
            raise InputError(f"config.{key} is not set: pass --config.{key}=...")


def _of_all_processes(config: ConfigDict) -> dict:
    """The configuration without what may differ from host to host."""
    described = config.to_dict()
    for key in _OF_ONE_HOST:
        section, name = key.split(".")
        del described[section][name]
    return described


def _check_batches(config: ConfigDict, mesh: Mesh) -> None:
    micro = config.train.microbatches
    sharding.check_batch(mesh, config.train.batch_size, micro, "train.batch_size")
    if config.eval.batch_size is not None:
        sharding.check_batch(mesh, config.eval.batch_size, micro, "eval.batch_size")


def _open_checkpoints(config: ConfigDict, path: epath.Path) -> manager.Checkpoints:
    """What a killed or damaged run left is cleared away; all processes see the same newest one."""
    section = config.checkpoint
    checkpoints = manager.Checkpoints(path, keep=section.keep, best=section.best)
    checkpoints.skip_damaged()
    multihost.require_same("newest checkpoint", {"step": checkpoints.latest_step})
    checkpoints.remove_superseded()
    return checkpoints


def _base_files(path: epath.Path, name: str, resumes: bool) -> Path:
    """Configuration, tokenizer and preprocessor files, copied so that a run needs nothing else."""
    base = path / "base"
    if not resumes:
        if sharding.is_main_process():
            with remote.uploaded(base) as folder:
                huggingface.copy_non_weights(huggingface.resolve(name), folder)
        multihost.barrier("base files copied")
    elif not base.exists():
        raise InputError(f"{base} is gone: restore it, or start over in another --workdir")
    return remote.local_copy(base)


def _clock(config: ConfigDict, loader: PairLoader) -> Clock:
    clock = Clock(config.train.batch_size, loader.steps_per_epoch)
    return dataclasses.replace(clock, total_steps=clock.steps(config.train.total, "train.total"))


def _optimizer(
    section: ConfigDict, abstract: dict, trainable: dict, clock: Clock
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    arguments = section.to_dict()
    schedule_keys = ("lr", "schedule", "warmup", "end_lr")
    schedule = optim.learning_rate(**{k: arguments.pop(k) for k in schedule_keys}, clock=clock)
    arguments.pop("freeze")  # it decided `trainable`
    return schedule, optim.adamw(abstract, trainable, schedule, **arguments)


def _restore_or_load(
    config: ConfigDict,
    path: epath.Path,
    checkpoints: manager.Checkpoints,
    model: tuple[clip.CLIPConfig, dict, dict],
    tx: optax.GradientTransformation,
    mesh: Mesh,
) -> tuple[TrainState, dict]:
    """State and frozen parameters: of the newest checkpoint, else of the weights to start from."""
    model_config, abstract, trainable = model
    rules = patterns.resolve(abstract, config.mesh.rules, "mesh.rules")
    placements = sharding.of_parameters(
        mesh, abstract, rules, min_shard_size=config.mesh.min_shard_size
    )
    trained_shapes, frozen_shapes = patterns.partition(abstract, trainable)
    if not trained_shapes:
        raise InputError("optim.freeze leaves nothing to train")
    trained_places, frozen_places = patterns.partition(placements, trainable)
    ema = config.train.ema_decay is not None
    state_places = train_state.shardings(
        trained_shapes,
        tx,
        mesh,
        patterns.trained_part(rules, trainable),
        ema=ema,
        min_shard_size=config.mesh.min_shard_size,
    )

    def create(params: dict) -> TrainState:
        return train_state.create(params, tx, ema=ema)

    _log_parameters(trained_shapes, frozen_shapes)
    step = checkpoints.latest_step
    if step is not None:
        frozen = restore_frozen(path, manager.abstract_of(frozen_shapes, frozen_places))
        shapes = jax.eval_shape(create, trained_shapes)
        logging.info("continuing from step %d in %s", step, path)
        return checkpoints.restore(step, manager.abstract_of(shapes, state_places)), frozen
    params = huggingface.load_params(huggingface.resolve(config.model.checkpoint), model_config)
    if not multihost.is_alone():
        multihost.require_same("model.checkpoint", {"digest of the weights": _digest(params)})
    trained, frozen = patterns.partition(params, trainable)
    frozen = sharding.put(frozen, frozen_places)
    save_frozen(path, frozen)
    trained = sharding.put(trained, trained_places)
    return jax.jit(create, out_shardings=state_places)(trained), frozen


def _digest(params: dict) -> str:
    sha = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        sha.update(np.ascontiguousarray(leaf).data)
    return sha.hexdigest()[:16]


def _validation(
    loader: PairLoader | None, objective: Objective, mesh: Mesh
) -> ValidationLoss | None:
    return None if loader is None else ValidationLoss(loader, objective, mesh)


def _compare_with_start(
    config: ConfigDict, path: epath.Path, loader: PairLoader, base: Path, resumes: bool
) -> None:
    """Writes down what the run is, or refuses to continue it as another one."""
    described = json.loads(json.dumps(config.to_dict()))
    described["data_fingerprint"] = inputs.fingerprint(loader.examples)
    # Sizes, preprocessing and vocabulary: a digit that changed would change numbers without a word.
    described["base_files"] = {
        file.relative_to(base).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        for file in sorted(base.rglob("*"))
        if file.is_file()
    }
    if resumes:
        old = workdir.read_config(path)
        changed = workdir.differences(old, described)
        lines = [f"{key}: {a!r} -> {b!r}" for key, (a, b) in changed.items()]
        recipe = config.optim
        ends_matter = recipe.schedule != "constant" or "percent" in recipe.warmup
        free = tuple(key for key in _FREE if not (ends_matter and key == "train.total"))
        fatal = [line for line in lines if not line.startswith(free)]
        if fatal and not config.runtime.allow_config_change:
            raise InputError(
                f"{path} was started differently: {'; '.join(fatal)}. Use another --workdir, or "
                "--config.runtime.allow_config_change=True to continue it all the same"
            )
        for line in lines:
            logging.warning("changed since the start of this run: %s", line)
    multihost.barrier("configurations compared")
    if sharding.is_main_process():
        workdir.record(path, described)


def _log_parameters(trained: dict, frozen: dict) -> None:
    def millions(tree: Any) -> float:
        return sum(x.size for x in jax.tree.leaves(tree)) / 1e6

    logging.info("%.2f M parameters trained, %.2f M frozen", millions(trained), millions(frozen))
