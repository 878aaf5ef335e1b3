"""Our side of the comparisons: what `launch.py` runs, in parts that can be timed."""

import logging
import time
from typing import Any

import jax
import jax.numpy as jnp

from bench.harness import matmul_rate, peak_memory
from configs import negationclip
from negclip_jax.data.pairs import read_pairs
from negclip_jax.interop import huggingface
from negclip_jax.models import flops
from negclip_jax.models.lora import fold
from negclip_jax.models.transformer import matmul_precision
from negclip_jax.runtime import sharding
from negclip_jax.training import image_features, patterns
from negclip_jax.training.setup import prepare


class Ours:
    """A run of the published recipe; steps are numbered from 0 and must be taken in order."""

    def __init__(self, settings: dict[str, Any], workdir: str):
        """`settings` are configuration keys by their full names."""
        logging.getLogger().setLevel(logging.ERROR)
        self._config = negationclip.get_config("vit_b_32")  # all sizes come from the checkpoint
        self._config.update_from_flattened_dict(settings)
        self._run = prepare(self._config, workdir)
        self._state, self._caches = self._run.state, 0
        self._sizes = huggingface.read_config(settings["model.checkpoint"])

    def device(self) -> str:
        """What computes."""
        return f"{jax.device_count()} x {jax.devices()[0].device_kind}"

    def batches(self, start: int, stop: int) -> list[list[tuple[str, str]]]:
        """Photo and caption of each pair in the batches of these steps."""
        data, loader = self._config.data, self._run.loader
        pairs = read_pairs(data.pairs)
        chosen = [loader.pairs_at(step)[0] for step in range(start, stop)]
        return [[(pairs[i].image, pairs[i].negated) for i in batch] for batch in chosen]

    def fill_cache(self) -> dict[str, float]:
        """Decodes and encodes every distinct photo into a new cache."""
        run, self._caches = self._run, self._caches + 1
        cache = {"cache_features": True, "cache_dir": f"{run.workdir}/cache-{self._caches}"}
        params = fold(patterns.merge(run.frozen, self._state.params))
        start = time.perf_counter()
        model = (self._sizes, params, self._config.model.dtype)
        image_features.use_cache(run.workdir, [run.loader], model, run.mesh, **cache)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "images": len(run.loader.examples.images)}

    def epoch(self, start: int, stop: int) -> dict[str, Any]:
        """Takes these steps; the clock stops when the last one has been computed.

        Their programs are compiled before it starts: a run compiles them once, not in each epoch.
        """
        run, losses, waited = self._run, [], 0.0
        for batch in run.loader.batches(start, stop):
            run.train_step.compiled_for(
                self._state, run.frozen, sharding.to_global(run.mesh, batch)
            )
        begin = time.perf_counter()
        batches = run.loader.batches(start, stop)
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            waited += time.perf_counter() - asked
            if batch is None:
                break
            batch = sharding.to_global(run.mesh, batch)
            self._state, metrics = run.train_step(self._state, run.frozen, batch)
            losses.append(metrics["loss"])
        jax.block_until_ready(self._state)
        seconds, of_device = time.perf_counter() - begin, jax.devices()[0].memory_stats()
        return {
            "seconds": seconds,
            "waited": waited,
            "losses": [float(loss) for loss in losses],
            # Of the device where it counts its bytes, else of this process.
            "memory": of_device["peak_bytes_in_use"] if of_device else peak_memory(),
            "trained": sum(leaf.size for leaf in jax.tree.leaves(self._state.params)),
        }

    def flops(self, start: int, stop: int) -> dict[str, float]:
        """Of these steps on cached features, and their tokens.

        `model` counts CLIP as it is defined, `read` only what something depends on; `tokens` are
        real ones, `computed` those of the packed rows.
        """
        loader, sizes = self._run.loader, self._sizes
        total = dict.fromkeys(("model", "read", "tokens", "computed"), 0.0)
        for step in range(start, stop):
            texts = loader.examples.shown(*loader.pairs_at(step)).index_BxM.ravel()
            lengths = loader.examples.tokens.lengths_of(texts)
            logits = flops.contrastive_forward(loader.batch_size, sizes.projection_dim)
            for name, count in (("model", flops.text_forward), ("read", flops.text_forward_read)):
                forward = count(sizes.text, sizes.projection_dim, lengths) + logits
                total[name] += (1 + flops.BACKWARD) * forward
            total["tokens"] += int(lengths.sum())
            total["computed"] += loader.packing.pack(loader.examples.tokens, texts)["ids"].size
        return total

    def matmul_rate(self) -> float:
        """FLOP/s of large products of the compute type with this library, at this moment."""
        dtype = jnp.dtype(self._config.model.dtype)
        multiply = jax.jit(jnp.matmul)
        with matmul_precision(dtype):
            return matmul_rate(
                lambda a, b: multiply(a, b).block_until_ready(),
                lambda x: jnp.asarray(x, dtype),
                jax.default_backend(),
            )
