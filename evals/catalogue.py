"""Every benchmark's source, file, protocol and known traps, as its own file tells them.

python -m evals.catalogue            # all
python -m evals.catalogue valse pope
"""

import importlib
import inspect
import sys
from collections.abc import Sequence

from evals import registry
from negclip_jax.common.errors import InputError


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


def main(names: Sequence[str]) -> int:
    try:
        sys.stdout.write(render(names))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
