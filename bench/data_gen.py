"""Generation: what a pair costs against the published algorithm, and what the client itself costs.

    python -m bench.data_gen --json=runs/bench/data_gen.json

Cost: the published script's order of calls (variant `per_caption`, one request at a time) and this
project's variants run on the same captions against the same loopback server, which counts calls and
the prompt tokens that it has to compute (bench/loopback.py: 2,341 tokens a photo, an object that a
caption does not mention is absent with probability 0.355, as in the published run). Client: CPU
time of this process a call with 256 in flight against a server in another process. Ingest: a file
with as many captions as COCO's train2014.
"""

import argparse
import asyncio
import hashlib
import json
import multiprocessing
import resource
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
from data_gen.stages.ingest import read_captions
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
COCO_CAPTIONS, COCO_IMAGES = 414_113, 82_783  # train2014


def world(folder: Path, images: int) -> dict[str, frozenset[str]]:
    """Writes photos and five captions each; returns what each photo shows, for the server."""
    (folder / "photos").mkdir(parents=True)
    shows, listed, annotations = {}, [], []
    for i in range(images):
        rng = np.random.default_rng(i)
        path = folder / "photos" / f"{i:05d}.jpg"
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        shows[digest] = frozenset(name for name in POOL if rng.random() > ABSENT)
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
        changes = _inputs(folder) | {"llm.url": server.url, "mllm.url": server.url}
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

    def __init__(self, shows: dict[str, frozenset[str]], latency: float):
        self._server = LoopbackServer(shows, POOL, latency=latency, prefix_cache=True)
        self._server.__enter__()

    def url(self) -> str:
        return self._server.url

    def counts(self) -> dict[str, int]:
        counts = self._server.counts
        return {"calls": counts.calls, "in_flight": counts.peak}


def client(calls: int, kilobytes: int) -> dict[str, float]:
    """CPU milliseconds of this process a call, 256 in flight; `kilobytes` of photo, 0 for text."""
    photo = None
    if kilobytes:
        data = np.random.default_rng(0).bytes(kilobytes * 1024)
        photo = ChatImage("0" * 64, "file", data)
    with Side("bench.data_gen:Server", {}, 0.05) as server:
        cpu, seconds = asyncio.run(_ask(server("url"), calls, photo))
        return _rates(calls, cpu, seconds, server("counts")["in_flight"])


async def _ask(url: str, calls: int, photo: ChatImage | None) -> tuple[float, float]:
    """CPU and wall seconds of `calls` requests."""
    patience = ChatSettings(start_concurrency=256, concurrency=256)
    engine = ChatClient([url], patience)
    numbers = iter(range(calls))

    async def work() -> None:
        for i in numbers:
            turns = (("user", f"Is there a dog number {i} in this image?"),)
            request = ChatRequest("verify", "loopback", turns, photo, max_tokens=1)
            result = await engine.generate(request)
            if result.error is not None:
                raise InputError(f"the loopback server failed: {result.detail}")

    try:
        cpu, started = time.process_time(), time.perf_counter()
        await asyncio.gather(*(work() for _ in range(300)))
        return time.process_time() - cpu, time.perf_counter() - started
    finally:
        await engine.close()


def whole_run(folder: Path, shows: dict[str, frozenset[str]], latency: float) -> dict[str, float]:
    """The same for a run with everything: decoding, rules, cache, tables."""
    server = Side("bench.data_gen:Server", shows, latency)
    with server, tempfile.TemporaryDirectory() as out:
        url = server("url")
        changes = _inputs(folder) | {"llm.url": url, "mllm.url": url}
        config = settings.load(None, changes)
        cpu, started = time.process_time(), time.perf_counter()
        run(config, Path(out), say=lambda line: None)
        cpu, seconds = time.process_time() - cpu, time.perf_counter() - started
        counted = server("counts")
    return _rates(counted["calls"], cpu, seconds, counted["in_flight"])


def _rates(calls: int, cpu: float, seconds: float, in_flight: int) -> dict[str, float]:
    return {
        "cpu_ms_per_call": 1000 * cpu / calls,
        "calls_per_second": calls / seconds,
        "in_flight": in_flight,
    }


def _inputs(folder: Path) -> dict[str, str]:
    captions, photos = folder / "captions.json", folder / "photos"
    return {"input.captions": str(captions), "input.images": str(photos)}


def ingest() -> dict[str, float]:
    """Seconds and megabytes to read as many captions as COCO's train2014, in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "captions.json"
        images = [
            {"id": i, "file_name": f"COCO_train2014_{i:012d}.jpg", "height": 480, "width": 640}
            for i in range(COCO_IMAGES)
        ]
        rows = [
            {"id": i, "image_id": i % COCO_IMAGES, "caption": f"A man rides wave number {i} today."}
            for i in range(COCO_CAPTIONS)
        ]
        path.write_text(json.dumps({"images": images, "annotations": rows}))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(_ingest, (str(path),))


def _ingest(path: str) -> dict[str, float]:
    started = time.perf_counter()
    ingested = read_captions(path)
    seconds = time.perf_counter() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"captions": ingested.captions, "seconds": seconds, "megabytes": memory}


def measure(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """All measurements, as they are written to the JSON file."""
    images, latency, calls = args.images, args.latency, args.calls
    shows = world(scratch / "world", images)
    variants = ("per_caption", False), ("per_image", True), ("per_image", False), ("frugal", False)
    costs = [
        cost(scratch / "world", shows, variant, latency, prefix_cache=cached)
        for variant, cached in variants
    ]
    many = world(scratch / "many", 10 * images)
    whole = whole_run(scratch / "many", many, latency)
    return {
        "images": images,
        "latency_s": latency,
        "cost": costs,
        "client": {
            "text": client(calls, 0),
            "photo of 120 KB": client(calls // 4, 120),
            "whole run, tiny photos": whole,
        },
        "ingest": ingest(),
    }


def report(result: dict[str, Any]) -> str:
    """The result as tables."""
    published = result["cost"][0]
    rows = []
    for row in result["cost"]:
        name = row["variant"] + (", prefix cache" if row["prefix_cache"] else "")
        rows.append(
            [
                "published (per_caption)" if row is published else name,
                f"{row['pairs']}",
                f"{row['calls_per_pair']:.2f}",
                f"{row['calls_per_pair'] / published['calls_per_pair']:.2f}",
                f"{row['tokens_per_pair']:,.0f}",
                f"{row['tokens_per_pair'] / published['tokens_per_pair']:.2f}",
                f"{row['pairs_per_second']:.1f}",
            ]
        )
    header = ["variant", "pairs", "calls/pair", "ratio", "tokens/pair", "ratio", "pairs/s"]
    clients = [
        [what, f"{c['cpu_ms_per_call']:.2f}", f"{c['calls_per_second']:,.0f}", f"{c['in_flight']}"]
        for what, c in result["client"].items()
    ]
    read = result["ingest"]
    return "\n\n".join(
        [
            harness.markdown(header, rows),
            harness.markdown(["request", "CPU ms/call", "calls/s", "in flight"], clients),
            f"ingest: {read['captions']:,} captions in {read['seconds']:.1f} s, "
            f"{read['megabytes']:,.0f} MB",
            harness.describe(result["machine"]),
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser("bench.data_gen", __doc__)
    add = parser.add_argument
    add("--images", type=int, default=40, help="photos with five captions each")
    add("--latency", type=float, default=0.05, help="seconds of each answer")
    add("--calls", type=int, default=4000, help="requests of the client's test")
    harness.run(parser, measure, report, argv)


if __name__ == "__main__":
    main()
