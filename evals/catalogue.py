"""Every benchmark's source, file, protocol and known traps, as its own file tells them.

    python -m evals.catalogue            # all
    python -m evals.catalogue valse pope

The text is Markdown.
"""

import argparse
import inspect
from collections.abc import Sequence
from types import ModuleType

from evals import command_line, registry
from evals.benchmark import Benchmark
from negclip_jax.common.errors import say


def render(names: Sequence[str] = ()) -> str:
    """Markdown: what each file of benchmarks says, under their names. Raises InputError."""
    modules: dict[ModuleType, list[Benchmark]] = {}
    for benchmark in map(registry.get, names or registry.BENCHMARKS):
        modules.setdefault(inspect.getmodule(benchmark.load.func), []).append(benchmark)
    parts = []
    for module, held in modules.items():
        # A file of one's own may say nothing of itself.
        title, _, text = (inspect.getdoc(module) or held[0].title).partition("\n\n")
        asked = [f"- `{benchmark.name}`: {benchmark.task}" for benchmark in held]
        parts.append("\n".join([f"## {title}", "", *asked, "", text, ""]))
    return "\n".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, 1 after a user error."""
    parser = command_line.parser("evals.catalogue", __doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of benchmarks; default: all")
    command_line.add_shared(parser, "--benchmark-file")

    def run(args: argparse.Namespace) -> None:
        registry.add_files(args.benchmark_file)
        say(render(args.names))

    return command_line.execute(parser, run, argv)


if __name__ == "__main__":
    command_line.exit_with(main)
