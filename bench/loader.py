"""Captions: tokenizing, and batches of them once image features are cached.

    python -m bench.loader --json=runs/bench/loader.json

Tokenizing is compared with transformers' tokenizer, whose ids are the same. Batches (shuffle,
gather features, pack captions) are compared with what PyTorch users write when they cache features:
a Dataset of tensors that a DataLoader collates record by record.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import harness, material
from negclip_jax.common import extras
from negclip_jax.common.errors import InputError
from negclip_jax.data.examples import Examples
from negclip_jax.data.images import Preprocessor
from negclip_jax.data.loader import CachedFeatures, PairLoader
from negclip_jax.data.packing import Packing, Ragged
from negclip_jax.data.tokenizer import load_tokenizer

_DIM = 512  # of a ViT-B/32's features
_UNIQUE_EVERY = 5  # captions of an image


def measure(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Rates per second of wall time, in turns; tokenizing runs on one core on both sides."""
    captions, batch_size, directory = _captions(args.captions), args.batch_size, args.tokenizer
    if directory is None:
        directory = scratch
        material.write_tokenizer(directory)
    extras.require("torch", extra="torch", why="the PyTorch side of this benchmark")
    import torch
    from torch.utils.data import DataLoader, TensorDataset
    from transformers import CLIPTokenizer

    torch.set_num_threads(1)
    tokenizer, theirs = load_tokenizer(directory), CLIPTokenizer.from_pretrained(directory)
    ids, offsets = tokenizer.encode_ragged(captions)
    padded = Ragged(ids, offsets).padded(np.arange(len(captions)), 77)
    images = np.arange(len(captions)) // _UNIQUE_EVERY
    features = np.random.default_rng(0).standard_normal((images[-1] + 1, _DIM), np.float32)
    loader = _loader(Ragged(ids, offsets), images, features, batch_size)
    records = TensorDataset(
        torch.from_numpy(features)[torch.from_numpy(images)], torch.from_numpy(padded)
    )

    options = {"padding": "max_length", "truncation": True, "max_length": 77}

    def our_batches() -> None:
        for _ in loader.batches(0, loader.steps_per_epoch):
            pass

    def their_batches() -> None:
        for _ in DataLoader(records, batch_size=batch_size, shuffle=True, drop_last=True):
            pass

    works = {
        "tokenize": lambda: load_tokenizer(directory).encode_ragged(captions),
        "reference_tokenize": lambda: theirs(captions, **options),
        "batches": our_batches,
        "reference_batches": their_batches,
    }
    rates = _rates(works, len(captions), args.repetitions)
    lengths = np.diff(offsets)
    steps = range(loader.steps_per_epoch)
    chosen = [loader.examples.token_index(*loader.pairs_at(step)) for step in steps]
    computed = sum(loader.packing.pack(loader.examples.tokens, c)["ids"].size for c in chosen)
    return {
        "captions": len(captions),
        "batch_size": batch_size,
        "tokens_per_caption": float(lengths.mean()),
        "tokenized_per_second": rates["tokenize"],
        "reference_tokenized_per_second": rates["reference_tokenize"],
        "captions_per_second": rates["batches"],
        "reference_captions_per_second": rates["reference_batches"],
        "tokens_computed_per_real": float(computed / sum(lengths[c].sum() for c in chosen)),
        "tokens_padded_per_real": float(77 / lengths.mean()),
    }


def _rates(works: dict[str, Callable[[], Any]], count: int, repetitions: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _, (name, work) in itertools.product(range(repetitions), works.items()):
        start = time.perf_counter()
        work()
        seconds[name].append(time.perf_counter() - start)
    return {name: count / float(np.median(values)) for name, values in seconds.items()}


def _loader(texts: Ragged, images: np.ndarray, features: np.ndarray, batch_size: int) -> PairLoader:
    n = len(texts)
    examples = Examples(
        [str(i) for i in range(len(features))], images, texts, np.arange(n)[None], None, None
    )
    return PairLoader(
        examples=examples,
        images=None,  # features stand for them
        preprocess=Preprocessor(),
        batch_size=batch_size,
        packing=Packing.suited_to(texts.lengths, batch_size, shards=1),
        cached=CachedFeatures(features, np.zeros(len(features), bool)),
    )


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    header = ["captions", "ours", "transformers, DataLoader", "ratio"]

    def row(name: str, key: str) -> list[str]:
        mine, other = result[key], result[f"reference_{key}"]
        return [name, f"{mine:,.0f}", f"{other:,.0f}", f"{mine / other:.2f} x"]

    computed, padded = (result[f"tokens_{how}_per_real"] for how in ("computed", "padded"))
    rows = [
        row("tokenized/s, one core", "tokenized_per_second"),
        row("in batches/s, features cached", "captions_per_second"),
        ["tokens computed / real", f"{computed:.2f}", f"{padded:.2f}", ""],
    ]
    title = (
        f"{result['captions']:,} captions of {result['tokens_per_caption']:.1f} tokens, batch "
        f"{result['batch_size']}"
    )
    return harness.titled(title, result, header, rows)


def _captions(path: Path | None) -> list[str]:
    if path is None:
        rng = np.random.default_rng(0)
        return [material.negated_caption(rng) for _ in range(25_000)]
    try:
        return [line for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise InputError(f"cannot read --captions={path}: {error.strerror}") from error


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser("bench.loader", __doc__)
    add = parser.add_argument
    add("--captions", type=Path, help="text file, one caption a line; default: made ones")
    add("--tokenizer", type=Path, help="folder of CLIP's vocabulary, for real captions")
    add("--batch-size", type=int, default=512, help="captions a batch (default 512)")
    add("--repetitions", type=int, default=3, help="turns of each side (default 3)")
    harness.run(parser, measure, table, argv)


if __name__ == "__main__":
    main()
