"""The train step as compiled programs, one per shape of batch."""

import logging
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from negclip_jax.runtime import sharding
from negclip_jax.training.state import TrainState


class CompiledStep:
    """The train step, compiled once for each of the few shapes that packed batches have.

    Compiling is explicit, so that a batch that does not fit fails in minute one with numbers.
    """

    def __init__(self, step: Callable, state: TrainState, frozen: dict, mesh: Mesh):
        places = jax.tree.map(lambda x: x.sharding, state)
        self._jitted = jax.jit(
            step, donate_argnums=0, out_shardings=(places, sharding.replicated(mesh))
        )
        self._compiled: dict[tuple, Callable] = {}

    def __call__(self, state: TrainState, frozen: dict, batch: dict) -> tuple[TrainState, dict]:
        return self.compiled_for(state, frozen, batch)(state, frozen, batch)

    def compiled_for(self, state: TrainState, frozen: dict, batch: dict) -> Callable:
        """The program for a batch of these shapes."""
        shapes = tuple(x.shape for x in jax.tree.leaves(batch))
        if shapes not in self._compiled:
            self._compiled[shapes] = self._compile(state, frozen, batch)
        return self._compiled[shapes]

    def _compile(self, state: TrainState, frozen: dict, batch: dict) -> Callable:
        started = time.monotonic()
        compiled = self._jitted.lower(state, frozen, batch).compile()
        memory = compiled.memory_analysis()
        logging.info(
            "compiled the training step for text %s in %.1f s%s",
            _text_shape(batch),
            time.monotonic() - started,
            "" if memory is None else _memory(memory),
        )
        return compiled


def _text_shape(batch: dict) -> str:
    text = batch["text"]
    ids = text["ids"] if isinstance(text, dict) else text
    return f"{ids.shape[0]} x {ids.shape[1]} ({'packed' if isinstance(text, dict) else 'padded'})"


def _memory(memory: Any) -> str:
    return (
        f"; per device {memory.argument_size_in_bytes / 2**20:.1f} MiB arguments and "
        f"{memory.temp_size_in_bytes / 2**20:.1f} MiB temporaries"
    )
