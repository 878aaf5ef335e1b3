"""Accepted pairs together with their photos: webdataset's tars, or Parquet as `datasets` reads it.

    wds:DIR/pairs-{000000..}.tar          a photo's KEY.jpg, KEY.txt (its first caption), KEY.json
    parquet:DIR/pairs-{000000..}.parquet  a photo's row; the column `image` has `bytes` and `path`

A photo is there once, with all of its pairs. JSON object and row say the same: the first pair's
"caption", "negated", "foils", "object" and "provenance", as most readers know one caption a photo;
"pairs", a list of all of them, which `data.pairs` reads; "image_id" and "file_name" of the input;
and "statements". The last stand beside the shards too, in `statements.parquet`, under the names
that the photos have now.

Shards appear whole, and what `DIR/export.json` says of them allows to go on: a shard that would
become the same is left as it is. Nothing in it depends on time: the same run and photos give the
same bytes.
"""

import contextlib
import hashlib
import io
import itertools
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from data_gen.statements import Statement
from negclip_jax.common import atomic_files, storage, strict_json
from negclip_jax.common.decoding import ImageError, opened
from negclip_jax.common.errors import InputError
from negclip_jax.common.photos import PHOTO_SUFFIXES
from negclip_jax.common.provenance import content_hash, file_facts
from negclip_jax.data.images import ImageSource
from negclip_jax.data.pairs import Pair
from negclip_jax.data.sources import SUFFIXES, kind_of

_FORMAT = 1
_FORMS = ("wds", "parquet")
_NUMBER = re.compile(r"\{(0+)\.\.\}")
_USUAL = "pairs-{000000..}"
_ROWS, _GROUP = 100, 2**26  # photos and bytes of a row group, as `datasets` writes them
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "TIFF": ".tif"}
_OF_PAIR = ("caption", "negated", "foils", "object", "provenance")
_OF_STATEMENT = ("text", "truth", "polarity", "caption_id", "unit", "form")

_TEXT, _TEXTS = pa.string(), pa.list_(pa.string())
_PAIR = [(key, _TEXTS if key == "foils" else _TEXT) for key in _OF_PAIR]
_STATEMENT = [(key, pa.bool_() if key == "truth" else _TEXT) for key in _OF_STATEMENT]
# What makes `datasets` decode the column, as its own files have it.
_FEATURES = {"info": {"features": {"image": {"_type": "Image"}}}}
SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", _TEXT)])),
        ("file_name", _TEXT),
        ("image_id", _TEXT),
        *_PAIR,
        ("pairs", pa.list_(pa.struct(_PAIR))),
        ("statements", pa.list_(pa.struct(_STATEMENT))),
    ]
)


class Photo(NamedTuple):
    """A photo with all that is said of it."""

    about: dict[str, Any]  # what is written beside it
    statements: list[list[Statement] | None]  # of each of its pairs

    @classmethod
    def of(cls, said: Sequence[tuple[Pair, list[Statement] | None]]) -> "Photo":
        """From all pairs of one photo, each with its statements."""
        listed = [{key: getattr(pair, key) for key in _OF_PAIR} for pair, _ in said]
        listed = [pair | {"foils": list(pair["foils"])} for pair in listed]
        texts = [text for _, found in said for text in found or ()]
        statements = [{key: getattr(text, key) for key in _OF_STATEMENT} for text in texts]
        named = {"file_name": said[0][0].image, "image_id": said[0][0].image_id}
        about = named | listed[0] | {"pairs": listed, "statements": statements}
        return cls(about, [found for _, found in said])


class Place(NamedTuple):
    """Where to write: form, folder, and the names of the files with `{}` for their number."""

    form: str
    folder: Path
    name: str
    digits: int

    def file(self, number: int) -> Path:
        """The shard with this number."""
        return self.folder / self.name.format(str(number).rjust(self.digits, "0"))

    def spec(self, count: int) -> str:
        """What a user writes for so many shards."""
        numbers = (str(i).rjust(self.digits, "0") for i in (0, count - 1))
        return f"{self.form}:{self.folder}/{self.name.format('{' + '..'.join(numbers) + '}')}"


def is_sharded(to: str) -> bool:
    """Whether an argument means shards, not a folder of files."""
    return kind_of(to)[0] in (*SUFFIXES, "tfds")


def place_of(to: str) -> Place:
    """What `--to` means; raises InputError for what cannot be written."""
    form, rest = kind_of(to)
    example = f"{form}:DIR/{_USUAL}{SUFFIXES.get(form, '')}"
    if form not in _FORMS:
        raise InputError(f"--to={to}: shards are written as wds: and parquet:, or give a folder")
    if storage.is_remote(rest):
        raise InputError(
            f"--to={to}: write to a folder of this machine, then copy it to the bucket"
        )
    path = Path(rest)
    if not path.name.endswith(SUFFIXES[form]):
        path /= _USUAL + SUFFIXES[form]
    plain = path.name.replace("%", "")
    found = _NUMBER.findall(plain)
    if len(found) != 1 or set(_NUMBER.sub("", plain)) & set("{}"):
        raise InputError(f"--to={to} does not say where the number of a shard goes: {example}")
    return Place(form, path.parent, _NUMBER.sub("{}", plain), len(found[0]))


class Shards:
    """Writes photos shard by shard, and goes on where an earlier attempt ended.

    Attributes:
      folder: of the shards.
      spec: how a user calls what was written.
      photos: how many were written.
      left_out: names of those that could not be read.
    """

    def __init__(self, to: str, images: ImageSource, size: int):
        """`to`: see the module; `size`: bytes from which on a shard is full."""
        self.spec, self.photos, self.left_out = to, 0, list[str]()
        self._place, self._images, self._size = place_of(to), images, size
        self.folder = self._place.folder
        self._progress = self.folder / "export.json"
        self._known, self._former = list[dict](), set[str]()
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            said = strict_json.load(self._progress)
            self._known = [dict(shard) for shard in said["shards"]]
            self._former = {shard["name"] for shard in self._known} | set(said["former"])

    def write(self, every: Iterator[Photo]) -> Iterator[tuple[str, Photo]]:
        """Yields each photo that is in a shard, with its name there; raises OSError."""
        done: list[dict] = []
        while (first := next(every, None)) is not None:
            path, every = self._place.file(len(done)), itertools.chain([first], every)
            record = self._known[len(done)] if len(done) < len(self._known) else None
            part = [] if record is None else list(itertools.islice(every, record["photos"]))
            after = next(every, None)
            every = every if after is None else itertools.chain([after], every)
            is_same = record is not None and self._is_same(path, record, part)
            if is_same and (after is None or record["is_full"]):
                left_out = set(record["left_out"])
                names = self._names(path, [p for p in part if p.about["file_name"] not in left_out])
            else:
                self._known = []
                record, names = self._new(path, itertools.chain(part, every))
            done.append(record)
            self._former.add(path.name)
            self._say(done)
            self.photos += len(names)
            self.left_out += record["left_out"]
            yield from names
        for name in self._former - {shard["name"] for shard in done}:
            if re.fullmatch(re.escape(self._place.name).replace(r"\{\}", r"\d+"), name):
                (self.folder / name).unlink(missing_ok=True)  # of a longer export
        self._former = set()
        self._say(done)
        self.spec = self._place.spec(len(done))

    def _say(self, done: Sequence[Mapping[str, Any]]) -> None:
        said = {"shards": done, "former": sorted(self._former)}
        storage.write_whole(self._progress, (json.dumps(said, indent=1) + "\n").encode())

    def _is_same(self, path: Path, record: Mapping[str, Any], part: Sequence[Photo]) -> bool:
        """Whether a shard that is there is the one that would be written."""
        digest = self._digest()
        for photo in part:
            digest.update(self._described(photo))
        try:
            facts = {**file_facts(path), "digest": digest.hexdigest(), "name": path.name}
            return all(facts[key] == record[key] for key in ("sha256", "digest", "name"))
        except InputError:  # the file is gone
            return False

    def _digest(self) -> Any:
        """Of what decides about a shard beside its photos."""
        return hashlib.sha256(repr((_FORMAT, self._place.form, self._size, self.photos)).encode())

    def _described(self, photo: Photo) -> bytes:
        try:
            identity = self._images.identity(photo.about["file_name"])
        except ImageError:
            identity = []
        return content_hash([photo.about, identity]).encode()

    def _new(
        self, path: Path, every: Iterator[Photo]
    ) -> tuple[dict[str, Any], list[tuple[str, Photo]]]:
        """Writes a shard; returns what to say of it, and its photos by name."""
        kept, left_out, digest, filled = list[Photo](), list[str](), self._digest(), 0
        with (
            atomic_files.whole_file(path) as unfinished,
            _WRITERS[self._place.form](unfinished) as write,
        ):
            while filled < self._size and (photo := next(every, None)) is not None:
                digest.update(self._described(photo))
                name, content = photo.about["file_name"], b""
                with contextlib.suppress(ImageError):
                    content = self._images.read(name)
                if content:
                    key = f"{self.photos + len(kept):09d}"
                    filled += write(key, self._suffix(name, content), content, photo.about)
                    kept.append(photo)
                else:
                    left_out.append(name)
        record = {"name": path.name, "photos": len(kept) + len(left_out), "left_out": left_out}
        record |= {"is_full": filled >= self._size, "digest": digest.hexdigest()}
        return record | {"sha256": file_facts(path)["sha256"]}, self._names(path, kept)

    def _names(self, path: Path, kept: Sequence[Photo]) -> list[tuple[str, Photo]]:
        """Photos of a shard, as `data.images` calls them."""
        if self._place.form == "parquet":
            return [(f"{path.name}/{row}", photo) for row, photo in enumerate(kept)]
        named = []
        for number, photo in enumerate(kept, self.photos):
            suffix = self._suffix(photo.about["file_name"])
            named.append((f"{path.name}/{number:09d}{suffix}", photo))
        return named

    def _suffix(self, name: str, content: bytes | None = None) -> str:
        """What a photo is called by in a tar; by its content where its name does not tell."""
        suffix = Path(name).suffix.lower()
        if suffix in PHOTO_SUFFIXES:
            return suffix
        try:
            with opened(self._images.read(name) if content is None else content, name) as image:
                return _SUFFIXES.get(image.format, ".jpg")
        except ImageError:
            return ".jpg"


@contextlib.contextmanager
def _tar(path: Path) -> Iterator[Callable[..., int]]:
    """A function that adds a photo and returns the bytes that it takes."""
    with tarfile.TarFile(path, "w", format=tarfile.USTAR_FORMAT) as tar:

        def write(key: str, suffix: str, content: bytes, about: Mapping[str, Any]) -> int:
            start = tar.offset
            text = json.dumps(about, ensure_ascii=False)
            members = {suffix: content, ".txt": about["caption"].encode(), ".json": text.encode()}
            for end, data in members.items():
                info = tarfile.TarInfo(key + end)  # of no time, user or group
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            return tar.offset - start

        yield write


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[Callable[..., int]]:
    """The same for Parquet, a row group at a time."""
    schema = SCHEMA.with_metadata({"huggingface": json.dumps(_FEATURES)})
    with pq.ParquetWriter(path, schema, compression="zstd") as file:
        rows: list[dict[str, Any]] = []
        held = 0

        def flush() -> None:
            nonlocal held
            file.write_table(pa.Table.from_pylist(rows, schema))
            rows.clear()
            held = 0

        def write(key: str, suffix: str, content: bytes, about: Mapping[str, Any]) -> int:
            nonlocal held
            rows.append({"image": {"bytes": content, "path": key + suffix}, **about})
            held += len(content)
            if len(rows) == _ROWS or held >= _GROUP:
                flush()
            return len(content)

        yield write
        if rows:
            flush()


_WRITERS = {"wds": _tar, "parquet": _parquet}
