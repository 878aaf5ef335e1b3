"""The whole paper in small, offline: a world, a CLIP that reads "no" as "yes", and its cure.

    python -m quickstart --out=runs/quickstart
    python -m quickstart --out=runs/hard --world=hard    # where the images are no longer easy
    python -m quickstart --out=runs/three --seeds=3      # mean and range of three fine-tunings

Runs the public commands that real work uses and prints each before it runs. Ends with a table,
OUT/results.json and OUT/report.html.
"""

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from negclip_jax.common.arguments import Parser
from quickstart.questions import HOLD_OUT
from quickstart.report import write_report, write_summary
from quickstart.world import WORLDS

ROOT = Path(__file__).resolve().parent.parent
MARKER = ".quickstart"  # a folder with this file may be replaced
_console = Console(highlight=False)


class Failed(Exception):
    """The run cannot go on; a command that ended with an error has said why itself."""


def commands(
    out: str, kind: str = "easy", seed: int = 0, first: str | None = None
) -> list[tuple[str, list[str]]]:
    """What is run in a kind of world, in order: what it is for and the arguments of `python`.

    Another seed draws other objects and texts and another order of the data. `first` is the folder
    of a quickstart whose world and pre-trained model are used.
    """
    chosen = [f"--seed={seed}"] if seed else []
    flag = [] if kind == "easy" else [f"--world={kind}"]
    world, config = f"{first or out}/world", "configs/quickstart.py"
    base = f"{first or out}/base"
    train = f"--config.data.images={world}/train/images"

    def launch(variant: str, checkpoint: str, pairs: str, *more: str) -> list[str]:
        steps, usual = (getattr(WORLDS[k], variant, None) for k in (kind, "easy"))
        return [
            "launch.py",
            f"--config={config}:{variant}",
            f"--workdir={out}/{variant}",
            f"--config.model.checkpoint={checkpoint}",
            f"--config.data.pairs={pairs}",
            train,
            *([f"--config.seed={seed}"] if seed else []),
            *more,
            *([f"--config.train.total={steps} steps"] if steps != usual else []),
        ]

    def module(words: str, *arguments: str) -> list[str]:
        return ["-m", *words.split(), *arguments]

    def export(variant: str, name: str) -> list[str]:
        model = f"--model={out}/{variant}@last"
        command = "negclip_jax.interop.export"
        return module(command, model, "--layout=huggingface", f"--out={out}/{name}")

    hold_out = f"--config.rewrite.hold_out={','.join(HOLD_OUT)}"
    rows = 2 * WORLDS[kind].train  # two thirds of the pairs, as a scene has three captions
    run = f"--out={out}/generation"
    pairs, statements = f"{out}/pairs/pairs.json", f"{out}/pairs/statements.parquet"
    begin = [
        ("Render a world of coloured shapes", module("quickstart.world", f"--out={world}", *flag)),
        (
            "Write a tiny CLIP with random weights, in Hugging Face's layout",
            module("quickstart.tiny_clip", f"--out={out}/random", *flag),
        ),
        (
            "Pre-train it on captions that never say “no”",
            launch("pretrain", f"{out}/random", f"{world}/train/captions.json"),
        ),
        ("Export it", export("pretrain", "base")),
    ]
    return [
        *([] if first else begin),
        (
            "Write negation pairs from the annotations, some words and orders kept out",
            module(
                "data_gen run --config=:quickstart",
                f"--captions={world}/train/captions.json",
                f"--instances={world}/train/annotated.json",
                *(run, hold_out, *chosen),
            ),
        ),
        ("Export them for training", module("data_gen export", run, f"--to={out}/pairs")),
        (
            "Write text rows: the same about all kinds, also those that nobody annotated",
            module(
                *("data_gen nouns --config=:quickstart", f"--nouns={world}/nouns.txt"),
                *(f"--to={out}/nouns", f"--rows={rows}", hold_out, *chosen),
            ),
        ),
        ("Ask a classifier that sees no image which texts are true", module("data_gen audit", run)),
        ("Fine-tune the text tower: the published recipe", launch("published", base, pairs)),
        ("Export it", export("published", "published_clip")),
        (
            "Fine-tune the text tower: this project's recipe",
            launch(
                *("finetune", base, pairs, f"--config.data.statements={statements}"),
                f"--config.data.text_nouns={out}/nouns",
            ),
        ),
        ("Export it", export("finetune", "tuned")),
        (
            "Ask all three about scenes that no training saw",
            module(
                *("quickstart.evaluate", f"--model=base={base}"),
                *(f"--model=published={out}/published_clip", f"--model=tuned={out}/tuned"),
                *(f"--world={world}/heldout", f"--train={world}/train"),
                f"--out={out}/evaluation.json",
            ),
        ),
    ]


def run(title: str, arguments: Sequence[str]) -> tuple[str, float]:
    """Prints and runs one command; returns it with its seconds. Raises Failed."""
    shown = shlex.join(["python", *arguments])
    _console.print(f"\n[bold]{title}[/bold]\n  [dim]{shown}[/dim]", soft_wrap=True)
    started = time.monotonic()
    code = subprocess.run([sys.executable, *arguments], cwd=ROOT).returncode
    if code:
        killed = ", killed by the system: is its memory used up?" if code == -9 else ""
        raise Failed(f"this command ended with status {code}{killed}:\n  {shown}")
    seconds = time.monotonic() - started
    _console.print(f"  [dim]{seconds:.0f} s[/dim]")
    return shown, seconds


def start_afresh(path: Path) -> None:
    """An empty folder, marked as a quickstart's. Raises Failed for one with files of others."""
    if path.exists() and any(path.iterdir()):
        if not (path / MARKER).exists():
            raise Failed(f"{path} holds files that no quickstart wrote; choose another --out")
        shutil.rmtree(path)
    path.mkdir(parents=True, exist_ok=True)
    (path / MARKER).touch()


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("python -m quickstart", __doc__)
    parser.add_argument(
        "--out", default="runs/quickstart", help="folder; an earlier run is replaced"
    )
    parser.add_argument("--world", choices=WORLDS, default="easy", help="how hard it is to see")
    parser.add_argument("--seeds", type=int, default=1, help="fine-tune so often, with other texts")
    args = parser.parse_args(argv)
    if args.seeds < 1:
        parser.error("--seeds must be 1 or more")
    path = ROOT / args.out
    try:
        start_afresh(path)
        first = args.out if args.seeds == 1 else f"{args.out}/seed0"
        started = time.monotonic()
        done = [run(title, words) for title, words in commands(first, args.world)]
        seconds = time.monotonic() - started
        write_report(ROOT / first, done, seconds)
        _console.print(f"\n{seconds:.0f} s in all. Look at [bold]{first}/report.html[/bold]")
        for seed in range(1, args.seeds):
            _console.rule(f"seed {seed}")
            for title, words in commands(f"{args.out}/seed{seed}", args.world, seed, first):
                run(title, words)
        if args.seeds > 1:
            folders = [path / f"seed{seed}" for seed in range(args.seeds)]
            _console.print(f"\n{write_summary(path, folders)}", markup=False, soft_wrap=True)
            _console.print(f"Look at [bold]{args.out}/report.html[/bold]")
    except (Failed, OSError) as error:  # the folder cannot be made or emptied
        sys.exit(f"quickstart stopped: {error}")


if __name__ == "__main__":
    main()
