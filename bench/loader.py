"""Captions: tokenizing, and batches of them once image features are cached. Photos in shards.

    python -m bench.loader --json=runs/bench/loader.json

Tokenizing is compared with transformers' tokenizer, whose ids are the same. Batches (shuffle,
gather features, pack captions), of arrays in memory and of prepared examples that are mapped from
files, are compared with what PyTorch users write when they cache features: a Dataset of tensors
that a DataLoader collates record by record.

Random access to photos in tars and in Parquet is compared with that to a folder. Photos have 224
pixels a side, as people keep them in shards; tars hold a text and a JSON member beside each as
img2dataset writes them, Parquet has the row groups of `datasets`. All were just written, so that
the file cache has them: what is compared is the work.
"""

import argparse
import collections
import dataclasses
import functools
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench import harness, material
from bench.harness import flag
from negclip_jax.common.errors import InputError
from negclip_jax.data.examples import Examples
from negclip_jax.data.images import ImageSource, Preprocessor
from negclip_jax.data.loader import CachedFeatures, PairLoader
from negclip_jax.data.packing import Packing, Ragged
from negclip_jax.data.prepared import Prepared, find, write
from negclip_jax.data.records import Pair
from negclip_jax.data.sources import open_images
from negclip_jax.data.tokenizer import load_tokenizer

_DIM = 512  # of a ViT-B/32's features
_UNIQUE_EVERY = 5  # captions of an image
_PIXELS, _DISTINCT, _SHARD, _GROUP = 224, 64, 512, 100  # of photos, files and row groups


@flag("--captions", type=Path, help="text file, one caption a line; default: made ones")
@flag("--tokenizer", type=Path, help="folder of CLIP's vocabulary, for real captions")
@flag("--batch-size", type=int, default=512, help="captions a batch (default 512)")
@flag("--photos", type=int, default=2048, help="in tars, Parquet and a folder (default 2048)")
@flag("--repetitions", type=int, default=3, help="turns of each side (default 3)")
def measure(args: argparse.Namespace, scratch: Path) -> harness.Measured:
    """Rates per second of wall time, in turns; tokenizing runs on one core on both sides."""
    captions, batch_size, directory = _captions(args.captions), args.batch_size, args.tokenizer
    if directory is None:
        directory = scratch
        material.write_tokenizer(directory)
    harness.require_torch()
    import torch
    from torch.utils.data import DataLoader, TensorDataset
    from transformers import CLIPTokenizer

    torch.set_num_threads(1)
    theirs, n = CLIPTokenizer.from_pretrained(directory), len(captions)
    tokens = Ragged(*load_tokenizer(directory).encode_ragged(captions))
    images = np.arange(n) // _UNIQUE_EVERY
    features = np.random.default_rng(0).standard_normal((images[-1] + 1, _DIM), np.float32)
    names = [f"{i:09d}" for i in range(len(features))]
    loader = PairLoader(
        examples=Examples.of_captions(names, images, tokens),
        images=None,  # features stand for them
        preprocess=Preprocessor(),
        batch_size=batch_size,
        packing=Packing.suited_to(tokens.lengths, batch_size, shards=1),
        cached=CachedFeatures(features, np.zeros(len(features), bool)),
    )
    kept = _prepared(captions, [names[i] for i in images], scratch / "kept", directory)
    mapped = Examples.of_captions(kept.images, kept.image_of, kept.tokens)
    from_files = dataclasses.replace(loader, examples=mapped)
    records = TensorDataset(
        torch.from_numpy(features)[torch.from_numpy(images)],
        torch.from_numpy(tokens.padded(np.arange(n), 77)),
    )
    options = {"padding": "max_length", "truncation": True, "max_length": 77}
    steps = loader.steps_per_epoch
    works = {
        "tokenized_per_second": lambda: load_tokenizer(directory).encode_ragged(captions),
        "reference_tokenized_per_second": lambda: theirs(captions, **options),
        "captions_per_second": lambda: list(loader.batches(0, steps)),
        "prepared_captions_per_second": lambda: list(from_files.batches(0, steps)),
        "reference_captions_per_second": lambda: list(
            DataLoader(records, batch_size=batch_size, shuffle=True, drop_last=True)
        ),
    }
    seconds = harness.seconds_of(works, args.repetitions)
    rates = {name: n / float(np.median(values)) for name, values in seconds.items()}
    chosen = [mapped.shown(*loader.pairs_at(s)).index_BxM.ravel() for s in range(steps)]
    computed = sum(loader.packing.pack(tokens, c)["ids"].size for c in chosen)
    mean = float(tokens.lengths.mean())
    shares = {
        "tokens_computed_per_real": float(computed / sum(tokens.lengths[c].sum() for c in chosen)),
        "tokens_padded_per_real": 77 / mean,
    }

    def row(name: str, key: str, prepared: str = "") -> list[str]:
        mine, other = rates[prepared + key], rates[f"reference_{key}"]
        return [name, f"{mine:,.0f}", f"{other:,.0f}", f"{mine / other:.2f} x"]

    rows = [
        row("tokenized/s, one core", "tokenized_per_second"),
        row("in batches/s, features cached", "captions_per_second"),
        row("the same, prepared examples", "captions_per_second", "prepared_"),
        ["tokens computed / real", *(f"{x:.2f}" for x in shares.values()), ""],
    ]
    counts = {"captions": n, "batch_size": batch_size, "tokens_per_caption": mean}
    read, table = _sources(args.photos, args.repetitions, scratch)
    title = f"{n:,} captions of {mean:.1f} tokens, batch {batch_size}"
    header = ["captions", "ours", "transformers, DataLoader", "ratio"]
    return counts | rates | shares | {"sources": read}, title, [(header, rows), table]


def _prepared(captions: list[str], images: list[str], folder: Path, vocabulary: Path) -> Prepared:
    """The captions as a first start of training leaves them."""
    folder.mkdir()
    pairs = [
        Pair(image, caption, None, image_id=image)
        for image, caption in zip(images, captions, strict=True)
    ]
    shown = {"caption_mode": "original", "foils": 0}
    collections.deque(write(pairs, folder, "", load_tokenizer(vocabulary), **shown), maxlen=0)
    return find(folder, "")


def _sources(photos: int, repetitions: int, scratch: Path) -> tuple[dict[str, Any], harness.Table]:
    """Photos/s of each source in shuffled batches and in bare reads, in turns, and the ratios."""
    names = _write_sources(photos, scratch)
    specs = {
        "folder": str(scratch / "folder"),
        "tars": f"wds:{scratch}/*.tar",
        "parquet": f"parquet:{scratch}/*.parquet",
    }
    order = np.random.default_rng(1).permutation(names).tolist()

    def load(loader: PairLoader) -> None:
        for _ in loader.batches(0, loader.steps_per_epoch):
            pass

    def read(source: ImageSource) -> None:
        for name in order:
            source.read(name)

    works = {}
    for name, spec in specs.items():
        source = open_images(spec)
        loader = material.photo_loader(source, names, min(256, photos))
        works[f"{name}_batches"] = functools.partial(load, loader)
        works[f"{name}_reads"] = functools.partial(read, source)
    # The first round opens files and fills caches.
    seconds = harness.seconds_of(works, repetitions, warm=1)
    figures: dict[str, Any] = {"photos": photos}
    rows = []
    for name in specs:
        cells = [name]
        for kind in ("batches", "reads"):
            taken = seconds[f"{name}_{kind}"]
            rate = float(np.median(photos / taken))
            ratio = float(np.median(seconds[f"folder_{kind}"] / taken))
            figures |= {f"{name}_{kind}_per_second": rate, f"{name}_{kind}_ratio": ratio}
            cells += [f"{rate:,.0f}", f"{ratio:.2f} x"]
        rows.append(cells)
    header = ["photos of 224 pixels", "in batches/s", "of a folder", "bytes read/s", "of a folder"]
    return figures, (header, rows)


def _write_sources(photos: int, scratch: Path) -> list[str]:
    """Writes the same photos three times and returns their names."""
    rng = np.random.default_rng(0)
    size = {"size": (_PIXELS, _PIXELS), "quality": 95}
    contents = [material.photo_bytes(rng, **size) for _ in range(min(_DISTINCT, photos))]
    (scratch / "folder").mkdir()
    names = [f"{i:09d}.jpg" for i in range(photos)]
    for first in range(0, photos, _SHARD):
        part, column = names[first : first + _SHARD], []
        with tarfile.open(scratch / f"{first // _SHARD:05d}.tar", "w") as tar:
            for i, name in enumerate(part, first):
                content, key = contents[i % len(contents)], name.removesuffix(".jpg")
                (scratch / "folder" / name).write_bytes(content)
                column.append({"bytes": content, "path": name})
                about = json.dumps({"key": key, "status": "success", "caption": "a photo"})
                files = {"jpg": content, "json": about.encode(), "txt": b"a photo"}
                for suffix, data in files.items():
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        table = pa.table({"image": column, "caption": ["a photo"] * len(part)})
        pq.write_table(table, scratch / f"{first // _SHARD:05d}.parquet", row_group_size=_GROUP)
    return names


def _captions(path: Path | None) -> list[str]:
    if path is None:
        rng = np.random.default_rng(0)
        return [material.negated_caption(rng) for _ in range(25_000)]
    try:
        return [line for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise InputError(f"cannot read --captions={path}: {error.strerror}") from error


main = harness.command("bench.loader", __doc__, measure)

if __name__ == "__main__":
    main()
