"""Starts with many pairs: checked and tokenized once, mapped into memory afterwards.

    python -m bench.prepared --pairs=5000000 --json=runs/bench/prepared.json

Makes a JSONL file of negation pairs, one image each, and starts on it twice, each time in a process
of its own: the first start checks, tokenizes and keeps everything, the second maps what was kept.
Then come a batch far into a run, and batches against those of the same examples as arrays in
memory. All images count as there, and zeros stand for their features: no image is read. With
`--keep=DIR` pairs and prepared files stay, and a later run begins with the second start.
"""

import argparse
import dataclasses
import json
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from etils import epath

from bench import harness, material
from bench.harness import flag
from configs import common
from negclip_jax.data.images import Preprocessor
from negclip_jax.data.loader import CachedFeatures, PairLoader
from negclip_jax.data.packing import Ragged
from negclip_jax.data.tokenizer import load_tokenizer
from negclip_jax.training import inputs
from quickstart.tiny_clip import write_tokenizer

# Keys of the section `data` that are for images or their features.
_NOT_READ = ("crop", "exact_resize", "cache_features", "cache_dir")
_FAR, _BATCH, _STEPS = 1_000_000, 512, 100
_MANY = 100_000_000  # to which figures are extrapolated
_CAPTIONS = 100_000  # different ones


class Start:
    """A start of training as `training.setup` does it, up to the loaders."""

    def __init__(self, folder: str):
        self._folder = Path(folder)
        self._loader: PairLoader | None = None

    def start(self) -> dict[str, float]:
        """Seconds of the clock and of the processor, and the most memory of its own, in bytes,
        beyond what was there before."""
        inputs.open_images = lambda spec: _AllThere()
        data = {key: x for key, x in common.base().data.items() if key not in _NOT_READ}
        data |= {"pairs": str(self._folder / "pairs.jsonl"), "images": "", "caption_mode": "mix"}
        data |= {"examples_dir": epath.Path(self._folder / "examples"), "packing": True}
        data |= {"validation_fraction": 0.05, "threads": 2, "kept_pixels_mib": 0.0}
        peak, done = [_own_memory()], threading.Event()
        before = peak[0]

        def watch() -> None:
            while not done.wait(0.02):
                peak[0] = max(peak[0], _own_memory())

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        begin, worked = time.perf_counter(), time.process_time()
        self._loader, _ = inputs.loaders(
            **data,
            seed=0,
            keeps_originals=False,
            batch_sizes=(_BATCH, _BATCH),
            shards=1,
            tokenizer=load_tokenizer(self._folder),
            preprocess=Preprocessor(),
        )
        inputs.fingerprint(self._loader.examples)
        seconds = time.perf_counter() - begin
        worked = time.process_time() - worked
        done.set()
        thread.join()
        memory = max(peak[0], _own_memory()) - before
        return {"seconds": seconds, "processor_seconds": worked, "memory": memory}

    def resume(self) -> float:
        """Seconds until the batch of a far step is there."""
        count = len(self._loader.examples.images)
        zeros = np.broadcast_to(np.zeros(512, np.float32), (count, 512))
        cached = CachedFeatures(zeros, np.zeros(count, bool))
        self._loader = dataclasses.replace(self._loader, cached=cached)
        begin = time.perf_counter()
        next(self._loader.batches(_FAR, _FAR + 1))
        return time.perf_counter() - begin

    def hold_in_memory(self) -> None:
        """Goes on with arrays instead of files."""
        examples, tokens = self._loader.examples, self._loader.examples.tokens
        held = Ragged(np.array(tokens.ids, np.int32), np.array(tokens.offsets))
        examples = dataclasses.replace(examples, tokens=held)
        self._loader = dataclasses.replace(self._loader, examples=examples)

    def captions_per_second(self, start: int) -> float:
        """Captions a second in the batches from this step on."""
        begin = time.perf_counter()
        count = sum(len(batch["feature"]) for batch in self._loader.batches(start, start + _STEPS))
        return count / (time.perf_counter() - begin)


class _AllThere:
    """Stands for images, none of which is opened."""

    def missing(self, names: Sequence[str]) -> list[str]:
        return []

    def version(self) -> None:
        return None


def _own_memory() -> int:
    """Resident bytes that are no page of a file; all where the system does not tell."""
    return harness.peak_memory("RssAnon")


def write_pairs(folder: Path, count: int) -> None:
    """Writes that many pairs and a vocabulary."""
    write_tokenizer(folder)
    rng = np.random.default_rng(0)
    captions = [material.negated_caption(rng) for _ in range(min(count, _CAPTIONS))]
    with open(folder / "pairs.jsonl", "w") as file:
        for i in range(count):
            one, two = (captions[k % len(captions)] for k in (i, i + i // len(captions)))
            name = f"{i // 10_000:05d}.tar/{(i * 7919) % count:09d}.jpg"
            file.write(json.dumps({"image": name, "caption": two, "negated": one}) + "\n")


@flag("--pairs", type=int, default=200_000, help="how many (default 200,000)")
@flag("--repetitions", type=int, default=3, help="turns of batches (default 3)")
@flag("--keep", type=Path, help="folder in which pairs and prepared files stay")
def measure(args: argparse.Namespace, scratch: Path) -> harness.Measured:
    """Starts once each; batches in turns, the median."""
    count, scratch, first = args.pairs, args.keep or scratch, None
    load = os.getloadavg()[0]
    if not (scratch / "examples").exists():
        scratch.mkdir(parents=True, exist_ok=True)
        write_pairs(scratch, count)
        with harness.Side("bench.prepared:Start", str(scratch)) as side:
            first = side("start")
    source = os.path.getsize(scratch / "pairs.jsonl")
    with harness.Side("bench.prepared:Start", str(scratch)) as mapped:
        second, far = mapped("start"), mapped("resume")
        with harness.Side("bench.prepared:Start", str(scratch)) as held:
            held("start"), held("resume"), held("hold_in_memory")
            rounds = [
                [side("captions_per_second", _FAR + _STEPS * i) for side in (mapped, held)]
                for i in range(args.repetitions)
            ]
    rates = np.median(rounds, axis=0)
    kept = harness.size_of(scratch / "examples")
    result = {
        "pairs": count,
        "source_bytes_per_pair": source / count,
        "kept_bytes_per_pair": kept / count,
        "load": load,
        "first_start": first,
        "second_start": second,
        "seconds_to_a_far_batch": far,
        "captions_per_second": float(rates[0]),
        "captions_per_second_in_memory": float(rates[1]),
    }
    scale = _MANY / count
    rows = [
        *([["first start", *_shown(first, scale)]] if first else []),
        ["second start", *_shown(second, scale)],
        [f"batch of step {_FAR:,}", f"{far:.2f} s", *[""] * 4],
    ]
    header = ["", f"{count:,} pairs", "processor", "memory", "at 100 M, extrapolated", "memory"]
    sizes = [
        ["bytes a pair, JSONL", f"{source / count:.0f}"],
        ["bytes a pair, kept", f"{kept / count:.0f}"],
        ["captions in batches/s, mapped", f"{rates[0]:,.0f}"],
        ["the same from memory", f"{rates[1]:,.0f} ({rates[0] / rates[1]:.2f} x)"],
    ]
    title = f"{count:,} pairs, two captions each, batch {_BATCH}, load {load:.1f}"
    return result, title, [(header, rows), (["", ""], sizes)]


def _shown(start: dict[str, float], scale: float) -> list[str]:
    seconds, memory = start["seconds"], start["memory"] / 2**20
    more = [f"{seconds * scale:,.0f} s", f"{memory * scale:,.0f} MiB at most"]
    worked = f"{start['processor_seconds']:.1f} s"
    return [f"{seconds:.1f} s", worked, f"{memory:,.0f} MiB", *more]


main = harness.command("bench.prepared", __doc__, measure)

if __name__ == "__main__":
    main()
