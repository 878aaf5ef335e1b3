"""Accepted pairs in the layouts that training reads: `launch.py`'s, the published one, and shards.

Shards hold the photos too: webdataset's tars, or Parquet as `datasets` reads it.

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
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from data_gen import statements
from data_gen.labels import write_labels
from data_gen.records import read_manifest
from data_gen.statements import Statement
from negclip_jax.common import atomic_files, storage, strict_json
from negclip_jax.common.decoding import ImageError, opened
from negclip_jax.common.errors import InputError
from negclip_jax.common.packed import Index, Texts
from negclip_jax.common.photos import PHOTO_SUFFIXES
from negclip_jax.common.problems import first
from negclip_jax.common.provenance import content_hash, file_facts
from negclip_jax.data.images import ImageSource
from negclip_jax.data.pairs import Pair, PairError, pair_writer
from negclip_jax.data.sources import SUFFIXES, kind_of, open_images

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


@dataclass(frozen=True)
class Exported:
    """Files that were written, and how many pairs and statements are in them."""

    files: list[Path | str]
    pairs: int
    statements: int
    training: dict[str, str]  # values of the keys of the section `data` that reads them
    left_out: Sequence[str] = ()  # photos that are in no shard, as they could not be read


def export(run: Path, to: Path) -> Exported:
    """Writes what training reads, all of it from one pass over the tables.

    `statements.parquet` (`data_gen.statements`) for `launch.py --config.data.statements`;
    `pairs.json` (COCO layout with `updated_caption` and `foils`) and `pairs.parquet`, both for
    `--config.data.pairs`; `labels.json`; and `published.json`: the input file with
    `updated_caption` in the annotations that got one, as NegationCLIP released it.

    The foils of a pair are the false statements in its own words. Where nothing is known to be in
    the photo there are no statements, and the foils that the run wrote stay.

    Raises InputError where there is nothing to export or a file cannot be written.
    """
    manifest = read_manifest(run)
    files = [to / name for name in ("pairs.json", "pairs.parquet", "statements.parquet")]
    ids, rewritten = Texts(), Texts()
    with _reported(to):
        with pair_writer(files[0]) as as_coco, pair_writer(files[1]) as as_table:

            def said() -> Iterator[list[Statement] | None]:
                for one in _accepted(run, manifest["config"]):
                    for write in (as_coco, as_table):
                        write(_pair(one))
                    ids.append(one.pair["caption_id"])
                    rewritten.append(one.pair["negated_caption"])
                    yield one.statements

            texts = statements.write(files[2], said())
        files.append(to / "labels.json")
        write_labels(run, files[-1])
        captions = Path(manifest["inputs"]["captions"]["path"])
        if captions.suffix.lower() == ".json":
            files.append(_write_published(to / "published.json", captions, ids, rewritten))
    training = {"pairs": str(files[0]), "images": "..."}
    return Exported(files, len(ids), texts, training | _of_statements(files[2], texts))


def export_shards(run: Path, to: str, images: str | None = None, size: int = 5 * 10**8) -> Exported:
    """Writes pairs and photos as the module says, and statements beside them.

    `images`: where the photos are; None: as the run says. `size`: bytes from which on a shard is
    full. Raises InputError as `export`, and where none of the photos can be read.
    """
    config = read_manifest(run)["config"]
    images = images or config["input"]["images"]
    if not images:
        raise InputError("the run read no photos: give --images=DIR, from which they are taken")
    shards = Shards(to, open_images(images), size)
    said = ((_pair(one), one.statements) for one in _accepted(run, config))
    photos = itertools.groupby(said, lambda x: (x[0].image_id, x[0].image))
    number, path = 0, shards.folder / "statements.parquet"

    def written_beside() -> Iterator[list[Statement] | None]:
        nonlocal number
        for name, photo in shards.write(Photo.of(list(group)) for _, group in photos):
            number += len(photo.statements)
            for found in photo.statements:
                yield None if found is None else [x._replace(image=name) for x in found]

    with _reported(shards.folder):
        shards.folder.mkdir(parents=True, exist_ok=True)
        with _alone(shards.folder):
            texts = statements.write(path, written_beside())
    if not number:
        raise InputError(
            f"none of the {len(shards.left_out)} photos can be read from {images}, e.g. "
            f"{first(shards.left_out, 3)}: give --images"
        )
    training = {"pairs": shards.spec, "images": shards.spec} | _of_statements(path, texts)
    return Exported([shards.spec, path], number, texts, training, shards.left_out)


def _of_statements(path: Path, count: int) -> dict[str, str]:
    return {"statements": str(path)} if count else {}


@contextlib.contextmanager
def _reported(to: Path) -> Iterator[None]:
    """Raises InputError for what cannot be written."""
    try:
        yield
    except PairError as error:
        raise InputError(str(error), status=5) from None
    except OSError as error:
        raise InputError(f"{to} could not be written ({error.strerror or error})", 5) from None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Raises InputError where another process exports to a folder."""
    descriptor = atomic_files.lock(folder / ".export.lock")
    if descriptor is None:
        raise InputError(f"another process exports to {folder}: wait for it or end it")
    try:
        yield
    finally:
        os.close(descriptor)


def _accepted(run: Path, config: Mapping[str, Any]) -> Iterator[statements.Exported]:
    """The pairs to export; raises InputError for none."""
    one = None
    for one in statements.exported(run, config):
        yield one
    if one is None:
        raise InputError(f"{run} has no accepted pair; `python -m data_gen report` shows why")


def _pair(one: statements.Exported) -> Pair:
    row = one.pair
    provenance = f"data_gen {row['pipeline']}, {row['models']['rewrite'] or row['rewriter']}"
    return Pair(
        row["file_name"],
        row["caption"],
        row["negated_caption"],
        tuple(one.foils),
        row["object"],
        f"{provenance}, run {row['run_id']}",
        image_id=row["image_id"],
    )


def _write_published(path: Path, captions: Path, ids: Texts, rewritten: Texts) -> Path:
    """The input with one key more in annotations that were rewritten; the first of several."""
    index = Index(ids)

    def updated(key: str, number: int, value: Any) -> Any:
        if key == "annotations" and isinstance(value, dict):
            place = index.first(str(value.get("id", f"row {number}")))
            if place >= 0:
                value["updated_caption"] = rewritten[place]
        return value

    with atomic_files.whole_file(path) as unfinished, unfinished.open("w", encoding="utf-8") as out:
        try:
            out.writelines(_json(strict_json.members(captions), updated))
        except strict_json.Irregular:
            try:
                content = strict_json.load(captions).items()
            except (OSError, ValueError, AttributeError):
                why = f"{captions}, the input of the run, is no longer readable there"
                raise InputError(why) from None
            out.seek(0)
            out.truncate()
            lists = {key: value for key, value in content if value and isinstance(value, list)}
            members = (
                (key, key in lists, element)
                for key, value in content
                for element in lists.get(key, [value])
            )
            out.writelines(_json(members, updated))
    return path


def _json(
    members: Iterable[tuple[str, bool, Any]], change: Callable[[str, int, Any], Any]
) -> Iterator[str]:
    """The text of a JSON object, from its members as `strict_json.members` gives them."""
    before, number, end = None, 0, ""
    for key, is_element, value in members:
        start = ", "
        if key != before:
            start = f"{end}, " if before is not None else "{"
            start += json.dumps(key, ensure_ascii=False) + (": [" if is_element else ": ")
            before, number, end = key, 0, "]" if is_element else ""
        yield start + json.dumps(change(key, number, value), ensure_ascii=False)
        number += 1
    yield f"{end}}}" if before is not None else "{}"


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
        return self.folder / self.name.format(f"{number:0{self.digits}d}")

    def spec(self, count: int) -> str:
        """What a user writes for so many shards."""
        numbers = "..".join(f"{number:0{self.digits}d}" for number in (0, count - 1))
        return f"{self.form}:{self.folder}/{self.name.format(f'{{{numbers}}}')}"


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
    """Writes photos shard by shard, and goes on where an earlier attempt ended."""

    def __init__(self, to: str, images: ImageSource, size: int):
        """`to`: see the module; `size`: bytes from which on a shard is full."""
        self.spec = to  # how a user calls what was written
        self.photos, self.left_out = 0, list[str]()  # that were written, names that cannot be read
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
            if (after := next(every, None)) is not None:
                every = itertools.chain([after], every)
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
        facts = {"digest": digest.hexdigest(), "name": path.name}
        with contextlib.suppress(InputError):  # the file is gone
            facts |= file_facts(path)
        return all(facts.get(key) == record[key] for key in ("sha256", "digest", "name"))

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
        suffixes = (self._suffix(photo.about["file_name"]) for photo in kept)
        numbered = enumerate(zip(suffixes, kept, strict=True), self.photos)
        return [(f"{path.name}/{number:09d}{end}", photo) for number, (end, photo) in numbered]

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
