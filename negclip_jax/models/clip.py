"""CLIP (Radford et al., 2021, https://arxiv.org/abs/2103.00020) as Flax NNX modules.

The modules define and name the parameters. Training never lets a module cross `jax.jit`: it splits
a model once into a graph definition and a nested dict of arrays (`split`), and calls `nnx.merge`
inside the traced function, where it is free.

The blocks themselves are in `models.transformer`.

Shape letters: B captions or images, T tokens of a caption, W a tower's width, D feature dimensions.
Packed are R rows of L tokens with up to Q captions each, in S shards of N captions. Images have
Y x X pixels of C channels.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Float32, Int, Int32

from negclip_jax.common.errors import InputError
from negclip_jax.models.transformer import (
    CAUSAL,
    Mask,
    Shapes,
    TowerConfig,
    check_size,
    constant,
    layer_norm,
    linear,
    matmul_precision,
    normal,
    run_blocks,
    stacked_blocks,
    take,
)

POOLINGS = ("argmax", "first_eos", "first", "last")
PROJECTIONS = ("linear", "bias", "none")
NO_VISION = (
    "the vision tower of this model is none that is read here (it is kept as it stands in the "
    "file, for an export in the same layout): give image features that its own library computed, "
    "as data.features of a run or --features of a command"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig(TowerConfig):
    """Text transformer; the defaults are OpenAI's ViT-B/32.

    `pooling` says whose state a caption's feature is: "argmax", the first of the largest token id;
    "first_eos", the first token equal to `eos_token_id`, or position 0 where there is none; "first"
    and "last", that position. Of the others, `eos_token_id` changes nothing.

    `causal` says whether a token attends to those before it alone. `projection` is that into the
    common space: "linear", "bias" (linear with a bias) or "none", where `width` is the features'.
    """

    width: int = 512
    layers: int = 12
    heads: int = 8
    mlp_width: int = 2048
    vocab_size: int = 49408
    context_length: int = 77
    eos_token_id: int = 49407
    pooling: str = "first_eos"
    causal: bool = True
    projection: str = "linear"

    def __post_init__(self):
        super().__post_init__()
        for name, known in (("pooling", POOLINGS), ("projection", PROJECTIONS)):
            if getattr(self, name) not in known:
                said = getattr(self, name)
                raise ValueError(f"{name} is {said!r}, not one of {', '.join(known)}")

    @property
    def reads_padding(self) -> bool:
        """Whether a caption's feature depends on the padding after it.

        Such models were trained on rows of the context length: captions are padded to it.
        """
        return not self.causal or self.pooling == "last"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig(TowerConfig):
    """Vision transformer; the defaults are OpenAI's ViT-B/32."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    image_size: int = 224
    patch_size: int = 32

    @property
    def positions(self) -> int:
        """Number of tokens: one class token and one per patch."""
        return 1 + (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """Everything that shapes a CLIP or changes its arithmetic.

    `objective` is the loss that models of this family were trained with, a key of
    `training.objectives.OBJECTIVES`. `vision` is None for a tower that is none of ours: the model
    then has no parameters of it, and images come as features that another library computed.
    """

    objective: ClassVar[str] = "contrastive"

    text: TextConfig = TextConfig()
    vision: VisionConfig | None = VisionConfig()
    projection_dim: int = 512
    logit_scale_init: float = 2.6592  # ln(1 / 0.07)

    def __post_init__(self):
        check_size("projection_dim", self.projection_dim)
        if self.text.projection == "none" and self.text.width != self.projection_dim:
            raise ValueError(
                f"the text tower is {self.text.width} wide and has no projection to features of "
                f"{self.projection_dim}"
            )

    def build(self, *, dtype: DTypeLike, remat: bool, scan: bool, rngs: nnx.Rngs) -> "CLIP":
        """The model of this configuration; see `CLIP`. Families of other modules override it."""
        return CLIP(self, dtype=dtype, remat=remat, scan=scan, rngs=rngs)


class TextTower(nnx.Module):
    """Token ids to one vector: transformer, final LayerNorm, state at one position."""

    def __init__(
        self, config: TextConfig, *, dtype: DTypeLike, remat: bool, scan: bool, rngs: nnx.Rngs
    ):
        self.config, self.dtype, self.remat, self.scan = config, dtype, remat, scan
        self.token_embedding = normal(rngs, (config.vocab_size, config.width), 0.02)
        self.position_embedding = normal(rngs, (config.context_length, config.width), 0.01)
        self.blocks = stacked_blocks(config, dtype, rngs)
        self.ln_final = layer_norm(config, dtype, rngs)

    def __call__(self, ids: Int[Array, "B T"]) -> Float[Array, "B W"]:
        """Encodes captions, one a row.

        T is up to the context length, and exactly that where the padding is read
        (`TextConfig.reads_padding`): shorter rows would be another input. Else ValueError.
        """
        length = ids.shape[1]
        if self.config.reads_padding and length != self.config.context_length:
            raise ValueError(
                f"{length} tokens a row, but the model reads exactly {self.config.context_length}: "
                "pad the captions to the full length"
            )
        if length > self.config.context_length:
            raise ValueError(
                f"{length} tokens a row, but the model has {self.config.context_length} positions; "
                "tokenize() truncates and keeps the end token"
            )
        ends = self.end_positions(ids)[:, None]
        x = self.token_embedding[ids] + self.position_embedding[:length]
        if not self.config.causal:
            return self._run(x, None, ends, None)[:, 0]
        sees = jnp.arange(length) <= ends[:, :, None]
        return self._run(x, CAUSAL, ends, sees)[:, 0]

    def packed(
        self,
        ids: Int[Array, "R L"],
        positions: Int[Array, "R L"],
        segments: Int[Array, "R L"],
        ends: Int[Array, "R Q"],
        slots: Int[Array, "S N"],
    ) -> Float[Array, "S*N W"]:
        """Encodes rows that hold several captions (see `data.packing`).

        Args:
          ids: tokens.
          positions, segments: of each token, position in its caption and number of the caption in
            the row from 1.
          ends: column of each caption's end token; 0 where a row has fewer than Q.
          slots: where each caption's end is among those of its shard.

        Captions whose padding is read have it here as well (`TextConfig.reads_padding`), and their
        state is read where the rule of pooling says, which need not be their last token.
        """
        x = self.token_embedding[ids] + self.position_embedding[positions]
        # A token sees its own caption (one block each), of a causal model what is before it.
        mask = segments[:, :, None] == segments[:, None, :]
        if self.config.causal:
            mask &= jnp.tril(jnp.ones(mask.shape[1:], bool))
        if self.config.pooling == "first" or self.config.reads_padding:
            number_Q = jnp.arange(1, 1 + ends.shape[1])[:, None]
            inside_RxQxL = segments[:, None, :] == number_Q
            begins = positions[:, None, :] == 0
            if self.config.pooling == "argmax":
                ends = jnp.argmax(jnp.where(inside_RxQxL, ids[:, None, :], -1), axis=-1)
            elif self.config.pooling != "last":  # the first token where there is no end token
                is_end = (ids == self.config.eos_token_id) & (self.config.pooling == "first_eos")
                rank = jnp.where(is_end[:, None, :], 2, begins)
                ends = jnp.argmax(jnp.where(inside_RxQxL, rank, 0), axis=-1)
        read_mask = jnp.take_along_axis(mask, ends[:, :, None], axis=1)
        state_RxQxW = self._run(x, mask, ends, read_mask)
        # Back to batch order, without the unused ends. Each of S shards has rows of its own, so
        # this gather stays on its device: over all rows at once, XLA would first send them around.
        width = state_RxQxW.shape[-1]
        return take(state_RxQxW.reshape(len(slots), -1, width), slots).reshape(-1, width)

    def _run(
        self,
        x: Float[Array, "B T W"],
        mask: Bool[Array, "B T T"] | str | None,
        ends: Int[Array, "B Q"],
        mask_of_ends: Mask,
    ) -> Float[Array, "B Q W"]:
        read = {"read_positions": ends, "read_mask": mask_of_ends}
        options = {"remat": self.remat, "scan": self.scan}
        return self.ln_final(run_blocks(self.blocks, x.astype(self.dtype), mask, **read, **options))

    def end_positions(self, ids: Int[Array, "B T"]) -> Int32[Array, " B"]:
        """Position whose state is a row's feature; see `TextConfig`."""
        if self.config.pooling == "argmax":
            return jnp.argmax(ids, axis=-1)
        if self.config.pooling == "last":
            return jnp.full(len(ids), ids.shape[1] - 1)
        if self.config.pooling == "first":
            return jnp.zeros(len(ids), jnp.int32)
        return jnp.argmax(ids == self.config.eos_token_id, axis=-1)


class VisionTower(nnx.Module):
    """Pixels to one vector: patches, class token, transformer, LayerNorm of the class token."""

    def __init__(
        self, config: VisionConfig, *, dtype: DTypeLike, remat: bool, scan: bool, rngs: nnx.Rngs
    ):
        self.config, self.dtype, self.remat, self.scan = config, dtype, remat, scan
        std = config.width**-0.5
        patch = (config.patch_size, config.patch_size, 3, config.width)
        self.patch_embedding = normal(rngs, patch, (3 * config.patch_size**2) ** -0.5)
        self.class_embedding = normal(rngs, (config.width,), std)
        self.position_embedding = normal(rngs, (config.positions, config.width), std)
        self.ln_pre = layer_norm(config, dtype, rngs)
        self.blocks = stacked_blocks(config, dtype, rngs)
        self.ln_post = layer_norm(config, dtype, rngs)

    def __call__(self, pixels: Float[Array, "B Y X C"]) -> Float[Array, "B W"]:
        """Encodes normalised pixels."""
        patches = self._embed_patches(pixels)
        class_token = jnp.broadcast_to(
            self.class_embedding.astype(self.dtype), (len(pixels), 1, self.config.width)
        )
        x = jnp.concatenate([class_token, patches], axis=1)
        x = self.ln_pre(x + self.position_embedding.astype(self.dtype))
        class_token = jnp.zeros((len(pixels), 1), jnp.int32)
        x = run_blocks(
            self.blocks, x, None, read_positions=class_token, remat=self.remat, scan=self.scan
        )
        return self.ln_post(x[:, 0])

    def _embed_patches(self, pixels: Float[Array, "B Y X C"]) -> Float[Array, "B T W"]:
        size = self.config.image_size
        if pixels.ndim != 4 or pixels.shape[1:] != (size, size, 3):
            raise ValueError(
                f"pixels have shape {pixels.shape}, but the model reads [B, {size}, {size}, 3]; "
                "preprocess() resizes and crops"
            )
        pixels = pixels.astype(self.dtype)
        # A convolution whose stride is its kernel is one matrix product over flattened patches.
        batch, side, _, channels = pixels.shape
        p, n = self.config.patch_size, side // self.config.patch_size
        x = pixels[:, : n * p, : n * p].reshape(batch, n, p, n, p, channels)
        x = x.swapaxes(2, 3).reshape(batch, n * n, p * p * channels)
        kernel = self.patch_embedding.astype(self.dtype).reshape(-1, self.config.width)
        return x @ kernel


class CLIP(nnx.Module):
    """Text and vision tower with their projections into one space and a logit scale.

    Of a configuration without a vision tower, the text half alone.
    """

    TOWERS = (TextTower, VisionTower)

    def __init__(
        self,
        config: CLIPConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        scan: bool = True,
        rngs: nnx.Rngs,
    ):
        """Initialises float32 parameters at random, as OpenAI's code does.

        `dtype` is the compute type, float32 or bfloat16; softmax and LayerNorm statistics stay
        float32. `remat` and `scan`: see `models.transformer.run_blocks`.
        """
        self.config, self.dtype = config, jnp.dtype(dtype)
        options = {"dtype": dtype, "remat": remat, "scan": scan, "rngs": rngs}
        text_tower, vision_tower = self.TOWERS
        self.text = text_tower(config.text, **options)
        if config.vision is not None:
            self.vision = vision_tower(config.vision, **options)
        self._add_projections(config, rngs)
        self.logit_scale = constant(rngs, (), config.logit_scale_init)

    def _add_projections(self, config: CLIPConfig, rngs: nnx.Rngs) -> None:
        d, width = config.projection_dim, config.text.width
        if config.text.projection == "linear":
            self.text_projection = normal(rngs, (width, d), width**-0.5)
        elif config.text.projection == "bias":
            self.text_projection = linear(width, d, width**-0.5, self.dtype, rngs)
        if config.vision is not None:
            width = config.vision.width
            self.visual_projection = normal(rngs, (width, d), width**-0.5)

    def encode_text(
        self, text: Int[Array, "B T"] | dict[str, Int[Array, "..."]]
    ) -> Float32[Array, "B D"]:
        """Projected, unnormalised text features.

        `text` is one caption a row, or what `data.packing` made, see `TextTower.packed`.
        """
        with matmul_precision(self.dtype):
            pooled = self.text.packed(**text) if isinstance(text, dict) else self.text(text)
            if self.config.text.projection == "bias":
                pooled = self.text_projection(pooled)
            elif self.config.text.projection == "linear":
                pooled = pooled @ self.text_projection.astype(self.dtype)
            return pooled.astype(jnp.float32)

    def encode_image(self, pixels: Float[Array, "B Y X C"]) -> Float32[Array, "B D"]:
        """Projected, unnormalised image features.

        Raises InputError where the model has no vision tower.
        """
        if self.config.vision is None:
            raise InputError(NO_VISION)
        with matmul_precision(self.dtype):
            pooled = self.vision(pixels)
            return (pooled @ self.visual_projection.astype(self.dtype)).astype(jnp.float32)


def split(model: CLIP) -> tuple[nnx.GraphDef, dict]:
    """Splits a model into its static graph and a nested dict of arrays (`text/blocks/attn/...`)."""
    graphdef, state = nnx.split(model)
    return graphdef, nnx.to_pure_dict(state)


def abstract(
    config: CLIPConfig, *, dtype: DTypeLike = jnp.float32, remat: bool = False, scan: bool = True
) -> tuple[nnx.GraphDef, dict]:
    """The same as `split`, with `jax.ShapeDtypeStruct` leaves: nothing is initialised."""
    graphdef, shapes = _abstract(config, jnp.dtype(dtype), remat, scan)
    return graphdef, jax.tree.map(lambda shape: shape, shapes)  # a tree that the caller may change


@functools.lru_cache(8)
def _abstract(
    config: CLIPConfig, dtype: jnp.dtype, remat: bool, scan: bool
) -> tuple[nnx.GraphDef, dict]:
    options = {"dtype": dtype, "remat": remat, "scan": scan}
    return split(config.build(**options, rngs=Shapes()))
