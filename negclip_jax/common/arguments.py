"""The parser of every command line here."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from negclip_jax.common.errors import printable, say


class Parser(argparse.ArgumentParser):
    """Argparse's, whose messages may quote any argument, such as a file name that `*` stood for.

    `--help` begins with the description, whose line breaks are kept: with what the command does and
    an example of it. `renamed` has the flags that are called otherwise now; the old ones work.
    `needed` has flags of which a command needs one: they are named with the required ones that are
    missing, and that none is there is for the command to say.
    """

    renamed: Mapping[str, str] = {}
    needed: Sequence[Sequence[str]] = ()

    def __init__(self, prog: str | None = None, description: str | None = None, **options: Any):
        options = {"formatter_class": argparse.RawDescriptionHelpFormatter} | options
        super().__init__(prog, description=description, **options)
        self._lacks: list[str] = []

    def format_help(self) -> str:
        """The description, then the usage and the flags."""
        described, self.description = self.description, None
        try:
            rest = super().format_help()
        finally:
            self.description = described
        return f"{described.strip()}\n\n{rest}" if described else rest

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Argparse's, with a warning for each flag that was renamed."""
        words = list(sys.argv[1:] if args is None else args)
        for place, word in enumerate(words):
            flag, equals, value = word.partition("=")
            if flag in self.renamed:
                warn_renamed(flag, self.renamed[flag])
                words[place] = f"{self.renamed[flag]}{equals}{value}"
        given = {word.partition("=")[0].partition(".")[0] for word in words}
        if any(not word.startswith("-") for word in given):  # also what names no flag
            given |= {name for names in self.needed for name in names if name[0] != "-"}
        self._lacks = [" or ".join(flags) for flags in self.needed if given.isdisjoint(flags)]
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Exits with status 2 and the message, made `printable`."""
        if message.startswith("the following arguments are required: "):
            message = ", ".join([message, *self._lacks])
        super().error(printable(message))


def warn_renamed(old: str, new: str) -> None:
    """Says on stderr how a flag is called now."""
    say(f"warning: {old} is now {new}; the old flag works until the next release", sys.stderr)


def split_name(text: str) -> tuple[str, str]:
    """`--model=NAME=PATH` to its parts; the name of a bare path is its last part."""
    name, equals, path = text.partition("=")
    if equals and name and path and "/" not in name:
        return name, path
    return text.rstrip("/").rpartition("/")[2], text
