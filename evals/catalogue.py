"""Every benchmark's source, file, protocol and known traps, as its own file tells them.

python -m evals.catalogue            # all
python -m evals.catalogue valse pope
"""

import importlib
import inspect
from collections.abc import Sequence

from evals import command_line, registry
from negclip_jax.common.errors import say


def render(names: Sequence[str] = ()) -> str:
    """Markdown: for each file of benchmarks what it says, under the names that it holds.

    Without `names` of all. Raises InputError for an unknown name.
    """
    modules: dict[str, list[str]] = {}
    for name in names or registry.names():
        registry.get(name)
        modules.setdefault(registry.BENCHMARKS[name].partition(":")[0], []).append(name)
    parts = []
    for module, held in modules.items():
        title, _, text = inspect.getdoc(importlib.import_module(module)).partition("\n\n")
        asked = [f"- `{name}`: {registry.get(name).task}" for name in held]
        parts.append("\n".join([f"## {title}", "", *asked, "", text, ""]))
    return "\n".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, 1 after a user error."""
    parser = command_line.parser("evals.catalogue", __doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of benchmarks; default: all")
    return command_line.execute(parser, lambda args: say(render(args.names)), argv)


if __name__ == "__main__":
    command_line.exit_with(main)
