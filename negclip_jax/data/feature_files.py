"""Image features that another library computed, by image name: a file in place of photos.

FILE.parquet       columns `image` (name) and `feature` (list of float32 or float16); the schema's
                   metadata may hold `model`, the name of the model that computed them
FILE.safetensors   tensor `features` `[N, D]`; metadata `names`, a JSON list, and `model`
FILE.npy           `[N, D]`, with `{"names": [...], "model": ...}` in FILE.json beside it
FOLDER             all Parquet files in it, as `interop.image_features` writes them

A pattern of several files is one set; all of them may lie in a bucket (gs://). The values are kept
in memory as float32.
"""

import functools
import hashlib
import io
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath
from jaxtyping import Float16, Float32, Int64
from PIL import Image
from safetensors import SafetensorError, safe_open

from negclip_jax.common import remote, storage, strict_json
from negclip_jax.common.decoding import ImageError
from negclip_jax.common.errors import InputError
from negclip_jax.common.problems import first
from negclip_jax.data.images import ImageSource
from negclip_jax.data.pair_tables import refuse_claims
from negclip_jax.data.shards import Shard, find

_OF = re.compile(r"(?P<set>.*-)(?P<number>\d{5,})(?P<of>-of-(?P<count>\d{5,})\.parquet)")


class ImageFeatures(ImageSource):
    """An image source that has no photos, but a feature of each.

    Attributes:
      path: what the user gave.
      model: name of the model that computed them, "" where the files do not say.
      names: of the images, N.
      features: float32 `[N, D]`, unnormalised or not.
      unusable: bool `[N]`, rows with NaN or infinity, and rows of zeros, which have no direction.
    """

    def __init__(self, path: str, shards: Sequence[Shard] = ()):
        """Reads the files; `shards` where they were looked for already.

        Raises InputError for what is not there, cannot be read, or contradicts itself.
        """
        found = shards or _files(path)
        self.path, parts = path, [_read(shard.path) for shard in found]
        widths = {rows.shape[1] for _, rows, _ in parts}
        models = {model for _, _, model in parts}
        if len(widths) > 1 or len(models) > 1:
            raise InputError(
                f"{path}: its files are of several models: {first(sorted(models))}, with "
                f"{first(sorted(map(str, widths)))} numbers an image"
            )
        (self.model,) = models
        self.features = np.concatenate([rows for _, rows, _ in parts])
        self.names = [name for part, _, _ in parts for name in part]
        self._row = {name: row for row, name in enumerate(self.names)}
        if len(self._row) < len(self.names):
            twice = [name for row, name in enumerate(self.names) if self._row[name] != row]
            raise InputError(f"{path}: {len(twice)} images stand twice in it: {first(twice)}")
        self.unusable = ~np.isfinite(self.features).all(axis=1)
        for bad, what in ((self.unusable, "not finite"), (~self.features.any(axis=1), "all 0")):
            if count := int(bad.sum()):
                named = first([self.names[i] for i in np.flatnonzero(bad)])
                logging.warning("%s: %d features are %s and left out: %s", path, count, what, named)
            self.unusable = self.unusable | bad

    @functools.cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that change with any name or value."""
        sha = hashlib.sha256("\n".join(self._row).encode())
        sha.update(np.ascontiguousarray(self.features).data)
        return sha.hexdigest()[:16]

    def rows(self, names: Iterable[str]) -> Int64[np.ndarray, " N"]:
        """Which rows are those of these images; KeyError for one that is not there."""
        return np.array([self._row[name] for name in names], np.int64)

    def usable(self, name: str) -> bool:
        """Whether an image has a feature that can be used."""
        return name in self._row and not self.unusable[self._row[name]]

    def require_width(self, width: int) -> None:
        """Raises InputError where texts, of `width` numbers, are of another model."""
        if (found := self.features.shape[1]) != width:
            raise InputError(
                f"{self.path} holds features of {found} numbers, and the model's texts have "
                f"{width}: they are of another model{f', {self.model}' if self.model else ''}"
            )

    def missing(self, names: Iterable[str]) -> list[str]:
        return [name for name in dict.fromkeys(names) if name not in self._row]

    def open(self, name: str) -> Image.Image:
        raise ImageError(f"{name}: {self.path} holds features and no photos")

    def read(self, name: str) -> bytes:
        return b""

    def identity(self, name: str) -> list:
        return [self.path, self._row.get(name)]


_kept = functools.lru_cache(1)(ImageFeatures)


def open_features(path: str) -> ImageFeatures:
    """`ImageFeatures`, which a process reads once until its files change. Raises InputError."""
    return _kept(path, tuple(_files(path)))


def _files(path: str) -> list[Shard]:
    """The files that `path` means. Raises InputError where there are none, or not all of a set."""
    try:
        found = find(path, ".parquet")
    except InputError as error:
        raise InputError(f"image features: {error}") from None
    sets: dict[tuple[str, str], set[int]] = defaultdict(set)
    if Path(path).suffix not in _READERS:  # a folder, not a pattern that means some of its files
        for match in filter(None, (_OF.fullmatch(shard.path) for shard in found)):
            sets[match["set"], match["of"]].add(int(match["number"]))
    for (start, of), there in sets.items():
        count = int(_OF.fullmatch(f"{start}00000{of}")["count"])
        if absent := count - len(there):
            number = next(i for i in range(count) if i not in there)
            raise InputError(
                f"{path}: {absent} of {count} files are not there yet, the first of them "
                f"{start}{number:05d}{of}: start negclip_jax.interop.image_features again, which "
                "continues, or bring the files of its other shards"
            )
    return found


def _read(address: str) -> tuple[list[str], Float32[np.ndarray, "N D"], str]:
    """Names, rows and the model of one file, on a disk or in a bucket."""
    reader = _READERS.get(Path(address).suffix)
    if reader is None:
        raise InputError(f"{address} is none of {', '.join(_READERS)}")
    try:
        names, rows, model = reader(storage.path(address))
    except InputError as error:
        raise InputError(f"{address} cannot be read as image features: {error}") from None
    except (ValueError, TypeError, SafetensorError, pa.ArrowException, *storage.errors()) as error:
        raise InputError(
            f"{address} cannot be read as image features: {storage.root_cause(error)}"
        ) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{address}: its image names are no list of texts")
    if rows.ndim != 2 or rows.dtype not in (np.float32, np.float16) or len(rows) != len(names):
        raise InputError(
            f"{address}: features are {rows.dtype}{list(rows.shape)} for {len(names)} names, not "
            f"float32 or float16 [{len(names)}, D]"
        )
    if not rows.size:
        raise InputError(f"{address} holds no features")
    return names, rows.astype(np.float32, copy=False), model if isinstance(model, str) else ""


def _of_parquet(address: epath.Path) -> tuple[list[str], np.ndarray, str]:
    file = remote.local_copy(address)
    with pq.ParquetFile(file) as parquet:
        refuse_claims(parquet.metadata, str(address), file.stat().st_size)
        table = parquet.read(columns=["image", "feature"])
    if absent := {"image", "feature"} - {*table.column_names}:
        raise ValueError(f"it has no column {' and '.join(sorted(absent))}")
    column = table["feature"].combine_chunks()
    values = getattr(column.type, "value_type", column.type)  # of a list of any kind
    if not pa.types.is_floating(values) or column.type == values:
        raise ValueError(f"its column feature holds {column.type}, not lists of float32 or float16")
    lengths = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
    if len(lengths) != 1 or column.null_count:
        raise ValueError("its features have several lengths, or some images have none")
    rows = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
    model = (table.schema.metadata or {}).get(b"model", b"").decode(errors="replace")
    return table["image"].to_pylist(), rows, model


def _of_safetensors(address: epath.Path) -> tuple[list[str], np.ndarray, str]:
    with safe_open(remote.local_copy(address), "np") as stored:
        said = stored.metadata() or {}
        names = strict_json.loads(said.get("names", "null").encode())
        return names, stored.get_tensor("features"), said.get("model", "")


def _of_npy(address: epath.Path) -> tuple[list[str], np.ndarray, str]:
    said = strict_json.read_json(remote.local_copy(address.with_suffix(".json")), dict)
    file = remote.local_copy(address)
    try:
        # Mapped: what a header claims beyond the file's end is then an error and takes no memory.
        rows = np.array(np.load(file, mmap_mode="r", allow_pickle=False))
    except Exception as error:  # NumPy's parser of headers raises what Python's tokenizer does
        raise ValueError(f"it is no NumPy array: {error}") from error
    return said.get("names"), rows, said.get("model", "")


_READERS = {".parquet": _of_parquet, ".safetensors": _of_safetensors, ".npy": _of_npy}


def said_by(file: epath.Path | Path) -> dict[str, str]:
    """What the metadata of `FILE.parquet` say, "model" and what `write` was given beside it."""
    with pq.ParquetFile(remote.local_copy(epath.Path(file))) as parquet:
        said = parquet.schema_arrow.metadata or {}
    return {
        key.decode(errors="replace"): text.decode(errors="replace") for key, text in said.items()
    }


def write(
    file: epath.Path | Path,
    names: list[str],
    features: Float16[np.ndarray, "N D"] | Float32[np.ndarray, "N D"],
    model: str,
    beside: Mapping[str, str] | None = None,
) -> None:
    """Writes `FILE.parquet` as `ImageFeatures` reads it, whole or not at all.

    `beside` are texts for the file's metadata, by name.
    """
    flat = pa.array(np.ascontiguousarray(features).ravel())
    column = pa.FixedSizeListArray.from_arrays(flat, features.shape[1])
    table = pa.table({"image": pa.array(names, pa.string()), "feature": column})
    table = table.replace_schema_metadata({"model": model, **(beside or {})})
    content = io.BytesIO()
    pq.write_table(table, content, use_dictionary=False, compression="zstd")
    storage.write_whole(epath.Path(file), content.getvalue())
