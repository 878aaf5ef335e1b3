"""Remote folders as a whole: what a bucket says of them, copies on this machine, uploads."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from negclip_jax.common import storage
from negclip_jax.common.errors import InputError
from negclip_jax.common.storage import announced, is_remote

_STAGE = ".partial-"
_ABANDONED_SECONDS = 24 * 3600.0
_LEFT_FREE = 0.25  # of a disk, by copies of shards


def listed(folder: epath.Path) -> dict[str, dict[str, Any]]:
    """What a bucket says of each object below a remote folder, by relative name.

    One request per 1,000 objects. The name is "" where `folder` is itself an object. Raises
    InputError for a name that would leave the folder.
    """
    system, root = _system(folder)
    found = {}
    for name, info in system.find(root, detail=True).items():
        if info["type"] != "file" or name.endswith("/"):
            continue  # consoles put objects where they show folders
        relative = name[len(root) :].strip("/")
        if ".." in relative.split("/"):
            raise InputError(f"{folder} holds an object named {relative!r}: refused")
        found[relative] = info
    return found


def objects(addresses: Sequence[str], suffix: str) -> dict[str, list[tuple[str, int, tuple[str]]]]:
    """The objects that each address means: path, bytes and `checksum`; [] where there is none.

    An address is that of an object, of a folder, which means all objects in it that end in
    `suffix`, or has wildcards. A folder is listed once for all addresses in it.
    """
    listings: dict[str, dict[str, dict]] = {}
    found = {}
    for address in addresses:
        system, path = _system(storage.path(address.rstrip("/")))
        if any(c in path for c in "*?["):
            infos = system.glob(path, detail=True)
        else:
            parent = path.rpartition("/")[0]
            if parent and parent not in listings:
                with announced(f"the list of {address.rpartition('/')[0]}"):
                    try:
                        listed = system.ls(parent, detail=True)
                    except FileNotFoundError:
                        listed = []
                listings[parent] = {info["name"].rstrip("/"): info for info in listed}
            info = listings[parent].get(path) if parent else {"type": "directory"}
            infos = {path: info} if info and info["type"] == "file" else {}
            if info and info["type"] == "directory":
                infos = system.glob(f"{path}/*{suffix}", detail=True)
        found[address] = [
            (f"gs://{name}", info["size"], (checksum(info),))
            for name, info in sorted(infos.items())
            if info["type"] == "file"
        ]
    return found


def object_reader(address: str) -> Callable[[int, int], bytes]:
    """A function of start and stop that gives these bytes of an object."""
    system, path = _system(storage.path(address))
    return lambda start, stop: system.cat_file(path, start=start, end=stop)


def _system(folder: epath.Path) -> tuple[Any, str]:
    import fsspec

    system, root = fsspec.core.url_to_fs(os.fspath(folder))
    return system, root.rstrip("/")


def checksum(info: dict[str, Any]) -> str:
    """What changes whenever an object's bytes do."""
    # Objects that were composed of others have no MD5.
    keys = ("md5Hash", "crc32c", "generation")
    return next(f"{key}:{info[key]}" for key in keys if info.get(key))


def local_copy(place: epath.Path, *, only: tuple[str, ...] = ()) -> Path:
    """A local file or folder with the content of `place`, which is left alone where it is local.

    A copy of each version stays in `cache_folder()`, which may be deleted at any time; of a folder
    the files whose names begin with `only`. Raises InputError where there is nothing.
    """
    if not is_remote(place):
        return Path(place)
    found = {name: i for name, i in listed(place).items() if not only or name.startswith(only)}
    if not found:
        raise InputError(f"there is nothing at {place}")
    kept = _kept(place, {name: [info["size"], checksum(info)] for name, info in found.items()})
    if not kept.exists():
        with staging() as stage:
            _download(place, sorted(found), stage / "copy" / place.name)
            try:
                (stage / "copy").rename(kept)
            except OSError:
                if not kept.exists():  # else another process was faster
                    raise
        size = sum(info["size"] for info in found.values())
        logging.info("copied %s (%.1f MB) to %s", place, size / 1e6, kept)
    return kept / place.name


def _kept(place: epath.Path, version: dict[str, list]) -> Path:
    described = json.dumps([str(place), version], sort_keys=True).encode()
    return cache_folder() / hashlib.sha256(described).hexdigest()[:24]


def copy_of(address: str, size: int, checksum: str) -> Path:
    """Where `local_copy` keeps an object of this size and checksum, there or not; no request."""
    place = storage.path(address)
    return _kept(place, {"": [size, checksum]}) / place.name


def copy_if_room(address: str, size: int) -> None:
    """Makes a `local_copy` of an object where a share of the disk stays free, `_LEFT_FREE`."""
    disk = shutil.disk_usage(cache_folder())
    if disk.free - size > _LEFT_FREE * disk.total:
        local_copy(storage.path(address))


@contextlib.contextmanager
def copied(place: str) -> Iterator[Path]:
    """`local_copy`, about which errors in the block speak by the name of what it is a copy of."""
    copy = local_copy(storage.path(place))
    try:
        yield copy
    except InputError as error:
        raise type(error)(str(error).replace(str(copy), place)) from error


def folder_for(place: epath.Path) -> Path:
    """Where on this machine to keep files that belong to `place`: there, or in `cache_folder()`."""
    if not is_remote(place):
        return Path(place)
    return cache_folder() / hashlib.sha256(str(place).encode()).hexdigest()[:24]


def forget_copy(copy: Path) -> None:
    """Removes what `local_copy` returned, so that it is fetched again."""
    shutil.rmtree(copy.parent, ignore_errors=True)


def _download(place: epath.Path, names: list[str], to: Path) -> None:
    system, root = _system(place)
    targets = [to / name if name else to for name in names]
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
    with announced(f"the copy of {place}"):
        system.get([f"{root}/{name}".rstrip("/") for name in names], [str(t) for t in targets])


def upload(folder: Path, to: epath.Path, *, last: Sequence[str] = ()) -> None:
    """Copies a local folder into a bucket; the files named in `last` when all others are there.

    What was there before stays where it has no namesake.
    """
    system, root = _system(to)
    names = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file()]
    with announced(f"the upload to {to}"):
        for group in ([n for n in names if n not in last], [n for n in last if n in names]):
            if group:
                system.put([str(folder / n) for n in group], [f"{root}/{n}" for n in group])


@contextlib.contextmanager
def uploaded(place: epath.Path) -> Iterator[Path]:
    """A local folder whose files are in `place` when the block ends: itself where that is local."""
    if not is_remote(place):
        yield Path(place)
        return
    with staging() as folder:
        yield folder
        upload(folder, place)


@contextlib.contextmanager
def staging() -> Iterator[Path]:
    """An empty folder on this machine, which is gone after the block."""
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix=_STAGE) as folder:
        yield Path(folder)


def cache_folder() -> Path:
    """Where copies of remote files are kept: `$XDG_CACHE_HOME/negclip_jax`, else in `~/.cache`.

    What processes that were killed left half done there is removed after a day.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "negclip_jax"
    folder.mkdir(parents=True, exist_ok=True)
    for stage in folder.glob(f"{_STAGE}*"):
        with contextlib.suppress(OSError):
            if time.time() - stage.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(stage, ignore_errors=True)
    return folder
