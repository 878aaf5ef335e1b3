"""JSON lines that grow while a command works and survive its being killed.

Each line is one finished piece of work, written at once. A line that a kill has cut short is
removed when the file is opened again: its work is done again, and what is appended after it stands
on a line of its own.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Journal:
    """Rows of a file, in the order in which they were appended; a single process writes it.

    Attributes:
      path: the file; made with the first row.
      rows: what it held when it was opened and what was appended since.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.is_file():
            self._read()

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row; on disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        self.rows.append(dict(row))

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with self.path.open("r+b") as file:
                file.truncate(whole)
        damaged = 0
        for line in content[:whole].splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if isinstance(row, dict):
                self.rows.append(row)
            else:
                damaged += 1
        if damaged:
            logging.warning("%s: %d damaged lines are done again", self.path, damaged)
