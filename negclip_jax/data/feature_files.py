"""Image features that another library computed, by image name: a file in place of photos.

FILE.parquet       columns `image` (name) and `feature` (list of float32 or float16); the schema's
                   metadata may hold `model`, the name of the model that computed them
FILE.safetensors   tensor `features` `[N, D]`; metadata `names`, a JSON list, and `model`
FILE.npy           `[N, D]`, with `{"names": [...], "model": ...}` in FILE.json beside it

A pattern of several files is one set. The values are kept in memory as float32.
"""

import functools
import glob
import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from safetensors import SafetensorError, safe_open

from negclip_jax.common import strict_json
from negclip_jax.common.decoding import ImageError
from negclip_jax.common.errors import InputError
from negclip_jax.common.problems import first
from negclip_jax.data.images import ImageSource
from negclip_jax.data.pair_tables import refuse_claims


class ImageFeatures(ImageSource):
    """An image source that has no photos, but a feature of each.

    Attributes:
      path: what the user gave.
      model: name of the model that computed them, "" where the files do not say.
      features: float32 `[N, D]`, unnormalised or not.
      unusable: bool `[N]`, rows with NaN or infinity.
    """

    def __init__(self, path: str):
        """Raises InputError for what is not there, cannot be read, or contradicts itself."""
        files = sorted(glob.glob(path)) or [path]
        self.path, parts = path, [_read(Path(file)) for file in files]
        widths = {rows.shape[1] for _, rows, _ in parts}
        models = {model for _, _, model in parts}
        if len(widths) > 1 or len(models) > 1:
            raise InputError(
                f"{path}: its files are of several models: {first(sorted(models))}, with "
                f"{first(sorted(map(str, widths)))} numbers an image"
            )
        (self.model,) = models
        self.features = np.concatenate([rows for _, rows, _ in parts])
        names = [name for part, _, _ in parts for name in part]
        self._row = {name: row for row, name in enumerate(names)}
        if len(self._row) < len(names):
            twice = [name for row, name in enumerate(names) if self._row[name] != row]
            raise InputError(f"{path}: {len(twice)} images stand twice in it: {first(twice)}")
        self.unusable = ~np.isfinite(self.features).all(axis=1)
        if self.unusable.any():
            bad = first([names[i] for i in np.flatnonzero(self.unusable)])
            count = int(self.unusable.sum())
            logging.warning("%s: %d features are not finite and left out: %s", path, count, bad)

    @functools.cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that change with any name or value."""
        sha = hashlib.sha256("\n".join(self._row).encode())
        sha.update(np.ascontiguousarray(self.features).data)
        return sha.hexdigest()[:16]

    def rows(self, names: Iterable[str]) -> np.ndarray:
        """Which rows are those of these images, int64; KeyError for one that is not there."""
        return np.array([self._row[name] for name in names], np.int64)

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that have no feature, each once and in order."""
        return [name for name in dict.fromkeys(names) if name not in self._row]

    def open(self, name: str) -> Image.Image:
        """Raises ImageError: there is no photo."""
        raise ImageError(f"{name}: {self.path} holds features and no photos")

    def read(self, name: str) -> bytes:
        """Nothing."""
        return b""

    def identity(self, name: str) -> list:
        """The row."""
        return [self.path, self._row.get(name)]


def _read(file: Path) -> tuple[list[str], np.ndarray, str]:
    """Names, float32 rows and the model of one file."""
    if not file.is_file():
        raise InputError(f"data.features: there is no file {file}")
    try:
        names, rows, model = _READERS[file.suffix](file)
    except KeyError:
        raise InputError(f"{file} is none of {', '.join(_READERS)}") from None
    except (OSError, ValueError, TypeError, SafetensorError, pa.ArrowException) as error:
        raise InputError(f"{file} cannot be read as image features: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{file}: its image names are no list of texts")
    if rows.ndim != 2 or rows.dtype not in (np.float32, np.float16) or len(rows) != len(names):
        raise InputError(
            f"{file}: features are {rows.dtype}{list(rows.shape)} for {len(names)} names, not "
            f"float32 or float16 [{len(names)}, D]"
        )
    return names, rows.astype(np.float32, copy=False), model if isinstance(model, str) else ""


def _of_parquet(file: Path) -> tuple[list[str], np.ndarray, str]:
    with pq.ParquetFile(file) as parquet:
        refuse_claims(parquet.metadata, str(file), file.stat().st_size)
        table = parquet.read(columns=["image", "feature"])
    column = table["feature"].combine_chunks()
    lengths = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
    if len(lengths) != 1 or column.null_count:
        raise ValueError("its features have several lengths, or some images have none")
    rows = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
    model = (table.schema.metadata or {}).get(b"model", b"").decode(errors="replace")
    return table["image"].to_pylist(), rows, model


def _of_safetensors(file: Path) -> tuple[list[str], np.ndarray, str]:
    with safe_open(file, "np") as stored:
        said = stored.metadata() or {}
        names = strict_json.loads(said.get("names", "null").encode())
        return names, stored.get_tensor("features"), said.get("model", "")


def _of_npy(file: Path) -> tuple[list[str], np.ndarray, str]:
    said = strict_json.read_json(file.with_suffix(".json"), dict)
    return said.get("names"), np.load(file, allow_pickle=False), said.get("model", "")


_READERS = {".parquet": _of_parquet, ".safetensors": _of_safetensors, ".npy": _of_npy}


def write(file: Path, names: list[str], features: np.ndarray, model: str) -> None:
    """Writes `FILE.parquet` as `ImageFeatures` reads it; features float32 or float16 `[N, D]`."""
    flat = pa.array(np.ascontiguousarray(features).ravel())
    column = pa.FixedSizeListArray.from_arrays(flat, features.shape[1])
    table = pa.table({"image": pa.array(names, pa.string()), "feature": column})
    pq.write_table(table.replace_schema_metadata({"model": model}), file)
