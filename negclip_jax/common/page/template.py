"""HTML pages that open from disk: no network, no server, no script.

A command's template lies beside the command, extends `base.html` and may import `macros.html` and
call `charts`. Every value is escaped, since captions, queries and file names may contain markup;
one that a template lacks is an error.
"""

import re
from pathlib import Path
from typing import Any

import jinja2

from negclip_jax.common import statistics, storage
from negclip_jax.common.errors import printable
from negclip_jax.common.page import charts

# What names from outside may hold: control characters, marks that turn the direction of text, and
# bytes of no encoding.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def write_page(path: Path, template: Path, **values: Any) -> Path:
    """Renders a template to `path`, which is replaced whole; returns `path`."""
    text = _CONTROLS.sub(lambda found: printable(found[0]), render(template, **values))
    storage.write_whole(path, text.encode())
    return path


def render(template: Path, **values: Any) -> str:
    """The page of a template file with its values.

    Templates know the filters `percent` ("12.3"), `number` ("1,234") and `plural` ("2 photos"), and
    as globals `charts`, `change_text`, `interval_text` and `ties_text`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "number": "{:,}".format,
        "percent": statistics.percent,
        "plural": plural,
    }
    environment.globals |= {
        "change_text": statistics.change_text,
        "charts": charts,
        "interval_text": statistics.interval_text,
        "ties_text": statistics.ties_text,
    }
    return environment.get_template(template.name).render(**values)


def plural(count: int, noun: str, nouns: str = "") -> str:
    """A number with its noun: "1 query", "1,200 queries"."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"
