"""The training step compiled for devices that are not there, from shapes and placements alone.

Nothing is computed and no parameter exists: a thousand virtual CPU devices compile on one core in
seconds. What is read from the compiled program is what one device does in one step: it is the
program that `launch.py` would run, with the collectives that XLA's partitioner put into it.
"""

import dataclasses
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bench.hlo import Program
from bench.material import ARCHITECTURES, caption_lengths
from configs import negationclip
from negclip_jax.checkpoints import manager
from negclip_jax.data.images import CLIP_MEAN, CLIP_STD
from negclip_jax.data.packing import Packing
from negclip_jax.models import clip, flops
from negclip_jax.runtime import sharding
from negclip_jax.training import optim, patterns
from negclip_jax.training.config import StepUnits
from negclip_jax.training.setup import placements_of
from negclip_jax.training.step import CompiledStep, Objective, TrainState, make_train_step

# Machine code is not looked at: making none of it fast halves the time to compile.
_XLA_FLAGS = "--xla_force_host_platform_device_count={} --xla_backend_optimization_level=0"
_CAPTIONS = 20_000  # whose lengths stand for those of all


@dataclasses.dataclass(frozen=True)
class Case:
    """One training step; `microbatches` and `logit_block_mib` as in `configs/common.py`."""

    arch: str  # key of `material.ARCHITECTURES`
    trains: str  # "text", the published recipe on cached image features, or "all", both towers
    pairs: int  # of each device
    fsdp: int = 1  # devices that share parameters and optimizer state
    microbatches: int = 1
    logit_block_mib: float = 64.0


def with_devices(devices: int) -> ModuleType:
    """This module, in a process with so many CPU devices; to be called by `harness.Side`."""
    os.environ["XLA_FLAGS"] = _XLA_FLAGS.format(devices)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    assert jax.device_count() == devices, "JAX was in use before"
    return sys.modules[__name__]


def measure(case: Case) -> dict[str, Any]:
    """Compiles the step of all devices of this process and reads the program.

    Returns:
      Of one device and step: `arguments` and `temporaries`, bytes; `program_flops` of the matrix
      products in the program and `model_flops` of the model on real tokens (see `models.flops`);
      `tokens` of text in its rows, filled or not; `collectives`, a list of their fields; beside
      them `devices` and the fields of the case, and `trained`, parameters of the whole model.
    """
    step, (state, frozen, batch) = step_of(case)
    devices = jax.device_count()
    compiled = step.compiled_for(state, frozen, batch)
    program, memory = Program(compiled.as_text(), devices), compiled.memory_analysis()
    return {
        "devices": devices,
        **dataclasses.asdict(case),
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "program_flops": program.matmul_flops,
        "model_flops": case.pairs * flops_per_pair(case.arch, case.trains, case.pairs * devices),
        "tokens": batch["text"]["ids"].size // devices,
        "collectives": [dataclasses.asdict(c) for c in program.collectives],
        "trained": sum(x.size for x in jax.tree.leaves(state.params)),
    }


def step_of(
    case: Case, *, dtype: str = "bfloat16", scan: bool = True, devices: Sequence | None = None
) -> tuple[CompiledStep, tuple[TrainState, dict, dict]]:
    """The step and the shapes of its three arguments, placed on `devices`; by default on all.

    `dtype` and `scan` are keys of the section `model`.
    """
    config = negationclip.get_config(
        case.arch if case.arch in negationclip.VARIANTS else "vit_b_32"
    )
    if case.trains == "all":
        config.optim.freeze = ()
    mesh = sharding.make_mesh(data=-1, fsdp=case.fsdp, devices=devices)
    model = ARCHITECTURES[case.arch]
    graphdef, abstract = clip.abstract(model, dtype=dtype, remat=config.model.remat, scan=scan)
    section = config.optim.to_dict()
    del section["lora_alpha"]
    abstract, trainable, rate, tx = optim.of_section(abstract, StepUnits(1, 1, 1), **section)
    places = placements_of(abstract, config.mesh, mesh)
    trained, frozen = patterns.partition(abstract, trainable)
    trained_places, frozen_places = patterns.partition(places, trainable)
    # Shapes with placements stand for all arrays: nothing is computed and nothing is allocated.
    state_places = TrainState.placements(trained, tx, trained_places, mesh, ema=False)
    shapes = jax.eval_shape(lambda p: TrainState.create(p, tx, ema=False), trained)
    state = manager.abstract_of(shapes, state_places)
    frozen = manager.abstract_of(frozen, frozen_places)
    batch = _batch(case, model, mesh)
    parts = {"microbatches": case.microbatches, "logit_block_mib": case.logit_block_mib}
    objective = Objective(graphdef, CLIP_MEAN, CLIP_STD, mesh=mesh, **parts)
    step = make_train_step(objective, tx, schedule=rate, logit_scale_max=None, ema_decay=None)
    return CompiledStep(step, state, frozen, mesh), (state, frozen, batch)


def flops_per_pair(arch: str, trains: str, batch: int) -> float:
    """Operations that a pair takes by the definition of the model, forward and backward.

    `batch` is what the pair is contrasted with; `arch` and `trains` are those of `Case`.
    """
    model, lengths = ARCHITECTURES[arch], _lengths()
    forward = flops.text_forward(model.text, model.projection_dim, lengths) / len(lengths)
    forward += flops.contrastive_forward(batch, model.projection_dim) / batch
    if trains == "all":
        forward += flops.vision_forward(model)
    return float((1 + flops.BACKWARD) * forward)


def _lengths() -> np.ndarray:
    """Tokens of negated captions, int64 `[N]`, always the same."""
    return caption_lengths(np.random.default_rng(0), _CAPTIONS)


def _batch(case: Case, model: clip.CLIPConfig, mesh: Mesh) -> dict:
    """Shapes and placements of a batch of packed captions."""
    pairs, shards = case.pairs * mesh.size, mesh.size * case.microbatches
    packing = Packing.suited_to(_lengths(), pairs, shards)
    rows = packing.rows * shards
    shapes = {name: (rows, packing.row_length) for name in ("ids", "positions", "segments")}
    shapes |= {"ends": (rows, packing.max_captions_per_row), "slots": (shards, packing.per_shard)}
    placed = sharding.batch(mesh)

    def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=placed)

    batch = {"text": {name: array(shape, jnp.int32) for name, shape in shapes.items()}}
    if case.trains == "all":
        side = model.vision.image_size
        return batch | {"image": array((pairs, side, side, 3), jnp.uint8)}
    return batch | {"feature": array((pairs, model.projection_dim), jnp.float32)}
