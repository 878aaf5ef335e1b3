"""Published files and photos below the data folders, found by their names.

Annotation files name photos in many ways (`COCO_val2014_000000000139.jpg`,
`data/coco/images/val2017/000000000139.jpg`, the bare name). All folders are listed once, and a
photo is found by its file name, in whatever Unicode form and with whatever case of the suffix;
COCO's 2014 and 2017 names mean the same photo by their 12 digits (COCO 2017 is another split of the
photos of 2014). Other names say little (`000001.jpg`): a file in a folder of another data set is
not the photo. Photos in shards are found by the names of a tar's members, and by the paths that
Parquet has beside them, where no folder has them.
"""

import dataclasses
import filecmp
import functools
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image

from evals.scoring import mean_directions
from negclip_jax.common.decoding import ImageError, opened, read_file
from negclip_jax.common.errors import InputError
from negclip_jax.common.photos import PHOTO_SUFFIXES, name_key
from negclip_jax.data.feature_files import ImageFeatures
from negclip_jax.data.images import ImageRef, ImageSource, decode
from negclip_jax.data.shard_images import ShardImages
from negclip_jax.data.sources import SUFFIXES, kind_of, open_images

__all__ = ["DataRoots", "FileMissing", "ImageRef", "ProblemImages"]

_T = TypeVar("_T")
# Folders whose name does not say which data set a photo is of, and the least of one that does.
_ANY_FOLDER = {"photos", "photo", "pictures", "images", "image", "imgs", "img", "jpegimages"}
_ANY_FOLDER |= {"data", "datasets", "frames", "train", "val", "test", "validation", "training"}
_SHORTEST_NAME = 3
_LARGEST_EMPTY = 256  # bytes
_COCO = re.compile(r"(?:COCO_(?:train|val|test)20\d\d_)?(\d{12}\.jpg)")
# No dots at the start of a name: a benchmark's file may name anything.
_TFDS = re.compile(r"tfds:(?P<name>\w[\w.:-]*(/\w[\w.:-]*)?)/(?P<split>\w+)#(?P<row>\d{1,12})")


class FileMissing(InputError):
    """A published file that is not below the data folders, as opposed to one that is wrong."""


class FileEmpty(FileMissing):
    """A published file that holds nothing, and is treated as one that is not there."""


class _InShard(NamedTuple):
    """A photo in a set of shards: its name there, and what a user calls it."""

    source: ShardImages
    name: str
    called: PurePosixPath


def photos_at(text: str) -> Path | str:
    """What `--images` names: a folder, or shards as `data.sources` has them."""
    return text if kind_of(text)[0] in SUFFIXES else Path(text)


@dataclasses.dataclass(frozen=True)
class DataRoots(ImageSource):
    """Folders with published files and photos."""

    data: tuple[Path, ...]  # searched for annotation files, in this order: an earlier folder wins
    # More folders of photos, searched before `data`, and as strings shards, searched last.
    images: tuple[Path | str, ...] = ()
    # Photos, as a benchmark calls them, that count as missing although they are there.
    unreadable: frozenset[str] = frozenset()
    # Of the photos, which then need not be there: those without a feature are missing.
    features: ImageFeatures | None = None

    def __post_init__(self):
        for folder in self._folders:
            if not Path(folder).is_dir():
                what = "is a file, not a folder" if Path(folder).exists() else "does not exist"
                raise InputError(f"the data folder {folder} {what}")
        _ = self._sources  # that they can be opened

    def find(self, *names: str, download: str) -> Path:
        """The published file of one of these names; "valse/plurals.json" asks for the folder too.

        The first folder of `data` that has one wins; within a folder the first of `names`, then the
        least deep, then the largest file. Raises FileMissing, saying where it was looked for and
        from where to `download` it, and FileEmpty where such files hold nothing.
        """
        empty = None
        for root in self.data:
            for name in names:
                wanted = PurePosixPath(name).parts
                named = self._files[root].get(wanted[-1], ())
                found = [p for p in named if p.parts[-len(wanted) :] == wanted]
                found.sort(key=lambda p: (len(p.parts), -p.stat().st_size, str(p)))
                for path in found:
                    if not (reason := _why_empty(path)):
                        return path
                    empty = empty or f"{path} {reason}"
        if empty:
            raise FileEmpty(f"{empty}: get it from {download}")
        raise FileMissing(
            f"{' or '.join(names)} is not below {', '.join(map(str, self.data))}: get it from "
            f"{download} and put it into the folder that --data names"
        )

    def find_all(self, *names: str) -> list[Path]:
        """Every file below `data` that has one of these names, in the order of folders, names."""
        found = [p for root in self.data for name in names for p in self._files[root].get(name, ())]
        return list(dict.fromkeys(found))

    def resolve(self, path: str) -> Path | None:
        """The photo that a published file calls `path`; None where it is not there.

        Among files of one name the one whose folders agree most with `path` is taken; one that
        lies in the folder of another data set is not. Raises InputError where several agree equally
        and differ.
        """
        roots = self._photos.get(_key(_posix(path).name), {})
        found = _best(list(roots), Path, path, roots)
        different = [p for p in found[1:] if not filecmp.cmp(found[0], p, shallow=False)]
        if different:
            raise InputError(
                f"{path} may be {found[0]} or {different[0]}, which differ: give the folder of the "
                "right photos as --data alone, or remove the other"
            )
        return found[0] if found else None

    def missing(self, paths: Iterable[str]) -> list[str]:
        """Those of `paths` that are not there, each once and in order."""
        distinct = dict.fromkeys(paths)
        if self.features is not None:
            return [p for p in distinct if self.feature_of(p) is None]
        absent = [p for p in distinct if not _TFDS.fullmatch(p) and self._found(p) is None]
        gone = set(absent)
        elsewhere = [p for p in absent if _key(PurePosixPath(p).name) in self._photos]
        if elsewhere:
            other = next(iter(self._photos[_key(PurePosixPath(elsewhere[0]).name)]))
            logging.warning(
                "%s photos are there by their names alone, in folders of other names, and are not "
                "taken: %s is not %s",
                *(f"{len(elsewhere):,}", other, elsewhere[0]),
            )
        return [p for p in distinct if p in self.unreadable or p in gone]

    @property
    def where(self) -> str:
        """Where photos are looked for, for messages."""
        return f"in {self.features.path}" if self.features else "below the data folders"

    @property
    def given(self) -> tuple[ImageFeatures, Callable[[str], str | None]] | None:
        """What `embeddings.encoder.Encoder` takes in place of photos."""
        return (self.features, self.feature_of) if self.features else None

    def feature_of(self, path: str) -> str | None:
        """The name that `features` have for a photo: its own, or one found as photos in shards are.

        None where it has no feature that can be used. Raises InputError where several agree equally
        and differ.
        """
        if path in self._feature_names:
            return self._feature_names[path]
        found = [path] if self.features.usable(path) else []
        if not found:
            named = self._by_key.get(_key(_posix(path).name), [])
            found = [n for n in _best(named, PurePosixPath, path) if self.features.usable(n)]
        rows = self.features.features[self.features.rows(found)]
        if len(found) > 1 and (rows != rows[0]).any():
            raise InputError(
                f"{path} may be {found[0]} or {found[1]} in {self.features.path}, which differ: "
                "give the features of the right photos alone"
            )
        self._feature_names[path] = found[0] if found else None
        return self._feature_names[path]

    def size(self, path: str) -> tuple[int, int]:
        """Width and height of a photo, from its header."""
        with opened(self._encoded(path)) as image:
            return image.size

    def folder(self, name: str) -> Path | None:
        """The least deep folder whose path ends in `name`, "imagenet/val"; None without one."""
        wanted = PurePosixPath(name).parts
        for root in self._folders:
            folders = {p.parent for named in self._files[root].values() for p in named}
            folders |= {parent for folder in folders for parent in folder.parents}
            found = [p for p in folders if p.parts[-len(wanted) :] == wanted and root in p.parents]
            if found:
                return min(found, key=lambda p: (len(p.parts), str(p)))
        return None

    def open(self, path: str) -> Image.Image:
        """The whole picture in mode RGB. Raises ImageError.

        `tfds:NAME/SPLIT#ROW` is an image of a prepared tensorflow-datasets folder.
        """
        return decode(self.read(path) if _TFDS.fullmatch(path) else self._encoded(path), path)

    def read(self, path: str) -> bytes:
        """The encoded photo, empty where it cannot be read."""
        tfds = _TFDS.fullmatch(path)
        if tfds:
            rows = tfds_rows(tfds["name"], tfds["split"], self.data)
            try:
                return rows[int(tfds["row"])]["image"]
            except (IndexError, OverflowError):
                raise ImageError(f"{path}: the data set has no such row") from None
        encoded = self._encoded(path)
        return encoded if isinstance(encoded, bytes) else read_file(encoded)

    def identity(self, path: str) -> list:
        """Changes whenever the photo's file does: path, size and times."""
        if _TFDS.fullmatch(path):
            return [path]  # prepared data sets are not edited
        file = self._located(path)
        if isinstance(file, _InShard):
            return [file.name, *file.source.identity(file.name)]
        stat = file.stat()
        return [str(file), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]

    def _encoded(self, path: str) -> Path | bytes:
        """The file of a photo, or its bytes in a shard."""
        file = self._located(path)
        return file.source.read(file.name) if isinstance(file, _InShard) else file

    def _located(self, path: str) -> Path | _InShard:
        file = self._found(path)
        if file is None:
            raise ImageError(f"{path}: there is no such photo below the data folders")
        return file

    def _found(self, path: str) -> Path | _InShard | None:
        """As `resolve`, in shards too."""
        if (file := self.resolve(path)) is not None or not self._in_shards:
            return file
        named = self._in_shards.get(_key(_posix(path).name), [])
        found = _best(named, lambda photo: photo.called, path)
        content = [p.source.read(p.name) for p in found] if len(found) > 1 else []
        different = [p for p, read in zip(found, content, strict=False) if read != content[0]]
        if different:
            raise InputError(
                f"{path} may be {found[0].name} or {different[0].name}, which differ: give the "
                "shards of the right photos alone"
            )
        return found[0] if found else None

    @functools.cached_property
    def _feature_names(self) -> dict[str, str | None]:
        return {}  # what `feature_of` found before

    @functools.cached_property
    def _by_key(self) -> dict[str, list[str]]:
        """Names that have features by the name that benchmarks may call them."""
        names: dict[str, list[str]] = defaultdict(list)
        for name in self.features.names:
            names[_key(PurePosixPath(name).name)].append(name)
        return dict(names)

    @functools.cached_property
    def _folders(self) -> tuple[Path, ...]:
        return (*(p for p in self.images if not isinstance(p, str)), *self.data)

    @functools.cached_property
    def _sources(self) -> list[ShardImages]:
        return [open_images(spec) for spec in self.images if isinstance(spec, str)]

    @functools.cached_property
    def _in_shards(self) -> dict[str, list[_InShard]]:
        """Photos in shards by the name that their benchmarks may call them."""
        photos: dict[str, list[_InShard]] = defaultdict(list)
        for source in self._sources:
            for name, called in source.called():
                photo = _InShard(source, name, PurePosixPath(called))
                photos[_key(photo.called.name)].append(photo)
        return dict(photos)

    @functools.cached_property
    def _files(self) -> dict[Path, dict[str, list[Path]]]:
        """All files of each root by their name."""
        files: dict[Path, dict[str, list[Path]]] = {}
        for root in dict.fromkeys(self._folders):
            by_name = files[root] = defaultdict(list)
            for file in _walk(root):
                by_name[file.name].append(file)
        return files

    @functools.cached_property
    def _photos(self) -> dict[str, dict[Path, Path]]:
        """All photos by the name that their benchmarks may call them, with the root of each."""
        photos: dict[str, dict[Path, Path]] = defaultdict(dict)
        for root, by_name in self._files.items():
            for name, files in by_name.items():
                if Path(name).suffix.lower() in PHOTO_SUFFIXES:
                    photos[_key(name)] |= dict.fromkeys(files, root)
        return dict(photos)


# The photos, always equally many, whose mean embedding stands for an image.
Views = Callable[[ImageRef], tuple[ImageRef, ...]]


class ProblemImages:
    """Distinct images all of whose photos, `refs`, are there; `missing` are paths of others."""

    def __init__(self, roots: DataRoots, images: Iterable[ImageRef], views: Views | None = None):
        parts = {ref: views(ref) if views else (ref,) for ref in dict.fromkeys(images)}
        self.missing = roots.missing(view.path for refs in parts.values() for view in refs)
        gone = set(self.missing)
        kept = [ref for ref, refs in parts.items() if not any(v.path in gone for v in refs)]
        self.refs = [view for ref in kept for view in parts[ref]]
        self._count = len(self.refs) // max(len(kept), 1)
        self._rows = {ref: row for row, ref in enumerate(kept)}

    def __contains__(self, ref: ImageRef) -> bool:
        return ref in self._rows

    def row(self, ref: ImageRef) -> int:
        """Row of the image in `features`."""
        return self._rows[ref]

    def shown(self, ref: ImageRef) -> int:
        """Index in `refs` of the photo that stands for the image in a gallery."""
        return self._rows[ref] * self._count

    def features(self, encoded: np.ndarray) -> np.ndarray:
        """Unit features of the images from those of `refs`, `[len(refs), D]`."""
        return encoded if self._count == 1 else mean_directions(encoded, self._count)


@functools.lru_cache(16)
def tfds_rows(name: str, split: str, folders: tuple[Path, ...]) -> Sequence[dict]:
    """Random access to a split of a prepared tensorflow-datasets folder; images stay encoded.

    Looked for in TFDS_DATA_DIR and in `folders`. Raises InputError where it is not prepared.
    """
    from negclip_jax.data import tfds

    problem: InputError | None = None
    for data_dir in (None, *map(str, folders)):
        try:
            return tfds.open_split(name, split, data_dir, features=("image",))
        except InputError as error:
            problem = problem or error
    raise problem


def _walk(root: Path) -> Iterator[Path]:
    """All files below `root`, through symbolic links, each folder once."""
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (Path(folder, file) for file in sorted(files))


def _why_empty(path: Path) -> str:
    """How a file holds nothing: no byte, white space, or an empty list or object; "" if it does."""
    if (size := path.stat().st_size) > _LARGEST_EMPTY:
        return ""
    content = path.read_bytes().strip()
    if b"".join(content.split()) in (b"[]", b"{}"):
        return "holds no items"
    return "" if content else f"is empty: {'it holds only white space' if size else '0 bytes'}"


def _key(name: str) -> str:
    name = name_key(name)
    coco = _COCO.fullmatch(name)
    return coco[1] if coco else name


def _posix(path: str) -> PurePosixPath:
    return PurePosixPath(path.replace("\\", "/"))


def _best(
    found: Sequence[_T],
    called: Callable[[_T], PurePath],
    path: str,
    roots: Mapping[_T, Path] | None = None,
) -> list[_T]:
    """Of photos of one name those whose folders agree most with `path`, none of another data set.

    `called`: how a user calls a photo; `roots`: the data folder that each is below, if in one.
    """
    wanted = _posix(path)

    def is_of_another_folder(photo: _T) -> bool:
        folder, root = called(photo).parent, (roots or {}).get(photo)
        below = folder.relative_to(root) if root else folder
        return _is_of_another_folder(root.name if root else "", below, wanted.parent)

    if not _COCO.fullmatch(name_key(wanted.name)):
        found = [photo for photo in found if not is_of_another_folder(photo)]
    best = max((_agreement(called(p), wanted) for p in found), default=0)
    return [p for p in found if _agreement(called(p), wanted) == best]


def _is_of_another_folder(root: str, folder: Path, wanted: PurePosixPath) -> bool:
    """Whether a folder below the data folder `root` and a wanted one name other data sets.

    "celeba" is another one than "VOC2007/JPEGImages"; "voc2007" and "photos" are not.
    """
    ours, theirs, above = (
        {name_key(part).lower() for part in parts if len(part) >= _SHORTEST_NAME} - _ANY_FOLDER
        for parts in (folder.parts, wanted.parts, (root,))
    )
    agree = any(a in b or b in a for a in ours | above for b in theirs)
    return bool(ours and theirs) and not agree


def _agreement(file: PurePosixPath, wanted: PurePosixPath) -> int:
    """How many trailing parts of two paths agree, if the file names do; a name that is the same to
    the letter wins over one in another spelling."""
    count = 0
    for ours, theirs in zip(reversed(file.parts), reversed(wanted.parts), strict=False):
        if name_key(ours) != name_key(theirs):
            break
        count += 2
    return count + (count and file.name == wanted.name)
