"""SHA-256 of images, kept so that a later start reads none of them again.

    FOLDER/digests.bin    `MAGIC`, the CRC-32 of what follows (4 bytes, little-endian), and records
                          of 48 bytes: a hash of the image's name, ascending, one of what says that
                          it is the same (`ImageSource.identity`), and its SHA-256

Some 50 bytes an image, memory-mapped: 10 M take 480 MB of a file and no memory. Earlier versions
kept `digests.json`, 130 bytes an image of text and 600 of Python objects; it is still read.
"""

import concurrent.futures
import hashlib
import json
import logging
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from etils import epath
from jaxtyping import UInt8

from negclip_jax.common import storage
from negclip_jax.data.images import ImageSource
from negclip_jax.data.tar_index import hashed
from negclip_jax.runtime import sharding

MAGIC = b"negclip.digests.1\n\0\0"
_RECORD = np.dtype([("name", "<u8"), ("identity", "<u8"), ("digest", "u1", 32)])
_AT_ONCE = 2**17  # images whose names and identities are objects at a time


def image_digests(
    source: ImageSource, names: Sequence[str], folder: epath.Path | Path, shared: bool = False
) -> UInt8[np.ndarray, "N 32"]:
    """SHA-256 of each image; those that `folder` knows are not read again.

    Where all processes see one folder (`shared`), each reads its share and process 0 writes.
    """
    index, count = sharding.process_place() if shared else (0, 1)
    path = epath.Path(folder) / "digests.bin"
    before = _kept(path)
    # Neighbours, which lie side by side in a shard where names come in the order of storage.
    share = -(-len(names) // count)
    mine = slice(index * share, min(len(names), (index + 1) * share))
    now = np.zeros(len(names), _RECORD)
    asked = range(0, len(names)) if index == 0 else range(mine.start, max(mine.start, mine.stop))
    for start in range(asked.start, asked.stop, _AT_ONCE):
        part = names[start : min(start + _AT_ONCE, asked.stop)]
        rows = now[start : start + len(part)]
        rows["name"] = hashed(part)
        rows["identity"] = hashed([str(identity) for identity in source.identities(part)])
    place = np.minimum(np.searchsorted(before["name"], now["name"]), max(0, len(before) - 1))
    known = np.zeros(len(names), bool)
    if len(before):
        known = (before["name"][place] == now["name"]) & (
            before["identity"][place] == now["identity"]
        )
        now["digest"][known] = before["digest"][place[known]]
    changed = np.arange(len(names))[mine][~known[mine]].tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        hashes = pool.map(lambda i: hashlib.sha256(source.read(names[i])).digest(), changed)
        for i, digest in zip(changed, hashes, strict=True):
            now["digest"][i] = np.frombuffer(digest, np.uint8)
    if count > 1:
        own = np.zeros((share, 32), np.uint8)
        own[: len(now[mine])] = now["digest"][mine]
        now["digest"] = sharding.from_all(own).reshape(-1, 32)[: len(names)]
    if index == 0 and (changed or not known.all() or not path.exists()):
        _write(path, before, now)
    return now["digest"]


def _kept(path: epath.Path) -> np.ndarray:
    """The records of a file; of the one of an earlier version where there is no other."""
    try:
        if storage.is_remote(path):
            content = np.frombuffer(path.read_bytes(), np.uint8)
        else:
            content = np.memmap(path, np.uint8, "r").view(np.ndarray)
        head, rows = content[: len(MAGIC) + 4].tobytes(), content[len(MAGIC) + 4 :]
        if head[: len(MAGIC)] != MAGIC or len(rows) % _RECORD.itemsize:
            raise ValueError("it is no file of digests")
        if zlib.crc32(rows) != int.from_bytes(head[len(MAGIC) :], "little"):
            raise ValueError("its checksum is wrong")
        return rows.view(_RECORD)
    except FileNotFoundError:
        return _earlier(path.with_name("digests.json"))
    except ValueError:
        logging.warning("%s is damaged: all images are read again", path)
        return np.zeros(0, _RECORD)


def _earlier(path: epath.Path) -> np.ndarray:
    try:
        before = dict(json.loads(storage.read_text(path)))
        digests = bytes.fromhex("".join(digest for _, digest in before.values()))
        rows = np.zeros(len(before), _RECORD)
        rows["digest"] = np.frombuffer(digests, np.uint8).reshape(-1, 32)
        rows["name"] = hashed(list(before))
        rows["identity"] = hashed([str(identity) for identity, _ in before.values()])
        return rows[np.argsort(rows["name"], kind="stable")]
    except FileNotFoundError:
        pass
    except (ValueError, TypeError):
        logging.warning("%s is damaged: all images are read again", path)
    return np.zeros(0, _RECORD)


def _write(path: epath.Path, before: np.ndarray, now: np.ndarray) -> None:
    """Writes the new records, and the former ones of other images."""
    order = np.argsort(now["name"], kind="stable")
    now = now[order]
    other = before[~np.isin(before["name"], now["name"])]
    place = np.searchsorted(now["name"], other["name"])
    rows = np.insert(now, place, other) if len(other) else now
    path.parent.mkdir(parents=True, exist_ok=True)
    content = rows.tobytes()
    storage.write_whole(path, MAGIC + zlib.crc32(content).to_bytes(4, "little") + content)
