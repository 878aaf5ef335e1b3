"""The parser of every command line here."""

import argparse
from typing import Any, NoReturn

from negclip_jax.common.errors import printable


class Parser(argparse.ArgumentParser):
    """Argparse's, whose messages may quote any argument, such as a file name that `*` stood for.

    The description of `--help` keeps its line breaks.
    """

    def __init__(self, prog: str | None = None, description: str | None = None, **options: Any):
        options = {"formatter_class": argparse.RawDescriptionHelpFormatter} | options
        super().__init__(prog, description=description, **options)

    def error(self, message: str) -> NoReturn:
        """Exits with status 2 and the message, made `printable`."""
        super().error(printable(message))
