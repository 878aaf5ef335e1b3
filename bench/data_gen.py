"""Generation: what a pair costs against the published algorithm, and what the client itself costs.

    python -m bench.data_gen --json=runs/bench/data_gen.json
    python -m bench.data_gen --captions=captions.json --photos=DIR --instances=instances.json

Cost: the published script's order of calls (variant `per_caption`, one request at a time) and this
project's variants run on the same captions against the same loopback server, which counts calls and
the prompt tokens that it has to compute (bench/loopback.py: 2,341 tokens a photo, an object that a
caption does not mention is absent with probability 0.355, as in the published run). Client: CPU
time of this process a call with 256 in flight against a server in another process. Labels: what
boxes of 80 classes and five captions say of each photo, made, written, read and exported as JSON.
"""

import argparse
import asyncio
import hashlib
import itertools
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench import harness
from bench.harness import Side, flag
from bench.loopback import LoopbackServer
from data_gen import labels, runner, settings
from data_gen.annotations import InstanceVerifier
from data_gen.engines.cache import read_statistics
from data_gen.generate import run
from data_gen.images import PhotoFolder
from data_gen.manifest import counts
from data_gen.records import Caption, ImageItem, Rows, count_values
from data_gen.stages.ingest import read_captions
from negclip_jax.common.chat.client import ChatClient, ChatSettings
from negclip_jax.common.chat.messages import ChatImage, ChatRequest
from negclip_jax.common.errors import InputError
from negclip_jax.common.records import identity

ABSENT = 0.355  # share of proposed objects that are absent in the published run
_NAMES = """
umbrella dog bicycle kite laptop bus horse clock vase fork oven sheep bear tie zebra bottle truck
train boat bench backpack skateboard surfboard spoon banana carrot pizza donut cake
"""
POOL = _NAMES.split()
CLASSES = [*POOL, *(f"thing {i}" for i in range(80 - len(POOL)))]
PLACES = ("a wall", "a tower", "a gate", "a fence", "a hill", "a field", "a bridge", "a lake")
TEXTS = ("A man walks near {}", "A person by {}", "Somebody close to {}", "Grass and {}")
TEXTS += ("{}, alone",)


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


def cost(
    folder: Path,
    shows: dict,
    variant: str,
    latency: float,
    *,
    prefix_cache: bool,
    pool: Sequence[str] = POOL,
    careless: bool = False,
    together: int | None = None,
) -> dict[str, Any]:
    """Calls, tokens and seconds of one variant; the published order of calls is sequential.

    `together`: photos a text request, None: as the variant has it. "stages": requests a pair.
    """
    kind = CarelessServer if careless else LoopbackServer
    how = {"latency": latency, "prefix_cache": prefix_cache, "many": True}
    with kind(shows, list(pool), **how) as server:
        changes = {"llm.url": server.url, "mllm.url": server.url}
        changes |= {"input.captions": f"{folder}/captions.json", "input.images": f"{folder}/photos"}
        if together is not None:
            changes["llm.images_per_request"] = str(together)
        if variant == "per_caption":
            changes |= {"engine.concurrency": "1", "engine.window": "1"}
        config = settings.load(f":{variant}", changes)
        with tempfile.TemporaryDirectory() as out:
            started = time.perf_counter()
            run(config, Path(out), say=lambda line: None)
            seconds = time.perf_counter() - started
            pairs = counts(Path(out))["accepted"]
            answers = read_statistics(Path(out) / "cache.sqlite")
            by_state = count_values(out, "labels", "state")
        calls, tokens = server.counts.calls, server.counts.prompt_tokens
    return {
        "variant": variant,
        "prefix_cache": prefix_cache,
        "pairs": pairs,
        "seconds": seconds,
        "calls": calls,
        "computed_tokens": tokens,
        "calls_per_pair": calls / pairs,
        "tokens_per_pair": tokens / pairs,
        "pairs_per_second": pairs / seconds,
        "stages": {stage: found["calls"] / pairs for stage, found in answers.items()},
        "labels": dict(by_state),
    }


class CarelessServer(LoopbackServer):
    """Forgets the negation in one of 20 texts when it writes several: they get a second try."""

    def reworded(self, body: dict[str, Any], text: str, stage: str) -> str:
        if stage != "rewrite" or not text.startswith("{"):
            return text
        texts = json.loads(text)
        for place, said in texts.items():
            if int(hashlib.sha256(said.encode()).hexdigest(), 16) % 20 == 0:
                texts[place] = said.replace(" with no ", " with a ")
        return json.dumps(texts)


def real_world(folder: Path, captions: str, photos: str, instances: str) -> tuple[dict, list[str]]:
    """Links real photos and captions; returns what each photo shows and the names of all boxes.

    A photo shows what its boxes and its captions name.
    """
    folder.mkdir(parents=True)
    (folder / "captions.json").symlink_to(Path(captions).resolve())
    (folder / "photos").symlink_to(Path(photos).resolve())
    images, shows, opened = read_captions(captions).images, {}, PhotoFolder(photos, 672)
    boxes = InstanceVerifier(instances, ((i.image_id, i.file_name) for i in images))
    for image in images:
        there = boxes.present.get(identity(image.image_id), frozenset())
        named = frozenset(labels.named_in(image.texts))
        data = opened.load(image.file_name).data
        shows[hashlib.sha256(data).hexdigest()] = there | named
    return shows, sorted({c["name"] for c in json.loads(Path(instances).read_text())["categories"]})


def started_server(latency: float) -> LoopbackServer:
    """For a process of its own, see `harness.Side`."""
    return LoopbackServer({}, POOL, latency=latency, prefix_cache=True).__enter__()


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

    with Side("bench.data_gen:started_server", 0.05) as server:
        return asyncio.run(ask(server("url"))) | {"in_flight": server("counts").peak}


def boxes(path: Path, images: int) -> None:
    """Writes boxes of 80 classes, three in each photo."""
    listed = [{"id": i, "file_name": f"{i:012d}.jpg"} for i in range(images)]
    objects = [
        {"id": 3 * i + k, "image_id": i, "category_id": (7 * i + k) % 80, "area": 900}
        for i, k in itertools.product(range(images), range(3))
    ]
    classes = [{"id": i, "name": name} for i, name in enumerate(CLASSES)]
    content = {"images": listed, "annotations": objects, "categories": classes}
    path.write_text(json.dumps(content))


class Labels:
    """Makes the labels of many photos, in a process of its own; made with `harness.Side`."""

    def __init__(self, run: Path, instances: Path):
        self._run, self._boxes = run, InstanceVerifier(instances)

    def measure(self) -> dict[str, float]:
        """Seconds of each step, bytes on disk and in memory; `inputs_bytes`: before any label."""
        captions = tuple(Caption(text, text.format(PLACES[0])) for text in TEXTS)
        images = [ImageItem(i, f"{int(i):012d}.jpg", captions) for i in self._boxes.present]
        inputs, times = harness.peak_memory(), [time.perf_counter()]
        for shard in runner.cut(images, 500, ""):
            rows = [
                {**label._asdict(), "file_name": image.file_name}
                for image in shard.images
                for label in labels.of_image(image, self._boxes, [])
            ]
            shard.write(self._run, [Rows(labels=rows)])
        times.append(time.perf_counter())
        number = sum(len(every) for _, every in labels.read_labels(self._run))
        times.append(time.perf_counter())
        text = self._run / "labels.json"
        labels.write_labels(self._run, text)
        times.append(time.perf_counter())
        seconds = (b - a for a, b in itertools.pairwise(times))
        return {
            "images": len(images),
            "labels": number,
            **dict(zip(("make_s", "read_s", "export_s"), seconds, strict=True)),
            "table_bytes": harness.size_of(self._run / "labels"),
            "json_bytes": text.stat().st_size,
            "inputs_bytes": inputs,
            "peak_bytes": harness.peak_memory(),
        }


@flag("--images", type=int, default=40, help="photos with five captions each")
@flag("--latency", type=float, default=0.05, help="seconds of each answer")
@flag("--calls", type=int, default=4000, help="requests of the client's test")
@flag("--label-images", type=int, default=20_000, help="photos that labels are made of")
@flag("--captions", help="of real photos, COCO json: only what their pairs cost is measured")
@flag("--photos", help="their folder")
@flag("--instances", help="their boxes, by which the loopback server answers")
def measure(args: argparse.Namespace, scratch: Path) -> harness.Measured:
    """All measurements, as they are written to the JSON file."""
    real = ("captions", "photos", "instances")
    lacking = [f"--{name}" for name in real if not getattr(args, name)]
    if len(lacking) < len(real):
        if lacking:
            raise InputError(f"real photos need {' and '.join(lacking)} too")
        return real_photos(args, scratch)
    shows = world(scratch / "world", args.images)
    variants = ("per_caption", False), ("per_image", True), ("per_image", False), ("frugal", False)
    costs = [
        cost(scratch / "world", shows, variant, args.latency, prefix_cache=cached)
        for variant, cached in variants
    ]
    clients = {"text": client(args.calls, 0), "photo of 120 KB": client(args.calls // 4, 120)}
    boxes(scratch / "instances.json", args.label_images)
    with Side("bench.data_gen:Labels", scratch / "labels", scratch / "instances.json") as side:
        labelled = side("measure")
    result = {"images": args.images, "latency_s": args.latency}
    result |= {"cost": costs, "client": clients, "labels": labelled}
    title = f"{args.images} photos, answers of {args.latency:g} s"
    return result, title, [cost_table(costs), client_table(clients), label_table(labelled)]


def real_photos(args: argparse.Namespace, scratch: Path) -> harness.Measured:
    """What pairs of real photos cost, photo by photo and as is usual."""
    shows, pool = real_world(scratch / "world", args.captions, args.photos, args.instances)
    costs = [
        cost(scratch / "world", shows, "per_image", args.latency, prefix_cache=False, pool=pool,
             careless=careless, together=together)
        for careless in (False, True) for together in (1, None)
    ]  # fmt: skip
    title = f"{len(shows)} real photos"
    return {"photos": len(shows), "cost": costs}, title, [stage_table(costs)]


def stage_table(costs: Sequence[dict[str, Any]]) -> harness.Table:
    """Requests a pair by stage: photo by photo and as usual, by a good and a careless server."""
    stages, rows = ("propose", "verify", "rewrite"), []
    for i, row in enumerate(costs):
        name = "photo by photo" if i % 2 == 0 else "default"
        name += ", 5 % of texts written twice" if i >= 2 else ""
        each = [row["stages"][stage] for stage in stages]
        states = [f"{row['labels'].get(state, 0):,}" for state in ("absent", "present")]
        rows.append(
            [name, f"{row['pairs']:,}", *(f"{n:.3f}" for n in each), f"{sum(each):.3f}",
             f"{row['tokens_per_pair']:,.0f}", *states]
        )  # fmt: skip
    return ["", "pairs", *stages, "requests/pair", "tokens/pair", "absent", "present"], rows


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


def label_table(found: dict[str, float]) -> harness.Table:
    """One row; `inputs`: the peak of reading boxes and captions, before any label."""
    header = ["photos", "labels", "make s", "read s", "export s"]
    row = [f"{found['images']:,}", f"{found['labels']:,}"]
    row += [f"{found[name]:.1f}" for name in ("make_s", "read_s", "export_s")]
    for name in ("table", "json", "inputs", "peak"):
        header.append(f"{name} MB")
        row.append(f"{found[f'{name}_bytes'] / 1e6:,.0f}")
    return header, [row]


main = harness.command("bench.data_gen", __doc__, measure)

if __name__ == "__main__":
    main()
