"""The quickstart's former command, for one release, now `python -m data_gen run`.

    python -m data_gen.from_annotations --captions=captions.json --instances=instances.json \\
        --out=pairs.json

runs `data_gen run --config=:quickstart` and writes what it accepted as one COCO JSON.
"""

import json
import sys
import tempfile
from pathlib import Path

from data_gen import cli
from data_gen.records import read_table
from negclip_jax.common.arguments import Parser
from negclip_jax.common.errors import say

KEYS = {"seed": "seed", "foils": "foils", "before": "rewrite.before", "affirm": "rewrite.affirm"}
KEYS |= {"statements": "rewrite.statements", "random_objects": "propose.random"}
KEYS |= {"hold_out": "rewrite.hold_out", "captions": "input.captions"}
COLUMNS = {"updated_caption": "negated_caption", "provenance": "rewriter", "object": "object"}
COLUMNS |= {"foils": "foils", "cue": "cue", "position": "cue_position"}


def main(argv: list[str] | None = None) -> None:
    parser = Parser("python -m data_gen.from_annotations", __doc__)
    for flag in ("--captions", "--instances", "--out"):
        parser.add_argument(flag, type=Path, required=True)
    for flag in ("--seed", "--foils", "--before", "--hold-out", "--random-objects"):
        parser.add_argument(flag)
    parser.add_argument("--statements", default="0.0")
    parser.add_argument("--affirm", action="store_true")
    args = parser.parse_args(argv)
    run = ["run", "--config=:quickstart", f"--instances={args.instances}"]
    given = {key: value for name, key in KEYS.items() if (value := vars(args)[name]) is not None}
    run += [f"--config.{key}={value}" for key, value in given.items()]
    say(f"deprecated, use: python -m data_gen {' '.join(run)} --out=RUN", sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        if status := cli.main([*run, f"--out={folder}"]):
            sys.exit(status)
        table = read_table(Path(folder), "pairs").to_pylist()
    rows = {r["caption_id"]: {k: r[c] for k, c in COLUMNS.items()} for r in table if r["accepted"]}
    content = json.loads(args.captions.read_text(encoding="utf-8-sig"))
    old = content["annotations"]
    content["annotations"] = [a | rows[str(a["id"])] for a in old if str(a["id"]) in rows]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(content), encoding="utf-8")
    say(f"{len(rows)} pairs in {args.out}")


if __name__ == "__main__":
    main()
