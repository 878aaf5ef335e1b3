"""What one training step asks of 8 to 1024 devices, and what bounds it: the tables of the docs.

    python -m bench.scaling --out=docs/scaling.md --json=docs/scaling.json    # 10 minutes, one core
    python -m bench.scaling --out=docs/scaling.md --json=docs/scaling.json --reuse    # at once

Steps are compiled for virtual devices, each count in a process of its own; nothing runs and no
accelerator is needed. A step takes at least the longest of three times, which overlap at best:
products at the peak of the matrix units, memory at its bandwidth, and messages at the bandwidth of
the links (Williams et al., 2009, https://doi.org/10.1145/1498765.1498785).

`--out` rewrites the tables between the marks of that file, else they are printed; `--reuse` renders
the figures of `--json` again.
"""

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import harness
from bench.harness import Side
from bench.hlo import Collective
from bench.material import ARCHITECTURES
from bench.virtual_steps import Case, flops_per_pair
from negclip_jax.models import flops
from negclip_jax.models.transformer import TowerConfig

Result = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """Published peaks of one device.

    Attributes:
      flops: dense bfloat16 operations a second.
      memory, memory_rate: bytes, and bytes a second.
      link_rate: bytes a second that it sends to devices of its group, all links together.
      group: devices that these links join.
      network_rate: bytes a second that it sends to other groups, its share of its host's.
      sources: pages of the makers.
    """

    name: str
    flops: float
    memory: float
    memory_rate: float
    link_rate: float
    group: int
    network_rate: float
    sources: tuple[str, ...]


# Makers add up both directions of a link ("bidirectional"); what a device can send is half.
ACCELERATORS = (
    Accelerator(
        name="TPU v5e",
        flops=197e12,
        memory=16e9,
        memory_rate=819e9,
        link_rate=400e9 / 2,
        group=256,
        network_rate=6.4e12 / 8 / 256,
        sources=("https://cloud.google.com/tpu/docs/v5e",),
    ),
    Accelerator(
        name="TPU v6e",
        flops=918e12,
        memory=32e9,
        memory_rate=1638e9,
        link_rate=800e9 / 2,
        group=256,
        network_rate=25.6e12 / 8 / 256,
        sources=("https://cloud.google.com/tpu/docs/v6e",),
    ),
    Accelerator(
        name="H100 SXM",
        flops=989.4e12,  # the data sheet's 1,979 is with sparsity
        memory=80e9,
        memory_rate=3350e9,
        link_rate=900e9 / 2,
        group=8,
        network_rate=400e9 / 8,
        sources=(
            "https://www.nvidia.com/en-us/data-center/h100/",
            "https://docs.nvidia.com/dgx/dgxh100-user-guide/introduction-to-dgxh100.html",
        ),
    ),
)

DEVICES = (8, 64, 256, 1024)
_PAIRS = 64  # of each device: the recipe's 512 on eight
STEPS = (
    Case("vit_b_32", "text", _PAIRS),
    Case("vit_l_14", "text", _PAIRS),
    Case("vit_b_32", "all", _PAIRS),
    Case("vit_l_14_336", "all", _PAIRS),
)
MESHES = (
    *(Case("vit_l_14_336", "all", _PAIRS, fsdp=fsdp) for fsdp in (1, 2, 4, 8)),
    Case("vit_l_14_336", "all", _PAIRS, fsdp=4, microbatches=2),
)
_UNBOUNDED = 1e9
LARGE = tuple(  # 32,768 pairs on eight devices
    Case("vit_b_32", "text", 4096, microbatches=parts, logit_block_mib=mebibytes)
    for parts, mebibytes in ((1, _UNBOUNDED), (64, _UNBOUNDED), (1, 64.0), (64, 64.0))
)
CASES = {8: (*STEPS, *MESHES[1:], *LARGE), **dict.fromkeys(DEVICES[1:], STEPS)}

_EPOCHS, _MFU = 15, 0.4  # of the published recipe; assumed for the costs
_LARGEST_BATCH = 131_072  # four times that from which SigLIP gains nothing (Zhai et al., 2023)
_PAIR_COUNTS = (1e6, 10e6, 100e6)
_MARKS = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

_FLOAT32, _BFLOAT16 = 4, 2
# Bytes of memory traffic a trained parameter: it is read in both passes, its gradient is written
# and read, Adam's two moments and itself are read and written.
_TRAINED_TRAFFIC = (2 + 2 + 6) * _FLOAT32
_PASSES = 3  # forward, and gradients of inputs and of weights


def measure(devices: int, cases: Sequence[Case]) -> list[Result]:
    """Compiles these steps in a process with so many virtual devices."""
    results = []
    with Side("bench.virtual_steps:VirtualDevices", devices) as side:
        for case in cases:
            print(f"{devices} devices: {case}", file=sys.stderr, flush=True)
            results.append(side("measure", case))
    return results


def chosen(results: Sequence[Result], cases: Sequence[Case], devices: int) -> list[Result]:
    """The results of these cases on so many devices, in their order; ValueError if one lacks."""
    by_case = {_case(result): result for result in results if result["devices"] == devices}
    missing = [case for case in cases if case not in by_case]
    if missing:
        raise ValueError(f"no figures of {missing[0]} on {devices} devices: leave out --reuse")
    return [by_case[case] for case in cases]


def sent(result: Result) -> float:
    """Bytes that each device sends in a step."""
    return sum(Collective(**collective).sent for collective in result["collectives"])


def message_seconds(collectives: Sequence[Mapping[str, Any]], device: Accelerator) -> float:
    """That the messages of a step take; `collectives` are the fields of `hlo.Collective`.

    Devices of a group first exchange among themselves, then each carries its part to the other
    groups, as the libraries do: so links and network each carry what they must and no more.
    """
    passes = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1, "all-to-all": 1}
    total = 0.0
    for message in collectives:
        devices, kind = message["devices"], message["kind"]
        whole = message["size"] * (devices if kind == "reduce-scatter" else 1)
        near = min(devices, device.group)
        far = devices // near
        share = (near - 1) / near / device.link_rate
        share += (far - 1) / far / near / device.network_rate
        total += message["times"] * passes.get(kind, 1) * whole * share
    return total


def memory_traffic(towers: Sequence[tuple[TowerConfig, float]], trained: int) -> float:
    """Bytes that a step reads and writes at least, in bfloat16 with float32 parameters.

    Each matrix product reads its input and writes its output once in each of its three passes;
    everything else is fused into them, and attention never writes its scores. No program does
    better, most do worse.

    Args:
      towers: that are computed, each with the tokens that it reads.
      trained: parameters that the step updates.
    """
    numbers = sum(
        tokens * tower.layers * (10 * tower.width + 2 * tower.mlp_width) for tower, tokens in towers
    )
    return _PASSES * _BFLOAT16 * numbers + _TRAINED_TRAFFIC * trained


def gradient_and_feature_messages(
    trained: int, pairs: int, devices: int, dim: int
) -> list[dict[str, Any]]:
    """What data-parallel training sends in a step, without a compiler.

    The gradient is summed over devices; text features are gathered, and their gradient is summed.
    """
    features = _FLOAT32 * pairs * devices * dim
    common = {"devices": devices, "times": 1}
    return [
        {"kind": "all-reduce", "size": _FLOAT32 * trained, **common},
        {"kind": "all-gather", "size": features, **common},
        {"kind": "all-reduce", "size": features, **common},
    ]


def times(result: Result, device: Accelerator) -> tuple[float, float, float]:
    """Seconds of a step at least, each at its peak: products, memory, links."""
    return (
        result["program_flops"] / device.flops,
        _memory_traffic(result, result["pairs"]) / device.memory_rate,
        message_seconds(result["collectives"], device),
    )


def _memory_traffic(result: Result, pairs: int) -> float:
    """Bytes of memory that a step reads and writes with so many pairs on a device."""
    model, tokens = ARCHITECTURES[result["arch"]], result["tokens"] / result["pairs"]
    towers = [(model.text, pairs * tokens)]
    if result["trains"] == "all":
        towers.append((model.vision, pairs * model.vision.positions))
    return memory_traffic(towers, result["trained"])


def compute_bound_batch(result: Result, device: Accelerator, devices: int) -> tuple[int, str]:
    """Smallest batch, a power of two, whose products take longer than memory and links, and "".

    Where there is none up to `_LARGEST_BATCH`, what bounds that one: "memory" or "links".

    Args:
      result: of the same step on any number of devices.
    """
    dim, batch = ARCHITECTURES[result["arch"]].projection_dim, devices
    while True:
        pairs = batch // devices
        messages = gradient_and_feature_messages(result["trained"], pairs, devices, dim)
        products = pairs * flops_per_pair(result["arch"], result["trains"], batch) / device.flops
        memory = _memory_traffic(result, pairs) / device.memory_rate
        links = message_seconds(messages, device)
        if products >= max(memory, links):
            return batch, ""
        if batch >= _LARGEST_BATCH:
            return batch, "memory" if memory > links else "links"
        batch *= 2


def hours(arch: str, trains: str, pairs: float, device: Accelerator) -> float:
    """Device-hours of all epochs over so many pairs; cached features are computed once a pair."""
    total = _EPOCHS * flops_per_pair(arch, trains, 512)
    if trains == "text":
        total += flops.vision_forward(ARCHITECTURES[arch])
    return pairs * total / (_MFU * device.flops) / 3600


def _accelerators(_: Sequence[Result]) -> str:
    header = ["one device", "bfloat16 TFLOP/s", "memory", "memory GB/s", "to its group GB/s"]
    header += ["group", "beyond it GB/s", "source"]
    rows = [
        [
            a.name,
            f"{a.flops / 1e12:.0f}",
            f"{a.memory / 1e9:.0f} GB",
            f"{a.memory_rate / 1e9:.0f}",
            f"{a.link_rate / 1e9:.0f}",
            str(a.group),
            f"{a.network_rate / 1e9:.1f}",
            ", ".join(f"[{i}]({url})" for i, url in enumerate(a.sources, 1)),
        ]
        for a in ACCELERATORS
    ]
    return harness.markdown(header, rows)


def _steps(results: Sequence[Result]) -> str:
    header = ["step", "devices", "batch", "arguments", "temporaries", "GFLOP (of the model)"]
    header += ["messages", "sent"]
    return harness.markdown(header, [_step_row(result) for result in _by_step(results)])


def _by_step(results: Sequence[Result]) -> list[Result]:
    return [result for case in STEPS for n in DEVICES for result in chosen(results, [case], n)]


def _step_row(result: Result) -> list[str]:
    messages = sum(collective["times"] for collective in result["collectives"])
    return [
        _name(result),
        str(result["devices"]),
        f"{result['pairs'] * result['devices']:,}",
        _mib(result["arguments"]),
        _mib(result["temporaries"]),
        f"{result['program_flops'] / 1e9:,.0f} ({result['model_flops'] / 1e9:,.0f})",
        str(messages),
        _mib(sent(result)),
    ]


def _bounds(results: Sequence[Result]) -> str:
    rows = []
    for result in _by_step(results):
        row = [_name(result), str(result["devices"])]
        rows.append([*row, *(_bound(times(result, device)) for device in ACCELERATORS)])
    return harness.markdown(["step", "devices", *(f"{a.name}, ms" for a in ACCELERATORS)], rows)


def _bound(parts: Sequence[float]) -> str:
    words = [_digits(1e3 * seconds) for seconds in parts]
    longest = max(range(len(parts)), key=lambda i: parts[i])
    words[longest] = f"**{words[longest]}**"
    return " / ".join(words)


def _meshes(results: Sequence[Result]) -> str:
    header = ["data x fsdp", "microbatches", "arguments", "temporaries", "messages", "sent"]
    rows = []
    for result in chosen(results, MESHES, 8):
        _, _, _, arguments, temporaries, _, messages, bytes_sent = _step_row(result)
        mesh = f"{8 // result['fsdp']} x {result['fsdp']}"
        rows.append(
            [mesh, str(result["microbatches"]), arguments, temporaries, messages, bytes_sent]
        )
    return harness.markdown(header, rows)


def _large(results: Sequence[Result]) -> str:
    header = ["microbatches", "logit_block_mib", "temporaries", "messages", "sent"]
    header += ["GFLOP"]
    rows = []
    for result in chosen(results, LARGE, 8):
        _, _, _, _, temporaries, work, messages, bytes_sent = _step_row(result)
        bound = result["logit_block_mib"]
        bound = "none" if bound == _UNBOUNDED else f"{bound:g}"
        row = [str(result["microbatches"]), bound, temporaries, messages, bytes_sent]
        rows.append([*row, work.split()[0]])
    return harness.markdown(header, rows)


def _batches(results: Sequence[Result]) -> str:
    rows = []
    for result in chosen(results, STEPS, 8):
        for devices in DEVICES:
            row = [_name(result), str(devices)]
            for device in ACCELERATORS:
                batch, bound = compute_bound_batch(result, device, devices)
                row.append(f"none: {bound}" if bound else f"{batch:,}")
            rows.append(row)
    return harness.markdown(["step", "devices", *(a.name for a in ACCELERATORS)], rows)


def _costs(_: Sequence[Result]) -> str:
    rows = []
    for trains in ("text", "all"):
        for arch in (name for name in ARCHITECTURES if name != "tiny"):
            row = [_label(arch, trains)]
            for device in ACCELERATORS:
                cells = (hours(arch, trains, pairs, device) for pairs in _PAIR_COUNTS)
                row.append(" / ".join(map(_digits, cells)))
            rows.append(row)
    return harness.markdown(["recipe", *(a.name for a in ACCELERATORS)], rows)


TABLES: dict[str, Callable[[Sequence[Result]], str]] = {
    "accelerators": _accelerators,
    "steps": _steps,
    "bounds": _bounds,
    "meshes": _meshes,
    "large": _large,
    "batches": _batches,
    "costs": _costs,
}


def render(text: str, results: Sequence[Result]) -> str:
    """The text with each table between its marks made anew; ValueError if one has no place."""
    missing = TABLES.keys() - {match[2] for match in _MARKS.finditer(text)}
    if missing:
        raise ValueError(
            f"no marks <!-- table: {' or '.join(sorted(missing))} --> ... <!-- end -->"
        )
    return _MARKS.sub(lambda m: f"{m[1]}{TABLES[m[2]](results)}\n{m[3]}", text)


def _write(path: Path | None, results: Sequence[Result]) -> None:
    """One line a program, so that a change of one is a change of one line."""
    if path is not None:
        lines = ",\n".join(json.dumps(result) for result in results)
        versions = json.dumps(harness.versions("jax", "jaxlib"))
        path.write_text(f'{{"versions": {versions},\n"results": [\n{lines}\n]}}\n')


def _case(result: Result) -> Case:
    return Case(**{name: result[name] for name in Case.__dataclass_fields__})


def _name(result: Result) -> str:
    return _label(result["arch"], result["trains"])


def _label(arch: str, trains: str) -> str:
    _, size, patch = arch.removesuffix("_336").upper().split("_")
    at = "@336" if arch.endswith("_336") else ""
    return f"{size}/{patch}{at}, {'text tower' if trains == 'text' else 'both towers'}"


def _digits(number: float) -> str:
    """Two digits, or all of them before the point."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.{1 if number >= 1 else 2}f}"


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser("bench.scaling", __doc__)
    parser.add_argument("--out", type=Path, help="Markdown file whose tables are rewritten")
    parser.add_argument("--reuse", action="store_true", help="compile nothing, read --json")
    args = parser.parse_args(argv)
    if args.reuse and (args.json is None or not args.json.is_file()):
        sys.exit("bench.scaling: --reuse needs --json=FILE of an earlier run")
    if args.out is not None and not args.out.is_file():
        sys.exit(f"bench.scaling: {args.out} does not exist; its tables are rewritten in place")
    if args.reuse:
        results = json.loads(args.json.read_text())["results"]
    else:
        results = [r for devices, cases in CASES.items() for r in measure(devices, cases)]
        _write(args.json, results)
    try:
        if args.out is None:
            print("\n\n".join(f"{name}\n\n{table(results)}" for name, table in TABLES.items()))
        else:
            args.out.write_text(render(args.out.read_text(), results))
    except ValueError as error:
        sys.exit(f"bench.scaling: {args.out or args.json}: {error}")


if __name__ == "__main__":
    main()
