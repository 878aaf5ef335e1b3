"""What losses need of a batch's logits, without keeping them: sums over their rows and columns.

All logits of 32,768 pairs are 4 GiB, and still 512 MiB on each of eight devices, several times over
in a backward pass. Where they grow beyond a bound they are computed in blocks of rows, reduced at
once, and recomputed in the backward pass: one more matrix product of features, for memory that no
longer grows with the square of the batch. Letters in shapes: B pairs, R rows of a block, P blocks
over all devices, D feature dimensions.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from negclip_jax.runtime import sharding

# Of a block's logits, which of them are true pairs and which count at all, each [R, B], to numbers
# by name for its rows [R] and for its columns [B].
Reduce = Callable[[Array, Array, Array], tuple[dict[str, Array], dict[str, Array]]]

_LOGIT_BYTES = 4  # float32


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


def reduce_logits(
    reduce: Reduce,
    image_BxD: Array,
    text_BxD: Array,
    *,
    scale: Array,
    bias: Array | float,
    mask_B: Array,
    blocks: Blocks,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Applies `reduce` to all logits, `scale * image @ text.T + bias`.

    Args:
      reduce: see `Reduce`; must treat rows independently.
      image_BxD, text_BxD: unit features; row i of one belongs to row i of the other.
      scale, bias: scalars.
      mask_B: False for padding, of which neither row nor column counts.
      blocks: the whole at once, in the hands of the compiler, or in parts.

    Returns:
      Numbers of the rows, each `[B]`, and of the columns, each `[P, B]`: the caller reduces them
      over blocks.
    """
    shared = {"scale": scale, "bias": jnp.asarray(bias, jnp.float32)}
    rows = {"image": image_BxD, "text": text_BxD, "mask": mask_B}
    count = blocks.count(len(image_BxD))
    if count == 1:
        of_rows, of_columns = _reduce_block(reduce, shared, rows, rows, jnp.int32(0))
        return of_rows, jax.tree.map(lambda x: x[None], of_columns)

    def on_device(shared: dict, rows: dict) -> tuple[dict, dict]:
        columns = sharding.gather_rows({"text": rows["text"], "mask": rows["mask"]})
        own = {"image": rows["image"], "mask": rows["mask"]}
        parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), own)
        height = parts["mask"].shape[1]
        first = sharding.first_row(rows["mask"]) + height * jnp.arange(count)
        block = jax.checkpoint(
            lambda part: _reduce_block(reduce, shared, part[0], columns, part[1])
        )
        of_rows, of_columns = jax.lax.map(block, (parts, first))
        return jax.tree.map(lambda x: x.reshape(-1), of_rows), of_columns

    return sharding.per_device(blocks.mesh, on_device)(shared, rows)


def _reduce_block(
    reduce: Reduce, shared: dict, rows: dict, columns: dict, first: Array
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The block that begins at row `first` of the batch."""
    products = jnp.matmul(rows["image"], columns["text"].T, precision="highest")
    logits_RxB = shared["scale"] * products + shared["bias"]
    row_R, column_B = first + jnp.arange(len(products)), jnp.arange(products.shape[1])
    is_own_RxB = row_R[:, None] == column_B[None, :]
    counts_RxB = rows["mask"][:, None] & columns["mask"][None, :]
    return reduce(logits_RxB, is_own_RxB, counts_RxB)
