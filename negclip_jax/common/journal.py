"""JSON lines that grow while a command works and survive its being killed.

Each line is one finished piece of work, written at once. The work of a line that a kill has cut
short is done again.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from negclip_jax.common.storage import LineFile


class Journal:
    """Rows of a file, in the order in which they were appended; a single process writes it."""

    def __init__(self, path: Path):
        """The file at `path` is made with the first row."""
        self._path, self._file = path, LineFile(path)
        self.rows: list[dict[str, Any]] = []
        for line in self._file.earlier:
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if isinstance(row, dict):
                self.rows.append(row)
        if damaged := len(self._file.earlier) - len(self.rows):
            logging.warning("%s: %d damaged lines are done again", path, damaged)

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row; in the file when this returns."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file.append([json.dumps(row, ensure_ascii=False) + "\n"])
        self.rows.append(dict(row))
