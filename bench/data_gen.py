"""Generation: what a pair costs against the published algorithm, and what the client itself costs.

    python -m bench.data_gen --json=runs/bench/data_gen.json

Cost: the published script's order of calls (variant `per_caption`, one request at a time) and this
project's variants run on the same captions against the same loopback server, which counts calls and
the prompt tokens that it has to compute (bench/loopback.py: 2,341 tokens a photo, an object that a
caption does not mention is absent with probability 0.355, as in the published run). Client: CPU
time of this process a call with 256 in flight against a server in another process.
"""

import argparse
import asyncio
import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench import harness
from bench.harness import Side
from bench.loopback import LoopbackServer
from data_gen import settings
from data_gen.generate import run
from data_gen.manifest import counts
from negclip_jax.common.chat.client import ChatClient, ChatSettings
from negclip_jax.common.chat.messages import ChatImage, ChatRequest
from negclip_jax.common.errors import InputError

ABSENT = 0.355  # share of proposed objects that are absent in the published run
_NAMES = """
umbrella dog bicycle kite laptop bus horse clock vase fork oven sheep bear tie zebra bottle truck
train boat bench backpack skateboard surfboard spoon banana carrot pizza donut cake
"""
POOL = _NAMES.split()
PLACES = ("a wall", "a tower", "a gate", "a fence", "a hill", "a field", "a bridge", "a lake")
TEXTS = (
    "A man walks near {}",
    "A person by {}",
    "Somebody close to {}",
    "Grass and {}",
    "{}, alone",
)


def world(folder: Path, images: int) -> dict[str, frozenset[str]]:
    """Writes photos and five captions each; returns what each photo shows, for the server."""
    (folder / "photos").mkdir(parents=True)
    shows, listed, annotations = {}, [], []
    for i in range(images):
        rng = np.random.default_rng(i)
        path = folder / "photos" / f"{i:05d}.jpg"
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        named = ("person", "grass", PLACES[i % len(PLACES)].split()[1])  # by the captions
        shows[digest] = frozenset((*named, *(name for name in POOL if rng.random() > ABSENT)))
        listed.append({"id": i + 1, "file_name": path.name})
        for j, text in enumerate(TEXTS):
            caption = text.format(f"{PLACES[i % len(PLACES)]} number {i}")
            annotations.append({"id": 10 * i + j, "image_id": i + 1, "caption": caption})
    content = {"images": listed, "annotations": annotations}
    (folder / "captions.json").write_text(json.dumps(content))
    return shows


def cost(folder: Path, shows: dict, variant: str, latency: float, *, prefix_cache: bool) -> dict:
    """Calls, tokens and seconds of one variant; the published order of calls is sequential."""
    sequential = variant == "per_caption"
    with LoopbackServer(shows, POOL, latency=latency, prefix_cache=prefix_cache) as server:
        changes = {"llm.url": server.url, "mllm.url": server.url}
        changes |= {"input.captions": str(folder / "captions.json")}
        changes |= {"input.images": str(folder / "photos")}
        if sequential:
            changes |= {"engine.concurrency": "1", "engine.window": "1"}
        config = settings.load(f":{variant}", changes)
        with tempfile.TemporaryDirectory() as out:
            started = time.perf_counter()
            run(config, Path(out), say=lambda line: None)
            seconds = time.perf_counter() - started
            pairs = counts(Path(out))["accepted"]
        asked = server.counts
    return {
        "variant": variant,
        "prefix_cache": prefix_cache,
        "pairs": pairs,
        "seconds": seconds,
        "calls": asked.calls,
        "computed_tokens": asked.prompt_tokens,
        "calls_per_pair": asked.calls / pairs,
        "tokens_per_pair": asked.prompt_tokens / pairs,
        "pairs_per_second": pairs / seconds,
    }


class Server:
    """A loopback server in a process of its own; made with `harness.Side`."""

    def __init__(self, latency: float):
        self._server = LoopbackServer({}, POOL, latency=latency, prefix_cache=True).__enter__()

    def url(self) -> str:
        return self._server.url

    def peak(self) -> int:
        """Most requests that were in flight at once."""
        return self._server.counts.peak


def client(calls: int, kilobytes: int) -> dict[str, float]:
    """CPU milliseconds of this process a call, 256 in flight; `kilobytes` of photo, 0 for text."""
    data = np.random.default_rng(0).bytes(kilobytes * 1024)
    photo = ChatImage("0" * 64, "file", data) if kilobytes else None
    numbers = iter(range(calls))

    async def work(engine: ChatClient) -> None:
        for i in numbers:
            turns = (("user", f"Is there a dog number {i} in this image?"),)
            request = ChatRequest("verify", "loopback", turns, photo, max_tokens=1)
            result = await engine.generate(request)
            if result.error is not None:
                raise InputError(f"the loopback server failed: {result.detail}")

    async def ask(url: str) -> dict[str, float]:
        engine = ChatClient([url], ChatSettings(start_concurrency=256, concurrency=256))
        try:
            cpu, started = time.process_time(), time.perf_counter()
            await asyncio.gather(*(work(engine) for _ in range(300)))
            cpu, seconds = time.process_time() - cpu, time.perf_counter() - started
            return {"cpu_ms_per_call": 1000 * cpu / calls, "calls_per_second": calls / seconds}
        finally:
            await engine.close()

    with Side("bench.data_gen:Server", 0.05) as server:
        return asyncio.run(ask(server("url"))) | {"in_flight": server("peak")}


def measure(args: argparse.Namespace, scratch: Path) -> harness.Measured:
    """All measurements, as they are written to the JSON file."""
    shows = world(scratch / "world", args.images)
    variants = ("per_caption", False), ("per_image", True), ("per_image", False), ("frugal", False)
    costs = [
        cost(scratch / "world", shows, variant, args.latency, prefix_cache=cached)
        for variant, cached in variants
    ]
    clients = {"text": client(args.calls, 0), "photo of 120 KB": client(args.calls // 4, 120)}
    result = {
        "images": args.images,
        "latency_s": args.latency,
        "cost": costs,
        "client": clients,
    }
    title = f"{args.images} photos, answers of {args.latency:g} s"
    return result, title, [cost_table(costs), client_table(clients)]


def cost_table(costs: Sequence[dict[str, Any]]) -> harness.Table:
    """A row for each of `cost`'s results; ratios are to the first."""
    published, rows = costs[0], []
    for row in costs:
        name = row["variant"] + (", prefix cache" if row["prefix_cache"] else "")
        name = "published (per_caption)" if row is published else name
        cells = [name, f"{row['pairs']}"]
        for key, form in (("calls_per_pair", ".2f"), ("tokens_per_pair", ",.0f")):
            cells += [f"{row[key]:{form}}", f"{row[key] / published[key]:.2f}"]
        rows.append([*cells, f"{row['pairs_per_second']:.1f}"])
    return ["variant", "pairs", "calls/pair", "ratio", "tokens/pair", "ratio", "pairs/s"], rows


def client_table(clients: dict[str, dict[str, float]]) -> harness.Table:
    """A row for each of `client`'s results."""
    rows = [
        [what, f"{c['cpu_ms_per_call']:.2f}", f"{c['calls_per_second']:,.0f}", f"{c['in_flight']}"]
        for what, c in clients.items()
    ]
    return ["request", "CPU ms/call", "calls/s", "in flight"], rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser("bench.data_gen", __doc__)
    add = parser.add_argument
    add("--images", type=int, default=40, help="photos with five captions each")
    add("--latency", type=float, default=0.05, help="seconds of each answer")
    add("--calls", type=int, default=4000, help="requests of the client's test")
    harness.run(parser, measure, argv)


if __name__ == "__main__":
    main()
