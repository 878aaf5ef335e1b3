"""The quickstart's former command, kept for one release: `python -m data_gen run` with the variant
`quickstart` of configs/data_gen.py, and what it accepted as one COCO JSON.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from data_gen import cli
from data_gen.records import read_table

KEYS = {"seed": ("seed", 0), "before": ("rewrite.before", 0.3), "foils": ("foils", 2)}
KEYS |= {"statements": ("rewrite.statements", 0.0), "random_objects": ("propose.random", 0.0)}
KEYS |= {"hold_out": ("rewrite.hold_out", "")}
COLUMNS = {"updated_caption": "negated_caption", "provenance": "rewriter", "object": "object"}
COLUMNS |= {"foils": "foils", "cue": "cue", "position": "cue_position"}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m data_gen.from_annotations")
    for flag in ("--captions", "--instances", "--out"):
        parser.add_argument(flag, type=Path, required=True)
    for name, (key, default) in KEYS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, help=f"now {key}")
    parser.add_argument("--affirm", action="store_true", help="now rewrite.affirm")
    args = parser.parse_args(argv)
    run = ["run", "--config=:quickstart", f"--captions={args.captions}"]
    run += [f"--instances={args.instances}", f"--config.rewrite.affirm={args.affirm}"]
    run += [f"--config.{key}={getattr(args, name)}" for name, (key, _) in KEYS.items()]
    print(f"deprecated, use: python -m data_gen {' '.join(run)} --out=RUN", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        if status := cli.main([*run, f"--out={folder}"]):
            sys.exit(status)
        table = read_table(Path(folder), "pairs").to_pylist()
    rows = {row["caption_id"]: row for row in table if row["accepted"]}
    content = json.loads(args.captions.read_text(encoding="utf-8-sig"))
    content["annotations"] = [
        a | {new: rows[str(a["id"])][old] for new, old in COLUMNS.items()}
        for a in content["annotations"]
        if str(a["id"]) in rows
    ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(content), encoding="utf-8")
    print(f"{len(rows)} pairs in {args.out}")


if __name__ == "__main__":
    main()
