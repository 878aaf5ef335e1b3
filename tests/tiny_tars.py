"""Tars for tests, as Python's tarfile writes them."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path


def member(name: str, content: bytes = b"", **fields) -> tuple[tarfile.TarInfo, bytes]:
    """A member; `fields` of TarInfo: `type`, `linkname`."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def write_tar(
    path: Path, members: Iterable[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT
) -> Path:
    """Writes members in this order."""
    with tarfile.open(path, "w", format=form) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


def write_photos(path: Path, folder: Path, names: Iterable[str]) -> Path:
    """A tar of files of a folder, each with a caption beside it."""
    members = []
    for name in names:
        content = (folder / name).read_bytes()
        caption = member(f"{name.partition('.')[0]}.txt", f"a photo {name}".encode())
        members += [member(name, content), caption]
    return write_tar(path, members)
