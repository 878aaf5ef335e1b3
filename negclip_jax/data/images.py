"""Images on disk to CLIP's pixels, exactly as CLIP was trained: PIL bicubic, centre crop.

Two conventions of the centre crop are in use and both are offered, `Preprocessor.crop`:

- ``"openai"``: OpenAI's clip and open_clip (torchvision) cut at ``round((n - size) / 2)``, halves
  to even. The published recipe used it.
- ``"transformers"``: `CLIPImageProcessor` cuts at ``(n - size) // 2``.

They differ where ``n - size`` is 3 more than a multiple of 4, by one pixel: 23 % of COCO photos.

What differs from each reference, on purpose: images become RGB *before* the resize, as
transformers does (OpenAI resizes palette and 1-bit images in their own mode, then converts);
16-bit grey is scaled to 8 bits where Pillow's own conversion clips it; of an image whose resized
long side would pass 32,768 pixels (thinner than 1:146 at 224) only the part under the crop is
resized, which rounds differently between Pillow's two passes: a level or two in smooth parts.
"""

import functools
import logging
import os
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cykooz_resizer
import numpy as np
from jaxtyping import Float32, Int64, Shaped, UInt8
from PIL import Image

from negclip_jax.common import remote, storage
from negclip_jax.common.decoding import ImageError, decode, opened, read_file, to_rgb, upright
from negclip_jax.common.photos import PHOTO_SUFFIXES, find_file, name_key
from negclip_jax.common.problems import first
from negclip_jax.data.records import unsafe_name

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)
RESAMPLES = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
CROPS = ("openai", "transformers")
# Photos in formats that are not read, which are named rather than passed over.
_NOT_READ = {".jxl", ".jp2", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"}
LARGEST_SIDE = 2**13  # pixels; a checkpoint's file may name any number

# A longer side than this is never made: 22 MB at 224 pixels, where a 1x5000 image would need
# 750 MB to be resized whole and then lose all but its middle.
_LONGEST_RESIZED = 32_768


# Pillow's bicubic is the Catmull-Rom spline, a = -0.5.
_CATMULL_ROM = cykooz_resizer.ResizeOptions(
    resize_alg=cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.catmull_rom),
    use_alpha=False,
)


@dataclass(frozen=True)
class Preprocessor:
    """CLIP's preprocessing: shortest side to `resize`, centre crop to `size`, mean and std.

    Attributes:
      size: height and width of the result, in pixels.
      resize: shortest side after the bicubic resize, in pixels, at least `size`.
      crop: "openai" or "transformers", see the module's docstring.
      mean, std: of red, green and blue, for values in 0..1.
      squash: resize both sides to `size` instead, and crop nothing: SigLIP's preprocessing.
      resample: filter of the resize, "bicubic" or "bilinear" (some of SigLIP 2).
      exif: turn the image as its EXIF orientation says. CLIP's own pipelines do not.
      exact: resize with Pillow, bit-equal to the references. False uses the same filter and passes
        in SIMD code: five times the speed, at most 2 of 255 levels off, 0.004 on average over
        COCO photos.
    """

    size: int = 224
    resize: int = 224
    crop: str = "openai"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    exif: bool = False
    exact: bool = True
    squash: bool = False
    resample: str = "bicubic"

    def __post_init__(self):
        if self.crop not in CROPS:
            raise ImageError(f"crop is {self.crop!r}: it must be one of {', '.join(CROPS)}.")
        if self.resample not in RESAMPLES:
            raise ImageError(f"resample is {self.resample!r}: it must be bicubic or bilinear.")
        if not 0 < self.size <= self.resize <= LARGEST_SIDE:
            raise ImageError(
                f"size is {self.size} and resize {self.resize}: the crop must be at least one "
                f"pixel and no larger than the resized shortest side, which has at most "
                f"{LARGEST_SIDE:,}."
            )
        colours = (*self.mean, *self.std)
        numbers = all(isinstance(v, (int, float)) and abs(v) < 1e6 for v in colours)
        if not (len(self.mean) == len(self.std) == 3 and numbers and min(self.std) > 0):
            raise ImageError(
                f"mean is {str(self.mean)[:200]} and std {str(self.std)[:200]}: each needs one "
                "value for red, green and blue, and std must be above 0."
            )

    def uint8(self, image: Image.Image) -> UInt8[np.ndarray, "{self.size} {self.size} 3"]:
        """Resized and cropped pixels; see `exact`."""
        image = to_rgb(upright(image) if self.exif else image)
        if self.squash:
            return np.asarray(self._resized(image, self.size, self.size))
        width, height = image.size
        short = min(width, height)
        # int(), not round(): torchvision's and transformers' rule for the long side.
        new_width, new_height = (
            self.resize if n == short else int(self.resize * n / short) for n in image.size
        )
        left, top = self._offset(new_width), self._offset(new_height)
        if max(new_width, new_height) <= _LONGEST_RESIZED:
            image = self._resized(image, new_width, new_height)
            image = image.crop((left, top, left + self.size, top + self.size))
        else:
            x, y = width / new_width, height / new_height
            box = (left * x, top * y, (left + self.size) * x, (top + self.size) * y)
            image = image.resize((self.size, self.size), RESAMPLES[self.resample], box=box)
        return np.asarray(image)

    def normalise(self, pixels: Shaped[np.ndarray, "*B 3"]) -> Float32[np.ndarray, "*B 3"]:
        """Bytes to `(pixels / 255 - mean) / std`, in OpenAI's order.

        On the host, bit-equal to the references; `models.normalisation` does it on the device,
        where XLA may turn the divisions into products.
        """
        if pixels.dtype != np.uint8:
            raise ImageError(f"normalise takes uint8 pixels, got {pixels.dtype}.")
        scaled = pixels.astype(np.float32)
        scaled /= np.float32(255)
        scaled -= np.array(self.mean, np.float32)
        scaled /= np.array(self.std, np.float32)
        return scaled

    def __call__(self, images) -> Float32[np.ndarray, "B {self.size} {self.size} 3"]:
        """Model input from one image or a sequence of them.

        An image is a PIL image, a path, or a uint8 array `[H, W]`, `[H, W, 3]` or `[H, W, 4]`; an
        array `[B, H, W, 3]` is B images. Raises ImageError for anything else.
        """
        images = [images] if is_one_image(images) else images
        pixels = [self.uint8(_as_image(image)) for image in images]
        if not pixels:
            return np.zeros((0, self.size, self.size, 3), np.float32)
        return self.normalise(np.stack(pixels))

    def _resized(self, image: Image.Image, width: int, height: int) -> Image.Image:
        if self.exact or self.resample != "bicubic":
            return image.resize((width, height), RESAMPLES[self.resample])
        # Pillow works in two passes and rounds after each. One call here would take them in the
        # other order, which is 50 times as far off.
        for size in ((width, image.height), (width, height)):
            resized = Image.new("RGB", size)
            cykooz_resizer.Resizer().resize_pil(image, resized, _CATMULL_ROM)
            image = resized
        return image

    def _offset(self, length: int) -> int:
        if self.crop == "openai":
            return round((length - self.size) / 2)  # Python's round: halves to even
        return (length - self.size) // 2


def is_one_image(images: Any) -> bool:
    """Whether this is an image (PIL, path or array), not several of them."""
    return isinstance(images, (Image.Image, str, os.PathLike)) or getattr(images, "ndim", 4) < 4


class ImageSource(Protocol):
    """Where images come from: what `data.sources.open_images` opens.

    Threads may use it, and it pickles for worker processes. A name that would lead out of where the
    images are is an ImageError.
    """

    def open(self, name: str) -> Image.Image:
        """The image in mode RGB; raises ImageError that names it."""

    def read(self, name: str) -> bytes:
        """The encoded image, empty where it cannot be read."""

    def identity(self, name: str) -> list:
        """What changes whenever the image's bytes do and is cheaper to look up."""

    def identities(self, names: Sequence[str]) -> list[list]:
        """The identity of each name, all at once."""
        return [self.identity(name) for name in names]

    def names(self) -> list[str]:
        """Of all images that are there."""

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that are not there, each once and in order."""

    def storage_order(self, names: Sequence[str]) -> Int64[np.ndarray, " N"]:
        """Indices of names in the order in which all of them are read fastest."""
        return np.arange(len(names))

    def version(self) -> str | None:
        """What changes whenever `missing` may; None where only `missing` itself can tell."""
        return None


@dataclass(frozen=True)
class ImageRef:
    """One picture to encode; equal references are encoded once.

    Attributes:
      path: name in its source.
      box: x, y, width, height in pixels; the picture is then `crop((x, y, x + w, y + h))`, cut
        before any preprocessing.
    """

    path: str
    box: tuple[float, float, float, float] | None = None

    def open(self, source: ImageSource) -> Image.Image:
        """The picture, cropped to its box; outside of the image it is black. Raises ImageError."""
        image = source.open(self.path)
        if self.box is None:
            return image
        x, y, width, height = self.box
        try:
            part = image.crop((x, y, x + width, y + height))
            if min(part.size) > 0:
                return part
            reason = "it is less than a pixel"
        except (Image.DecompressionBombError, OverflowError, ValueError) as error:
            reason = error
        raise ImageError(f"{self.path}: the box {list(self.box)} cannot be cut out ({reason})")


class ImageDirectory(ImageSource):
    """Images by their name under one directory. Pickles to two strings."""

    def __init__(self, root: str | os.PathLike):
        """Raises ImageError if `root` is not a directory."""
        self.root = os.fspath(root)
        if not os.path.isdir(self.root):
            raise ImageError(f"The image directory {self.root} does not exist.")
        self._real_root = os.path.realpath(self.root)

    def open(self, name: str) -> Image.Image:
        return decode(self._path(name))

    def read(self, name: str) -> bytes:
        return read_file(self._path(name))

    def identity(self, name: str) -> list[int]:
        """Changes whenever the file does: size and times, among them the one that cannot be set."""
        try:
            stat = os.stat(self._path(name))
        except OSError:
            return []
        return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]

    def _path(self, name: str) -> str:
        """Raises ImageError for a name that leaves the directory, itself or by a symbolic link."""
        # Under another spelling where that is the only one: see `photos.find_file`.
        spelled = find_file(Path(self.root), _safe(name))
        path = os.path.join(self.root, name) if spelled is None else os.fspath(spelled)
        real = os.path.realpath(path)
        if os.path.commonpath((real, self._real_root)) != self._real_root:
            raise ImageError(
                f"{name}: a symbolic link leads out of the image directory {self.root} to {real}; "
                "copy the file, or use the directory that it lies in as the image directory."
            )
        return path

    def names(self) -> list[str]:
        """Of the photos at any depth, sorted; what `photos_below` does not read is logged."""
        names, skipped = photos_below(Path(self.root))
        if skipped:
            told = first([f"{name}: {reason}" for name, reason in skipped.items()], separator="; ")
            logging.warning("%d left out in %s: %s", len(skipped), self.root, told)
        return names

    def missing(self, names: Iterable[str]) -> list[str]:
        # Each directory is listed once: 100,000 names cost one listing, not 100,000 stats.
        present: dict[str, set[str]] = {}
        absent = []
        for name in dict.fromkeys(names):
            folder, file = posixpath.split(_safe(name))
            if folder not in present:
                present[folder] = _files(os.path.join(self.root, folder))
            if file not in present[folder] and find_file(Path(self.root), name) is None:
                absent.append(name)
        return absent


class BucketImages(ImageSource):
    """Images by their name below an address such as `gs://bucket/train2014`. Pickles to it."""

    def __init__(self, root: str):
        """Raises InputError where the storage is unknown and ImageError where nothing is there."""
        self.root = root.rstrip("/")
        self._folder = storage.path(self.root)
        if not self._listed:
            raise ImageError(f"There are no images at {self.root}.")

    def open(self, name: str) -> Image.Image:
        address = f"{self.root}/{_safe(name)}"
        try:
            content = self._bytes(name)
        except storage.errors() as error:
            cause = storage.root_cause(error)
            raise ImageError(f"{address}: the image cannot be read ({cause}).") from error
        return decode(content, name=address)

    def read(self, name: str) -> bytes:
        try:
            return self._bytes(name)
        except storage.errors():
            return b""

    def identity(self, name: str) -> list:
        """Size and the bucket's own checksum, of the time when this object was made."""
        info = self._listed.get(self._spelled(name))
        return [] if info is None else [info["size"], remote.checksum(info)]

    def names(self) -> list[str]:
        """Of the photos at any depth, sorted; hidden objects and folders left out."""
        shown = (name for name in self._listed if not any(p[:1] == "." for p in name.split("/")))
        return sorted(x for x in shown if posixpath.splitext(x)[1].lower() in PHOTO_SUFFIXES)

    def missing(self, names: Iterable[str]) -> list[str]:
        return [n for n in dict.fromkeys(names) if self._spelled(n) not in self._listed]

    def _bytes(self, name: str) -> bytes:
        try:
            return (self._folder / _safe(name)).read_bytes()
        except FileNotFoundError:  # there may be one of another spelling
            return (self._folder / self._spelled(name)).read_bytes()

    def _spelled(self, name: str) -> str:
        """The name as the bucket has it, where one object alone is spelled so; else the name."""
        name = _safe(name)
        if name in self._listed or len(found := self._spellings.get(name_key(name), ())) != 1:
            return name
        return found[0]

    @functools.cached_property
    def _spellings(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self._listed:
            found.setdefault(name_key(name), []).append(name)
        return found

    @functools.cached_property
    def _listed(self) -> dict[str, dict[str, Any]]:
        with storage.announced(f"the list of the images in {self.root}"):
            return remote.listed(self._folder)

    def __getstate__(self) -> dict[str, Any]:
        """Without the list, which a worker that opens images does not need."""
        return {"root": self.root}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.root = state["root"]
        self._folder = storage.path(self.root)


def _safe(name: str) -> str:
    """The name, normalised; ImageError where it must not be used."""
    if reason := unsafe_name(name):
        raise ImageError(f"The image name {name!r} {reason}: refused.")
    return posixpath.normpath(name)


def photos_below(root: Path) -> tuple[list[str], dict[str, str]]:
    """Names of the photos at any depth below a folder, sorted; hidden files and folders left out.

    Returns as well names that look like photos and are not read, with the reason: links that lead
    out of the folder above all. Linked folders are not entered. No photo is opened, unless its name
    has no suffix.
    """
    names, skipped, real_root = list[str](), dict[str, str](), os.path.realpath(root)
    for folder, folders, files in os.walk(root):
        here = Path(folder).relative_to(root)
        for name in [f for f in folders if (Path(folder) / f).is_symlink()]:
            skipped[(here / name).as_posix()] = "a link to a folder is not followed"
        folders[:] = [f for f in folders if not f.startswith(".")]
        for file in (f for f in files if not f.startswith(".")):
            name, suffix = (here / file).as_posix(), Path(file).suffix.lower()
            if suffix in PHOTO_SUFFIXES or (not suffix and _is_photo(Path(folder, file))):
                real = os.path.realpath(os.path.join(root, name))
                reason = unsafe_name(name) or ""
                if os.path.commonpath((real, real_root)) != real_root:
                    reason = "a link leads out of the folder"
                elif not os.path.isfile(real):
                    reason = "it is no file"
                if reason:
                    skipped[name] = reason
                else:
                    names.append(name)
            elif suffix in _NOT_READ:
                skipped[name] = f"photos of the type {suffix} are not read"
    return sorted(names), skipped


def _is_photo(path: Path) -> bool:
    """Whether a file without a suffix is one by its first bytes."""
    try:
        with opened(path):
            return not path.is_symlink()
    except ImageError:
        return False


def _files(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise ImageError(f"The image directory {folder}: {error.strerror}.") from None


def _as_image(image) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, (str, os.PathLike)):
        return decode(image)
    shape, dtype = getattr(image, "shape", None), getattr(image, "dtype", None)
    usable = shape is not None and (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4)))
    if dtype != np.uint8 or not usable or 0 in shape:
        what = type(image).__name__ if shape is None else f"{dtype} array of shape {tuple(shape)}"
        raise ImageError(
            f"An image must be a PIL image, a path or a uint8 array [H, W, 3], got {what}."
        )
    return Image.fromarray(np.ascontiguousarray(image))
