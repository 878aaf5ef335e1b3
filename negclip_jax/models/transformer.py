"""The transformer that every tower is made of: pre-LayerNorm blocks, stacked and scanned.

Blocks of a tower have equal shapes, so their parameters are stored stacked (leading axis: layer)
and run under `jax.lax.scan`: compile time does not grow with depth. A GPU pays for the loop with
copies of what it keeps for the backward pass, a fifth of a step; there it can be unrolled.

Shape letters: B sequences, T columns of each, Q columns that are read, W the tower's width; BT and
BQ, sequences and columns as one axis; H heads of K numbers each.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """Sizes and numerics that the text and the vision transformer share."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    layer_scale: bool = False  # a learned factor of each channel after attention and MLP

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if field.type is int:
                check_size(field.name, getattr(self, field.name))
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads")
        if self.hidden_act not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"unknown activation {self.hidden_act!r}; known are: {known}")


# Far beyond any model. What an untrusted config.json says is built, layer by layer, before its
# weights are compared with it.
_LARGEST = {"layers": 1000, "image_size": 2**14, "context_length": 2**16}
_LARGEST_SIZE = 2**24


def check_size(name: str, value: int) -> None:
    """Raises ValueError for a value that no model has; `name` is the field of a configuration."""
    smallest = 0 if name.endswith("_id") else 1
    largest = _LARGEST.get(name, _LARGEST_SIZE)
    if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value <= largest:
        raise ValueError(f"{name} is {value!r}, not a whole number from {smallest} to {largest:,}")


CAUSAL = "causal"
# Which columns a row attends to: all (None), those before it (CAUSAL), or these.
Mask = Bool[Array, "B Q T"] | str | None


class Attention(nnx.Module):
    """Multi-head self-attention with biases; softmax in float32.

    Takes and returns rows `[N, W]`, those of `batch` sequences one after the other.
    """

    def __init__(self, config: TowerConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.heads = config.heads
        std = config.width**-0.5
        self.query = linear(config.width, config.width, std, dtype, rngs)
        self.key = linear(config.width, config.width, std, dtype, rngs)
        self.value = linear(config.width, config.width, std, dtype, rngs)
        self.out = linear(config.width, config.width, residual_std(config), dtype, rngs)

    def __call__(
        self, queries: Float[Array, "BQ W"], x: Float[Array, "BT W"], mask: Mask, batch: int
    ) -> Float[Array, "BQ W"]:
        # Sequences and heads apart: [BT, W] to [B, T, H, K].
        head = x.shape[1] // self.heads
        projected = self.query(queries), self.key(x), self.value(x)
        q, k, v = (x.reshape(batch, -1, self.heads, head) for x in projected)
        is_array = not (mask is None or isinstance(mask, str))
        kernel = attention_kernel(q, k, jax.devices()[0], has_mask=is_array)
        sees = {"mask": mask[:, None]} if is_array else {"is_causal": mask == CAUSAL}
        attended = jax.nn.dot_product_attention(q, k, v, **sees, implementation=kernel)
        return self.out(attended.reshape(queries.shape))


def attention_kernel(
    q: Float[Array, "B Q H K"], k: Float[Array, "B T H K"], device: jax.Device, *, has_mask: bool
) -> str:
    """Which `implementation` of `jax.nn.dot_product_attention` a device has for these arrays.

    "cudnn" is a fused kernel of NVIDIA's that never writes the scores. It takes bfloat16 from
    compute capability 8.0 on, heads of up to 128 numbers, and with a mask even lengths only:
    https://docs.jax.dev/en/latest/_autosummary/jax.nn.dot_product_attention.html. A few queries
    (the last block's) do not fill it. Everything else is "xla".
    """
    if q.dtype != jnp.bfloat16 or not device.device_kind.startswith("NVIDIA"):
        return "xla"
    length, head = q.shape[1], q.shape[-1]
    takes_shape = head % 8 == 0 and head <= 128 and not (has_mask and length % 2)
    is_new = float(device.compute_capability) >= 8.0
    return "cudnn" if is_new and takes_shape and length == k.shape[1] else "xla"


class MLP(nnx.Module):
    """Two dense layers around the tower's activation."""

    def __init__(self, config: TowerConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.activation = config.hidden_act
        std = (2 * config.width) ** -0.5
        self.fc1 = linear(config.width, config.mlp_width, std, dtype, rngs)
        self.fc2 = linear(config.mlp_width, config.width, residual_std(config), dtype, rngs)

    def __call__(self, x: Float[Array, "*B W"]) -> Float[Array, "*B W"]:
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


class Block(nnx.Module):
    """Pre-LayerNorm transformer block."""

    def __init__(self, config: TowerConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.ln_1 = layer_norm(config, dtype, rngs)
        self.attn = Attention(config, dtype=dtype, rngs=rngs)
        self.ln_2 = layer_norm(config, dtype, rngs)
        self.mlp = MLP(config, dtype=dtype, rngs=rngs)
        self.has_scales = config.layer_scale
        if config.layer_scale:  # Touvron et al., 2021, https://arxiv.org/abs/2103.17239
            self.ls_1, self.ls_2 = (constant(rngs, (config.width,), 1e-5) for _ in range(2))

    def __call__(
        self,
        x: Float[Array, "BT W"],
        mask: Mask,
        batch: int,
        read_positions: Int[Array, "B Q"] | None = None,
    ) -> Float[Array, "BQ W"]:
        """Transforms the states of `batch` sequences.

        Given `read_positions`, only those columns are returned, else Q is T.
        """
        normalised = self.ln_1(x)
        queries = normalised
        if read_positions is not None:
            queries, x = (
                take(y.reshape(batch, -1, y.shape[1]), read_positions).reshape(-1, y.shape[1])
                for y in (normalised, x)
            )
        attended = self.attn(queries, normalised, mask, batch)
        if self.has_scales:
            attended = attended * self.ls_1.astype(x.dtype)
        x = x + attended
        added = self.mlp(self.ln_2(x))
        return x + (added * self.ls_2.astype(x.dtype) if self.has_scales else added)


class Shapes(nnx.Rngs):
    """In the place of random streams: parameters become shapes.

    Nothing is traced, which `nnx.eval_shape` would do: a quarter of a second for each size.
    """

    def params(self) -> None:
        """No key, as nothing is drawn."""


def initializer(rngs: nnx.Rngs, init: Callable) -> Callable:
    """`init`; with `Shapes`, what gives a shape in place of an array."""
    if not isinstance(rngs, Shapes):
        return init
    return lambda _key, shape, dtype: jax.ShapeDtypeStruct(shape, dtype)


def constant(rngs: nnx.Rngs, shape: tuple[int, ...], value: float) -> nnx.Param:
    """A float32 parameter that starts at `value`."""
    return nnx.Param(initializer(rngs, nnx.initializers.constant(value))(None, shape, jnp.float32))


def linear(n_in: int, n_out: int, std: float, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Linear:
    """A dense layer whose weights start normal with `std` and whose bias starts at zero."""
    return nnx.Linear(
        n_in,
        n_out,
        kernel_init=initializer(rngs, nnx.initializers.normal(std)),
        bias_init=initializer(rngs, nnx.initializers.zeros),
        dtype=dtype,
        rngs=rngs,
    )


def layer_norm(config: TowerConfig, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm over the tower's width, with the tower's epsilon."""
    # fast_variance=False: E[x^2] - E[x]^2 loses digits where the mean is large, torch does not.
    return nnx.LayerNorm(
        config.width,
        epsilon=config.layer_norm_eps,
        use_fast_variance=False,
        scale_init=initializer(rngs, nnx.initializers.ones),
        bias_init=initializer(rngs, nnx.initializers.zeros),
        dtype=dtype,
        rngs=rngs,
    )


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float) -> nnx.Param:
    """A float32 parameter that starts normal with `std`."""
    init = initializer(rngs, nnx.initializers.normal(std))
    return nnx.Param(init(rngs.params(), shape, jnp.float32))


def residual_std(config: TowerConfig) -> float:
    """Standard deviation at the start of the last layer of a residual branch."""
    # Branches add up over depth; OpenAI scales their last layer so that the sum keeps its variance.
    return config.width**-0.5 * (2 * config.layers) ** -0.5


def stacked_blocks(config: TowerConfig, dtype: DTypeLike, rngs: nnx.Rngs) -> Block:
    """The blocks of a tower as one module whose parameters have a leading axis, layer."""
    if isinstance(rngs, Shapes):
        graphdef, one = nnx.split(Block(config, dtype=dtype, rngs=rngs))
        all_of_them = jax.tree.map(lambda x: x.update(shape=(config.layers, *x.shape)), one)
        return nnx.merge(graphdef, all_of_them)
    keys = jax.random.split(rngs.params(), config.layers)
    return nnx.vmap(lambda key: Block(config, dtype=dtype, rngs=nnx.Rngs(key)))(keys)


def run_blocks(
    blocks: Block,
    x: Float[Array, "B T W"],
    mask: Bool[Array, "B T T"] | str | None,
    *,
    read_positions: Int[Array, "B Q"] | None = None,
    read_mask: Mask = None,
    remat: bool,
    scan: bool,
) -> Float[Array, "B Q W"]:
    """Runs all blocks on states.

    Args:
      read_positions: columns to return; None for all T. Of the others the last block
        computes keys and values, no more: its output there is never read.
      read_mask: the mask of those columns.
      remat: keep nothing but each block's input for the backward pass.
      scan: run the blocks in a loop, which is compiled once, not one after the other.
    """
    graphdef, params = nnx.split(blocks)
    batch, _, width = x.shape
    # Sequences and columns are one axis throughout: of the gradient of a weight, a sum over two
    # axes, XLA on a CPU would first write an operand anew, transposed (7 % of a step). A reshape
    # around each product is not enough: XLA moves it away.
    x = x.reshape(-1, width)

    def block(x, layer, mask, read_positions=None):
        return nnx.merge(graphdef, layer)(x, mask, batch, read_positions)

    def body(x, layer):
        return block(x, layer, mask), None

    # For the backward pass of a loop only the linear layers' outputs are kept, or nothing but the
    # block's input: recomputing the rest is cheaper than writing it to memory and reading it again.
    # Unrolled, XLA finds what to keep by itself. Inside a loop it cannot undo the recomputation.
    if remat or scan:
        kept = None if remat else jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        body = jax.checkpoint(body, policy=kept, prevent_cse=not scan)
    x, _ = jax.lax.scan(body, x, jax.tree.map(lambda p: p[:-1], params), unroll=not scan)
    last = jax.tree.map(lambda p: p[-1], params)
    x = block(x, last, mask if read_positions is None else read_mask, read_positions)
    return x.reshape(batch, -1, width)


def take(x: Float[Array, "B T W"], columns: Int[Array, "B Q"]) -> Float[Array, "B Q W"]:
    """Some columns of each row."""
    return jnp.take_along_axis(x, columns[:, :, None], axis=1)


@contextlib.contextmanager
def matmul_precision(dtype: jnp.dtype) -> Iterator[None]:
    """Makes float32 mean float32: GPUs and TPUs otherwise multiply it in TF32 or bfloat16."""
    with jax.default_matmul_precision("highest" if dtype == jnp.float32 else "default"):
        yield
