"""The only compiled training code: one update, and the loss of a validation batch."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from negclip_jax.training import patterns
from negclip_jax.training.losses import contrastive_loss
from negclip_jax.training.microbatch import map_microbatches
from negclip_jax.training.state import TrainState

Batch = dict[str, Array]
Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """Features of a batch and their loss: what training and validation share.

    A batch holds `image` uint8 `[B, H, W, 3]`, `text` int32 `[B, T]`, and optionally `foil` int32
    `[B, K, T]` with `foil_mask` bool `[B, K]`, and `mask` bool `[B]`.

    Attributes:
      graphdef: static part of the model, see `models.clip.split`.
      mean, std: per-channel constants of the preprocessing, in units of pixel / 255.
      microbatches: parts in which the towers run, see `microbatch`.
    """

    graphdef: nnx.GraphDef
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    microbatches: int = 1

    def loss(self, params: dict, batch: Batch) -> tuple[Array, Metrics]:
        """Contrastive loss of all parameters on a batch, and its accuracies."""
        model = nnx.merge(self.graphdef, params)
        rows = {name: batch[name] for name in ("image", "text", "foil") if name in batch}
        features = map_microbatches(lambda x: self._encode(model, x), rows, self.microbatches)
        return contrastive_loss(
            features["image"],
            features["text"],
            params["logit_scale"],
            foil_BxKxD=features.get("foil"),
            foil_mask_BxK=batch.get("foil_mask"),
            mask_B=batch.get("mask"),
        )

    def normalise(self, image: Array) -> Array:
        """uint8 pixels to the model's input, float32; bytes travel to the device, not floats."""
        mean, std = jnp.asarray(self.mean), jnp.asarray(self.std)
        return (image.astype(jnp.float32) / 255 - mean) / std

    def _encode(self, model: nnx.Module, rows: Batch) -> Batch:
        features = {"image": model.encode_image(self.normalise(rows["image"]))}
        if "foil" not in rows:
            return features | {"text": model.encode_text(rows["text"])}
        # One call for captions and foils: [B, 1 + K, T].
        texts = jnp.concatenate([rows["text"][:, None], rows["foil"]], axis=1)
        encoded = model.encode_text(texts.reshape(-1, texts.shape[-1]))
        encoded = encoded.reshape(*texts.shape[:2], -1)
        return features | {"text": encoded[:, 0], "foil": encoded[:, 1:]}


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
