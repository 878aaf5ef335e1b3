"""HTML pages that need no network and no server, made from the templates beside this file.

They share `page.css`, and every value is escaped: captions and file names may contain markup.
"""

from pathlib import Path
from typing import Any

import jinja2


def render(template: str, **values: Any) -> str:
    """A template of this folder with its values; a value that it lacks is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(**values)
