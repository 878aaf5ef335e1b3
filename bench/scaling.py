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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import harness
from bench.harness import Side
from bench.hlo import Collective
from bench.material import ARCHITECTURES
from bench.virtual_steps import Case, flops_per_pair
from negclip_jax.common.progress import told
from negclip_jax.common.provenance import package_versions
from negclip_jax.models import flops
from negclip_jax.models.transformer import TowerConfig

Result = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """Published peaks of one device."""

    name: str
    flops: float  # dense bfloat16 operations a second
    memory: float  # bytes
    memory_rate: float  # bytes a second
    link_rate: float  # bytes a second that it sends to devices of its group, all links together
    group: int  # devices that these links join
    network_rate: float  # bytes a second that it sends to other groups, its share of its host's
    sources: tuple[str, ...]  # pages of the makers


# Makers add up both directions of a link ("bidirectional"); what a device can send is half.
ACCELERATORS = (
    Accelerator(
        "TPU v5e", flops=197e12, memory=16e9, memory_rate=819e9, link_rate=400e9 / 2,
        group=256, network_rate=6.4e12 / 8 / 256,
        sources=("https://cloud.google.com/tpu/docs/v5e",),
    ),
    Accelerator(
        "TPU v6e", flops=918e12, memory=32e9, memory_rate=1638e9, link_rate=800e9 / 2,
        group=256, network_rate=25.6e12 / 8 / 256,
        sources=("https://cloud.google.com/tpu/docs/v6e",),
    ),
    Accelerator(  # the data sheet's 1,979 TFLOP/s are with sparsity
        "H100 SXM", flops=989.4e12, memory=80e9, memory_rate=3350e9, link_rate=900e9 / 2,
        group=8, network_rate=400e9 / 8,
        sources=("https://www.nvidia.com/en-us/data-center/h100/",
                 "https://docs.nvidia.com/dgx/dgxh100-user-guide/introduction-to-dgxh100.html"),
    ),
)  # fmt: skip

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
    with Side("bench.virtual_steps:with_devices", devices) as side:
        for case in told(cases, f"{devices} devices: steps compiled"):
            print(f"{devices} devices: {case}", file=sys.stderr, flush=True)
            results.append(side("measure", case))
    return results


def chosen(results: Sequence[Result], cases: Sequence[Case], devices: int) -> list[Result]:
    """The results of these cases on so many devices, in their order; ValueError if one lacks."""
    fields = Case.__dataclass_fields__
    found = [result for result in results if result["devices"] == devices]
    by_case = {Case(**{name: result[name] for name in fields}): result for result in found}
    missing = [case for case in cases if case not in by_case]
    if missing:
        raise ValueError(f"no figures of {missing[0]} on {devices} devices: leave out --reuse")
    return [by_case[case] for case in cases]


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
    better, most do worse. Towers that are computed come with the tokens that each reads; `trained`
    are the parameters that the step updates.
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
        _traffic_of(result, result["pairs"]) / device.memory_rate,
        message_seconds(result["collectives"], device),
    )


def _traffic_of(result: Result, pairs: int) -> float:
    """Bytes of memory that this step reads and writes with so many pairs on a device."""
    model, tokens = ARCHITECTURES[result["arch"]], result["tokens"] / result["pairs"]
    towers = [(model.text, pairs * tokens)]
    if result["trains"] == "all":
        towers.append((model.vision, pairs * model.vision.positions))
    return memory_traffic(towers, result["trained"])


def compute_bound_batch(result: Result, device: Accelerator, devices: int) -> tuple[int, str]:
    """Smallest batch, a power of two, whose products take longer than memory and links, and "".

    Where there is none up to `_LARGEST_BATCH`, what bounds that one: "memory" or "links". `result`
    is of the same step on any number of devices.
    """
    dim, batch = ARCHITECTURES[result["arch"]].projection_dim, devices
    while True:
        pairs = batch // devices
        messages = gradient_and_feature_messages(result["trained"], pairs, devices, dim)
        products = pairs * flops_per_pair(result["arch"], result["trains"], batch) / device.flops
        memory = _traffic_of(result, pairs) / device.memory_rate
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


def tables(results: Sequence[Result]) -> dict[str, str]:
    """The tables of the page in Markdown, by the names of their marks."""
    names, made = [a.name for a in ACCELERATORS], {}

    def label(arch: str, trains: str) -> str:
        _, size, patch = arch.removesuffix("_336").upper().split("_")
        at = "@336" if arch.endswith("_336") else ""
        return f"{size}/{patch}{at}, {'text tower' if trains == 'text' else 'both towers'}"

    def mib(size: float) -> str:
        return f"{size / 2**20:,.0f} MiB"

    def start(result: Result) -> list[str]:
        return [label(result["arch"], result["trains"]), str(result["devices"])]

    def memory(result: Result) -> list[str]:
        return [mib(result["arguments"]), mib(result["temporaries"])]

    def messages(result: Result) -> list[str]:
        sent = sum(Collective(**collective).sent for collective in result["collectives"])
        return [str(sum(c["times"] for c in result["collectives"])), mib(sent)]

    header = ["one device", "bfloat16 TFLOP/s", "memory", "memory GB/s", "to its group GB/s"]
    rows = []
    for a in ACCELERATORS:
        row = [a.name, f"{a.flops / 1e12:.0f}", f"{a.memory / 1e9:.0f} GB"]
        row += [f"{a.memory_rate / 1e9:.0f}", f"{a.link_rate / 1e9:.0f}", str(a.group)]
        sources = ", ".join(f"[{i}]({url})" for i, url in enumerate(a.sources, 1))
        rows.append([*row, f"{a.network_rate / 1e9:.1f}", sources])
    header += ["group", "beyond it GB/s", "source"]
    made["accelerators"] = harness.markdown(header, rows)

    by_step = [result for case in STEPS for n in DEVICES for result in chosen(results, [case], n)]
    header = ["step", "devices", "batch", "arguments", "temporaries", "GFLOP (of the model)"]
    rows, bounds = [], []
    for r in by_step:
        work = f"{r['program_flops'] / 1e9:,.0f} ({r['model_flops'] / 1e9:,.0f})"
        batch = f"{r['pairs'] * r['devices']:,}"
        rows.append([*start(r), batch, *memory(r), work, *messages(r)])
        bounds.append([*start(r), *(_bound(times(r, device)) for device in ACCELERATORS)])
    made["steps"] = harness.markdown([*header, "messages", "sent"], rows)
    made["bounds"] = harness.markdown(["step", "devices", *(f"{a}, ms" for a in names)], bounds)

    header = ["data x fsdp", "microbatches", "arguments", "temporaries", "messages", "sent"]
    rows = [
        [f"{8 // r['fsdp']} x {r['fsdp']}", str(r["microbatches"]), *memory(r), *messages(r)]
        for r in chosen(results, MESHES, 8)
    ]
    made["meshes"] = harness.markdown(header, rows)

    rows = []
    for r in chosen(results, LARGE, 8):
        bound = r["logit_block_mib"]
        row = [str(r["microbatches"]), "none" if bound == _UNBOUNDED else f"{bound:g}"]
        work = f"{r['program_flops'] / 1e9:,.0f}"
        rows.append([*row, mib(r["temporaries"]), *messages(r), work])
    header = ["microbatches", "logit_block_mib", "temporaries", "messages", "sent", "GFLOP"]
    made["large"] = harness.markdown(header, rows)

    rows = []
    for r in chosen(results, STEPS, 8):
        for n in DEVICES:
            found = (compute_bound_batch(r, device, n) for device in ACCELERATORS)
            cells = (f"none: {bound}" if bound else f"{batch:,}" for batch, bound in found)
            rows.append([label(r["arch"], r["trains"]), str(n), *cells])
    made["batches"] = harness.markdown(["step", "devices", *names], rows)

    rows = []
    for trains in ("text", "all"):
        for arch in (name for name in ARCHITECTURES if name != "tiny"):
            costs = [[hours(arch, trains, n, a) for n in _PAIR_COUNTS] for a in ACCELERATORS]
            rows.append([label(arch, trains), *(" / ".join(map(_digits, c)) for c in costs)])
    made["costs"] = harness.markdown(["recipe", *names], rows)
    return made


def _bound(parts: Sequence[float]) -> str:
    words = [_digits(1e3 * seconds) for seconds in parts]
    longest = max(range(len(parts)), key=lambda i: parts[i])
    words[longest] = f"**{words[longest]}**"
    return " / ".join(words)


def _digits(number: float) -> str:
    """Two digits, or all of them before the point."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.{1 if number >= 1 else 2}f}"


def render(text: str, results: Sequence[Result]) -> str:
    """The text with each table between its marks made anew; ValueError if one has no place."""
    made = tables(results)
    missing = made.keys() - {match[2] for match in _MARKS.finditer(text)}
    if missing:
        names = " or ".join(sorted(missing))
        raise ValueError(f"no marks <!-- table: {names} --> ... <!-- end -->")
    return _MARKS.sub(lambda m: f"{m[1]}{made[m[2]]}\n{m[3]}", text)


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser("bench.scaling", __doc__)
    parser.add_argument("--out", type=Path, help="Markdown file whose tables are rewritten")
    parser.add_argument("--reuse", action="store_true", help="compile nothing, read --json")
    args = parser.parse_args(argv)
    if args.reuse and (args.json is None or not args.json.is_file()):
        sys.exit("bench.scaling: --reuse needs --json=FILE of an earlier run")
    if args.out is not None and not args.out.is_file():
        sys.exit(f"bench.scaling: {args.out} does not exist; its tables are rewritten in place")
    try:
        if args.reuse:
            results = json.loads(args.json.read_text())["results"]
        else:
            harness.require_writable(args.json)
            results = [r for devices, cases in CASES.items() for r in measure(devices, cases)]
            if args.json is not None:  # one line a program, so that a change of one is one line
                lines = ",\n".join(json.dumps(result) for result in results)
                versions = json.dumps(package_versions(["jax", "jaxlib"]))
                args.json.write_text(f'{{"versions": {versions},\n"results": [\n{lines}\n]}}\n')
        if args.out is None:
            print("\n\n".join(f"{name}\n\n{table}" for name, table in tables(results).items()))
        else:
            args.out.write_text(render(args.out.read_text(), results))
    except (ValueError, RuntimeError) as error:
        sys.exit(f"bench.scaling: {args.out or args.json}: {error}")


if __name__ == "__main__":
    main()
