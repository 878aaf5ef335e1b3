"""One gradient of 32,768 pairs on 8 virtual devices, run by test_large_batch.py as a program.

    python large_batch_run.py BATCH MICROBATCHES LOGIT_BLOCK_MIB

Prints, as JSON, the loss and gradients beside a float64 calculation that holds 256 rows of logits
at a time, and the process's peak memory.
"""

import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bench.harness import peak_memory
from negclip_jax.data.images import CLIP_MEAN, CLIP_STD
from negclip_jax.models import clip
from negclip_jax.runtime import sharding
from negclip_jax.training.step import Objective

CONFIG = clip.CLIPConfig(
    text=clip.TextConfig(
        width=16, layers=2, heads=2, mlp_width=32, vocab_size=500, context_length=8
    ),
    vision=clip.VisionConfig(width=8, layers=1, heads=1, mlp_width=8, image_size=8, patch_size=8),
    projection_dim=12,
)
ROWS = 256


def main(batch: int, microbatches: int, mebibytes: float) -> dict:
    mesh = sharding.make_mesh(data=4, fsdp=2)
    graphdef, params = clip.split(clip.CLIP(CONFIG, rngs=nnx.Rngs(0)))
    params["logit_scale"] = jnp.float32(3.0)
    objective = Objective(
        graphdef,
        CLIP_MEAN,
        CLIP_STD,
        microbatches=microbatches,
        mesh=mesh,
        logit_block_mib=mebibytes,
    )
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 499, (batch, 8)).astype(np.int32)
    text = sharding.to_global(mesh, ids)
    noise = rng.normal(size=(batch, CONFIG.projection_dim)).astype(np.float32)
    encoded = np.asarray(
        jax.jit(lambda params, ids: nnx.merge(graphdef, params).encode_text(ids))(params, text)
    )
    image = noise + encoded
    feature = sharding.to_global(mesh, image)

    def loss(params, feature):
        return objective.loss(params, {"feature": feature, "text": text})[0]

    value, (gradient, by_image) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, feature)
    jax.block_until_ready(by_image)
    memory = peak_memory()
    expected, by_scale, by_row = reference(image, encoded, rows=np.arange(0, batch, 97))
    return {
        "loss": float(value),
        "expected_loss": expected,
        "by_scale": float(gradient["logit_scale"]),
        "expected_by_scale": by_scale,
        "by_image_error": float(np.abs(np.asarray(by_image)[::97] - by_row).max()),
        "by_image": float(np.abs(by_row).max()),
        "text_gradient": float(np.abs(gradient["text_projection"]).max()),
        "memory": memory,
    }


def reference(image: np.ndarray, text: np.ndarray, rows: np.ndarray) -> tuple:
    """Loss, its derivative by the logarithm of the scale, and by these rows of `image`."""
    lengths = np.linalg.norm(image.astype(np.float64), axis=1, keepdims=True)
    unit, texts = image / lengths, text.astype(np.float64)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    scale, size = np.exp(3.0), len(image)
    of_rows, of_columns = (
        np.zeros((2, size)),
        np.zeros((2, size)),
    )  # sums of exp, and of exp * logit
    for start in range(0, size, ROWS):
        part = slice(start, start + ROWS)
        logits = scale * unit[part] @ texts.T
        power = np.exp(logits - scale)  # no logit is larger than the scale
        of_rows[0, part], of_columns[0] = power.sum(1), of_columns[0] + power.sum(0)
        power *= logits
        of_rows[1, part], of_columns[1] = power.sum(1), of_columns[1] + power.sum(0)
    own = scale * np.sum(unit * texts, axis=1)
    both = (np.log(of_rows[0]) + np.log(of_columns[0])) / 2 + scale
    means = (of_rows[1] / of_rows[0] + of_columns[1] / of_columns[0]) / 2
    power = np.exp(scale * unit[rows] @ texts.T - scale)
    weights = (power / of_rows[0][rows, None] + power / of_columns[0]) / 2
    by_unit = scale / size * (weights @ texts - texts[rows])
    along = np.sum(by_unit * unit[rows], axis=1, keepdims=True) * unit[rows]
    return np.mean(both - own), np.mean(means - own), (by_unit - along) / lengths[rows]


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))))
