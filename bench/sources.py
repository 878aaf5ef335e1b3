"""Random access to photos in tars and Parquet, against the same photos in a folder.

A part of `bench.loader`. Photos have 224 pixels a side, as people keep them in shards; tars hold a
text and a JSON member beside each as img2dataset writes them, Parquet has the row groups of
`datasets`. All were just written, so that the file cache has them: what is compared is the work.
"""

import io
import itertools
import json
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import material
from bench.harness import Table
from negclip_jax.common.provenance import cores
from negclip_jax.data.examples import Examples
from negclip_jax.data.images import ImageSource, Preprocessor
from negclip_jax.data.loader import PairLoader
from negclip_jax.data.packing import Ragged
from negclip_jax.data.sources import open_images

_PIXELS, _DISTINCT, _SHARD, _GROUP = 224, 64, 512, 100


def measure(photos: int, repetitions: int, scratch: Path) -> tuple[dict[str, Any], Table]:
    """Photos/s of each source in shuffled batches and in bare reads, in turns, and the ratios."""
    names = _write(photos, scratch)
    specs = {
        "folder": str(scratch / "folder"),
        "tars": f"wds:{scratch}/*.tar",
        "parquet": f"parquet:{scratch}/*.parquet",
    }
    sources = {name: open_images(spec) for name, spec in specs.items()}
    loaders = {name: _loader(source, names) for name, source in sources.items()}
    order = np.random.default_rng(1).permutation(names).tolist()

    def batches(name: str) -> None:
        for _ in loaders[name].batches(0, loaders[name].steps_per_epoch):
            pass

    def reads(name: str) -> None:
        for called in order:
            sources[name].read(called)

    rates: dict[tuple[str, str], list[float]] = {}
    for turn, work, name in itertools.product(range(repetitions + 1), (batches, reads), specs):
        start = time.perf_counter()
        work(name)
        if turn:  # the first one opens files and fills caches
            key = name, work.__name__
            rates.setdefault(key, []).append(photos / (time.perf_counter() - start))
    figures: dict[str, Any] = {"photos": photos}
    rows = []
    for name in specs:
        cells = [name]
        for kind in ("batches", "reads"):
            figures[f"{name}_{kind}_per_second"] = float(np.median(rates[name, kind]))
            ratio = np.array(rates[name, kind]) / np.array(rates["folder", kind])
            figures[f"{name}_{kind}_ratio"] = float(np.median(ratio))
            cells += [f"{np.median(rates[name, kind]):,.0f}", f"{np.median(ratio):.2f} x"]
        rows.append(cells)
    header = [
        "photos of 224 pixels",
        "in batches/s",
        "of a folder",
        "bytes read/s",
        "of a folder",
    ]
    return figures, (header, rows)


def _loader(source: ImageSource, names: list[str]) -> PairLoader:
    texts = Ragged(np.zeros(2 * len(names), np.int32), 2 * np.arange(len(names) + 1))
    return PairLoader(
        examples=Examples.of_captions(names, np.arange(len(names)), texts),
        images=source,
        preprocess=Preprocessor(exact=False),
        batch_size=min(256, len(names)),
        threads=cores(),
    )


def _write(photos: int, scratch: Path) -> list[str]:
    """Writes the same photos three times and returns their names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng, contents = np.random.default_rng(0), []
    for _ in range(min(_DISTINCT, photos)):
        encoded = io.BytesIO()
        material.photo(rng, (_PIXELS, _PIXELS)).save(encoded, "JPEG", quality=95)
        contents.append(encoded.getvalue())
    (scratch / "folder").mkdir()
    names = [f"{i:09d}.jpg" for i in range(photos)]
    for first in range(0, photos, _SHARD):
        part = names[first : first + _SHARD]
        with tarfile.open(scratch / f"{first // _SHARD:05d}.tar", "w") as tar:
            for i, name in enumerate(part, first):
                content, key = contents[i % len(contents)], name.removesuffix(".jpg")
                (scratch / "folder" / name).write_bytes(content)
                about = json.dumps({"key": key, "status": "success", "caption": "a photo"})
                files = {"jpg": content, "json": about.encode(), "txt": b"a photo"}
                for suffix, data in files.items():
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        column = [
            {"bytes": contents[i % len(contents)], "path": name}
            for i, name in enumerate(part, first)
        ]
        table = pa.table({"image": column, "caption": ["a photo"] * len(part)})
        pq.write_table(table, scratch / f"{first // _SHARD:05d}.parquet", row_group_size=_GROUP)
    return names
