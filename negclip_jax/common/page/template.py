"""HTML pages that open from disk: no network, no server, no script.

A command's template lies beside the command, extends `base.html` and may import `macros.html` and
call `charts`. Every value is escaped, since captions, queries and file names may contain markup;
one that a template lacks is an error.
"""

import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from negclip_jax.common import statistics, storage
from negclip_jax.common.errors import printable
from negclip_jax.common.page import charts

# What names from outside may hold: control characters, marks that turn the direction of text, and
# bytes of no encoding.
_SECTION = re.compile(r'<h2(?: id="([^"]*)")?>(.*?)</h2>', re.DOTALL)
_BADGE = re.compile(r'<span class="badge">.*?</span>', re.DOTALL)
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def write_page(path: Path, template: Path, **values: Any) -> Path:
    """Renders a template to `path`, which is replaced whole; returns `path`."""
    text = _CONTROLS.sub(lambda found: printable(found[0]), render(template, **values))
    storage.write_whole(path, text.encode())
    return path


def render(template: Path, **values: Any) -> str:
    """The page of a template file with its values.

    Templates know the filters `percent` ("12.3"), `number` ("1,234"), `plural` ("2 photos") and
    `shortened`, and as globals `charts`, `change_text`, `interval_text` and `ties_text`.
    """
    loader = jinja2.FileSystemLoader([template.parent, Path(__file__).parent])
    options = {"trim_blocks": True, "undefined": jinja2.StrictUndefined}
    environment = jinja2.Environment(loader=loader, autoescape=True, **options)
    environment.filters |= {"number": "{:,}".format, "percent": statistics.percent}
    environment.filters |= {f.__name__: f for f in (plural, sections, shortened)}
    texts = (statistics.change_text, statistics.interval_text, statistics.ties_text)
    environment.globals |= {"charts": charts, **{text.__name__: text for text in texts}}
    return environment.get_template(template.name).render(**values)


def sections(content: str) -> tuple[Markup, list[tuple[str, str]]]:
    """HTML whose h2 headings all have an id, and the id and text of each, without its badges."""
    listed: list[tuple[str, str]] = []

    def named(found: re.Match[str]) -> str:
        name = found[1] or f"section-{len(listed) + 1}"
        listed.append((name, Markup(_BADGE.sub("", found[2])).striptags()))
        return f'<h2 id="{name}">{found[2]}</h2>'

    return Markup(_SECTION.sub(named, content)), listed


def shortened(text: str, most: int = 28) -> str:
    """A text of at most `most` characters with both of its ends: "IMG_2041…night_final.jpg"."""
    if len(text) <= most:
        return text
    end = most // 2
    return f"{text[: most - 1 - end]}…{text[-end:]}"


def plural(count: int, noun: str, nouns: str = "") -> str:
    """A number with its noun: "1 query", "1,200 queries"."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"
