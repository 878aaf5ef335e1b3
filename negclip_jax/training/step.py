"""The compiled code of training: one update, and the loss of a validation batch.

Read from the bottom: `make_train_step` is the update, `Objective.loss` what it differentiates,
`map_microbatches` how the towers of a big batch fit into memory, and `CompiledStep` what the loop
calls. The loss functions themselves are in `objectives`.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from negclip_jax.models.lora import fold
from negclip_jax.models.normalisation import normalise_pixels
from negclip_jax.runtime import nans, sharding
from negclip_jax.training import patterns
from negclip_jax.training.objectives import (
    OBJECTIVES,
    Blocks,
    anchor_loss,
    distillation_loss,
    image_choice_loss,
)

Batch = dict[str, Array]
Metrics = dict[str, Array]
# Metrics that say whether an update is sound; param_norm: what it left behind, which only the next
# loss would show.
CHECKED = ("loss", "grad_norm", "param_norm")
Rows = TypeVar("Rows")
Features = TypeVar("Features")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What one update turns into the next: everything that changes from step to step."""

    step: jax.Array  # int32 scalar: updates done = index of the next batch = name of the checkpoint
    # Trained ones, float32: what is not frozen, or adapters beside frozen kernels. Frozen ones are
    # an argument of the step, not state.
    params: dict
    opt_state: optax.OptState
    ema: dict | None  # running average of `params`

    @classmethod
    def create(cls, params: dict, tx: optax.GradientTransformation, *, ema: bool) -> "TrainState":
        """The state before the first update; `params` may be shapes under `jax.eval_shape`."""
        average = jax.tree.map(jnp.copy, params) if ema else None
        return cls(jnp.zeros((), jnp.int32), params, tx.init(params), average)

    @classmethod
    def placements(
        cls,
        params: dict,
        tx: optax.GradientTransformation,
        of_params: dict,
        mesh: Mesh,
        *,
        ema: bool,
    ) -> "TrainState":
        """Placement of each array of the state; optimizer moments lie where their parameter lies.

        `params` may be shapes; `of_params` has their placements. All else is replicated.
        """
        replicated = sharding.replicated(mesh)
        of_moments = optax.tree_map_params(
            tx,
            lambda _, placement: placement,
            jax.eval_shape(tx.init, params),
            of_params,
            transform_non_params=lambda _: replicated,
        )
        return cls(replicated, of_params, of_moments, of_params if ema else None)


def map_microbatches(
    encode: Callable[[Any, Rows], Features],
    params: Any,
    batch: Rows,
    count: int,
    mesh: Mesh | None = None,
) -> Features:
    """`encode(params, batch)`, computed in `count` parts and differentiated one part at a time.

    The gradient cache (Gao et al., 2021, https://arxiv.org/abs/2101.06983): the exact gradient of a
    big contrastive batch in a small batch's memory. A contrastive loss does not split over the
    batch, its encoders do. So the encoders run over micro-batches, the loss over all features, and
    the backward pass recomputes one micro-batch at a time. Summing the losses of micro-batches, the
    usual accumulation, is another objective.

    `encode` treats the rows of the arrays `[B, ...]` of a batch independently and returns such
    arrays; `devices * count` divides B. The leading axes are split over `mesh`; None stands for one
    device.
    """
    if count == 1:
        return encode(params, batch)

    def on_device(params: Any, rows: Rows) -> Features:
        # Each device cuts its own rows into parts, so that no row moves, and adds up the gradient
        # of `params` over its parts by itself; the devices' gradients are summed once, after the
        # last part. The checkpoint is what makes the backward pass encode each part again.
        parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), rows)
        features = jax.lax.map(jax.checkpoint(lambda part: encode(params, part)), parts)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), features)

    return sharding.per_device(mesh, on_device)(params, batch)


@dataclasses.dataclass(frozen=True)
class Objective:
    """Features of a batch and their loss: what training and validation share.

    A batch is what `data.loader.PairLoader.batches` yields: pixels or cached features, the texts of
    each image padded or packed, and what is known of them.
    """

    graphdef: nnx.GraphDef  # static part of the model, see `models.clip.split`
    mean: tuple[float, float, float]  # of the preprocessing, in units of pixel / 255
    std: tuple[float, float, float]
    microbatches: int = 1  # parts in which the towers run, see `map_microbatches`
    mesh: Mesh | None = None  # over which batches are split; None stands for one device
    logit_block_mib: float = math.inf  # that a device holds at a time, see `objectives.Blocks`
    foil_weight: float = 1.0  # see `objectives.contrastive_loss`
    # For the original captions among the texts; with a weight batches hold `base_text`.
    anchor_weight: float = 0.0
    distill_weight: float = 0.0
    # For batches that hold `opposite`.
    image_choice_weight: float = 0.0
    image_choice_scale_max: float | None = None
    name: str = "contrastive"  # key of `objectives.OBJECTIVES`
    sources: tuple[str, ...] = ()  # that batches come from, where these hold `source`

    def loss(self, params: dict, batch: Batch) -> tuple[Array, Metrics]:
        """Scalar loss of all parameters on a batch, and its metrics."""
        return self.loss_of(params, self.features(params, batch), batch)

    def features(self, params: dict, batch: Batch) -> tuple[Array, Array]:
        """Projected features of images `[B, D]` and of their texts `[B, M, D]`, unnormalised."""

        def encode(params: dict, encoder_inputs: Batch) -> Batch:
            model = nnx.merge(self.graphdef, params)
            text = model.encode_text(encoder_inputs["text"])
            if "feature" in encoder_inputs:  # of a frozen vision tower, computed before training
                return {"image": encoder_inputs["feature"], "text": text}
            pixels = normalise_pixels(encoder_inputs["image"], self.mean, self.std)
            return {"image": model.encode_image(pixels), "text": text}

        params = sharding.whole(self.mesh, params)
        encoder_inputs = {k: batch[k] for k in ("image", "feature", "text") if k in batch}
        features = map_microbatches(encode, params, encoder_inputs, self.microbatches, self.mesh)
        # Texts come as those of the first image, the caption first, of the second: [B * M, D].
        width = features["text"].shape[-1]
        return features["image"], features["text"].reshape(len(features["image"]), -1, width)

    def loss_of(
        self, params: dict, features: tuple[Array, Array], batch: Batch
    ) -> tuple[Array, Metrics]:
        """`loss` of these features."""
        image_BxD, text_BxMxD = features
        blocks = Blocks(self.mesh, self.logit_block_mib)
        loss_kwargs = {
            "truth_BxM": batch.get("truth"),
            "holds_caption_BxM": batch.get("holds_caption"),
            "foil_weight": self.foil_weight,
            "mask_B": batch.get("mask"),
            "blocks": blocks,
            "of_each": "source" in batch,
        }
        objective, scalars = OBJECTIVES[self.name]
        learned = (params[scalar] for scalar in scalars)
        loss, metrics = objective(image_BxD, text_BxMxD, *learned, **loss_kwargs)
        if "source" in batch:
            of_each_B = metrics.pop("loss_of_each")
            for number, source in enumerate(self.sources):
                is_of_B = batch["source"] == number
                mean = jnp.sum(jnp.where(is_of_B, of_each_B, 0)) / is_of_B.sum()
                metrics |= {f"loss/{source}": mean, f"share/{source}": jnp.mean(is_of_B)}
        if "opposite" in batch:
            term, metrics["image_choice_accuracy"] = image_choice_loss(
                image_BxD,
                text_BxMxD,
                batch["opposite"],
                batch["truth"],
                batch["has_opposite"],
                params["logit_scale"],
                batch.get("mask", jnp.ones(len(image_BxD), bool)),
                self.image_choice_scale_max,
            )
            loss += self.image_choice_weight * term
        if self.anchor_weight or self.distill_weight:
            text_BxD, counts_B = affirmative(text_BxMxD, batch)
            base_BxD, terms = batch["base_text"], {}
            if self.anchor_weight:
                terms["anchor"] = anchor_loss(text_BxD, base_BxD, counts_B)
                loss += self.anchor_weight * terms["anchor"]
            if self.distill_weight:
                features = image_BxD, text_BxD, base_BxD
                scale = params["logit_scale"]
                terms["distill"] = distillation_loss(*features, scale, counts_B, blocks)
                loss += self.distill_weight * terms["distill"]
            # Of a batch that shows no original caption there is nothing to say.
            metrics |= {k: jnp.where(counts_B.any(), x, jnp.nan) for k, x in terms.items()}
        return loss, metrics


def affirmative(text_BxMxD: Array, batch: Batch) -> tuple[Array, Array]:
    """Of each image the features of its original caption `[B, D]`, and whether it shows it `[B]`.

    Where it does not these are the features of its first text.
    """
    is_shown_BxM = batch["is_affirmative"]
    counts_B = is_shown_BxM.any(axis=1)
    is_taken_BxM = is_shown_BxM.at[:, 0].set(is_shown_BxM[:, 0] | ~counts_B)
    text_BxD = jnp.sum(jnp.where(is_taken_BxM[..., None], text_BxMxD, 0), axis=1)
    return text_BxD, counts_B & batch.get("mask", True)


def make_train_step(
    objective: Objective,
    tx: optax.GradientTransformation,
    *,
    schedule: optax.Schedule,
    logit_scale_max: float | None,
    ema_decay: float | None,
) -> Callable[[TrainState, dict, Batch], tuple[TrainState, Metrics]]:
    """Builds `train_step(state, frozen, batch) -> (state, metrics)`, to be jitted by the caller."""

    def train_step(state: TrainState, frozen: dict, batch: Batch) -> tuple[TrainState, Metrics]:
        # Differentiated by the trained parameters alone: no gradient of frozen ones exists.
        def loss_with(trained: dict) -> tuple[Array, Metrics]:
            return objective.loss(fold(patterns.merge(frozen, trained)), batch)

        loss_of = jax.value_and_grad(loss_with, has_aux=True)
        (loss, metrics), grads = loss_of(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if logit_scale_max is not None and "logit_scale" in params:
            params["logit_scale"] = jnp.minimum(params["logit_scale"], logit_scale_max)
        ema = state.ema
        if ema is not None:
            ema = optax.incremental_update(params, ema, 1 - ema_decay)
        metrics |= {
            "loss": loss,
            "lr": jnp.asarray(schedule(state.step), jnp.float32),
            "logit_scale": patterns.merge(frozen, params)["logit_scale"],
            "grad_norm": optax.global_norm(grads),
            "update_norm": optax.global_norm(updates),
            "param_norm": optax.global_norm(params),
        }
        return TrainState(state.step + 1, params, opt_state, ema), metrics

    return train_step


# `DebugOptions.WhileLoopUnrolling` of XLA (xla.proto): its pass for GPUs, after layouts are chosen.
_UNROLL = {"xla_gpu_enable_while_loop_unrolling": "WHILE_LOOP_UNROLLING_FULL_UNROLL"}


class CompiledStep:
    """The train step, compiled once for each of the few shapes that packed batches have.

    Compiling is explicit, so that a batch that does not fit into memory fails in minute one with
    numbers, and a new shape in the middle of a run is a line in the log, not an unexplained pause.
    `jitted` is the step before it is compiled, to be lowered for other platforms too.
    """

    memory = ""  # what the program that was compiled last needs; "" where that is not known

    def __init__(
        self,
        step: Callable,
        state: TrainState,
        frozen: dict,
        mesh: Mesh,
        *,
        unroll: bool = False,
        names_nans: bool = False,
    ):
        """`unroll`, `names_nans`: see `runtime.unroll_blocks` and `runtime.debug_nans`."""
        self._options = _UNROLL if unroll and sharding.is_gpu(mesh) else None
        self._step, self._names_nans = step, names_nans
        placements = jax.tree.map(lambda x: x.sharding, state)
        # The state that goes in is given away: its memory becomes that of the one that comes out.
        donated = {} if names_nans else {"donate_argnums": 0}
        self.jitted = jax.jit(
            step, **donated, out_shardings=(placements, sharding.replicated(mesh))
        )
        self._compiled: dict[tuple, Callable] = {}

    def __call__(self, state: TrainState, frozen: dict, batch: dict) -> tuple[TrainState, dict]:
        """With `names_nans` FloatingPointError that says what made a number that is not finite."""
        after, metrics = self.compiled_for(state, frozen, batch)(state, frozen, batch)
        if self._names_nans:
            checked = jax.device_get({name: metrics[name] for name in CHECKED})
            if bad := [name for name, x in checked.items() if not math.isfinite(x)]:

                def numbers(state: TrainState, frozen: dict, batch: dict) -> list[Array]:
                    return [self._step(state, frozen, batch)[1][name] for name in bad]

                made = nans.origin(numbers, state, frozen, batch)
                made = made or "no operation that runs by itself but the compiler's fusion of some"
                raise FloatingPointError(f"{bad[0]} is {checked[bad[0]]}; its cause is {made}")
        return after, metrics

    def compiled_for(self, state: TrainState, frozen: dict, batch: dict) -> Callable:
        """The program for a batch of these shapes."""
        shapes = tuple(x.shape for x in jax.tree.leaves(batch))
        if shapes not in self._compiled:
            started = time.monotonic()
            compiled = self.jitted.lower(state, frozen, batch).compile(self._options)
            seconds, memory = time.monotonic() - started, compiled.memory_analysis()
            is_packed = isinstance(batch["text"], dict)
            ids = batch["text"]["ids"] if is_packed else batch["text"]
            if memory is not None:
                self.memory = (
                    f"per device {memory.argument_size_in_bytes / 2**20:.1f} MiB arguments and "
                    f"{memory.temp_size_in_bytes / 2**20:.1f} MiB temporaries"
                )
            logging.info(
                "compiled the training step for text %d x %d (%s) in %.1f s%s",
                *ids.shape,
                "packed" if is_packed else "padded",
                seconds,
                f"; {self.memory}" if self.memory else "",
            )
            self._compiled[shapes] = compiled
        return self._compiled[shapes]
