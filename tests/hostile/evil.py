"""A pickle that would show that it was run."""

import os
from pathlib import Path


class Evil:
    """Unpickling it would create a directory."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)
