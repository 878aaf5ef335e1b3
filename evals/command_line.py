"""What the commands of this package share: flags, user errors as one line, what Ctrl-C leaves.

Nothing heavy is imported before a command's work begins: --help needs neither JAX nor torch.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from negclip_jax.common.arguments import Parser
from negclip_jax.common.errors import InputError, device_errors, say

if TYPE_CHECKING:
    from evals.models import Model

LESS_MEMORY = "Give --dtype=bfloat16, or JAX_PLATFORMS=cpu in the environment"
_DATA = "published files and photos, at any depth; may be repeated: the first wins"
_PHOTOS = "more photos: a folder, or wds:TARS, parquet:FILES"
_REPEATED = {"action": "append", "default": []}
_FLAGS: dict[str, dict[str, Any]] = {
    "--benchmark-file": dict(
        _REPEATED,
        type=Path,
        metavar="FILE.py",
        help="with a benchmark of your own (evals/benchmark_files.py); may be repeated",
    ),
    "--data": dict(action="append", required=True, type=Path, metavar="DIR", help=_DATA),
    "--images": dict(_REPEATED, metavar="PHOTOS", help=_PHOTOS),
    "--features": dict(
        metavar="FILE",
        help="of the images, that another library computed: a file, folder or pattern of what "
        "negclip_jax.interop.image_features writes; no photo is then opened",
    ),
    "--out": dict(required=True, type=Path, metavar="DIR", help="folder to write into"),
    "--allow-subset": dict(action="store_true", help="score the items whose photos are there"),
    "--overwrite": dict(action="store_true", help="replace results of other models in --out"),
    "--dtype": dict(choices=("float32", "bfloat16"), default="float32", help="of the computation"),
    "--crop": dict(
        choices=("openai", "transformers"), default="openai", help="centre-crop rounding"
    ),
    "--activation": dict(metavar="NAME", help="quick_gelu or gelu, for weights that do not say"),
    "--tokenizer": dict(metavar="DIR", help="vocabulary for a model that has none"),
    "--cache": dict(type=Path, metavar="DIR", help="of embeddings; default: OUT/embeddings"),
    "--seed": dict(type=int, default=0, help="of the bootstrap; default: %(default)s"),
    "--gallery": dict(type=int, default=24, metavar="N", help="items of each set in the report"),
}


class _Once(argparse.Action):
    """Stores a value. What a flag names (a model, a file) is not replaced by what it names next.

    The last of several numbers or choices counts, as scripts rely on.
    """

    def __call__(self, parser, namespace, values, option_string=None):
        given = vars(namespace).setdefault("given", {})
        names = option_string and not self.choices and not isinstance(values, int | float)
        if names and given.setdefault(self.dest, values) != values:
            both = f"{given[self.dest]} and {values}"
            raise argparse.ArgumentError(self, f"given twice, {both}: give one of them")
        setattr(namespace, self.dest, values)


def parser(module: str, description: str | None) -> Parser:
    """A parser that shows a module's docstring as it stands, and takes a flag's value once."""
    parser = Parser(f"python -m {module}", description)
    for name in (None, "store"):  # the default action and its name
        parser.register("action", name, _Once)
    return parser


def add_shared(parser: argparse.ArgumentParser, *flags: str) -> None:
    """Adds flags that several commands have: "--data", "--out", "--dtype", ..."""
    for flag in flags:
        parser.add_argument(flag, **_FLAGS[flag])


def comma_separated(text: str) -> list[str]:
    """The names in a list like "a, b,,a", each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def execute(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], int | None],
    argv: Sequence[str] | None,
    *,
    stopped: str = "stopped",
    needs_less: str = "",
) -> int:
    """Parses a command line, does its work and returns the exit status.

    That is what `run` returns (None: 0), 1 after a user error, 130 after Ctrl-C, when `stopped` is
    printed, with the arguments as fields ("... continues in {out}"), and that of SIGPIPE where the
    reader of the output, such as `head`, has gone. `needs_less`: what to give where the device has
    too little memory.
    """
    try:
        try:
            args = parser.parse_args(argv)
            from negclip_jax.runtime import console

            console.set_up_logging()
            with device_errors(needs_less):
                return run(args) or 0
        finally:  # what nothing reads must not come up when the interpreter ends
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (InputError, OSError) as error:
        console.fail(str(error))
        return 1
    except KeyboardInterrupt:
        say(stopped.format(**vars(args)), sys.stderr)
        return 130


def exit_with(main: Callable[[], int]) -> None:
    """Runs `main` as the program; SIGTERM ends it as Ctrl-C does, so that pages are written."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())


def require_writable(out: Path) -> None:
    """Says at once, not after an hour, that nothing can be written. Raises InputError."""
    if out.parts[:1] == ("gs:",):  # as `Path` leaves an address: it would become a local folder
        raise InputError(f"--out={out} is no folder of this machine: write there, then copy it")
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".write_test"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write to --out={out}: {error.strerror or error}") from error


def embedding_cache(args: argparse.Namespace) -> Path:
    """The folder of embeddings; compiled programs are kept there too, unless JAX has a place."""
    import jax

    cache = args.cache or args.out / "embeddings"
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str((cache / "compiled").absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return cache


def load_models(sources: Sequence[str], args: argparse.Namespace) -> "list[Model]":
    """The models of [NAME=]PATH sources, by --dtype, --crop, --tokenizer and --activation.

    A command that has --features has read them into `args.features`.
    """
    from evals import models

    names = ("dtype", "crop", "tokenizer", "activation", "features")
    return models.load_all(sources, **{name: vars(args)[name] for name in names if name in args})
