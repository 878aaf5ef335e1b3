"""Objectives as pure functions of features, written for the whole (global) batch.

Under `jax.jit` with a batch sharded over devices, XLA keeps one block of rows of the logits on each
device and gathers the features once: there are no ranks in this file. Shape suffixes: B pairs,
K foils a pair, D feature dimensions.
"""

import jax
import jax.numpy as jnp
from jax import Array


def l2_normalise(x: Array) -> Array:
    """Unit vectors along the last axis, float32. Not defined at zero, as in every CLIP."""
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def contrastive_loss(
    image_BxD: Array,
    text_BxD: Array,
    logit_scale: Array,
    *,
    foil_BxKxD: Array | None = None,
    foil_mask_BxK: Array | None = None,
    mask_B: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Symmetric InfoNCE (Radford et al., 2021, figure 3), optionally with hard negative captions.

    Args:
      image_BxD: projected image features, unnormalised.
      text_BxD: projected text features, unnormalised; row i describes image i.
      logit_scale: scalar, natural logarithm of the factor on cosine similarities.
      foil_BxKxD: captions that are false of image i. They join the denominator of their own image
        only (not of all images as in NegCLIP): "no dog" is false of this photo, but true of most.
      foil_mask_BxK: False where a pair has fewer than K foils.
      mask_B: False for padding rows, which then neither score nor count (evaluation only).

    Returns:
      The scalar loss and {"image_to_text_accuracy", "text_to_image_accuracy"}: share of rows whose
      best match in the batch is their own. All float32.
    """
    image, text = l2_normalise(image_BxD), l2_normalise(text_BxD)
    scale = jnp.exp(logit_scale.astype(jnp.float32))
    logits_BxB = scale * jnp.matmul(image, text.T, precision="highest")
    own_B = jnp.diagonal(logits_BxB)
    if mask_B is None:
        mask_B = jnp.ones(len(image), bool)
    logits_BxB = jnp.where(mask_B[:, None] & mask_B[None, :], logits_BxB, -jnp.inf)
    # Padding rows would be all -inf, whose logsumexp has no gradient: keep their own entry.
    logits_BxB = jnp.where(jnp.eye(len(image), dtype=bool), own_B[:, None], logits_BxB)

    image_to_text = jax.nn.logsumexp(logits_BxB, axis=1)
    if foil_BxKxD is not None:
        foils = l2_normalise(foil_BxKxD)
        foil_BxK = scale * jnp.einsum("bd,bkd->bk", image, foils, precision="highest")
        if foil_mask_BxK is not None:
            foil_BxK = jnp.where(foil_mask_BxK, foil_BxK, -jnp.inf)
        image_to_text = jax.nn.logsumexp(
            jnp.concatenate([image_to_text[:, None], foil_BxK], axis=1), axis=1
        )
    text_to_image = jax.nn.logsumexp(logits_BxB, axis=0)

    loss = _mean((image_to_text + text_to_image) / 2 - own_B, mask_B)
    return loss, {
        "image_to_text_accuracy": _mean(logits_BxB.max(axis=1) <= own_B, mask_B),
        "text_to_image_accuracy": _mean(logits_BxB.max(axis=0) <= own_B, mask_B),
    }


def _mean(x_B: Array, mask_B: Array) -> Array:
    return jnp.sum(jnp.where(mask_B, x_B, 0).astype(jnp.float32)) / jnp.maximum(mask_B.sum(), 1)
