"""Generation at the size that people train on: time and memory of each command of data_gen.

    python -m bench.generation --captions=1000000 --json=runs/bench/generation.json

Makes up COCO files of captions and instances (five captions and about five boxes a photo; no photo
exists, as the annotation path looks at none), and runs each command in a process of its own. The
same is done for a tenth of the captions: what grows with their number shows in the ratio of peaks.
Seconds are of the processor, which other work does not change.
"""

import argparse
import itertools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from bench import harness
from bench.harness import flag
from negclip_jax.common.errors import InputError
from negclip_jax.language.vocabulary import CATEGORIES

PER_IMAGE = 5
PLACES = """
street park kitchen room field beach garden station yard market road hall lawn harbour square bridge
"""
LOOKS = """
old small large red blue green white black striped wooden quiet busy bright dusty narrow wide
"""
_VIEWS = ("A photo of {}", "{} in view", "There is {}", "{}", "A close view of {}")
_COMMAND = """
import sys
from pathlib import Path
from bench.harness import peak_memory
from data_gen.cli import main
status = main(sys.argv[2:])
Path(sys.argv[1]).write_text(str(peak_memory()))
sys.exit(status)
"""


def write_coco(folder: Path, images: int) -> None:
    """Writes `captions.json` and `instances.json` of made-up photos, a row at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    classes = [{"id": k, "name": name} for k, name in enumerate(sorted(CATEGORIES), 1)]
    ends = {"captions": "]}", "instances": f'], "categories": {json.dumps(classes)}}}'}
    for place, (name, end) in enumerate(ends.items()):
        with (folder / f"{name}.json").open("w") as file:
            file.write('{"info": {"year": 2014}, "images": [')
            size = {"width": 640, "height": 480}
            listed = ({"id": i, "file_name": f"{i:012d}.jpg", **size} for i in _ids(images))
            _write_rows(file, listed)
            file.write('], "annotations": [')
            for_all = (found[place] for found in scenes(images))
            _write_rows(file, itertools.chain.from_iterable(for_all))
            file.write(end)


def scenes(images: int) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """COCO's rows of the captions and of the objects of each photo, always the same.

    Things stand together by kinds of scene; captions name some of what is there. Some boxes are
    tiny, some are crowds, some photos have no box.
    """
    rng = np.random.default_rng(0)
    names, looks, places = sorted(CATEGORIES), LOOKS.split(), PLACES.split()
    kinds = [rng.permutation(len(names))[:12] for _ in range(25)]
    for i, image_id in enumerate(_ids(images)):
        captions, objects = [], []
        scene = kinds[rng.integers(len(kinds))]
        there = [names[k] for k in dict.fromkeys(rng.choice(scene, rng.integers(0, 6)).tolist())]
        for k, name in enumerate(there):
            for j in range(int(rng.integers(1, 4))):
                area = 100.0 if rng.random() < 0.1 else float(rng.integers(400, 90_000))
                box = [int(rng.integers(500)), int(rng.integers(400)), 60, 50]
                objects.append(
                    {
                        "segmentation": [[float(v) for v in box]],
                        "id": 100 * i + 10 * k + j,
                        "image_id": image_id,
                        "category_id": names.index(name) + 1,
                        "area": area,
                        "bbox": box,
                        "iscrowd": int(rng.random() < 0.05),
                    }
                )
        for k in range(PER_IMAGE):
            said = rng.permutation(there)[: rng.integers(1, 3)] if there else ["thing"]
            look, place = (words[rng.integers(len(words))] for words in (looks, places))
            text = f"a {look} {place} with a {' and a '.join(said)}"
            text = _VIEWS[rng.integers(len(_VIEWS))].format(text)
            text = f"{text[0].upper()}{text[1:]} near number {int(rng.integers(1000))}"
            captions.append({"id": PER_IMAGE * i + k, "image_id": image_id, "caption": text})
        yield captions, objects


def _ids(images: int) -> range:
    return range(1, 7 * images, 7)  # with gaps, as COCO's


def _write_rows(file: TextIO, rows: Iterable[dict[str, Any]]) -> None:
    for number, row in enumerate(rows):
        file.write((", " if number else "") + json.dumps(row))


def commands(folder: Path, out: Path) -> dict[str, list[str]]:
    """The arguments of each command, in the order in which they are run."""
    boxes, run = f"--instances={folder}/instances.json", f"--out={out}"
    pairs = ["statements", f"--pairs={out}/export/pairs.parquet", f"--to={out}/statements"]
    return {
        "run": ["run", f"--captions={folder}/captions.json", boxes, run],
        "export": ["export", run],
        "report": ["report", run],
        "audit": ["audit", run, boxes],
        "status": ["status", run],
        "statements": [*pairs, boxes],
    }


def measure_commands(folder: Path, captions: int) -> dict[str, Any]:
    """Seconds and peak of each command over made-up captions, and the sizes of what they write."""
    write_coco(folder, captions // PER_IMAGE)
    found: dict[str, Any] = {"captions": captions}
    for name, arguments in commands(folder, folder / "run").items():
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        peak = folder / "peak"
        done = subprocess.run(
            [sys.executable, "-c", _COMMAND, str(peak), *arguments], capture_output=True, text=True
        )
        if done.returncode:
            raise InputError(f"data_gen {name} failed: {done.stderr[-500:]}")
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        found[name] = {
            "cpu_s": used.ru_utime - before.ru_utime + used.ru_stime - before.ru_stime,
            "wall_s": time.perf_counter() - begun,
            "peak_bytes": int(peak.read_text()),
        }
    files = sorted((folder / "run" / "export").iterdir())
    return found | {"export_bytes": {file.name: file.stat().st_size for file in files}}


@flag("--captions", type=int, default=100_000, help="how many (default 100,000)")
def measure(args: argparse.Namespace, scratch: Path) -> harness.Measured:
    """The commands over a tenth of the captions, and over all."""
    if args.captions < 100 * PER_IMAGE:
        raise InputError(f"--captions is {args.captions}; at least {100 * PER_IMAGE}")
    few, many = (
        measure_commands(scratch / str(number), number)
        for number in (args.captions // 10, args.captions)
    )
    header = ["command", "captions/s of one core", "CPU s", "peak MiB", "of a tenth", "ratio"]
    rows = []
    for name in commands(Path(), Path()):
        peaks = [found[name]["peak_bytes"] / 2**20 for found in (few, many)]
        cpu = many[name]["cpu_s"]
        cells = [f"{args.captions / cpu:,.0f}", f"{cpu:,.0f}", f"{peaks[1]:,.0f}"]
        rows.append([name, *cells, f"{peaks[0]:,.0f}", f"{peaks[1] / peaks[0]:.2f}"])
    sizes = [[name, f"{size / 1e6:,.1f}"] for name, size in many["export_bytes"].items()]
    title = f"{args.captions:,} captions of {args.captions // PER_IMAGE:,} photos"
    return {"few": few, "many": many}, title, [(header, rows), (["exported", "MB"], sizes)]


main = harness.command("bench.generation", __doc__, measure)

if __name__ == "__main__":
    main()
