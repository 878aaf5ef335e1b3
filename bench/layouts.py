"""How captions lie in a batch: packed rows, length buckets with plain causal attention, one width.

    python -m bench.layouts --arch=vit_b_32 --batch-size=64 --json=runs/bench/layouts.json

Forward and backward pass of the text tower with random weights, on captions of NegBench's lengths.
Packed rows hold several captions, each of which sees itself alone: few empty places, and a mask
that attention has to read. In K buckets the captions of a batch are sorted by length, and each K-th
part of them has a width of its own: plain causal attention, and more empty places. All shapes are
fixed, and so wide that none of many batches needs another one. The layouts take turns; ratios are
medians over the rounds of the time beside that of packed rows, with their range.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bench import harness
from bench.harness import flag
from bench.material import ARCHITECTURES, random_captions
from negclip_jax.common.errors import InputError
from negclip_jax.common.progress import told
from negclip_jax.data.packing import Packing, Ragged
from negclip_jax.models import clip
from negclip_jax.runtime import sharding

_TRIED = 50  # batches that decide how wide a bucket is
_MULTIPLE = 8  # of which all widths are one
_BUCKETS = (2, 4)


def bucketed(
    tokens: Ragged, index_B: np.ndarray, widths: Sequence[int]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Captions in as many buckets as `widths`, each with the same number of them.

    Returns int32 `[B / K, width]` of each of the K buckets, and `[B]`, which row of all of them
    under each other a caption is in.
    """
    order = np.argsort(tokens.lengths_of(index_B), kind="stable")
    parts = np.split(index_B[order], len(widths))
    rows = [tokens.padded(part, width) for part, width in zip(parts, widths, strict=True)]
    return rows, np.argsort(order)


def widths_of(lengths_TxB: np.ndarray, buckets: int) -> list[int]:
    """The widths that are enough for each of these batches."""
    ranked = np.sort(lengths_TxB, axis=1).max(axis=0)
    longest = ranked.reshape(buckets, -1).max(axis=1)
    return (-(-longest // _MULTIPLE) * _MULTIPLE).tolist()


def layouts(tokens: Ragged, batch_size: int) -> dict[str, tuple[list[Any], np.ndarray | None]]:
    """What the tower reads, and where each caption is then: the first captions, in each layout."""
    lengths_TxB = tokens.lengths.reshape(-1, batch_size)
    index_B = np.arange(batch_size)
    packing = Packing.suited_to(tokens.lengths, batch_size, shards=1)
    found = {"packed rows": ([packing.pack(tokens, index_B)], None)}
    for buckets in _BUCKETS:
        found[f"{buckets} buckets"] = bucketed(tokens, index_B, widths_of(lengths_TxB, buckets))
    (width,) = widths_of(lengths_TxB, 1)
    return found | {"one width": ([tokens.padded(index_B, width)], None)}


def gradients(graphdef: nnx.GraphDef, weights_BxD: jax.Array) -> Callable:
    """`(params, texts, row) -> (features [B, D], gradients)` of a sum that every feature enters."""

    def loss(params: dict, texts: list[Any], row_B: jax.Array | None) -> tuple[jax.Array, ...]:
        model = nnx.merge(graphdef, params)
        features = jnp.concatenate([model.encode_text(x) for x in texts])
        features = features if row_B is None else features[row_B]
        return jnp.sum(features.astype(jnp.float32) * weights_BxD), features

    def both(params: dict, texts: list[Any], row_B: jax.Array | None) -> tuple[jax.Array, dict]:
        grads, features = jax.grad(loss, has_aux=True)(params, texts, row_B)
        return features, grads

    return both


@flag("--arch", choices=ARCHITECTURES, default="vit_b_32", help="sizes of the text tower")
@flag("--batch-size", type=int, default=64, help="captions; 512 or more on a GPU")
@flag("--rounds", type=int, default=5, help="in which each layout has a turn")
def measure(args: argparse.Namespace, scratch: Path) -> harness.Measured:
    """Compiles each layout, then takes turns."""
    if args.batch_size < 1 or args.batch_size % max(_BUCKETS):
        raise InputError(f"--batch-size must be a positive multiple of {max(_BUCKETS)}")
    harness.require_positive(args, "rounds")
    rng, config = np.random.default_rng(0), ARCHITECTURES[args.arch]
    config = dataclasses.replace(config, vision=None)
    dtype = sharding.fast_dtype(sharding.make_mesh(data=1, fsdp=1, devices=jax.devices()[:1]))
    model = config.build(dtype=jnp.dtype(dtype), remat=False, scan=True, rngs=nnx.Rngs(0))
    graphdef, params = clip.split(model)
    tokens = random_captions(rng, _TRIED * args.batch_size, config.text)
    weights_BxD = rng.standard_normal((args.batch_size, config.projection_dim), np.float32)
    function = jax.jit(gradients(graphdef, jnp.asarray(weights_BxD)))

    runs, results = {}, {}
    for name, (texts, row) in told(layouts(tokens, args.batch_size).items(), "layouts compiled"):
        given = jax.device_put((params, texts, row))
        compiled = function.lower(*given).compile()
        features, _ = jax.block_until_ready(compiled(*given))  # the first one allocates
        memory = compiled.memory_analysis()
        runs[name] = functools.partial(_run, compiled, given)
        results[name] = {
            "places": sum(x["ids"].size if isinstance(x, dict) else x.size for x in texts),
            "temporaries": None if memory is None else memory.temp_size_in_bytes,
            "features": np.asarray(features, np.float32),
        }
    seconds = harness.seconds_of(runs, args.rounds)

    real, rows = int(tokens.lengths[: args.batch_size].sum()), []
    packed = next(iter(results.values()))["features"]
    for name, result in results.items():
        ratios = seconds[name] / seconds["packed rows"]
        away = float(np.abs(result.pop("features") - packed).max() / np.abs(packed).max())
        result |= {"seconds": seconds[name].tolist(), "ratios": ratios.tolist()}
        result["largest_difference"] = away
        places, memory = result["places"], result["temporaries"]
        cells = [f"{places:,} ({real / places:.0%} filled)", f"{np.median(seconds[name]):.3g}"]
        memory = "-" if memory is None else f"{memory / 2**20:,.0f}"
        rows.append([name, *cells, harness.spread(ratios, ".2f"), memory, f"{away:.0e}"])
    head = ["captions in", "places for tokens", "seconds", "of packed rows' time"]
    head += ["MiB of temporaries", "features differ by"]
    title = f"{args.arch}, {args.batch_size} captions of {real:,} tokens, {dtype}"
    title += f", {jax.devices()[0].device_kind}; medians of {args.rounds} rounds"
    result = {"arch": args.arch, "batch_size": args.batch_size, "tokens": real, "dtype": dtype}
    return result | {"layouts": results}, title, [(head, rows)]


def _run(compiled: Callable, given: tuple) -> None:
    jax.block_until_ready(compiled(*given))


main = harness.command("bench.layouts", __doc__, measure)

if __name__ == "__main__":
    main()
