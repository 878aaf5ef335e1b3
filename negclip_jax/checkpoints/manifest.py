"""The list of a checkpoint's files: its format, and a checksum of each file.

    DIRECTORY/manifest.json   {"format": 1, "files": {"params/...": [bytes, checksum], ...},
                               "metrics": checksum of metrics.jsonl up to this step}

It is written before orbax commits the directory, so that a complete checkpoint has one, and tells
a half-written, half-copied or flipped file by its name before its numbers are used.
"""

import concurrent.futures
import json
from pathlib import Path

from etils import epath

from negclip_jax.checkpoints.orbax_internals import COMMIT_FILES
from negclip_jax.common import remote, storage
from negclip_jax.common.errors import InputError

FORMAT = 1
NAME = "manifest.json"


class DamagedError(InputError):
    """A checkpoint whose files are not those that were saved; the message names the file."""


def write(directory: epath.Path, metrics: int | None = None) -> None:
    """Lists the files of a checkpoint that is about to be complete; `metrics` as on top."""
    content = {"format": FORMAT, "files": _files(directory), "metrics": metrics}
    storage.write_whole(directory / NAME, json.dumps(content, indent=1).encode())


def check(directory: epath.Path, *items: str) -> None:
    """Reads the files of a checkpoint, or of these subdirectories, and compares them with the list.

    The cost is one sequential read (3 GB/s a core); a bucket is asked for its own checksums
    instead. Raises DamagedError where a file, or the list itself, is missing, cut short or changed,
    and InputError where the checkpoint has the format of another version of this package.
    """
    expected = {name: e for name, e in _read(directory).items() if _belongs(name, items)}
    with storage.announced(f"the check of {directory}"):
        found = _files(directory, *items)
    for name, (size, checksum) in expected.items():
        file, (there, own) = directory / name, found.get(name, (None, None))
        if there is None:
            raise DamagedError(f"{file} is missing")
        if there != size:
            raise DamagedError(f"{file} has {there:,} of {size:,} bytes: it was cut short")
        if own != checksum:
            raise DamagedError(f"{file} is damaged: its checksum is another")


def metrics_checksum(directory: epath.Path) -> int | None:
    """Of the metrics up to this checkpoint; None where it was not noted."""
    return json.loads(storage.read_text(directory / NAME)).get("metrics")


def problem(directory: epath.Path, *items: str) -> str:
    """What is wrong with the files of a checkpoint; empty where they are as they were saved.

    Raises InputError where it has the format of another version.
    """
    try:
        check(directory, *items)
    except DamagedError as error:
        return str(error)
    return ""


def _read(directory: epath.Path) -> dict[str, list]:
    path = directory / NAME
    try:
        content = json.loads(storage.read_text(path))
        version, files = content["format"], dict(content["files"])
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path} is damaged: {error}") from None
    if version != FORMAT:
        raise InputError(
            f"{directory} is a checkpoint of format {version}, and this version of negclip_jax "
            f"reads format {FORMAT}: continue with the version that wrote it (environment.json "
            "beside the checkpoints names it), or start over in another --workdir"
        )
    return files


def _files(directory: epath.Path, *items: str) -> dict[str, list]:
    """Relative name to `[bytes, checksum]`, without the list itself."""
    if storage.is_remote(directory):
        listed = remote.listed(directory)
        found = {name: [info["size"], remote.checksum(info)] for name, info in listed.items()}
    else:
        root = Path(directory)
        places = [file for item in items or ("",) for file in sorted((root / item).rglob("*"))]
        files = {file.relative_to(root).as_posix(): file for file in places if file.is_file()}
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            checksums = pool.map(storage.crc32, files.values())
            sizes = (file.stat().st_size for file in files.values())
            found = {n: [*entry] for n, *entry in zip(files, sizes, checksums, strict=True)}
    return {name: entry for name, entry in found.items() if _belongs(name, items)}


def _belongs(name: str, items: tuple[str, ...]) -> bool:
    if name.rpartition("/")[2] in (NAME, *COMMIT_FILES):
        return False
    return not items or name.startswith(tuple(f"{item}/" for item in items))
