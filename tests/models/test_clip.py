"""The modules by themselves; parity with transformers is in tests/interop/test_parity.py."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from negclip_jax.models import clip
from negclip_jax.models.siglip import SigLIPConfig
from negclip_jax.models.transformer import matmul_precision


@pytest.fixture(scope="module")
def params(tiny_config):
    """Random values without the initialisers, whose compilation would take most of the time."""
    rng = np.random.default_rng(0)
    _, shapes = clip.abstract(tiny_config)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape, np.float32)), shapes
    )


@pytest.fixture(scope="module")
def model(tiny_config, params):
    return nnx.merge(clip.abstract(tiny_config)[0], params)


@pytest.fixture(scope="module")
def inputs(tiny_config):
    rng = np.random.default_rng(0)
    text, size = tiny_config.text, tiny_config.vision.image_size
    ids = rng.integers(0, text.eos_token_id, (3, text.context_length), np.int32)
    ids[[0, 1, 2], [3, 9, text.context_length - 1]] = text.eos_token_id
    return rng.standard_normal((3, size, size, 3), np.float32), ids


def flat(params):
    return traverse_util.flatten_dict(params, sep="/")


@functools.partial(jax.jit, static_argnums=0)
def encode(graphdef, params, pixels, ids):
    model = nnx.merge(graphdef, params)
    return model.encode_image(pixels), model.encode_text(ids)


@functools.partial(jax.jit, static_argnums=0)
def encode_text(graphdef, params, ids):
    return nnx.merge(graphdef, params).encode_text(ids)


def test_parameters_are_float32_and_stacked(tiny_config):
    _, shapes = clip.abstract(tiny_config)
    found = {path: (leaf.shape, leaf.dtype) for path, leaf in flat(shapes).items()}
    assert {dtype for _, dtype in found.values()} == {jnp.dtype("float32")}
    assert found["text/blocks/mlp/fc1/kernel"][0] == (2, 32, 64)
    assert found["vision/patch_embedding"][0] == (8, 8, 3, 48)
    assert found["logit_scale"][0] == ()


@pytest.mark.parametrize(
    "config",
    [
        clip.CLIPConfig(text=clip.TextConfig(projection="bias", layer_scale=True, layers=3)),
        SigLIPConfig(),
    ],
    ids=["clip", "siglip"],
)
def test_shapes_are_those_of_what_is_initialised(config):
    """`abstract` traces nothing, so that a parameter drawn in another way could differ."""
    options = {"dtype": jnp.bfloat16, "remat": False, "scan": True}
    made = nnx.eval_shape(lambda: config.build(**options, rngs=nnx.Rngs(0)))
    assert clip.abstract(config, dtype=jnp.bfloat16) == clip.split(made)


def test_vit_b_32_has_the_published_number_of_parameters():
    _, params = clip.abstract(clip.CLIPConfig())
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 151_277_313


def test_initial_values_follow_openai(tiny_config):
    config = dataclasses.replace(tiny_config.text, width=128, mlp_width=512, vocab_size=2000)
    tower = clip.TextTower(config, dtype=jnp.float32, remat=False, scan=True, rngs=nnx.Rngs(0))
    params = flat(nnx.to_pure_dict(nnx.state(tower)))
    std = {path: float(np.std(leaf)) for path, leaf in params.items()}
    assert std["token_embedding"] == pytest.approx(0.02, rel=0.05)
    assert std["position_embedding"] == pytest.approx(0.01, rel=0.1)
    assert std["blocks/attn/query/kernel"] == pytest.approx(128**-0.5, rel=0.05)
    assert std["blocks/attn/out/kernel"] == pytest.approx(128**-0.5 / 2, rel=0.05)
    assert std["blocks/mlp/fc1/kernel"] == pytest.approx(256**-0.5, rel=0.05)
    assert std["blocks/mlp/fc2/bias"] == std["ln_final/bias"] == std["ln_final/scale"] == 0
    kernels = np.asarray(params["blocks/attn/query/kernel"])
    assert not np.allclose(kernels[0], kernels[1]), "layers must differ"


def test_scan_equals_a_loop_over_the_blocks(model, params, inputs):
    _, ids = inputs
    tower = model.text
    graphdef, _ = nnx.split(tower.blocks)

    @jax.jit
    def unrolled(params):
        x = params["token_embedding"][ids] + params["position_embedding"][: ids.shape[1]]
        for layer in range(tower.config.layers):
            block = nnx.merge(graphdef, jax.tree.map(lambda p: p[layer], params["blocks"]))  # noqa: B023
            x = block(x.reshape(-1, x.shape[-1]), clip.CAUSAL, len(ids)).reshape(x.shape)
        return x

    with matmul_precision(jnp.dtype("float32")):
        x = unrolled(params["text"])
    pooled = tower.ln_final(x)[np.arange(len(ids)), tower.end_positions(ids)]
    with matmul_precision(jnp.dtype("float32")):
        np.testing.assert_allclose(jax.jit(tower)(ids), pooled, atol=1e-5)


def test_gradients_of_weights_need_no_transposed_copy(model, params, inputs):
    """XLA on a CPU writes an operand anew where a product sums over two axes."""
    _, ids = inputs
    graphdef, _ = nnx.split(model.text)

    def loss(params):
        return nnx.merge(graphdef, params)(ids).sum()

    program = jax.jit(jax.grad(loss)).lower(params["text"]).compile().as_text()
    width = model.text.config.width
    products = re.findall(rf"f32\[{width},\d+\]\S* dot\(.*jvp", program)
    assert len(products) >= 6, "a gradient of each linear layer's weights"
    assert all("lhs_contracting_dims={0}, rhs_contracting_dims={0}" in p for p in products)


def test_patches_equal_a_strided_convolution(model, inputs):
    pixels, _ = inputs
    tower, patch = model.vision, model.vision.config.patch_size
    convolved = jax.lax.conv_general_dilated(
        pixels,
        tower.patch_embedding[...],
        (patch, patch),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )
    with matmul_precision(jnp.dtype("float32")):
        ours = tower._embed_patches(jnp.asarray(pixels))
    np.testing.assert_allclose(ours, convolved.reshape(ours.shape), atol=1e-5)


def test_remat_changes_neither_values_nor_gradients(params, tiny_config, inputs):
    _, ids = inputs

    def value_and_grad(remat):
        graphdef, _ = clip.abstract(tiny_config, remat=remat)

        def loss(params):
            return jnp.tanh(nnx.merge(graphdef, params).encode_text(ids)).sum()

        return jax.jit(jax.value_and_grad(loss))(params)

    (value, grads), (value_remat, grads_remat) = value_and_grad(False), value_and_grad(True)
    np.testing.assert_allclose(value, value_remat, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), grads, grads_remat
    )
    _, remat = clip.abstract(tiny_config, remat=True)
    assert jax.tree.structure(remat) == jax.tree.structure(params)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters(params, tiny_config, inputs):
    graphdef, abstract = clip.abstract(tiny_config, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract)} == {jnp.dtype("float32")}
    exact = encode(clip.abstract(tiny_config)[0], params, *inputs)
    for half, full in zip(encode(graphdef, params, *inputs), exact, strict=True):
        assert half.dtype == jnp.float32
        cosine = (half * full).sum(-1) / jnp.linalg.norm(half, axis=-1)
        np.testing.assert_allclose(cosine / jnp.linalg.norm(full, axis=-1), 1, atol=2e-3)
        assert not np.array_equal(half, full)


def test_tokens_after_the_end_token_do_not_matter(tiny_config, params, inputs):
    graphdef, _ = clip.abstract(tiny_config)
    ids = inputs[1][:2]  # end at 3 and 9
    whole = encode_text(graphdef, params, ids)
    cut = encode_text(graphdef, params, ids[:, :10])
    np.testing.assert_allclose(cut, whole, atol=1e-6)
    other = ids.copy()
    other[:, 10:] = 7
    np.testing.assert_array_equal(encode_text(graphdef, params, other), whole)


@pytest.mark.parametrize(
    ("pooling", "eos", "expected"),
    [("argmax", 2, [3, 0, 1]), ("first_eos", 9, [1, 4, 0]), ("first_eos", 2, [0, 0, 3])],
    ids=["first largest id", "first end token, else 0", "an end token of 2"],
)
def test_end_positions(tiny_config, pooling, eos, expected):
    text = dataclasses.replace(tiny_config.text, eos_token_id=eos, pooling=pooling)
    tower = nnx.eval_shape(
        lambda: clip.TextTower(text, dtype=jnp.float32, remat=False, scan=True, rngs=nnx.Rngs(0))
    )
    ids = jnp.array([[1, 9, 9, 30, 30], [40, 1, 1, 1, 9], [1, 8, 8, 2, 0]])
    assert tower.end_positions(ids).tolist() == expected


def test_wrong_shapes_are_named(model, inputs):
    pixels, ids = inputs
    with pytest.raises(ValueError, match=r"shape \(3, 16, 32, 3\).*\[B, 32, 32, 3\]"):
        model.encode_image(pixels[:, :16])
    with pytest.raises(ValueError, match="model reads"):
        model.encode_image(pixels.transpose(0, 3, 1, 2))
    with pytest.raises(ValueError, match=r"48 tokens a row.*24 positions"):
        model.encode_text(np.concatenate([ids, ids], axis=1))


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match="width 32 is not divisible by 5 heads"):
        clip.TextConfig(width=32, heads=5)
    with pytest.raises(ValueError, match="unknown activation 'relu'; known are: quick_gelu"):
        clip.VisionConfig(hidden_act="relu")
