"""The only compiled training code: one update, and the loss of a validation batch."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from negclip_jax.runtime import sharding
from negclip_jax.training import patterns
from negclip_jax.training.logits import Blocks
from negclip_jax.training.losses import contrastive_loss, sigmoid_loss
from negclip_jax.training.microbatch import map_microbatches
from negclip_jax.training.state import TrainState

Batch = dict[str, Array]
Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """Features of a batch and their loss: what training and validation share.

    A batch is what `data.loader.PairLoader.batches` yields: pixels or cached features, captions
    (each followed by its K foils) padded or packed, and masks.

    Attributes:
      graphdef: static part of the model, see `models.clip.split`.
      mean, std: per-channel constants of the preprocessing, in units of pixel / 255.
      microbatches: parts in which the towers run, see `microbatch`.
      mesh: over which batches are split; None stands for one device.
      logit_block_mib: bound on the logits that a device holds at a time, see `logits`.
      foil_weight: see `losses.contrastive_loss`.
    """

    graphdef: nnx.GraphDef
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    microbatches: int = 1
    mesh: Mesh | None = None
    logit_block_mib: float = math.inf
    foil_weight: float = 1.0

    def loss(self, params: dict, batch: Batch) -> tuple[Array, Metrics]:
        """Loss of all parameters on a batch, contrastive or SigLIP's, and its accuracies."""
        params = sharding.whole(self.mesh, params)
        rows = {name: batch[name] for name in ("image", "feature", "text") if name in batch}
        features = map_microbatches(self._encode, params, rows, self.microbatches, self.mesh)
        texts = features["text"].reshape(len(features["image"]), -1, features["text"].shape[-1])
        has_foils = texts.shape[1] > 1
        captions = {
            "foil_BxKxD": texts[:, 1:] if has_foils else None,
            "foil_mask_BxK": batch["foil_mask"] if has_foils else None,
            "foil_weight": self.foil_weight,
            "mask_B": batch.get("mask"),
            "blocks": Blocks(self.mesh, self.logit_block_mib),
        }
        scored = (features["image"], texts[:, 0], params["logit_scale"])
        if "logit_bias" in params:  # SigLIP, which is defined by it
            return sigmoid_loss(*scored, params["logit_bias"], **captions)
        return contrastive_loss(*scored, **captions)

    def encode_image(self, params: dict, image: Array) -> Array:
        """Features float32 `[B, D]` of pixels, uint8 `[B, H, W, 3]`."""
        model = nnx.merge(self.graphdef, sharding.whole(self.mesh, params))
        return model.encode_image(self.normalise(image))

    def normalise(self, image: Array) -> Array:
        """uint8 pixels to the model's input, float32; bytes travel to the device, not floats."""
        mean, std = jnp.asarray(self.mean), jnp.asarray(self.std)
        return (image.astype(jnp.float32) / 255 - mean) / std

    def _encode(self, params: dict, rows: Batch) -> Batch:
        model = nnx.merge(self.graphdef, params)
        text = model.encode_text(rows["text"])
        if "feature" in rows:
            return {"image": rows["feature"], "text": text}
        return {"image": model.encode_image(self.normalise(rows["image"])), "text": text}


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
        def loss_fn(params: dict) -> tuple[Array, Metrics]:
            return objective.loss(patterns.merge(frozen, params), batch)

        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
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
