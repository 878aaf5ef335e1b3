"""The parser of every command line here."""

import argparse
from typing import NoReturn

from negclip_jax.common.errors import printable


class Parser(argparse.ArgumentParser):
    """Argparse's, whose messages may quote any argument, such as a file name that `*` stood for."""

    def error(self, message: str) -> NoReturn:
        """Exits with status 2 and the message, made `printable`."""
        super().error(printable(message))
