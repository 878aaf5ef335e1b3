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
    foil_weight: float = 1.0,
    mask_B: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Symmetric InfoNCE (Radford et al., 2021, figure 3), optionally with hard negative captions.

    Args:
      image_BxD: projected image features, unnormalised.
      text_BxD: projected text features, unnormalised; row i describes image i.
      logit_scale: scalar, natural logarithm of the factor on cosine similarities.
      foil_BxKxD: captions that are false of image i. Each image chooses between its caption and
        its own foils in a cross-entropy of their own, as in NegBench's multiple choice (Alhamoud
        et al., CVPR 2025). They are no negatives of other images: "no dog" is false of this photo,
        but true of most. Inside the InfoNCE denominator they would be outweighed by the batch.
      foil_mask_BxK: False where a pair has fewer than K foils.
      foil_weight: factor of that cross-entropy.
      mask_B: False for padding rows, which then neither score nor count (evaluation only).

    Returns:
      The scalar loss and metrics: `image_to_text_accuracy` and `text_to_image_accuracy`, the share
      of rows whose best match in the batch is their own, and with foils `foil_accuracy`, the share
      of images that prefer their caption to all their foils. All float32.
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
    text_to_image = jax.nn.logsumexp(logits_BxB, axis=0)
    loss = _mean((image_to_text + text_to_image) / 2 - own_B, mask_B)
    metrics = {
        "image_to_text_accuracy": _mean(logits_BxB.max(axis=1) <= own_B, mask_B),
        "text_to_image_accuracy": _mean(logits_BxB.max(axis=0) <= own_B, mask_B),
    }
    if foil_BxKxD is not None:
        foil_BxK = scale * jnp.einsum(
            "bd,bkd->bk", image, l2_normalise(foil_BxKxD), precision="highest"
        )
        if foil_mask_BxK is not None:
            foil_BxK = jnp.where(foil_mask_BxK, foil_BxK, -jnp.inf)
        choices = jnp.concatenate([own_B[:, None], foil_BxK], axis=1)
        loss += foil_weight * _mean(jax.nn.logsumexp(choices, axis=1) - own_B, mask_B)
        metrics["foil_accuracy"] = _mean(foil_BxK.max(axis=1) < own_B, mask_B)
    return loss, metrics


def sigmoid_loss(
    image_BxD: Array,
    text_BxD: Array,
    logit_scale: Array,
    logit_bias: Array,
    *,
    foil_BxKxD: Array | None = None,
    foil_mask_BxK: Array | None = None,
    foil_weight: float = 1.0,
    mask_B: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """SigLIP's loss (Zhai et al., 2023, algorithm 1): is each pair of the batch true or not?

    A foil is one more caption that is false of its image: `foil_weight` times its own term, and as
    in `contrastive_loss` it is no negative of other images.

    Args:
      logit_bias: scalar, added to all logits.
      image_BxD, text_BxD, logit_scale, foil_BxKxD, foil_mask_BxK, foil_weight, mask_B: those of
        `contrastive_loss`.

    Returns:
      The scalar loss, summed over captions and averaged over images, and the metrics of
      `contrastive_loss`.
    """
    image, text = l2_normalise(image_BxD), l2_normalise(text_BxD)
    scale = jnp.exp(logit_scale.astype(jnp.float32))
    logits_BxB = scale * jnp.matmul(image, text.T, precision="highest") + logit_bias
    if mask_B is None:
        mask_B = jnp.ones(len(image), bool)
    pairs_BxB = mask_B[:, None] & mask_B[None, :]
    own_B, is_own_BxB = jnp.diagonal(logits_BxB), jnp.eye(len(image), dtype=bool)
    # -log sigmoid of the logit where the pair is true, of its negative where it is not.
    terms_BxB = jax.nn.softplus(jnp.where(is_own_BxB, -logits_BxB, logits_BxB))
    loss = _mean(jnp.where(pairs_BxB, terms_BxB, 0).sum(axis=1), mask_B)
    shown_BxB = jnp.where(pairs_BxB, logits_BxB, -jnp.inf)
    metrics = {
        "image_to_text_accuracy": _mean(shown_BxB.max(axis=1) <= own_B, mask_B),
        "text_to_image_accuracy": _mean(shown_BxB.max(axis=0) <= own_B, mask_B),
    }
    if foil_BxKxD is not None:
        cosine_BxK = jnp.einsum("bd,bkd->bk", image, l2_normalise(foil_BxKxD), precision="highest")
        foil_BxK = scale * cosine_BxK + logit_bias
        if foil_mask_BxK is not None:
            foil_BxK = jnp.where(foil_mask_BxK, foil_BxK, -jnp.inf)
        loss += foil_weight * _mean(jax.nn.softplus(foil_BxK).sum(axis=1), mask_B)
        metrics["foil_accuracy"] = _mean(foil_BxK.max(axis=1) < own_B, mask_B)
    return loss, metrics


def _mean(x_B: Array, mask_B: Array) -> Array:
    return jnp.sum(jnp.where(mask_B, x_B, 0).astype(jnp.float32)) / jnp.maximum(mask_B.sum(), 1)
