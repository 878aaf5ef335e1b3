"""What the commands of this package share: errors are sentences, Ctrl-C leaves what is done."""

import argparse
import signal
import sys
from collections.abc import Callable


def parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser that shows a module's docstring as it stands."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def execute(work: Callable[[], int | None], *, stopped: str) -> int:
    """Runs a command's work, which imports what is heavy: --help needs neither JAX nor torch.

    Args:
      work: returns the exit status, or None for 0.
      stopped: sentence for stderr after Ctrl-C.

    Returns the exit status: that of `work`, 1 after a sentence, 130 after Ctrl-C.
    """
    from negclip_jax.common.errors import InputError
    from negclip_jax.runtime import console

    console.set_up_logging()
    try:
        return work() or 0
    except (InputError, OSError) as error:
        console.fail(str(error))
        return 1
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 130


def run(main: Callable[[], int]) -> None:
    """Runs `main` as the program; SIGTERM ends it as Ctrl-C does, so that pages are written."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
