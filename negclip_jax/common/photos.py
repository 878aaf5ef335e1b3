"""Which files are photos, and the file that a name means where the two are spelled differently."""

import functools
import os
import unicodedata
from pathlib import Path

# What photos are called, in lower case. What is in a file is decided by its content alone
# (`common.decoding`); HEIC is no format that is read, and is to be named rather than passed over.
_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")
_OTHERS = (".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif")
PHOTO_SUFFIXES = frozenset((*_JPEG, *_OTHERS, ".heic", ".heif"))


def name_key(name: str) -> str:
    """Equal for spellings of one file name: Unicode normal forms, and the case of the suffix.

    macOS hands names out decomposed (NFD) where a JSON file has them composed (NFC), and cameras
    write `.JPG`. The case of the name itself tells files apart.
    """
    stem, suffix = os.path.splitext(unicodedata.normalize("NFC", name))
    return stem + suffix.lower()


def find_file(folder: Path, name: str) -> Path | None:
    """The file `name` below a folder, or the only one that is another spelling of it.

    Each directory is listed once, and again when it has changed: 100,000 names cost one listing.
    None where there is no such file, or several that differ in spelling and none is exact.
    """
    path = folder / name
    if path.is_file():
        return path
    here = folder
    for part in Path(name).parts:
        if not (here / part).exists():
            try:
                found = _spellings(here, os.stat(here).st_mtime_ns).get(name_key(part), ())
            except (OSError, ValueError):
                return None
            if len(found) != 1:
                return None
            part = found[0]
        here /= part
    return here if here.is_file() else None


@functools.lru_cache(maxsize=256)
def _spellings(folder: Path, changed: int) -> dict[str, list[str]]:
    """The names in a directory by their key; `changed` makes another entry after a change."""
    found: dict[str, list[str]] = {}
    for name in os.listdir(folder):
        found.setdefault(name_key(name), []).append(name)
    return found
