"""All photos below a folder, in shards or with features, in the order of their similarity with a
query under one model or several, and their page: the first photos of every model, side by side.
"""

import contextlib
import functools
import logging
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evals.images import ImageRef
from evals.models import Model
from negclip_jax.common.errors import InputError
from negclip_jax.common.page.template import write_page
from negclip_jax.common.page.thumbnails import file_thumbnail
from negclip_jax.common.photos import PHOTO_SUFFIXES
from negclip_jax.data.feature_files import ImageFeatures
from negclip_jax.data.images import ImageDirectory, ImageSource, photos_below
from negclip_jax.data.shard_images import ShardImages
from negclip_jax.data.sources import is_folder, open_images
from negclip_jax.embeddings.encoder import Encoder

PAGE = "report.html"


class PhotoFolder(ImageDirectory):
    """Photos by their names below `root`, sorted; hidden files and folders are left out.

    `refs` are the photos, `skipped` names that look like photos and are not read, with the reason:
    links that lead out of the folder above all. Linked folders are not entered.
    """

    given = None

    def __init__(self, root: Path):
        """Lists the folder; no photo is opened. Raises InputError where there is none in it."""
        if not root.is_dir():
            what = "is not a folder" if root.exists() else "does not exist"
            raise InputError(f"--images={root} {what}: give a folder with photos")
        super().__init__(root)
        names, self.skipped = photos_below(root)
        self.refs = [ImageRef(name) for name in names]
        if not names:
            more = ""
            for name, reason in list(self.skipped.items())[:1]:
                more = f" that can be read; {name}: {reason}"
            suffixes = ", ".join(sorted(PHOTO_SUFFIXES))
            raise InputError(
                f"--images={root} holds no photo{more} (looked for {suffixes}, at any depth)"
            )

    def path(self, ref: ImageRef) -> Path:
        """The file of a photo."""
        return Path(self.root, ref.path)

    def shown(self, ref: ImageRef, out: Path) -> tuple[str, str]:
        """A small copy of a photo, and a link to it from a page in `out`."""
        file = self.path(ref)
        path = Path(os.path.relpath(file, out)).as_posix()
        return file_thumbnail(file), urllib.parse.quote(path.encode("utf-8", "surrogateescape"))

    def identity(self, path: str) -> list:
        """Changes whenever the photo's file does."""
        return [os.path.abspath(self.root), *super().identity(path)]


class PhotoShards(ImageSource):
    """Photos in tars, Parquet or ArrayRecord, see `data.sources`; as `PhotoFolder`."""

    given = None

    def __init__(self, spec: str):
        """Lists the shards; no photo is opened. Raises InputError where there is none."""
        source = open_images(spec)
        if not isinstance(source, ShardImages):
            raise InputError(f"--images={spec}: give a folder, wds:, parquet: or arrayrecord:")
        self.root, self.skipped, self._source = spec, {}, source
        self.refs = [ImageRef(name) for name in source.names()]
        self.open, self.read, self.missing = source.open, source.read, source.missing
        self.identities, self.storage_order = source.identities, source.storage_order

    def identity(self, name: str) -> list:
        """Changes whenever the photo's shard does."""
        return self._source.identity(name)

    def shown(self, ref: ImageRef, out: Path) -> tuple[str, str]:
        """A small copy of a photo; there is nothing to link to."""
        return file_thumbnail(self._source.read(ref.path)), ""


class FeatureList(ImageSource):
    """Photos with features of another library, `given` to the encoder; as `PhotoFolder`."""

    def __init__(self, features: ImageFeatures, photos: PhotoFolder | PhotoShards | None):
        """`photos` are those to rank; None: all that have features, and none of them is shown."""
        self.root, self._photos = photos.root if photos else features.path, photos
        self.refs = photos.refs if photos else [ImageRef(name) for name in features.names]
        self.skipped = dict(photos.skipped) if photos else {}
        self.given = (features, lambda name: name if features.usable(name) else None)
        source = photos or features
        self.open, self.read, self.missing = source.open, source.read, source.missing
        self.identity = source.identity

    def shown(self, ref: ImageRef, out: Path) -> tuple[str, str]:
        """As that of the photos, if there are any."""
        return self._photos.shown(ref, out) if self._photos else ("", "")


Photos = PhotoFolder | PhotoShards | FeatureList


def photos_of(spec: str | None, features: ImageFeatures | None = None) -> Photos:
    """What `--images` names, with the features of `--features`. Raises InputError."""
    if spec is None and features is None:
        raise InputError("give --images=PHOTOS, or --features=FILE of photos that are elsewhere")
    photos = None
    if spec is not None:
        photos = PhotoFolder(Path(spec)) if is_folder(spec) else PhotoShards(spec)
    return photos if features is None else FeatureList(features, photos)


def rank(
    models: Sequence[Model], folder: Photos, queries: Sequence[str], *, cache: Path
) -> tuple[list[int], dict[str, np.ndarray]]:
    """As `encoded`; by model the cosines of queries and photos, float32 `[queries, photos]`."""
    kept, features = encoded(models, folder, queries, cache=cache)
    return kept, {name: texts @ images.T for name, (images, texts) in features.items()}


def encoded(
    models: Sequence[Model], folder: Photos, queries: Sequence[str], *, cache: Path
) -> tuple[list[int], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Unit features of the photos that can be read and of queries under each model.

    What cannot be read is added to the folder's `skipped`, what `cache` holds is not encoded again.
    Returns places in `folder.refs` of the photos that were encoded, and by model their features,
    float32 `[photos, D]`, and the queries', `[queries, D]`. Raises InputError where no photo can
    be read.
    """
    found = []
    for model in models:
        with contextlib.closing(
            Encoder(model, folder.refs, queries, folder, cache=cache, given=folder.given)
        ) as encoder:
            pending = encoder.images.pending
            logging.info("%s: %s of %s photos to encode", model.name, pending, len(folder.refs))
            if encoder.truncated:
                logging.warning("the query %r is too long and is cut", encoder.truncated[0])
            _, texts = encoder.features([], queries)
            for ref, reason in encoder.unusable_images(folder.refs).items():
                folder.skipped[ref.path] = reason
        found.append((encoder, texts))
    refs, kept = folder.refs, [i for i, r in enumerate(folder.refs) if r.path not in folder.skipped]
    if not kept:
        name, reason = next(iter(folder.skipped.items()))
        raise InputError(
            f"--images={folder.root}: none of its {len(refs):,} photos can be read; {name}: "
            f"{reason}"
        )
    features = {}
    for model, (encoder, texts) in zip(models, found, strict=True):
        features[model.name] = encoder.features([refs[i] for i in kept], [])[0], texts
    return kept, features


def ordered(
    scores: Mapping[str, np.ndarray], top: int | None = None
) -> dict[str, list[tuple[int, dict[str, Any]]]]:
    """Places of the `top` scores of each model, ties in their order.

    With `score`, `rank` from 1, and `was`, the rank under the first model where it differs.
    """
    columns: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    before: dict[int, int] = {}
    for model, found in scores.items():
        order = np.argsort(-found, kind="stable").tolist()
        before = before or {place: rank for rank, place in enumerate(order, 1)}
        columns[model] = rows = []
        for rank, place in enumerate(order[:top], 1):
            was = before[place] if before[place] != rank else None
            rows.append((place, {"score": float(found[place]), "rank": rank, "was": was}))
    return columns


def shown(
    folder: Photos, kept: Sequence[int], scores: Mapping[str, np.ndarray], top: int
) -> dict[str, list[dict[str, Any]]]:
    """The first photos, ties by name, under each model's scores `[photos]`; see `ordered`."""
    return {
        model: [{"place": kept[i], "name": folder.refs[kept[i]].path} | row for i, row in rows]
        for model, rows in ordered(scores, top).items()
    }


def write(
    out: Path,
    folder: Photos,
    models: Mapping[str, Mapping[str, Any]],
    queries: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
    *,
    photos: int,
) -> Path:
    """Makes the page in `out`; `queries` are {query: {model: rows of `shown`}}."""
    shown = functools.cache(lambda place: folder.shown(folder.refs[place], out))

    def card(row: Mapping[str, Any]) -> dict[str, Any]:
        url, link = shown(row["place"])
        return {**row, "url": url, "link": link}

    return write_page(
        out / PAGE,
        Path(__file__).with_name("page.html"),
        models=models,
        queries={
            query: {name: [card(row) for row in rows] for name, rows in columns.items()}
            for query, columns in queries.items()
        },
        photos=photos,
        folder=folder.root,
        skipped=list(folder.skipped.items()),
    )
