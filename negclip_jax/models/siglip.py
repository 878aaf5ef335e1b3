"""SigLIP and SigLIP 2 of fixed resolution, from the modules of CLIP.

Zhai et al., 2023, https://arxiv.org/abs/2303.15343; Tschannen et al., 2025,
https://arxiv.org/abs/2502.14786. The blocks are CLIP's. What differs:

- text: no causal mask, the state at the last position, padding included, a projection with bias;
- vision: no class token, no LayerNorm before the blocks, a bias in the patches, and instead of the
  class token a head in which one learned query attends to all patches; no projection after it;
- logits have a bias beside their scale, for the sigmoid loss (`training.objectives.sigmoid_loss`).

Shape letters as in `models.clip`.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Float32, Int

from negclip_jax.common.errors import InputError
from negclip_jax.models.clip import (
    CLIP,
    NO_VISION,
    CLIPConfig,
    TextConfig,
    TextTower,
    VisionConfig,
    VisionTower,
)
from negclip_jax.models.transformer import (
    MLP,
    Attention,
    constant,
    layer_norm,
    matmul_precision,
    normal,
    run_blocks,
    stacked_blocks,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SigLIPTextConfig(TextConfig):
    """Text transformer; the defaults are SigLIP's base model."""

    width: int = 768
    heads: int = 12
    mlp_width: int = 3072
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    vocab_size: int = 32000
    context_length: int = 64
    pooling: str = "last"
    causal: bool = False
    projection: str = "bias"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SigLIPVisionConfig(VisionConfig):
    """Vision transformer; the defaults are SigLIP's base model."""

    patch_size: int = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6

    @property
    def positions(self) -> int:
        """Number of tokens: one per patch."""
        return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class SigLIPConfig(CLIPConfig):
    """Everything that shapes a SigLIP or changes its arithmetic.

    The vision tower has no projection, so `projection_dim`, where the text tower's leads, is its
    width. Scale and bias start at ln 10 and -10 (Zhai et al., section 3.2).
    """

    objective: ClassVar[str] = "sigmoid"

    text: SigLIPTextConfig = SigLIPTextConfig()
    vision: SigLIPVisionConfig | None = SigLIPVisionConfig()
    projection_dim: int = 768
    logit_scale_init: float = 2.302585
    logit_bias_init: float = -10.0

    def __post_init__(self):
        super().__post_init__()
        if self.vision is not None and self.projection_dim != self.vision.width:
            raise ValueError(
                f"the text tower projects to {self.projection_dim}, but features of the vision "
                f"tower have {self.vision.width} numbers"
            )

    def build(self, *, dtype: DTypeLike, remat: bool, scan: bool, rngs: nnx.Rngs) -> "SigLIP":
        """The model of this configuration; see `SigLIP`."""
        return SigLIP(self, dtype=dtype, remat=remat, scan=scan, rngs=rngs)


class PoolingHead(nnx.Module):
    """One learned query attends to all positions; then an MLP beside it."""

    def __init__(self, config: VisionConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.probe = normal(rngs, (1, 1, config.width), config.width**-0.5)
        self.attn = Attention(config, dtype=dtype, rngs=rngs)
        self.ln = layer_norm(config, dtype, rngs)
        self.mlp = MLP(config, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B T W"]) -> Float[Array, "B W"]:
        """One state of those of all positions."""
        batch, _, width = x.shape
        probe = jnp.broadcast_to(self.probe[0].astype(x.dtype), (batch, width))
        pooled = self.attn(probe, x.reshape(-1, width), None, batch)
        return pooled + self.mlp(self.ln(pooled))


class SigLIPVisionTower(VisionTower):
    """Pixels to one vector: patches, transformer, LayerNorm, attention pooling."""

    def __init__(
        self, config: VisionConfig, *, dtype: DTypeLike, remat: bool, scan: bool, rngs: nnx.Rngs
    ):
        self.config, self.dtype, self.remat, self.scan = config, dtype, remat, scan
        patch = (config.patch_size, config.patch_size, 3, config.width)
        self.patch_embedding = normal(rngs, patch, (3 * config.patch_size**2) ** -0.5)
        self.patch_bias = constant(rngs, (config.width,), 0.0)
        std = config.width**-0.5
        self.position_embedding = normal(rngs, (config.positions, config.width), std)
        self.blocks = stacked_blocks(config, dtype, rngs)
        self.ln_post = layer_norm(config, dtype, rngs)
        self.head = PoolingHead(config, dtype=dtype, rngs=rngs)

    def __call__(self, pixels: Float[Array, "B Y X C"]) -> Float[Array, "B W"]:
        """Encodes normalised pixels."""
        added = (self.patch_bias + self.position_embedding).astype(self.dtype)
        x = self._embed_patches(pixels) + added
        x = run_blocks(self.blocks, x, None, remat=self.remat, scan=self.scan)
        return self.head(self.ln_post(x))


class SigLIP(CLIP):
    """Text and vision tower with one space, a logit scale and a logit bias."""

    TOWERS = (TextTower, SigLIPVisionTower)

    def _add_projections(self, config: SigLIPConfig, rngs: nnx.Rngs) -> None:
        super()._add_projections(dataclasses.replace(config, vision=None), rngs)
        self.logit_bias = constant(rngs, (), config.logit_bias_init)

    def encode_text(
        self, text: Int[Array, "B T"] | dict[str, Int[Array, "..."]]
    ) -> Float32[Array, "B D"]:
        """Unnormalised text features; T is the context length."""
        if isinstance(text, dict):
            raise InputError("SigLIP reads the padding of its captions: set data.packing=False")
        return super().encode_text(text)

    def encode_image(self, pixels: Float[Array, "B Y X C"]) -> Float32[Array, "B D"]:
        """Unnormalised image features."""
        if self.config.vision is None:
            raise InputError(NO_VISION)
        with matmul_precision(self.dtype):
            return self.vision(pixels).astype(jnp.float32)
