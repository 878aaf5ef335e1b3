"""What tests of training share: random batches, whole-tree comparisons, files of a run."""

import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from negclip_jax.runtime import sharding

ROOT = pathlib.Path(__file__).resolve().parents[1]

# What a caller of train() may hand in: here one number that the parameters determine.
EVALUATORS = {"custom": lambda context: lambda params: {"scale": float(params["logit_scale"])}}


def use_one_device(patch) -> None:
    """Makes training use one of the eight devices, as long as the monkeypatch lasts."""
    make_mesh = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    patch.setattr(sharding, "make_mesh", make_mesh)


def random_batch(config, batch_size: int, *, foils: int = 0, length: int = 16) -> dict:
    """A padded batch as the loader makes it: uint8 pixels, ids that end with the end token."""
    rng = np.random.default_rng(3)
    side, end = config.vision.image_size, config.text.eos_token_id

    def ids(*shape: int) -> np.ndarray:
        rows = np.zeros((*shape, length), np.int32)
        for row in rows.reshape(-1, length):
            n = rng.integers(1, length - 1)
            row[:n] = rng.integers(1, 400, n)
            row[n] = end
        return rows

    batch = {
        "image": rng.integers(0, 256, (batch_size, side, side, 3), np.uint8),
        "text": ids(batch_size, 1 + foils).reshape(-1, length),  # caption, its foils, caption...
    }
    if foils:
        batch["truth"] = truth_of_foils(rng.random((batch_size, foils)) < 0.6)
    return batch


def truth_of_foils(mask: np.ndarray) -> np.ndarray:
    """What is known of a caption and its foils, int8 `[B, 1 + K]`; `mask`: which of these exist."""
    return np.concatenate([np.ones((len(mask), 1)), -mask.astype(int)], axis=1).astype(np.int8)


def with_foils(text, foil, mask=None):
    """Texts with their foils behind them `[B, 1 + K, D]`, and what is known of them."""
    mask = np.ones(foil.shape[:2], bool) if mask is None else mask
    return jnp.concatenate([text[:, None], foil], axis=1), truth_of_foils(mask)


def pairs_of(batch: dict, rows) -> dict:
    """The pairs of a padded batch at these rows (indices or a slice), each with its foils."""
    size = len(batch["image"])
    by_pair = {name: x.reshape(size, -1, *x.shape[1:])[rows] for name, x in batch.items()}
    return {name: x.reshape(-1, *x.shape[2:]) for name, x in by_pair.items()}


def adam_moments(opt_state) -> tuple[dict, dict]:
    """First and second moments of Adam, as trees of parameters."""
    state = next(s for s in opt_state if hasattr(s, "mu"))
    return state.mu, state.nu


def assert_equal(a, b) -> None:
    """Same structure, and every leaf the same bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        x, y = np.asarray(x), np.asarray(y)
        name = jax.tree_util.keystr(path)
        assert x.dtype == y.dtype and np.array_equal(x, y), f"{name} differs"


def assert_close(a: dict, b: dict, *, rtol: float, atol: float) -> None:
    """Same structure, and every leaf within the tolerances of `numpy.testing.assert_allclose`."""
    flat_a, flat_b = traverse_util.flatten_dict(a), traverse_util.flatten_dict(b)
    assert flat_a.keys() == flat_b.keys()
    for path, x in flat_a.items():
        np.testing.assert_allclose(x, flat_b[path], rtol, atol, err_msg="/".join(path))


def read_metrics(workdir: pathlib.Path) -> dict[int, dict[str, float]]:
    """`metrics.jsonl` by step; a step that occurs twice is an error."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [line.pop("step") for line in lines]
    assert steps == sorted(set(steps)), f"steps repeat or go back: {steps}"
    return dict(zip(steps, lines, strict=True))


def checkpoint_steps(workdir: pathlib.Path) -> list[int]:
    """Steps that have a complete checkpoint."""
    names = [p.name for p in (workdir / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdigit())


def processor_seconds_of_children() -> float:
    """Of those that have ended. Unlike time on the wall it does not depend on what else runs."""
    times = os.times()
    return times.children_user + times.children_system


def processes_of_session(session: int) -> list[str]:
    """Command lines of the processes that belong to a session (`man 2 setsid`), of Linux."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, sid = stat.read_text().rpartition(")")[2].split()[:4]
            command = stat.with_name("cmdline").read_text().replace("\0", " ")
        except OSError:  # it has just ended
            continue
        if int(sid) == session and state != "Z":
            found.append(command)
    return found
