"""The small set of measurements, one after the other: under 10 minutes on two cores.

    python -m bench --out=runs/bench

Prints every command before it runs and leaves `OUT/NAME.json` and `OUT/report.md`.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.harness import require_writable
from negclip_jax.common.arguments import Parser
from negclip_jax.common.errors import InputError

COMMANDS = {
    "startup": [],
    "loader": [],
    "images": [],
    "encode": ["--texts=256", "--images=64"],
    "finetune": ["--arch=vit_b_32", "--batch-size=128"],
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("python -m bench", __doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/bench"), help="directory of the results")
    add("--only", nargs="*", choices=COMMANDS, help="measure these alone")
    args = parser.parse_args(argv)
    try:
        require_writable(args.out / "report.md")
    except InputError as error:
        sys.exit(f"bench: {error}")
    sections, begin = [], time.monotonic()
    for name in args.only or COMMANDS:
        words = ["python", "-m", f"bench.{name}", *COMMANDS[name], f"--json={args.out}/{name}.json"]
        command = " ".join(words)
        print(f"$ {command}", flush=True)
        done = subprocess.run([sys.executable, *words[1:]], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"bench: `{command}` failed with exit code {done.returncode}")
        print(f"\n{done.stdout}", flush=True)
        sections.append(f"`{command}`\n\n{done.stdout}")
    (args.out / "report.md").write_text("\n".join(sections))
    print(f"{time.monotonic() - begin:.0f} s in all; {args.out}/report.md")


if __name__ == "__main__":
    main()
