"""Objectives: pure functions of the features of a whole (global) batch, chosen by name.

They are one family. Of each pair of an image and a text of the batch it is known that the text is
true, false, or neither. An image's own texts say so themselves (`truth_BxM`); of the other images'
texts those that hold a caption count as false, as in CLIP, and all others are unknown: "no dog" is
false of this photo, but true of most. Each true text is contrasted with false ones; a loss decides
which of them compete, and how. To add one, write a function like `contrastive_loss` and give it a
line in OBJECTIVES.

Losses are written for all pairs at once. Under `jax.jit` with a batch sharded over devices, XLA
keeps one block of rows of the logits on each device and gathers the features once: there are no
ranks in this file. What the losses need of the logits are sums over their rows and columns, and
`map_blocks` finds these without keeping all logits where they are many.

Shape suffixes: B images, M texts of an image, of which the first is its caption; D feature
dimensions; R rows of a block of logits, C its columns, P blocks over all devices.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from negclip_jax.common.errors import InputError
from negclip_jax.models.normalisation import l2_normalise
from negclip_jax.runtime import sharding

Numbers = dict[str, Array]
Scalar = Float[Array, ""]
# Texts of images, or of each its caption alone.
Texts = Float[Array, "B M D"] | Float[Array, "B D"]
# Of logits, and which of them belong to false pairs, along an axis.
Reduce = Callable[[Array, Array, int], Array]

_LOGIT_BYTES = 4  # float32
# The logit of what does not count: its exponential is zero beside any other, and unlike that of
# minus infinity its gradient is a number where nothing counts.
_NOTHING = -1e30
# Cosines that differ by less are a tie: equal texts differ so much by their places in packed rows.
TIE = 1e-5


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Over which devices a batch's logits are spread and how many of them exist at a time."""

    mesh: Mesh | None = None  # over which batches are split; None stands for one device
    mebibytes: float = math.inf  # bound on the logits that one device holds at a time

    def count(self, batch: int, texts: int = 1) -> int:
        """Blocks on each device: the fewest that keep the bound, or else one for each row.

        Of so many images, and texts of each that are columns of the logits.
        """
        rows = batch // (1 if self.mesh is None else self.mesh.size)
        fitting = self.mebibytes * 2**20 / (_LOGIT_BYTES * batch * texts)
        return next((n for n in range(1, rows) if rows % n == 0 and rows / n <= fitting), rows)


WHOLE = Blocks()  # all logits at once, placed by the compiler


def contrastive_loss(
    image_BxD: Float[Array, "B D"],
    text_BxMxD: Texts,
    logit_scale: Scalar,
    *,
    truth_BxM: Int[Array, "B M"] | None = None,
    holds_caption_BxM: Bool[Array, "B M"] | None = None,
    foil_weight: float = 1.0,
    mask_B: Bool[Array, " B"] | None = None,
    blocks: Blocks = WHOLE,
    of_each: bool = False,
    all_texts: bool = False,
) -> tuple[Scalar, Numbers]:
    """Each true text of an image against false ones, in softmaxes.

    With T_i the true and F_i the false texts of image i, S the logits, and the cross-entropy
    l(a, N) = log(1 + sum_{n in N} exp(S_n - S_a)) of choosing a among N, it is the mean over i of::

        1/2 sum_{a in T_i} l(S_ia, N_i)                    the image chooses among texts
      + 1/2 l(S_i,i0, {S_j,i0 : j != i})                   its caption chooses among images
      + foil_weight mean_{a in T_i} l(S_ia, F_i)           the image chooses among its own texts

    N_i are the captions of other images. With one true text and no false ones it is InfoNCE
    (Radford et al., 2021, figure 3). With false ones, foils, the last term is NegBench's multiple
    choice (Alhamoud et al., CVPR 2025). With `all_texts` N_i has F_i too, and whatever else of
    other images holds a caption: truth-labelled contrast. A mean there would weigh two true texts
    like one; so does the last term, in which images without false texts have none.

    Args:
      image_BxD: projected image features, unnormalised.
      text_BxMxD: projected text features, unnormalised; the first of each image is its caption.
      logit_scale: natural logarithm of the factor on cosine similarities.
      truth_BxM: of its own image a text is true (1), false (-1), or not known or not there (0), and
        then counts nowhere. The caption is true. Needed where there are other texts.
      holds_caption_BxM: whether a text holds its image's caption and so is false of other images.
        None: the caption alone does.
      foil_weight: see above.
      mask_B: False for padding rows, which then neither score nor count (evaluation only).
      blocks: in which the logits are computed, see `map_blocks`; the result is the same.
      of_each: whether metrics hold `loss_of_each` as well, the terms of the mean `[B]`.
      all_texts: see above.

    Returns:
      The loss and metrics: `image_to_text_accuracy` and `text_to_image_accuracy`, the share
      of images whose best match among the batch's captions, and of captions whose best match among
      its images, is their own; and with more than one text `foil_accuracy`, for images with a false
      text the mean share of their true texts above all of these, NaN where no image has one. A
      match that ties with k others counts as 1 / (1 + k). All float32.
    """

    def reduce(logits: Array, is_false: Array, axis: int) -> Array:
        return jax.nn.logsumexp(jnp.where(is_false, logits, _NOTHING), axis=axis)

    batch = _with_defaults(image_BxD, text_BxMxD, truth_BxM, holds_caption_BxM, mask_B)
    competing = batch["text"].shape[1] if all_texts else 1
    own_BxM, rows_B, columns_PxB, metrics = _score(
        reduce, batch, competing, logit_scale, 0.0, blocks
    )
    # softplus(logsumexp_N - S_a) is l(a, N), and 0 where N is empty.
    is_true_BxM = batch["truth"] > 0
    of_images_BxM = jax.nn.softplus(rows_B[:, None] - own_BxM)
    of_captions_B = jax.nn.softplus(jax.nn.logsumexp(columns_PxB, axis=0) - own_BxM[:, 0])
    loss_B = (jnp.sum(of_images_BxM, axis=1, where=is_true_BxM) + of_captions_B) / 2
    if own_BxM.shape[1] > 1:
        foils_B = reduce(own_BxM, batch["truth"] < 0, 1)
        choices_BxM = jax.nn.softplus(foils_B[:, None] - own_BxM)
        loss_B += foil_weight * jnp.mean(choices_BxM, axis=1, where=is_true_BxM)
    metrics |= {"loss_of_each": loss_B} if of_each else {}
    return _mean(loss_B, batch["mask"]), metrics


def sigmoid_loss(
    image_BxD: Float[Array, "B D"],
    text_BxMxD: Texts,
    logit_scale: Scalar,
    logit_bias: Scalar,
    *,
    truth_BxM: Int[Array, "B M"] | None = None,
    holds_caption_BxM: Bool[Array, "B M"] | None = None,
    foil_weight: float = 1.0,
    mask_B: Bool[Array, " B"] | None = None,
    blocks: Blocks = WHOLE,
    of_each: bool = False,
) -> tuple[Scalar, Numbers]:
    """SigLIP's loss (Zhai et al., 2023, algorithm 1): is each pair of the batch true or not?

    The captions of other images are false of an image, as in `contrastive_loss`, whose other
    arguments and metrics these are. Each of its own true texts is one more true pair, and each
    false one `foil_weight` times a false pair. `logit_bias` is added to all logits.

    Returns the loss, summed over texts and averaged over images, and the metrics.
    """

    def reduce(logits: Array, is_false: Array, axis: int) -> Array:
        return jnp.sum(jax.nn.softplus(logits), axis=axis, where=is_false)

    batch = _with_defaults(image_BxD, text_BxMxD, truth_BxM, holds_caption_BxM, mask_B)
    own_BxM, rows_B, _, metrics = _score(reduce, batch, 1, logit_scale, logit_bias, blocks)
    loss_B = rows_B + jnp.sum(jax.nn.softplus(-own_BxM), axis=1, where=batch["truth"] > 0)
    loss_B += foil_weight * reduce(own_BxM, batch["truth"] < 0, 1)
    metrics |= {"loss_of_each": loss_B} if of_each else {}
    return _mean(loss_B, batch["mask"]), metrics


def anchor_loss(
    text_BxD: Float[Array, "B D"], base_BxD: Float[Array, "B D"], mask_B: Bool[Array, " B"]
) -> Scalar:
    """Mean squared distance between unit text features and the base model's of the same texts.

    Features come unnormalised; `mask_B` says which of them count.
    """
    difference_BxD = l2_normalise(text_BxD) - l2_normalise(base_BxD)
    return _mean(jnp.sum(difference_BxD**2, axis=1), mask_B)


def image_choice_loss(
    image_BxD: Float[Array, "B D"],
    text_BxMxD: Float[Array, "B M D"],
    opposite_BxMxD: Float[Array, "B M D"],
    truth_BxM: Int[Array, "B M"],
    counts_BxM: Bool[Array, "B M"],
    logit_scale: Scalar,
    mask_B: Bool[Array, " B"],
    scale_max: float | None = None,
) -> tuple[Scalar, Scalar]:
    """Each text chooses between its image and one of which it has the other truth.

    A softmax of two images, in which a true text is to prefer its own and a false one the other;
    the mean over the texts of an image. The losses above compare texts, on one image. They leave
    open how a text is scored on images of which it is true and false, and so does a false caption
    of another image: "there is no dog" may stay near all photos of dogs.

    Args, beside those of `contrastive_loss`:
      opposite_BxMxD: features of the other image of each text, unnormalised.
      counts_BxM: False where there is none.
      scale_max: upper bound of the factor on cosine similarities, here. Two images are soon told
        apart by a large one: then only those are learnt from that are decided wrongly.

    Returns:
      The loss, and the share of texts that score higher on the right image, ties counting half;
      NaN where there are none. Both float32.
    """
    text_BxMxD = l2_normalise(text_BxMxD)
    towards_BxMxD = l2_normalise(image_BxD)[:, None] - l2_normalise(opposite_BxMxD)
    lead_BxM = jnp.einsum("bmd,bmd->bm", towards_BxMxD, text_BxMxD, precision="highest")
    lead_BxM *= truth_BxM
    counts_BxM &= (truth_BxM != 0) & mask_B[:, None]
    scale = jnp.exp(logit_scale.astype(jnp.float32))
    if scale_max is not None:
        scale = jnp.minimum(scale, scale_max)
    choice_BxM = jnp.where(counts_BxM, jax.nn.softplus(-scale * lead_BxM), 0)
    loss_B = choice_BxM.sum(axis=1) / jnp.maximum(counts_BxM.sum(axis=1), 1)
    # A tie is told with the tolerance of the other accuracies.
    points_BxM = jnp.where(jnp.abs(lead_BxM) <= TIE, 0.5, (lead_BxM > 0).astype(jnp.float32))
    right = jnp.sum(points_BxM, where=counts_BxM) / jnp.maximum(counts_BxM.sum(), 1)
    return _mean(loss_B, mask_B), jnp.where(counts_BxM.any(), right, jnp.nan)


def distillation_loss(
    image_BxD: Float[Array, "B D"],
    text_BxD: Float[Array, "B D"],
    base_BxD: Float[Array, "B D"],
    logit_scale: Scalar,
    mask_B: Bool[Array, " B"],
    blocks: Blocks = WHOLE,
) -> Scalar:
    """KL divergence from the base model's softmax over the batch to the model's.

    The mean of two directions, images among texts and texts among images (Hinton et al., 2015, at
    the temperature of the logits). Unlike `anchor_loss` it lets features move that keep ranks. The
    images are those of a frozen tower, and the scale is the present one without a gradient.

    Features come unnormalised; `base_BxD` are the base's of the same texts. `mask_B` says which
    pairs count, `logit_scale` is the natural logarithm of the factor on cosine similarities.
    """

    def block(scale: Array, rows: Numbers, texts: Numbers, _: Array) -> tuple[Numbers, Numbers]:
        counts_RxB = rows["mask"][:, None] & texts["mask"]

        def logits(text_BxD: Array) -> Array:
            products_RxB = jnp.matmul(rows["image"], text_BxD.T, precision="highest")
            return jnp.where(counts_RxB, scale * products_RxB, _NOTHING)

        model_RxB, base_RxB = logits(texts["text"]), logits(texts["base"])

        def along(axis: int) -> Numbers:
            gain = jax.nn.softmax(base_RxB, axis) * (base_RxB - model_RxB)
            sums = [jax.nn.logsumexp(x, axis) for x in (base_RxB, model_RxB)]
            return {"gain": jnp.sum(gain, axis), "base": sums[0], "model": sums[1]}

        return along(1), along(0)

    rows = {"image": l2_normalise(image_BxD), "mask": mask_B}
    texts = {"text": l2_normalise(text_BxD), "base": l2_normalise(base_BxD), "mask": mask_B}
    scale = jax.lax.stop_gradient(jnp.exp(logit_scale.astype(jnp.float32)))
    count = blocks.count(len(mask_B))
    rows, columns = map_blocks(block, scale, rows, texts, blocks.mesh, count)
    # sum_x p(x) (log p(x) - log q(x)), with p the base's; a column's softmax is that of its blocks,
    # each weighted by its share of the whole.
    base_B, model_B = (jax.nn.logsumexp(columns[k], axis=0) for k in ("base", "model"))
    gain_B = jnp.sum(jnp.exp(columns["base"] - base_B) * columns["gain"], axis=0)
    of_columns_B = gain_B - base_B + model_B
    return _mean((rows["gain"] - rows["base"] + rows["model"] + of_columns_B) / 2, mask_B)


# By the name in `train.objective`: the function, and the learned scalars of a model that it takes
# after the features of images and texts. One that it does not take has no gradient.
OBJECTIVES: dict[str, tuple[Callable[..., tuple[Scalar, Numbers]], tuple[str, ...]]] = {
    "contrastive": (contrastive_loss, ("logit_scale",)),
    "truth": (functools.partial(contrastive_loss, all_texts=True), ("logit_scale",)),
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


def _with_defaults(
    image_BxD: Float[Array, "B D"],
    text_BxMxD: Texts,
    truth_BxM: Int[Array, "B M"] | None,
    holds_caption_BxM: Bool[Array, "B M"] | None,
    mask_B: Bool[Array, " B"] | None,
) -> Numbers:
    """A batch by the names below, with unit features; without labels there are captions only."""
    text_BxMxD = text_BxMxD.reshape(len(image_BxD), -1, text_BxMxD.shape[-1])
    batch, texts = text_BxMxD.shape[:2]
    is_caption_BxM = jnp.broadcast_to(jnp.arange(texts) == 0, (batch, texts))
    if truth_BxM is None and texts > 1:
        raise ValueError("of texts beside the caption truth_BxM says whether they are true")
    return {
        "image": l2_normalise(image_BxD),
        "text": l2_normalise(text_BxMxD),
        "truth": is_caption_BxM.astype(jnp.int8) if truth_BxM is None else truth_BxM,
        "holds_caption": is_caption_BxM if holds_caption_BxM is None else holds_caption_BxM,
        "mask": jnp.ones(batch, bool) if mask_B is None else mask_B,
    }


def _score(
    reduce: Reduce,
    batch: Numbers,
    competing: int,
    logit_scale: Scalar,
    logit_bias: Scalar | float,
    blocks: Blocks,
) -> tuple[Float[Array, "B M"], Float[Array, " B"], Float[Array, "P B"], Numbers]:
    """What the losses are made of.

    So many of each image's texts are columns of the logits as are `competing`, from the caption on;
    `reduce` is of logits and false pairs.

    Returns:
      Logits of each image and its own texts; `reduce` of the false pairs of each image, and of each
      caption with images, in each block of images; and metrics.
    """
    scale = jnp.exp(logit_scale.astype(jnp.float32))
    own_BxM = jnp.einsum("bd,bmd->bm", batch["image"], batch["text"], precision="highest")
    own_BxM = scale * own_BxM + logit_bias

    def block(shared: Numbers, rows: Numbers, columns: Numbers, first: Array):
        """The images from number `first` of the batch on, by all texts that compete."""
        text_CxD = columns["text"].reshape(-1, columns["text"].shape[-1])
        products_RxC = jnp.matmul(rows["image"], text_CxD.T, precision="highest")
        logits_RxC = shared["scale"] * products_RxC + shared["bias"]
        row_R, owner_C = jnp.arange(len(products_RxC)), jnp.arange(len(text_CxD)) // competing
        is_own_RxC = first + row_R[:, None] == owner_C
        is_false_RxC = ~is_own_RxC
        if competing > 1:
            own_C, others_C = (columns[k].reshape(-1) for k in ("false", "holds_caption"))
            is_false_RxC = jnp.where(is_own_RxC, own_C, others_C)
        is_false_RxC &= rows["mask"][:, None] & jnp.repeat(columns["mask"], competing)
        captions_RxB, others_RxB = logits_RxC[:, ::competing], is_false_RxC[:, ::competing]
        rivals_RxB = jnp.where(others_RxB, captions_RxB, _NOTHING)
        of_rows = _rivals(rivals_RxB, rows["own"][:, None], shared["scale"], axis=1)
        of_columns = _rivals(rivals_RxB, columns["own"], shared["scale"], axis=0)
        of_rows["reduced"] = reduce(logits_RxC, is_false_RxC, 1)
        of_columns["reduced"] = reduce(captions_RxB, others_RxB, 0)
        return of_rows, of_columns

    shared = {"scale": scale, "bias": jnp.asarray(logit_bias, jnp.float32)}
    seen = {"text": batch["text"][:, :competing], "mask": batch["mask"], "own": own_BxM[:, 0]}
    if competing > 1:
        seen |= {"false": batch["truth"] < 0, "holds_caption": batch["holds_caption"]}
    of_images = {"image": batch["image"], "mask": batch["mask"], "own": own_BxM[:, 0]}
    count = blocks.count(len(own_BxM), competing)
    rows, columns = map_blocks(block, shared, of_images, seen, blocks.mesh, count)
    columns = {k: x if k == "reduced" else x.sum(axis=0) for k, x in columns.items()}
    metrics = {
        "image_to_text_accuracy": _mean(_points(rows), batch["mask"]),
        "text_to_image_accuracy": _mean(_points(columns), batch["mask"]),
    }
    if own_BxM.shape[1] > 1:
        is_false_BxM, is_true_BxM = batch["truth"] < 0, batch["truth"] > 0
        has_false_B = batch["mask"] & is_false_BxM.any(axis=1)
        foils_Bx1xM = jnp.where(is_false_BxM, own_BxM, _NOTHING)[:, None]
        above = _rivals(foils_Bx1xM, own_BxM[:, :, None], scale, axis=2)
        right = _mean(jnp.mean(_points(above), axis=1, where=is_true_BxM), has_false_B)
        metrics["foil_accuracy"] = jnp.where(has_false_B.any(), right, jnp.nan)
    return own_BxM, rows["reduced"], columns["reduced"], metrics


def _rivals(logits: Array, own: Array, scale: Array, axis: int) -> Numbers:
    """How many logits along an axis are better than the true pair's, and how many as good."""
    # Nothing here has a gradient. Floats, as a loop over blocks has none of integers.
    above = jax.lax.stop_gradient((logits - own) / scale)
    counts = {"better": above > TIE, "tied": jnp.abs(above) <= TIE}
    return {k: jnp.sum(count, axis=axis, dtype=jnp.float32) for k, count in counts.items()}


def _points(rivals: Numbers) -> Array:
    """One for a true pair that has no better rival, shared with those that are as good."""
    return (rivals["better"] == 0) / (1 + rivals["tied"])


def _mean(x_B: Float[Array, " B"], mask_B: Bool[Array, " B"]) -> Scalar:
    return jnp.sum(jnp.where(mask_B, x_B, 0).astype(jnp.float32)) / jnp.maximum(mask_B.sum(), 1)


def map_blocks(
    block: Callable[[Any, Any, Any, Int[Array, ""]], tuple[Numbers, Numbers]],
    shared: Any,
    images: Any,
    texts: Any,
    mesh: Mesh | None,
    count: int,
) -> tuple[Numbers, Numbers]:
    """Applies `block` to all logits of a batch, in blocks of their rows.

    All logits of 32,768 pairs are 4 GiB, and still 512 MiB on each of eight devices, several times
    over in a backward pass. Where they grow beyond a bound they are computed in blocks, reduced at
    once, and recomputed in the backward pass: one more matrix product of features, for memory that
    no longer grows with the square of the batch.

    Args:
      block: of what all blocks share, the rows of `images` that it is for, the whole of `texts`,
        and the number of its first row in the batch, to numbers of its rows, each `[R]`, and of
        columns. It must treat rows independently.
      images, texts: trees of arrays `[B, ...]`.
      mesh: over which the batch is split; None stands for one device.
      count: of blocks on each device. 1: the whole at once, left to the compiler.

    Returns:
      Numbers of the rows, each `[B]`, and of columns with an axis of blocks before them, `[P, ..]`:
      the caller reduces it.
    """
    if count == 1:
        of_rows, of_columns = block(shared, images, texts, jnp.int32(0))
        return of_rows, jax.tree.map(lambda x: x[None], of_columns)

    def on_device(shared: Any, batch: Any) -> tuple[Numbers, Numbers]:
        images, texts = batch
        # Texts are gathered once, before the loop, and their gradient is scattered once, behind it:
        # inside the loop no device waits for another. An image never leaves its device.
        texts = sharding.gather_rows(texts)
        parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), images)
        # A block's true pairs lie on a diagonal that begins at its first row in the global batch.
        first = sharding.first_row(jax.tree.leaves(images)[0])
        first += jax.tree.leaves(parts)[0].shape[1] * jnp.arange(count)
        # The checkpoint keeps features alone for the backward pass. Without it `map` would keep
        # each block's logits, and with them all of them.
        each = jax.checkpoint(lambda part: block(shared, part[0], texts, part[1]))
        of_rows, of_columns = jax.lax.map(each, (parts, first))
        return jax.tree.map(lambda x: x.reshape(-1), of_rows), of_columns

    return sharding.per_device(mesh, on_device)(shared, (images, texts))
