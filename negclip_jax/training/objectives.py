"""Objectives: pure functions of the features of a whole (global) batch, chosen by name.

To add one, write a function like `contrastive_loss` and give it a line in OBJECTIVES.

Losses are written for all pairs at once. Under `jax.jit` with a batch sharded over devices, XLA
keeps one block of rows of the logits on each device and gathers the features once: there are no
ranks in this file. What the losses need of the logits are sums over their rows and columns, and
`reduce_logits` finds these without keeping all logits where they are many.

Shape suffixes: B pairs, K foils a pair, D feature dimensions; R rows of a block of logits, P blocks
over all devices.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from negclip_jax.common.errors import InputError
from negclip_jax.models.normalisation import l2_normalise
from negclip_jax.runtime import sharding

Numbers = dict[str, Array]
# Of a block's logits, which of them are true pairs and which count at all, each [R, B], to numbers
# by name for its rows [R] and for its columns [B].
Reduce = Callable[[Array, Array, Array], tuple[Numbers, Numbers]]

_LOGIT_BYTES = 4  # float32
# The logit of what does not count: its exponential is zero beside any other, and unlike that of
# minus infinity its gradient is a number where nothing counts.
_NOTHING = -1e30
# Cosines that differ by less are a tie: equal texts differ so much by their places in packed rows.
_TIE = 1e-5


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Over which devices a batch's logits are spread and how many of them exist at a time.

    Attributes:
      mesh: over which batches are split; None stands for one device.
      mebibytes: bound on the logits that one device holds at a time.
    """

    mesh: Mesh | None = None
    mebibytes: float = math.inf

    def count(self, batch: int) -> int:
        """Blocks on each device: the fewest that keep the bound, or else one for each row."""
        rows = batch // (1 if self.mesh is None else self.mesh.size)
        fitting = self.mebibytes * 2**20 / (_LOGIT_BYTES * batch)
        return next((n for n in range(1, rows) if rows % n == 0 and rows / n <= fitting), rows)


WHOLE = Blocks()  # all logits at once, placed by the compiler


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
) -> tuple[Array, Numbers]:
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
      blocks: in which the logits are computed, see `reduce_logits`; the result is the same.

    Returns:
      The scalar loss and metrics: `image_to_text_accuracy` and `text_to_image_accuracy`, the share
      of rows whose best match in the batch is their own, and with foils `foil_accuracy`, the share
      of images with a foil that prefer their caption to all their foils, NaN where none has one. A
      match that ties with k others counts as 1 / (1 + k). All float32.
    """

    def reduce(logits_RxB: Array, _: Array, counts_RxB: Array) -> tuple[Numbers, Numbers]:
        logits_RxB = jnp.where(counts_RxB, logits_RxB, _NOTHING)
        rows, columns = (jax.nn.logsumexp(logits_RxB, axis=axis) for axis in (1, 0))
        return {"logsumexp": rows}, {"logsumexp": columns}

    mask_B = jnp.ones(len(image_BxD), bool) if mask_B is None else mask_B
    features = (image_BxD, text_BxD, foil_BxKxD, foil_mask_BxK)
    own_B, rows, columns, foil_BxK, metrics = _score(
        reduce, *features, logit_scale, 0.0, mask_B, blocks
    )
    text_to_image_B = jax.nn.logsumexp(columns["logsumexp"], axis=0)
    loss = _mean((rows["logsumexp"] + text_to_image_B) / 2 - own_B, mask_B)
    if foil_BxK is not None:
        choices = jnp.concatenate([own_B[:, None], foil_BxK], axis=1)
        loss += foil_weight * _mean(jax.nn.logsumexp(choices, axis=1) - own_B, mask_B)
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
) -> tuple[Array, Numbers]:
    """SigLIP's loss (Zhai et al., 2023, algorithm 1): is each pair of the batch true or not?

    A foil is one more caption that is false of its image: `foil_weight` times its own term, and as
    in `contrastive_loss`, whose other arguments and metrics these are, it is no negative of other
    images.

    Args:
      logit_bias: scalar, added to all logits.

    Returns:
      The scalar loss, summed over captions and averaged over images, and the metrics.
    """

    def reduce(logits_RxB: Array, is_own_RxB: Array, counts_RxB: Array) -> tuple[Numbers, Numbers]:
        # -log sigmoid of the logit where the pair is true, of its negative where it is not.
        terms_RxB = jax.nn.softplus(jnp.where(is_own_RxB, -logits_RxB, logits_RxB))
        return {"terms": jnp.where(counts_RxB, terms_RxB, 0).sum(axis=1)}, {}

    mask_B = jnp.ones(len(image_BxD), bool) if mask_B is None else mask_B
    features = (image_BxD, text_BxD, foil_BxKxD, foil_mask_BxK)
    _, rows, _, foil_BxK, metrics = _score(
        reduce, *features, logit_scale, logit_bias, mask_B, blocks
    )
    loss = _mean(rows["terms"], mask_B)
    if foil_BxK is not None:
        loss += foil_weight * _mean(jax.nn.softplus(foil_BxK).sum(axis=1), mask_B)
    return loss, metrics


# By the name in `train.objective`: the function, and the learned scalars of a model that it takes
# after the features of images and texts. One that it does not take has no gradient.
OBJECTIVES: dict[str, tuple[Callable[..., tuple[Array, Numbers]], tuple[str, ...]]] = {
    "contrastive": (contrastive_loss, ("logit_scale",)),
    "sigmoid": (sigmoid_loss, ("logit_scale", "logit_bias")),
}


def check_objective(name: str, params: dict) -> str:
    """The name; InputError where there is no such objective or the model does not fit it.

    `params` are all parameters of the model, or their shapes.
    """
    if name not in OBJECTIVES:
        raise InputError(f"train.objective: {name!r} is none of {', '.join(OBJECTIVES)}")
    fitting = [n for n, (_, scalars) in OBJECTIVES.items() if all(s in params for s in scalars)]
    if name not in fitting:
        missing = ", ".join(scalar for scalar in OBJECTIVES[name][1] if scalar not in params)
        raise InputError(
            f"train.objective={name} needs {missing}, which this model does not have; "
            f"it can be trained with {', '.join(fitting)}"
        )
    return name


def _score(
    reduce: Reduce,
    image_BxD: Array,
    text_BxD: Array,
    foil_BxKxD: Array | None,
    foil_mask_BxK: Array | None,
    logit_scale: Array,
    logit_bias: Array | float,
    mask_B: Array,
    blocks: Blocks,
) -> tuple[Array, Numbers, Numbers, Array | None, Numbers]:
    """What both losses are made of.

    Logits of the true pairs `[B]`, numbers of rows and of columns, logits of foils, and metrics.
    """
    image, text = l2_normalise(image_BxD), l2_normalise(text_BxD)
    scale = jnp.exp(logit_scale.astype(jnp.float32))
    own_B = scale * jnp.sum(image * text, axis=1) + logit_bias
    rows, columns = reduce_logits(
        reduce, image, text, own_B, scale=scale, bias=logit_bias, mask_B=mask_B, blocks=blocks
    )

    def accuracy(better: Array, tied: Array, counts_B: Array) -> Array:
        return _mean((better == 0) / (1 + tied), counts_B)

    columns_better, columns_tied = (columns.pop(key).sum(axis=0) for key in ("better", "tied"))
    metrics = {
        "image_to_text_accuracy": accuracy(rows["better"], rows["tied"], mask_B),
        "text_to_image_accuracy": accuracy(columns_better, columns_tied, mask_B),
    }
    if foil_BxKxD is None:
        return own_B, rows, columns, None, metrics
    foil = l2_normalise(foil_BxKxD)
    foil_BxK = scale * jnp.einsum("bd,bkd->bk", image, foil, precision="highest") + logit_bias
    has_foil_B = mask_B
    if foil_mask_BxK is not None:
        foil_BxK = jnp.where(foil_mask_BxK, foil_BxK, -jnp.inf)
        has_foil_B = mask_B & foil_mask_BxK.any(axis=1)
    right = accuracy(*_rivals(foil_BxK, own_B[:, None], scale, axis=1), has_foil_B)
    metrics["foil_accuracy"] = jnp.where(has_foil_B.any(), right, jnp.nan)
    return own_B, rows, columns, foil_BxK, metrics


def _rivals(logits: Array, own: Array, scale: Array, axis: int) -> tuple[Array, Array]:
    """How many logits along an axis are better than the true pair's, and how many as good."""
    # Nothing here has a gradient. Floats, as a loop over blocks has none of integers.
    above = jax.lax.stop_gradient((logits - own) / scale)
    counts = above > _TIE, jnp.abs(above) <= _TIE
    better, tied = (jnp.sum(count, axis=axis, dtype=jnp.float32) for count in counts)
    return better, tied


def _mean(x_B: Array, mask_B: Array) -> Array:
    return jnp.sum(jnp.where(mask_B, x_B, 0).astype(jnp.float32)) / jnp.maximum(mask_B.sum(), 1)


def reduce_logits(
    reduce: Reduce,
    image_BxD: Array,
    text_BxD: Array,
    own_B: Array,
    *,
    scale: Array,
    bias: Array | float,
    mask_B: Array,
    blocks: Blocks,
) -> tuple[Numbers, Numbers]:
    """Applies `reduce` to all logits, `scale * image @ text.T + bias`, in blocks of their rows.

    All logits of 32,768 pairs are 4 GiB, and still 512 MiB on each of eight devices, several times
    over in a backward pass. Where they grow beyond the bound of `blocks` they are computed in
    blocks, reduced at once, and recomputed in the backward pass: one more matrix product of
    features, for memory that no longer grows with the square of the batch.

    Args:
      reduce: see `Reduce`; must treat rows independently.
      image_BxD, text_BxD: unit features; row i of one belongs to row i of the other.
      own_B: logits of these pairs, which the others are compared with.
      scale, bias: scalars.
      mask_B: False for padding, of which neither row nor column counts.
      blocks: the whole at once, left to the compiler, or in parts.

    Returns:
      Numbers of the rows, each `[B]`, and of the columns, each `[P, B]`: the caller reduces them
      over blocks. Beside those of `reduce` they are `better` and `tied`: how many other logits of
      the row or column are higher than its own pair's, and how many equal.
    """

    def block(shared: dict, rows: dict, columns: dict, first: Array) -> tuple[Numbers, Numbers]:
        """The rows that begin with row `first` of the batch, by all columns."""
        products = jnp.matmul(rows["image"], columns["text"].T, precision="highest")
        logits_RxB = shared["scale"] * products + shared["bias"]
        row_R, column_B = first + jnp.arange(len(products)), jnp.arange(products.shape[1])
        is_own_RxB = row_R[:, None] == column_B[None, :]
        counts_RxB = rows["mask"][:, None] & columns["mask"][None, :]
        of_rows, of_columns = reduce(logits_RxB, is_own_RxB, counts_RxB)
        others_RxB = jnp.where(counts_RxB & ~is_own_RxB, logits_RxB, _NOTHING)
        owns = rows["own"][:, None], columns["own"][None, :]
        for axis, own, numbers in ((1, owns[0], of_rows), (0, owns[1], of_columns)):
            better, tied = _rivals(others_RxB, own, shared["scale"], axis)
            numbers |= {"better": better, "tied": tied}
        return of_rows, of_columns

    shared = {"scale": scale, "bias": jnp.asarray(bias, jnp.float32)}
    batch = {"image": image_BxD, "text": text_BxD, "own": own_B, "mask": mask_B}
    count = blocks.count(len(image_BxD))
    if count == 1:
        of_rows, of_columns = block(shared, batch, batch, jnp.int32(0))
        return of_rows, jax.tree.map(lambda x: x[None], of_columns)

    def on_device(shared: dict, batch: dict) -> tuple[Numbers, Numbers]:
        # Texts are gathered once, before the loop, and their gradient is scattered once, behind it:
        # inside the loop no device waits for another. An image never leaves its device.
        columns = sharding.gather_rows({k: batch[k] for k in ("text", "own", "mask")})
        rows = {k: batch[k] for k in ("image", "own", "mask")}
        parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), rows)
        # A block's true pairs lie on a diagonal that begins at its first row in the global batch.
        height = parts["mask"].shape[1]
        first = sharding.first_row(batch["mask"]) + height * jnp.arange(count)
        # The checkpoint keeps features alone for the backward pass. Without it `map` would keep
        # each block's logits, and with them all of them.
        each = jax.checkpoint(lambda part: block(shared, part[0], columns, part[1]))
        of_rows, of_columns = jax.lax.map(each, (parts, first))
        return jax.tree.map(lambda x: x.reshape(-1), of_rows), of_columns

    return sharding.per_device(blocks.mesh, on_device)(shared, batch)
