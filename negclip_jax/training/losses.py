"""Objectives as pure functions of features, written for the whole (global) batch.

Under `jax.jit` with a batch sharded over devices, XLA keeps one block of rows of the logits on each
device and gathers the features once: there are no ranks in this file. `logits` computes big ones in
parts. Shape suffixes: B pairs, K foils a pair, D feature dimensions, R rows and P blocks of logits.
"""

import jax
import jax.numpy as jnp
from jax import Array

from negclip_jax.training.logits import WHOLE, Blocks, reduce_logits

# The logit of what does not count: its exponential is zero beside any other, and unlike that of
# minus infinity its gradient is a number where nothing counts.
_NOTHING = -1e30


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
    blocks: Blocks = WHOLE,
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
      blocks: in which the logits are computed, see `logits`; the result is the same.

    Returns:
      The scalar loss and metrics: `image_to_text_accuracy` and `text_to_image_accuracy`, the share
      of rows whose best match in the batch is their own, and with foils `foil_accuracy`, the share
      of images that prefer their caption to all their foils. All float32.
    """
    image, text = l2_normalise(image_BxD), l2_normalise(text_BxD)
    scale = jnp.exp(logit_scale.astype(jnp.float32))
    mask_B = jnp.ones(len(image), bool) if mask_B is None else mask_B
    rows, columns = reduce_logits(
        _contrastive_block, image, text, scale=scale, bias=0.0, mask_B=mask_B, blocks=blocks
    )
    own_B = rows["own"]
    text_to_image = jax.nn.logsumexp(columns["logsumexp"], axis=0)
    loss = _mean((rows["logsumexp"] + text_to_image) / 2 - own_B, mask_B)
    metrics = _accuracies(rows, columns, mask_B)
    if foil_BxKxD is not None:
        foil_BxK = _foil_logits(image, foil_BxKxD, foil_mask_BxK, scale, 0.0)
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
    blocks: Blocks = WHOLE,
) -> tuple[Array, dict[str, Array]]:
    """SigLIP's loss (Zhai et al., 2023, algorithm 1): is each pair of the batch true or not?

    A foil is one more caption that is false of its image: `foil_weight` times its own term, and as
    in `contrastive_loss` it is no negative of other images.

    Args:
      logit_bias: scalar, added to all logits.
      image_BxD, text_BxD, logit_scale, foil_BxKxD, foil_mask_BxK, foil_weight, mask_B, blocks:
        those of `contrastive_loss`.

    Returns:
      The scalar loss, summed over captions and averaged over images, and the metrics of
      `contrastive_loss`.
    """
    image, text = l2_normalise(image_BxD), l2_normalise(text_BxD)
    scale = jnp.exp(logit_scale.astype(jnp.float32))
    mask_B = jnp.ones(len(image), bool) if mask_B is None else mask_B
    rows, columns = reduce_logits(
        _sigmoid_block, image, text, scale=scale, bias=logit_bias, mask_B=mask_B, blocks=blocks
    )
    loss = _mean(rows["terms"], mask_B)
    metrics = _accuracies(rows, columns, mask_B)
    if foil_BxKxD is not None:
        foil_BxK = _foil_logits(image, foil_BxKxD, foil_mask_BxK, scale, logit_bias)
        loss += foil_weight * _mean(jax.nn.softplus(foil_BxK).sum(axis=1), mask_B)
        metrics["foil_accuracy"] = _mean(foil_BxK.max(axis=1) < rows["own"], mask_B)
    return loss, metrics


def _contrastive_block(
    logits_RxB: Array, is_own_RxB: Array, counts_RxB: Array
) -> tuple[dict[str, Array], dict[str, Array]]:
    rows, columns = _best(logits_RxB, is_own_RxB, counts_RxB)
    logits_RxB = jnp.where(counts_RxB, logits_RxB, _NOTHING)
    rows["logsumexp"] = jax.nn.logsumexp(logits_RxB, axis=1)
    columns["logsumexp"] = jax.nn.logsumexp(logits_RxB, axis=0)
    return rows, columns


def _sigmoid_block(
    logits_RxB: Array, is_own_RxB: Array, counts_RxB: Array
) -> tuple[dict[str, Array], dict[str, Array]]:
    rows, columns = _best(logits_RxB, is_own_RxB, counts_RxB)
    # -log sigmoid of the logit where the pair is true, of its negative where it is not.
    terms_RxB = jax.nn.softplus(jnp.where(is_own_RxB, -logits_RxB, logits_RxB))
    rows["terms"] = jnp.where(counts_RxB, terms_RxB, 0).sum(axis=1)
    return rows, columns


def _best(
    logits_RxB: Array, is_own_RxB: Array, counts_RxB: Array
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Of rows, the logit of the true pair; of rows and columns, the largest logit."""
    # Read from the logits themselves, so that a tie is one to the last bit.
    own_R = jnp.where(is_own_RxB, logits_RxB, 0).sum(axis=1)
    shown_RxB = jax.lax.stop_gradient(jnp.where(counts_RxB, logits_RxB, _NOTHING))
    return {"own": own_R, "best": shown_RxB.max(axis=1)}, {"best": shown_RxB.max(axis=0)}


def _accuracies(
    rows: dict[str, Array], columns: dict[str, Array], mask_B: Array
) -> dict[str, Array]:
    return {
        "image_to_text_accuracy": _mean(rows["best"] <= rows["own"], mask_B),
        "text_to_image_accuracy": _mean(columns["best"].max(axis=0) <= rows["own"], mask_B),
    }


def _foil_logits(
    image_BxD: Array,
    foil_BxKxD: Array,
    foil_mask_BxK: Array | None,
    scale: Array,
    bias: Array | float,
) -> Array:
    """Logits of each image and its own foils, `[B, K]`, minus infinity where a pair has none."""
    cosine_BxK = jnp.einsum("bd,bkd->bk", image_BxD, l2_normalise(foil_BxKxD), precision="highest")
    foil_BxK = scale * cosine_BxK + bias
    return foil_BxK if foil_mask_BxK is None else jnp.where(foil_mask_BxK, foil_BxK, -jnp.inf)


def _mean(x_B: Array, mask_B: Array) -> Array:
    return jnp.sum(jnp.where(mask_B, x_B, 0).astype(jnp.float32)) / jnp.maximum(mask_B.sum(), 1)
