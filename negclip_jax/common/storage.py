"""Files on a disk or in a bucket (`gs://bucket/folder`): the few things that differ.

A bucket has no rename of folders, no append, no memory map and no empty folder; in return an
object appears whole or not at all. So a small file is written in one go, and what a library must
map, or open by itself, is copied to a folder of this machine first.
"""

import contextlib
import errno
import functools
import importlib.util
import json
import logging
import os
import stat
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from negclip_jax.common import atomic_files, extras
from negclip_jax.common.errors import InputError

# What clients raise beside OSError, once they are loaded.
_CLIENT_ERRORS = (
    ("gcsfs.retry", "HttpError"),
    ("aiohttp", "ClientError"),
    ("google.auth.exceptions", "GoogleAuthError"),
)
_BLOCK = 2**22  # bytes read at a time
_ANNOUNCE_SECONDS = 10.0
_UPLOAD_SECONDS = 30.0


def path(name: str | os.PathLike) -> epath.Path:
    """A path to read and write, wherever it lies; local ones become absolute.

    Raises InputError for a kind of storage that is unknown, or whose client is not installed.
    """
    text = os.fspath(name)
    if not is_remote(text):
        return epath.Path(text).expanduser().absolute()
    if not text.startswith("gs://"):
        # Orbax renames folders in every other storage, which is many copies there, not one act.
        raise InputError(f"{text}: a path is on a disk or in a bucket, gs://..., not there")
    _prepare_client()
    return epath.Path(text)


def is_remote(name: str | os.PathLike) -> bool:
    """Whether this is an address in a bucket."""
    return "://" in os.fspath(name)


@functools.cache
def _prepare_client() -> None:
    import fsspec

    if importlib.util.find_spec("gcsfs") is None:
        raise InputError(f"gs:// needs gcsfs, not installed here: {extras.install('gcs')}")
    # tensorstore and other machines write there too: a listing that is remembered would be wrong.
    fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False


def errors() -> tuple[type[Exception], ...]:
    """What reading and writing may raise: OSError, and what clients of buckets raise besides."""
    loaded = [getattr(sys.modules[m], name) for m, name in _CLIENT_ERRORS if m in sys.modules]
    return (OSError, *loaded)


def root_cause(error: BaseException) -> str:
    """Type and first line of what is behind an error that other libraries have wrapped."""
    while error.__cause__ is not None:
        error = error.__cause__
    logging.debug("storage error", exc_info=error)
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else ""
    if len(first_line) > 300:  # what the system said comes last
        first_line = f"{first_line[:140]} ... {first_line[-150:]}"
    return f"{type(error).__name__}: {first_line}"


def write_whole(file: epath.Path | Path, content: bytes) -> None:
    """Writes a file so that a reader, and a crash, finds the former one or this one."""
    if is_remote(file):
        file.write_bytes(content)
        return
    with named(file), atomic_files.whole_file(Path(file)) as unfinished:
        unfinished.write_bytes(content)


def write_json(file: epath.Path | Path, content: Any, **options: Any) -> None:
    """Writes JSON, whole or not at all: one space an indent, UTF-8, a line end.

    `options` of `json.dumps` instead of these. Halves of surrogate pairs become "?".
    """
    text = json.dumps(content, **{"indent": 1, "ensure_ascii": False} | options)
    write_whole(file, text.encode("utf-8", "replace") + b"\n")


def read_text(file: epath.Path) -> str:
    """The text of a file, what is no UTF-8 replaced; OSError for what is no file.

    A pipe in its place would block, and a device never ends.
    """
    if not is_remote(file):
        mode = os.stat(file).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", os.fspath(file))
    return file.read_bytes().decode(errors="replace")


@contextlib.contextmanager
def named(file: epath.Path | Path) -> Iterator[None]:
    """Adds the file to what the system says of a disk that is full: it does not say which."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(file)
        raise


class LineFile:
    """A text file that grows by whole lines. In a bucket, which cannot append, it is written whole.

    `earlier` are the lines that it held when it was opened, as bytes.
    """

    def __init__(self, file: epath.Path | Path, lines: Sequence[str] | None = None):
        """Replaces the file by these lines, each with its line feed; None leaves what it holds.

        A line that a kill has cut short is removed, so that the next one stands on its own.
        """
        self._file, self._remote = file, is_remote(file)
        found = file.read_bytes() if lines is None and file.exists() else b""
        content = found[: found.rfind(b"\n") + 1] if lines is None else "".join(lines).encode()
        self.earlier = content.splitlines(keepends=True)
        self._content = content if self._remote else b""
        self._written = time.monotonic()
        if lines is not None or content != found:
            write_whole(file, content)

    def append(self, lines: Sequence[str], *, durable: bool = True) -> None:
        """Adds lines; unless `durable`, a bucket may get them half a minute later."""
        content = "".join(lines).encode("utf-8", "replace")
        if not self._remote:
            if content:
                with named(self._file), self._file.open("ab") as file:
                    file.write(content)
            return
        self._content += content
        if durable or time.monotonic() - self._written >= _UPLOAD_SECONDS:
            write_whole(self._file, self._content)
            self._written = time.monotonic()


def crc32(file: Path) -> str:
    """CRC-32 of a file's bytes, 8 hexadecimal digits: finds every flipped bit, at 3 GB/s."""
    value = 0
    with open(file, "rb") as stream:
        while block := stream.read(_BLOCK):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


@contextlib.contextmanager
def announced(what: str) -> Iterator[None]:
    """Says in the log, every ten seconds, what the block is waiting for."""
    done, started = threading.Event(), time.monotonic()

    def say() -> None:
        while not done.wait(_ANNOUNCE_SECONDS):
            logging.info("still waiting for %s (%.0f s)", what, time.monotonic() - started)

    thread = threading.Thread(target=say, name="announcer", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Journal:
    """JSON lines that one process writes, each a finished piece of work.

    The work of a line that a kill has cut short is done again.
    """

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
