"""Mutated annotation files, checkpoint files and images through the public readers.

    PYTHONPATH=tests python -m hostile.fuzz --inputs=10000 --seed=0 --out=runs/fuzz

Each input is a good file with a few mutations. A reader must take it or refuse it with an
InputError; anything else is a finding: the input is kept in --out with its seed in the name, and
`--only=SEED` repeats it. The same seed makes the same inputs. Exits with 1 after findings.
"""

import argparse
import collections
import json
import logging
import random
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import NamedTuple

from hostile.fuzz_inputs import Kind, annotation_kinds, binary_kinds
from rich.console import Console
from rich.progress import track

from negclip_jax.common.errors import InputError, as_message, printable

SLOW_SECONDS = 5.0


class Finding(NamedTuple):
    """An input on which a reader failed: its seed, its kind and what was raised."""

    seed: int
    kind: str
    error: str


# What has broken parsers before.
TOKENS = [b"{", b"[" * 2000, b'{"a":' * 2000, b"]", b"}", b",", b":", b'"', b"null", b"true", b"-1",
          b"NaN", b"1e999", b"9" * 5000, b"0", b"1.5", b'"\\ud800"', b"\\u0000", b"\0", b"\x1b[2J",
          b"\xff\xfe", b"\xef\xbb\xbf", b"\xe2\x80\xae", b"../", b"/etc/passwd", b"\\", b"x" * 3000,
          b"<script>", b"{{7*7}}", b"\r\n", b"\x80\x04", b"PK\x03\x04", b"\xff" * 8, b"\0" * 8,
          b"\x7f\xff\xff\xff", b"__class__", b"'", b"[]", b"{}", b"b'x'", b"\xf0\x9f\x98\x80",
]  # fmt: skip


def mutated(rng: random.Random, content: bytes) -> bytes:
    """The content after one to six mutations; half of the time JSON is changed as a tree."""
    if content[:1] in (b"{", b"[") and b"\n{" not in content and rng.random() < 0.5:
        tree = json.loads(content)
        for _ in range(rng.randint(1, 3)):
            tree = _other_value(rng, tree)
        return json.dumps(tree).encode()
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
        place = rng.randrange(len(data) + 1)
        end = min(len(data), place + rng.choice([1, 2, 4, 16, 200]))
        action = rng.randrange(7)
        if action == 0 and place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        elif action == 1 and place < len(data):
            data[place] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        elif action == 2:
            del data[place:end]
        elif action == 3:
            data[place:place] = data[place:end] * rng.choice([1, 2, 50])
        elif action == 4:
            data[place:place] = rng.choice(TOKENS)
        elif action == 5:
            data[place:end] = rng.choice(TOKENS)
        elif rng.random() < 0.3:
            del data[place:]
    return bytes(data)


def _other_value(rng: random.Random, tree: object) -> object:
    """The tree with one value in it replaced, removed or wrapped."""
    if isinstance(tree, dict) and tree and rng.random() < 0.9:
        key = rng.choice(sorted(tree))
        changed = {**tree, key: _other_value(rng, tree[key])}
        if rng.random() < 0.1:
            del changed[key]
        return changed
    if isinstance(tree, list) and tree and rng.random() < 0.9:
        place = rng.randrange(len(tree))
        return [*tree[:place], _other_value(rng, tree[place]), *tree[place + 1 :]]
    others = [None, True, -1, 0, 10**400, 1.5, float("nan"), float("inf"), "", " ", "x" * 5000, [],
              {}, [tree], {"a": tree}, [[[]]], "\ud800", "a\0b", "../../x", "\x1b[2J", str(tree),
    ]  # fmt: skip
    return rng.choice(others)


def run(inputs: int, seed: int, out: Path, *, only: int | None = None, quiet: bool = False):
    """Runs the inputs `seed`, `seed` + 1, ...; or `only` that one.

    Returns a Counter of (kind, "accepted" | "refused" | "FAILED") and the findings.
    """
    kinds = annotation_kinds() | binary_kinds()
    names = list(kinds)
    out.mkdir(parents=True, exist_ok=True)
    counts: collections.Counter = collections.Counter()
    findings: list[Finding] = []
    seeds = [only] if only is not None else range(seed, seed + inputs)
    console = Console(stderr=True, quiet=quiet)
    for number in track(seeds, "fuzzing", console=console, disable=quiet):
        rng = random.Random(number)
        name = names[number % len(names)]
        kind = kinds[name]
        folder = out / "now"  # the input of a crash of the whole process lies here
        folder.mkdir(exist_ok=True)
        path = folder / kind.file
        path.write_bytes(mutated(rng, rng.choice(kind.samples)))
        error = _outcome(kind, path)
        counts[name, "FAILED" if error and error != "refused" else error or "accepted"] += 1
        if error and error != "refused":
            path.replace(out / f"{number}-{kind.file}")
            findings.append(Finding(number, name, error))
        else:
            path.unlink()
    return counts, findings


def _outcome(kind: Kind, path: Path) -> str | None:
    """None for an input that was taken, "refused", or what went wrong."""
    started = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind.read(path)
        said = None
    except InputError as error:
        said = str(error)
    except BaseException as error:  # what a panic in Rust raises is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return "".join(traceback.format_exception(error)[-3:])
    if time.perf_counter() - started > SLOW_SECONDS:
        return f"took {time.perf_counter() - started:.1f} s"
    if said is None:
        return None
    if not said or "Traceback" in said or said != as_message(said):
        return f"is not printable as a message: {said!r}"
    return "refused"


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser("python -m hostile.fuzz", __doc__)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first input")
    parser.add_argument("--only", type=int, metavar="SEED", help="one input again")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="keeps what failed")
    args = parser.parse_args(argv)
    started = time.perf_counter()
    logging.disable(logging.WARNING)  # thousands of warnings about what was damaged on purpose
    try:
        counts, findings = run(args.inputs, args.seed, args.out, only=args.only)
    finally:
        logging.disable(logging.NOTSET)
    for name in dict.fromkeys(name for name, _ in counts):
        row = {outcome: n for (kind, outcome), n in counts.items() if kind == name}
        print(f"{name:20}", *(f"{row.get(o, 0):6,} {o}" for o in ("accepted", "refused", "FAILED")))
    for finding in findings[:20]:
        print(f"\n--only={finding.seed} ({finding.kind}):\n{printable(finding.error[:2000])}")
    seconds = time.perf_counter() - started
    print(
        f"\n{counts.total():,} inputs, {len(findings)} findings, {seconds:.0f} s, seed {args.seed}"
    )
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
