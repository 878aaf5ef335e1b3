"""Where a training step's time goes on a CPU: a profile of its operations, added up by part.

    python -m bench.profile --arch=vit_b_32 --batch-size=64 --json=runs/bench/profile.json

The step is the published recipe's on cached image features, with random weights and captions of
NegBench's lengths. Each step is traced by itself and a large matrix product is timed before it, so
that a busy machine slows both. An operation of the trace is found in the compiled program by its
name, and there the function that it comes from. Where several run side by side each has its share
of the time; shares and rates are medians over the steps, with their range.
"""

import argparse
import collections
import itertools
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench import harness
from bench.harness import flag, spread
from bench.hlo import Operation, Program
from bench.material import ARCHITECTURES, random_captions
from bench.virtual_steps import Case, step_of
from negclip_jax.common.errors import InputError
from negclip_jax.common.progress import told
from negclip_jax.data.packing import Packing

# Kinds that only hold other operations, whose time is theirs.
_CONTAINERS = {"while", "call", "conditional"}
_MOVES = {"copy", "transpose", "bitcast", "reshape"}
# Of what is no matrix product, by the innermost of these that called it.
_PLACES = (
    ("LayerNorm", ("normalization.py:", "normalisation.py:")),
    ("activation", ("transformer.py:MLP.", "transformer.py:<lambda>")),
    ("attention: softmax and mask", ("transformer.py:Attention.", "attention")),
    ("AdamW and norms", ("optax/", "training/optim.py:")),
    ("loss", ("training/objectives.py:",)),
    ("loop over blocks: slices and zeros", ("transformer.py:run_blocks",)),
)
_REST = "embedding and the rest"
_PRODUCTS = ("forward", "gradient of inputs", "gradient of weights")
PARTS = (
    *(f"linear layers, {which}" for which in _PRODUCTS),
    "attention: products",
    *(name for name, _ in _PLACES),
    "transposes and copies",
    _REST,
    "between operations",
)
Event = tuple[float, float, str]  # start and end in nanoseconds, and name


def part_of(operation: Operation, tokens: int) -> str | None:
    """The part of a step that an operation belongs to; None for what only holds others.

    `tokens`: of the batch's rows, which no gradient of weights has as an axis.
    """
    if operation.kinds & _CONTAINERS:
        return None
    places = (n for f in operation.frames for n, marks in _PLACES if any(m in f for m in marks))
    place = next(places, _REST)
    if operation.flops:
        if operation.is_batched:
            return "attention: products"
        if place == "loss":
            return place
        is_backward = "transpose(" in operation.name
        of_weights = is_backward and tokens not in operation.shape
        return f"linear layers, {_PRODUCTS[is_backward + of_weights]}"
    if operation.kinds <= _MOVES and operation.kinds & {"copy", "transpose"}:
        return "transposes and copies"
    return place


def attributed(events: Iterable[Event]) -> dict[str, float]:
    """Nanoseconds of each name: of the time when several run, equal shares; "" where none does."""
    ends = sorted(((t, step, n) for a, b, n in events for t, step in ((a, 1), (b, -1))))
    running: collections.Counter[str] = collections.Counter()
    found: dict[str, float] = collections.defaultdict(float)
    before = ends[0][0] if ends else 0.0
    for now, change, name in ends:
        active = {n: count for n, count in running.items() if count} or {"": 1}
        for n, count in active.items():
            found[n] += (now - before) * count / sum(active.values())
        running[name] += change
        before = now
    return found


@flag("--arch", choices=ARCHITECTURES, default="vit_b_32", help="sizes of the model")
@flag("--batch-size", type=int, default=64, help="pairs of a step (default 64)")
@flag("--steps", type=int, default=5, help="that are traced (default 5)")
def measure(args: argparse.Namespace, scratch: Path) -> harness.Measured:
    """Compiles the step, then takes turns of a matrix product and a traced step."""
    harness.require_positive(args, "batch_size", "steps")
    if jax.default_backend() != "cpu":
        raise InputError("this reads the trace of a CPU; on accelerators use log.profile_steps")
    step, state, frozen, batch = _real(Case(args.arch, "text", args.batch_size))
    compiled = step.compiled_for(state, frozen, batch)
    program = Program(compiled.as_text(), 1)
    operations = program.operations()
    tokens = batch["text"]["ids"].size
    state, _ = jax.block_until_ready(compiled(state, frozen, batch))  # the first one allocates
    turns, multiply = [], jax.jit(lambda a, b: jnp.matmul(a, b, precision="highest"))
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    for number in told(range(args.steps), "steps traced"):
        rate = harness.matmul_rate(lambda *of: multiply(*of).block_until_ready(), jnp.asarray)
        folder = scratch / str(number)
        with jax.profiler.trace(str(folder), profiler_options=options):
            began = time.perf_counter()
            state, _ = jax.block_until_ready(compiled(state, frozen, batch))
            seconds = time.perf_counter() - began
        (file,) = folder.rglob("*.xplane.pb")
        turns.append({"seconds": seconds, "matmul_rate": rate} | _turn(file, operations, tokens))
    result = {"turns": turns, "tokens": tokens, "parts": _summary(turns)}
    result["program_flops"] = program.matmul_flops
    whole = [sum(t["flops"].values()) / t["seconds"] / t["matmul_rate"] for t in turns]
    result["flops_share_of_matmul"] = statistics.median(whole)
    seconds, rate = (statistics.median(t[k] for t in turns) for k in ("seconds", "matmul_rate"))
    title = (
        f"{args.arch}, batch {args.batch_size}, {tokens} tokens; {args.steps} steps, median "
        f"{seconds:.2f} s; all products in the time of the step: {spread(whole, '.0%')} of a "
        f"2048 x 2048 one's {rate / 1e9:.0f} GFLOP/s"
    )
    return result, title, [table(result["parts"])]


def _turn(file: Path, operations: dict[str, Operation], tokens: int) -> dict[str, Any]:
    """Nanoseconds and FLOP of each part in the trace of one step."""
    begun: dict[str, list[float]] = collections.defaultdict(list)
    ended: dict[str, list[float]] = collections.defaultdict(list)
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            for event in line.events:
                if event.name in operations:
                    begun[event.name].append(event.start_ns)
                # Products may go on in other threads after the call that began them.
                elif (name := event.name.removeprefix("end: ")) in operations:
                    ended[name].append(event.start_ns)
    # A thread may tell that it ended after the step did, and after the trace.
    last = max(itertools.chain(*begun.values(), *ended.values()), default=0.0)
    events: list[Event] = []
    flops: dict[str, float] = collections.defaultdict(float)
    for name, starts in begun.items():
        if (part := part_of(operations[name], tokens)) is not None:
            ends = sorted(ended[name]) + [last] * (len(starts) - len(ended[name]))
            pairs = zip(sorted(starts), ends, strict=True)
            events += [(start, end, part) for start, end in pairs]
            flops[part] += len(starts) * operations[name].flops
    found = attributed(events)
    found["between operations"] = found.pop("", 0.0)
    return {"nanoseconds": dict(found), "flops": dict(flops)}


def _summary(turns: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Of each part `share` of the time and `rate`, of the matmul's: median, least and largest."""
    found = {}
    for part in PARTS:
        spent = np.array([turn["nanoseconds"].get(part, 0.0) for turn in turns])
        if not spent.any():
            continue
        values = {"share": spent / [sum(turn["nanoseconds"].values()) for turn in turns]}
        if all(turn["flops"].get(part) for turn in turns):
            rates = [turn["flops"][part] / turn["matmul_rate"] for turn in turns]
            values["rate"] = np.array(rates) / spent * 1e9
        found[part] = {k: [np.median(x), x.min(), x.max()] for k, x in values.items()}
    return found


def table(parts: dict[str, dict[str, list[float]]]) -> harness.Table:
    """The rows of a result, in the order of a step."""
    rows = []
    for name, part in parts.items():
        cells = [spread(part[key], ".1%") if key in part else "" for key in ("share", "rate")]
        rows.append([name, *cells])
    return ["part", "of the step's time", "its FLOP/s / large matmul"], rows


def _real(case: Case) -> tuple[Any, Any, Any, dict]:
    """The step of `virtual_steps`, with numbers: random weights and captions of usual lengths."""
    devices = jax.devices()[:1]
    step, (state, frozen, batch) = step_of(case, dtype="float32", devices=devices)
    rng = np.random.default_rng(0)

    def filled(x: jax.ShapeDtypeStruct) -> jax.Array:
        is_number = jnp.issubdtype(x.dtype, jnp.floating)
        values = rng.standard_normal(x.shape, np.float32) * 0.02 if is_number else np.zeros(x.shape)
        return jax.device_put(np.asarray(values, x.dtype), x.sharding)

    texts = random_captions(rng, case.pairs, ARCHITECTURES[case.arch].text)
    packing = Packing.suited_to(texts.lengths, case.pairs, 1)
    text = packing.pack(texts, np.arange(case.pairs))
    batch = {"feature": filled(batch["feature"]), "text": jax.tree.map(jnp.asarray, text)}
    return step, *jax.tree.map(filled, (state, frozen)), batch


main = harness.command("bench.profile", __doc__, measure)

if __name__ == "__main__":
    main()
