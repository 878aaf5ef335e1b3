"""Files of negation pairs, in and out.

A pair is an image, its original caption and a caption that says what is absent. Files are COCO
JSON as NegationCLIP released it (`updated_caption` beside `caption` in each annotation), JSONL
and Parquet, all with the same content, and tables of CSV and TSV, see `data.pair_csv`. Everything
wrong with a file is reported in one error.
"""

import dataclasses
import json
import logging
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from negclip_jax.common import atomic_files, coco, remote, storage, strict_json
from negclip_jax.common.problems import Problems
from negclip_jax.common.provenance import content_hash, file_facts
from negclip_jax.common.records import as_written, identity, is_half
from negclip_jax.data import pair_csv, pair_tables
from negclip_jax.data.pair_tables import FIELDS
from negclip_jax.data.records import Pair, PairError, split_pairs, unsafe_name
from negclip_jax.data.sources import tfds_name

__all__ = ["Pair", "PairError", "read_pairs", "split_pairs", "unsafe_name", "write_pairs"]

_log = logging.getLogger(__name__)

LONGEST_TEXT = 100_000  # characters; the model reads some 300 of them
_KNOWN_NAMES = 2**18
_MOST_KEYS = 20  # of the records of a file, that an error names


def read_pairs(path: str | os.PathLike, *, require_negated: bool = True) -> list[Pair]:
    """Reads the pairs of a COCO JSON, JSONL, Parquet, CSV or TSV file, in the order of the file.

    COCO: `images` (`id`, `file_name`) and `annotations` (`image_id`, `caption`, and optionally
    `updated_caption`, `foils`, `object`, `provenance`); image ids become strings. JSONL and
    Parquet: the fields of `Pair`, of which `image` and `caption` are required and `image_id`
    defaults to `image`. Image names are normalised ("a//./b" to "a/b").

    With `require_negated`, records without a negated caption are left out, unchecked, and counted
    in the log; without it they are read with `negated=None`.

    Raises PairError for a file that cannot be read, and once for everything wrong in its records.
    """
    return list(iter_pairs(path, require_negated=require_negated))


def iter_pairs(path: str | os.PathLike, *, require_negated: bool = True) -> Iterator[Pair]:
    """The pairs of `read_pairs`, one by one; of JSONL and Parquet few are in memory at a time.

    What is wrong with records is raised after the last one: use no pair before that.
    """
    if os.fspath(path).startswith("tfds:"):
        from negclip_jax.data import tfds

        yield from tfds.read_tfds_pairs(*tfds_name(os.fspath(path)))
        return
    if storage.is_remote(path):
        with remote.copied(path) as copy:
            yield from iter_pairs(copy, require_negated=require_negated)
            return
    file, count = _File(Path(path), require_negated), 0
    try:
        form = _format_of(file.path)
        records = {"coco": _coco_records, "jsonl": _jsonl_records, "parquet": _parquet_records}
        records["table"] = _table_records
        for where, record in records[form](file):
            if (pair := file.pair(where, record)) is not None:
                count += 1
                yield pair
    except OSError as error:
        raise PairError(f"{path} cannot be read: {error.strerror or error}.") from None
    file.raise_if_any(file.path, PairError, "Correct or remove these records; nothing was read.")
    key = "updated_caption" if form == "coco" else "negated"
    if not count and file.dropped:
        raise PairError(
            f'{path}: none of its {file.dropped} records has "{key}", the negated caption. Write '
            'them with data_gen, or set data.caption_mode="original" to train on plain captions.'
        )
    if not count:
        raise PairError(f"{path} holds no captions: there is nothing to train on.")
    left_out = f", {file.dropped} records without {key} left out" if file.dropped else ""
    _log.info("%s: %d pairs%s", path, count, left_out)


def content_of(path: str | os.PathLike) -> tuple[list, Callable[[], str]]:
    """What says quickly that a file of pairs is the same, and a function that digests its content.

    The first changes whenever the file does. Raises PairError for what is no file of pairs.
    """
    if os.fspath(path).startswith("tfds:"):
        return [], lambda: content_hash([*map(dataclasses.astuple, iter_pairs(path))])
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


def _format_of(path: Path) -> str:
    """ "parquet", "table" (CSV), "jsonl" or "coco", from first bytes or else the extension."""
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
    if start.startswith(b"PAR1") or suffix == ".parquet":
        return "parquet"
    if suffix in pair_csv.DELIMITERS:
        return "table"
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


class _File(Problems):
    """A file while it is read: builds pairs, counts what is left out, collects what is wrong."""

    def __init__(self, path: Path, require_negated: bool):
        super().__init__()
        self.path, self.require_negated, self.dropped = path, require_negated, 0
        self._names: dict[str, str] = {}  # checked name to normalised, one string an image

    def leaves_out(self, negated) -> bool:
        skip = self.require_negated and negated is None
        self.dropped += skip
        return skip

    def pair(self, where: str, record: dict) -> Pair | None:
        """The pair of a record with the fields of `Pair`; None where it has problems, noted."""
        image = self.name(record["image"], where)
        caption = self._text(record["caption"], "caption", where)
        negated, foils = record["negated"], record["foils"]
        if negated is not None:
            negated = self._text(negated, "negated caption", where)
        foils = (foils,) if isinstance(foils, str) else () if foils is None else foils
        if not isinstance(foils, (list, tuple)):
            self.note("foils is not a list of strings", where)
            return None
        foils = tuple([self._text(foil, "foil", where) for foil in foils])
        for key in ("object", "provenance"):
            if not isinstance(record[key], str | None):
                self.note(f"{key} is not a string", where)
            elif record[key] and is_half(record[key]):
                self.note(f"{key} is not valid Unicode", where)
        image_id, written = image, record["image_id"]
        if written is not None:
            is_id = written == "" or identity(written) is not None
            image_id = as_written(written) if is_id else None
            if image_id is None and image is not None:
                self.note("image_id is neither a string nor a whole number", where)
        if image is None or caption is None or image_id is None:
            return None
        more = (foils, record["object"], record["provenance"])
        return Pair(image, caption, negated, *more, image_id=image_id)

    def name(self, name, where: str) -> str | None:
        """The image name, normalised, or None if it must not be used."""
        known = self._names.get(name) if isinstance(name, str) else None
        if known is not None:
            return known
        reason = unsafe_name(name)
        if reason is not None:
            shown = f" {name[:100]!r}" if isinstance(name, str) and name else ""
            self.note(f"the image name {reason}", where + shown)
            return None
        if len(self._names) >= _KNOWN_NAMES:
            self._names.clear()
        self._names[name] = posixpath.normpath(name)
        return self._names[name]

    def _text(self, text, what: str, where: str) -> str | None:
        if not isinstance(text, str):
            self.note(f"the {what} is {'missing' if text is None else 'not a string'}", where)
        elif not text.strip():
            self.note(f"the {what} is empty", where)
        elif len(text) > LONGEST_TEXT:
            self.note(f"the {what} is longer than {LONGEST_TEXT:,} characters", where)
        elif is_half(text):
            self.note(f"the {what} is not valid Unicode (half a surrogate pair)", where)
        else:
            return text
        return None


def _coco_records(file: _File) -> Iterator[tuple[str, dict]]:
    """Where it stands, and the fields of `Pair`, of each annotation that is used."""
    content = coco.read_lists(file.path, ("images", "annotations"), PairError)
    # By normalised id: file name and id as written; None for a name that is a problem.
    images: dict[str, dict[str, str] | None] = {}
    for index, image in enumerate(content["images"]):
        where = f"images[{index}]"
        written = image.get("id") if isinstance(image, dict) else None
        image_id = identity(written)
        if image_id is None:
            what = "no id" if written is None else "an id that is no whole number"
            where += "" if written is None else f" ({str(written)[:40]})"
            file.note(f'an entry of "images" has {what}', where)
        elif image_id in images:
            file.note('two entries of "images" share an id', f"{image_id} in {where}")
        elif "file_name" not in image:
            file.note('an entry of "images" has no file_name', f"{where} (id {image_id})")
            images[image_id] = None
        else:
            name = file.name(image["file_name"], f"{where} (id {image_id})")
            found = {"image": name, "image_id": as_written(written)}
            images[image_id] = None if name is None else found
    for index, annotation in enumerate(content["annotations"]):
        where = f"annotations[{index}]"
        if not isinstance(annotation, dict):
            file.note("not an object", where)
            continue
        if "id" in annotation:
            where += f" (id {str(annotation['id'])[:40]})"
        if file.leaves_out(annotation.get("updated_caption")):
            continue
        image_id = identity(annotation.get("image_id"))
        if image_id is None:
            file.note("image_id is missing or no id", where)
        elif image_id not in images:
            file.note('image_id is not among "images"', f"{image_id} in {where}")
        elif images[image_id] is not None:
            yield where, _fields(annotation, "updated_caption") | images[image_id]


def _jsonl_records(file: _File) -> Iterator[tuple[str, dict]]:
    number, keys = 0, {}
    with file.path.open("rb") as stream:
        try:
            for number, line in enumerate(strict_json.lines(stream), 1):
                where = f"line {number}"
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                    source = strict_json.loads(text) if text.strip() else None
                except ValueError as error:
                    syntax = isinstance(error, json.JSONDecodeError)
                    column = f" column {error.colno}" if syntax else f" ({str(error)[:100]})"
                    file.note("not valid JSON", where + column)
                    continue
                if isinstance(source, dict):
                    keys |= dict.fromkeys(source) if len(keys) < _MOST_KEYS else {}
                    if not file.leaves_out(source.get("negated")):
                        yield where, _fields(source)
                elif text.strip():
                    file.note("not an object", where)
        except ValueError as error:
            raise PairError(f"{file.path}, line {number + 1}: {error}; nothing was read.") from None
    for column in ("image", "caption"):
        if keys and column not in keys:
            found = ", ".join(key[:40] for key in list(keys)[:_MOST_KEYS])
            raise PairError(f'{file.path} has no column "{column}"; it has: {found}.')


def _parquet_records(file: _File) -> Iterator[tuple[str, dict]]:
    for row, source in enumerate(pair_tables.rows(file.path)):
        if not file.leaves_out(source.get("negated")):
            yield f"row {row}", _fields(source)


def _table_records(file: _File) -> Iterator[tuple[str, dict]]:
    for where, source in pair_csv.rows(file.path, file):
        if not file.leaves_out(source.get("negated")):
            yield where, _fields(source)


def _fields(source: dict, negated_key: str = "negated") -> dict:
    record = {key: source.get(key) for key in FIELDS}
    if record["foils"] is None:
        record["foils"] = source.get("foil")
    return record | {"negated": source.get(negated_key)}


def write_pairs(path: str | os.PathLike, pairs: Iterable[Pair]) -> None:
    """Writes pairs as the extension says: `.json` (COCO), `.jsonl` or `.parquet`.

    `read_pairs(path, require_negated=False)` gives them back. A former file is replaced only when
    the new one is complete. Raises PairError for another extension, a file that cannot be written
    and, in COCO, for two images with one id.
    """
    path, suffixes = Path(path), (".json", ".jsonl", ".parquet")
    suffix = path.suffix.lower()
    if suffix not in suffixes:
        raise PairError(f"{path}: pairs are written as {', '.join(suffixes)}, by the extension.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_files.whole_file(path) as unfinished:
            if suffix == ".json":
                with unfinished.open("w", encoding="utf-8") as file:
                    json.dump(_coco_content(pairs), file, ensure_ascii=False)
            elif suffix == ".jsonl":
                with unfinished.open("w", encoding="utf-8") as file:
                    for pair in pairs:
                        record = {key: getattr(pair, key) for key in FIELDS}
                        file.write(json.dumps(record, ensure_ascii=False) + "\n")
            else:
                pair_tables.write(unfinished, list(pairs))
    except (OSError, UnicodeEncodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PairError(
            f"{path} could not be written ({reason}); a former file is untouched."
        ) from None


def _coco_content(pairs: Iterable[Pair]) -> dict[str, list]:
    def coco_id(image_id: str) -> int | str:
        # COCO's ids are numbers: a string that is exactly a number becomes one again.
        return int(image_id) if re.fullmatch("0|[1-9][0-9]{0,17}", image_id) else image_id

    written: dict[str, tuple[str, str]] = {}
    annotations = []
    for pair in pairs:
        key = identity(pair.image_id)
        if key is None:
            raise PairError(f"{pair.image_id!r} is no id of COCO JSON. Write .jsonl instead.")
        known = written.setdefault(key, (pair.image_id, pair.image))
        if known != (pair.image_id, pair.image):
            raise PairError(
                f"The image id {pair.image_id} stands for {known[1]} and {pair.image}: COCO JSON "
                "has one file an id, and 1 and 01 are one. Write .jsonl or .parquet instead."
            )
        fields = {"updated_caption": pair.negated, "foils": list(pair.foils)}
        fields |= {"object": pair.object, "provenance": pair.provenance}
        annotations.append(
            {"id": len(annotations), "image_id": coco_id(pair.image_id), "caption": pair.caption}
            | {key: value for key, value in fields.items() if value not in (None, [])}
        )
    images = [{"id": coco_id(image_id), "file_name": name} for image_id, name in written.values()]
    return {"images": images, "annotations": annotations}
