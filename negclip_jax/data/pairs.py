"""Files of negation pairs, in and out.

A pair is an image, its original caption and a caption that says what is absent. Files are COCO
JSON as NegationCLIP released it (`updated_caption` beside `caption` in each annotation), JSONL
and Parquet, all with the same content, and what others write, see `data.pair_records`. Everything
wrong with a file is reported in one error.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from negclip_jax.common import atomic_files, remote, storage, strict_json
from negclip_jax.common.packed import Index, Texts
from negclip_jax.common.provenance import content_hash, file_facts
from negclip_jax.common.records import identity
from negclip_jax.data import pair_tables, shards
from negclip_jax.data.fields import parse
from negclip_jax.data.pair_records import DELIMITERS, OF_FILES, OF_SHARDS, PairFile
from negclip_jax.data.records import FIELDS, Pair, PairError, unsafe_name
from negclip_jax.data.sources import SUFFIXES, kind_of, tfds_name

__all__ = ["Pair", "PairError", "read_pairs", "unsafe_name", "write_pairs"]

_log = logging.getLogger(__name__)


def read_pairs(
    path: str | os.PathLike, *, require_negated: bool = True, fields: str = ""
) -> list[Pair]:
    """Reads the pairs of a file or of a set of shards, in their order.

    COCO: `images` (`id`, `file_name`) and `annotations` (`image_id`, `caption`, and optionally
    `updated_caption`, `foils`, `object`, `provenance`); image ids become strings. JSONL and
    Parquet: the fields of `Pair`, of which `image` and `caption` are required and `image_id`
    defaults to `image`. Others: see `data.pair_records`. Image names are normalised ("a//./b" to
    "a/b").

    Args:
      path: a file, or as for images `wds:PATTERN`, `parquet:PATTERN`, `arrayrecord:PATTERN` and
        `tfds:NAME/SPLIT`.
      require_negated: leave out records without a negated caption, unchecked, and count them in the
        log; else they are read with `negated=None`.
      fields: which field of a record is what of a pair, see `data.fields`.

    Raises PairError for a file that cannot be read, and once for everything wrong in its records.
    """
    return list(iter_pairs(path, require_negated=require_negated, fields=fields))


def iter_pairs(
    path: str | os.PathLike, *, require_negated: bool = True, fields: str = "", log: bool = True
) -> Iterator[Pair]:
    """The pairs of `read_pairs`, one by one; of JSONL, Parquet and shards few are in memory.

    What is wrong with records is raised after the last one: use no pair before that. `log`: whether
    to say how many there are.
    """
    named, (kind, rest) = parse(fields), kind_of(os.fspath(path))
    if kind == "tfds":
        from negclip_jax.data import tfds

        if named:
            raise PairError(f"data.fields={fields} is not for {path}: its fields have fixed names.")
        yield from tfds.read_tfds_pairs(*tfds_name(os.fspath(path)))
        return
    if not kind and storage.is_remote(path):
        with remote.copied(path) as copy:
            yield from iter_pairs(copy, require_negated=require_negated, fields=fields, log=log)
            return
    where, count = os.fspath(path) if kind else Path(path), 0
    try:
        form = kind or _format_of(where)
        file = PairFile(where, form, named, require_negated=require_negated)
        for place, record in OF_SHARDS[kind](file, rest) if kind else OF_FILES[form](file):
            if (pair := file.pair(place, record)) is not None:
                count += 1
                yield pair
    except OSError as error:
        raise PairError(f"{path} cannot be read: {error.strerror or error}.") from None
    file.fields.require_seen(path)
    file.raise_if_any(where, PairError, "Correct or remove these records; nothing was read.")
    key = named.get("negated", ("updated_caption" if form == "coco" else "negated",))[0]
    if not count and file.dropped:
        raise PairError(
            f'{path}: none of its {file.dropped} records has "{key}", the negated caption. Write '
            'them with data_gen, or set data.caption_mode="original" to train on plain captions.'
        )
    lacking = "; ".join(file.lacking.listed())
    if not count:
        why = f": {lacking}; samples have the fields {file.fields.listed()}" if lacking else ""
        raise PairError(f"{path} holds no captions{why}: there is nothing to train on.")
    if not log:
        return
    left_out = f", {file.dropped} records without {key} left out" if file.dropped else ""
    _log.info("%s: %d pairs%s", path, count, left_out)
    if lacking:
        _log.warning("%s: samples are left out that have %s", path, lacking)


def content_of(
    path: str | os.PathLike, *, require_negated: bool = True, fields: str = ""
) -> tuple[list, Callable[[], str]]:
    """What says quickly that pairs are the same, and a function that digests their content.

    The first changes whenever their file does. Shards on this machine are digested by their pairs,
    not by all bytes of their images. Raises PairError for what is no file of pairs.
    """
    kind, rest = kind_of(os.fspath(path))
    options = {"require_negated": require_negated, "fields": fields, "log": False}

    def digest() -> str:
        found = hashlib.sha256()
        for pair in iter_pairs(path, **options):
            found.update(repr(dataclasses.astuple(pair)).encode())
        return found.hexdigest()

    if kind == "tfds":
        return [], lambda: content_hash([*map(dataclasses.astuple, iter_pairs(path))])
    if kind:
        found = shards.find(rest.partition("#")[0], SUFFIXES[kind])
        version = [content_hash([list(shard) for shard in found])]
        far = all(storage.is_remote(shard.path) for shard in found)
        return version, (lambda: content_hash([str(path), version])) if far else digest
    if storage.is_remote(path):
        found = remote.listed(storage.path(path))
        if "" not in found:
            raise PairError(f"There is no file of pairs at {path}.")
        version = [found[""]["size"], remote.checksum(found[""])]
        return version, lambda: content_hash([str(path), version])
    try:
        _format_of(Path(path))
        stat = os.stat(path)
    except OSError as error:
        raise PairError(f"{path} cannot be read: {error.strerror or error}.") from None
    version = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    return version, lambda: file_facts(path)["sha256"]


def about_how_many(path: str | os.PathLike) -> int | None:
    """Records of a file on this machine, for an estimate of time: those of JSON are not parsed.

    None where it takes a pass over shards, or over a network, to know.
    """
    if kind_of(os.fspath(path))[0] or storage.is_remote(path):
        return None
    form = _format_of(Path(path))
    if form == "parquet":
        return pair_tables.row_count(Path(path))
    if form not in ("coco", "jsonl", "table"):
        return None
    mark, found = b'"image_id"' if form == "coco" else b"\n", 0  # of each annotation
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            found += block.count(mark)
    return found


def _format_of(path: Path) -> str:
    """A key of `OF_FILES`, from first bytes or else the extension."""
    if not path.exists():
        raise PairError(f"There is no file of pairs at {path}.")
    if path.is_dir():
        raise PairError(f"{path} is a directory: give the file of pairs itself.")
    if not path.is_file():
        raise PairError(f"{path} is a device or a pipe: write the pairs into a file first.")
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        start = file.readline(1 << 20)
    if not start:
        raise PairError(f"{path} is empty (0 bytes).")
    by_suffix = {".parquet": "parquet", ".pt": "torch", **dict.fromkeys(DELIMITERS, "table")}
    if form := "parquet" if start.startswith(b"PAR1") else by_suffix.get(suffix):
        return form
    if other := strict_json.other_format(suffix, start):
        raise PairError(
            f"{path} is {other}. Pairs are read from COCO JSON, and from JSONL, Parquet, .csv or "
            '.tsv with the columns "image", "caption" and "negated": convert it, e.g. with pandas.'
        )
    if suffix in (".jsonl", ".ndjson"):
        return "jsonl"
    try:
        first = strict_json.loads(start)
    except ValueError:
        return "coco"
    return "jsonl" if isinstance(first, dict) and {"image", "file_name"} & first.keys() else "coco"


def write_pairs(path: str | os.PathLike, pairs: Iterable[Pair]) -> None:
    """Writes pairs as the extension says: `.json` (COCO), `.jsonl` or `.parquet`.

    `read_pairs(path, require_negated=False)` gives them back. Raises PairError as `pair_writer`.
    """
    with pair_writer(path) as write:
        for pair in pairs:
            write(pair)


@contextlib.contextmanager
def pair_writer(path: str | os.PathLike) -> Iterator[Callable[[Pair], None]]:
    """A function that writes a pair to a file; few pairs are in memory, of COCO's images the names.

    A former file is replaced only when the block ends, and the new one is complete. Raises
    PairError for another extension, a file that cannot be written and, in COCO, for two images with
    one id.
    """
    path, kinds = Path(path), {".json": _coco, ".jsonl": _jsonl, ".parquet": pair_tables.writer}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise PairError(f"{path}: pairs are written as {', '.join(kinds)}, by the extension.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_files.whole_file(path) as unfinished, kind(unfinished) as write:
            yield write
    except (OSError, UnicodeEncodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PairError(
            f"{path} could not be written ({reason}); a former file is untouched."
        ) from None


@contextlib.contextmanager
def _jsonl(path: Path) -> Iterator[Callable[[Pair], None]]:
    with path.open("w", encoding="utf-8") as file:

        def write(pair: Pair) -> None:
            record = {key: getattr(pair, key) for key in FIELDS}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

        yield write


@contextlib.contextmanager
def _coco(path: Path) -> Iterator[Callable[[Pair], None]]:
    """Annotations wait in a file without a name, as images come before them."""
    keys, image_ids, names, number = Texts(), Texts(), Texts(), itertools.count()

    def coco_id(image_id: str) -> int | str:
        # COCO's ids are numbers: a string that is exactly a number becomes one again.
        return int(image_id) if re.fullmatch("0|[1-9][0-9]{0,17}", image_id) else image_id

    with (
        path.open("w", encoding="utf-8") as file,
        tempfile.TemporaryFile("w+", encoding="utf-8", dir=path.parent) as annotations,
    ):

        def write(pair: Pair) -> None:
            key = identity(pair.image_id)
            if key is None:
                raise PairError(f"{pair.image_id!r} is no id of COCO JSON. Write .jsonl instead.")
            if not keys or (image_ids[-1], names[-1]) != (pair.image_id, pair.image):
                keys.append(key)
                image_ids.append(pair.image_id)
                names.append(pair.image)
            row = {"id": next(number), "image_id": coco_id(pair.image_id), "caption": pair.caption}
            row |= {"updated_caption": pair.negated, "foils": list(pair.foils)}
            row |= {"object": pair.object, "provenance": pair.provenance}
            row = {key: value for key, value in row.items() if value not in (None, [])}
            comma = ", " if row["id"] else ""
            annotations.write(comma + json.dumps(row, ensure_ascii=False))

        yield write
        again = dict(Index(keys).repeated())
        for row, first in again.items():
            if (image_ids[row], names[row]) != (image_ids[first], names[first]):
                raise PairError(
                    f"The image id {image_ids[row]} stands for {names[first]} and {names[row]}: "
                    "COCO JSON has one file an id, and 1 and 01 are one. Write .jsonl or .parquet "
                    "instead."
                )
        file.write('{"images": [')
        for row in range(len(keys)):
            if row not in again:
                image = {"id": coco_id(image_ids[row]), "file_name": names[row]}
                file.write((", " if row else "") + json.dumps(image, ensure_ascii=False))
        file.write('], "annotations": [')
        annotations.seek(0)
        shutil.copyfileobj(annotations, file)
        file.write("]}")
