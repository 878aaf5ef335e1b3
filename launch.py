"""Fine-tunes CLIP on negation pairs.

    python launch.py --config=configs/negationclip.py:vit_b_32 --workdir=runs/b32 \\
        --config.model.checkpoint=openai/clip-vit-base-patch32 \\
        --config.data.pairs=pairs.json --config.data.images=train2014

Any key of configs/common.py can be set with --config.SECTION.KEY=VALUE. The same command started
again continues from the newest checkpoint in --workdir.

Several hosts run the same command, with --config.runtime.distributed=auto on TPU pods, Slurm and
MPI; elsewhere with HOST:PORT of the first, .num_processes and .process_id. They end together.
"""

import gc
import logging
import os
import re
import shlex
import sys
import time

from absl import app, flags
from ml_collections import config_flags

# What ml_collections says of a key that it does not know, without saying that this is the matter.
_UNKNOWN_KEY = re.compile(r"""["']*(\w+)["']*(?: Did you mean "(\w+)" instead of "\w+"\?["']*)?""")

_UNREADABLE = (
    flags.Error,
    LookupError,
    AttributeError,
    TypeError,
    ValueError,
    SyntaxError,
    OSError,
)

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration file, e.g. configs/negationclip.py:vit_b_32.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory for checkpoints, metrics and logs; holds all that a restart needs."
)
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(
            f"unexpected argument {argv[1]!r}; settings look like --config.KEY=VALUE"
        )
    if _CONFIG.value.runtime.deterministic:  # XLA reads it once, when JAX is first used
        flag = "--xla_gpu_deterministic_ops=true"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    # Heavy imports wait until the flags are known to be right: --help stays instant, and a worker
    # process of the data loader, which imports this file too, starts no JAX.
    gc.disable()  # what imports make stays: searching it for garbage took a fifth of their time
    from negclip_jax.common.errors import InputError, device_errors, say
    from negclip_jax.common.signals import Interrupted
    from negclip_jax.runtime import console, multihost, sharding
    from negclip_jax.training.loop import describe_end, train

    gc.freeze()
    gc.enable()
    console.set_up_logging()
    config, workdir = _CONFIG.value, _WORKDIR.value
    started = time.monotonic()
    try:
        with device_errors():
            keys = ("distributed", "process_id", "num_processes", "timeout", "heartbeat_timeout")
            multihost.join(**{key: config.runtime[key] for key in keys})
            if not sharding.is_main_process():
                console.set_up_logging(only_warnings=True)
        with multihost.end_together():
            if config.runtime.made_scenes:
                _make_scenes(config, workdir)
            state = train(config, workdir, _benchmarks(config, workdir))
    except InputError as error:
        console.fail(str(error))
        multihost.leave(1)
    except Interrupted as stopped:
        _say_how_to_continue(str(stopped))
        sys.exit(128 + stopped.signum)
    if sharding.is_main_process():
        say(describe_end(state, workdir, time.monotonic() - started), sys.stderr)


def _make_scenes(config, workdir: str) -> None:
    """Scenes and weights of `runtime.made_scenes`, made once; for what the configuration lacks."""
    import subprocess

    from negclip_jax.common import storage
    from negclip_jax.common.errors import InputError
    from negclip_jax.runtime import multihost, sharding

    made = os.path.abspath(os.path.join(workdir, "made"))
    if storage.is_remote(workdir):
        raise InputError("runtime.made_scenes makes files: give it a --workdir on a disk")
    if sharding.is_main_process() and not os.path.isdir(made):
        logging.info("making %d scenes and a tiny CLIP in %s", config.runtime.made_scenes, made)
        words = ("quickstart.few_scenes", f"--out={made}", f"--scenes={config.runtime.made_scenes}")
        command, root = [sys.executable, "-m", *words], os.path.dirname(os.path.abspath(__file__))
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"runtime.made_scenes: {(done.stderr.splitlines() or ['killed'])[-1]}")
    multihost.barrier("scenes made")
    files = {"pairs": "pairs.jsonl", "images": "images"}
    for section, of_section in ((config.data, files), (config.model, {"checkpoint": "checkpoint"})):
        for key, name in of_section.items():
            if section[key] is None:
                section[key] = os.path.join(made, name)


def _benchmarks(config, workdir: str) -> dict:
    """Evaluators of `config.eval.benchmarks`; their files are read before anything is trained."""
    section = config.eval
    if not section.benchmarks:
        return {}
    from flax.traverse_util import flatten_dict

    from evals import in_training
    from negclip_jax.training.config import check_settings

    check_settings(flatten_dict(config.to_dict(), sep="."))  # what is wrong is said before
    keys = ("benchmarks", "benchmark_files", "data", "allow_subset")
    chosen = {key: section[key] for key in keys}
    return in_training.configured(workdir=workdir, features=config.data.features, **chosen)


def _say_how_to_continue(what: str) -> None:
    from negclip_jax.common.errors import say

    say(f"{what}; to continue:\n  {shlex.join(['python', *sys.argv])}", sys.stderr)


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line; a wrong setting exits with a one-line message, not a traceback."""
    # Warnings about renamed keys as they are: absl, which is not set up yet, adds lines to them.
    handlers, logging.root.handlers = logging.root.handlers, [logging.StreamHandler()]
    argv = ["--help" if word == "-h" else word for word in argv]
    try:
        positional = flags.FLAGS(argv)
        _ = _CONFIG.value.seed  # a file that cannot be read is reported at the first access
        return positional
    except SystemExit:  # absl has printed the help that was asked for, and calls that an error
        sys.exit(0)
    except _UNREADABLE as error:
        from negclip_jax.common.errors import say

        say(f"error: {_reason(error)}\nSee python launch.py --help", sys.stderr)
        sys.exit(2)
    finally:
        logging.root.handlers = handlers


def _reason(error: Exception) -> str:
    """The last thing that the libraries said, without the tracebacks and quotes around it."""
    text = str(error.args[0] if error.args else error).replace("\\n", "\n").strip()
    if "Traceback" in text:
        text = text.splitlines()[-1].partition(": ")[2]
    text = " ".join(text.replace("\\'", "'").split())
    if missing := re.findall(r"Flag (--\w+) must have a value other than None", text):
        return f"the following flags are required: {', '.join(missing)}"
    unknown = _UNKNOWN_KEY.fullmatch(text)
    if unknown:
        hint = f"did you mean {unknown[2]!r}?" if unknown[2] else "configs/common.py has them all"
        return f"there is no configuration key {unknown[1]!r}; {hint}"
    return text


if __name__ == "__main__":
    from negclip_jax.common import signals  # needs nothing itself

    signals.end_on_signals(_say_how_to_continue)  # until the training loop listens to them
    try:
        app.run(main, flags_parser=parse_flags)
    except signals.Stopped as stopped:
        signals.end(stopped.signum, _say_how_to_continue)
