"""Records of pairs, read from every form that people keep them in.

COCO JSON and JSONL, tables of Parquet (`data.pair_tables`) and CSV, CC-Neg's torch file, and sets
of shards: webdataset's tars, Parquet with the images inside and ArrayRecords of JSON objects. Each
reader yields where a record stands and the parts of a pair that it holds.

Of CSV and TSV the columns that open_clip, NegCLIP and NegBench write are read:

    open_clip   filepath, title
    NegCLIP     filepath, title, neg_caption (a list, or one text: false captions)
    NegBench    image_path, correct_answer (number), caption_0 to caption_3: one true, others false
    NegBench    filepath or image_path, captions (a list): a pair for each
    this one    image, caption, negated, foils, image_id, object, provenance

Lists are Python literals, read without `eval`. The comma of .csv and the tab of .tsv are checked
against the header.
"""

import csv
import functools
import itertools
import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from negclip_jax.common import coco, plain_pickle, remote, storage, strict_json
from negclip_jax.common.photos import PHOTO_SUFFIXES
from negclip_jax.common.problems import Problems, first
from negclip_jax.common.records import as_written, identity, is_half, read_literal
from negclip_jax.data import pair_tables
from negclip_jax.data.fields import TEXTS, Named, Reader, missing, names_of
from negclip_jax.data.records import LONGEST_TEXT, Pair, PairError, unsafe_name
from negclip_jax.data.shard_images import reported
from negclip_jax.data.shards import Shards
from negclip_jax.data.tar_index import Member, TarShards

CC_NEG_EVALUATION = 40_000  # the last records of CC-Neg, which its authors evaluate on
CC_NEG_FOLDER = "/workspace/datasets/cc3m/"  # before the names of its images
_KNOWN_NAMES = 2**18
DELIMITERS = {".csv": ",", ".tsv": "\t"}
_COLUMNS = {"filepath": "image", "image_path": "image", "file_name": "image", "title": "caption"}
_COLUMNS |= {"neg_caption": "foils", "foil": "foils"}
_BETWEEN = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_LONGEST_FIELD = 2**20  # characters of a table
# What data_gen writes into the JSON member of a tar, where the user names no other fields.
_OF_TARS = ("negated", "foils", "image_id", "object", "provenance", "pairs")

Record = dict[str, Any]  # by part of a pair, see `data.fields`


class PairFile(Problems):
    """A file while it is read: builds pairs, counts what is left out, collects what is wrong.

    Attributes:
      path: the file, or what the user wrote for a set of shards.
      fields: takes the parts of pairs out of records.
      dropped: how many records have no negated caption where one is needed.
      is_lenient: whether records without a caption are left out and counted in `lacking`: those of
        shards, which come from the web and are not corrected one by one.
    """

    def __init__(self, path: Any, form: str, named: Named, *, require_negated: bool):
        """`form`: a key of `OF_SHARDS` or `OF_FILES`."""
        super().__init__()
        self.path, self.require_negated, self.is_lenient = path, require_negated, form in OF_SHARDS
        required = ("image", "caption") if form in ("jsonl", "arrayrecord") else ()
        self.fields, self.dropped, self.lacking = Reader(named, required), 0, Problems(shown=3)
        self._names: dict[str, str] = {}  # checked name to normalised, one string an image

    def records(
        self, where: str, source: Any, usual: Mapping[str, Any] | None = None
    ) -> Iterator[tuple[str, Record]]:
        """What a record says of pairs, one for each caption; none where it lacks a negated one.

        `usual`: see `fields.Reader.parts`. Of "pairs" see `data.fields`.
        """
        if not isinstance(source, Mapping):
            self.note("not an object", where)
            return
        for own in self._listed(source if usual is None else usual):
            whole = None if usual is None else usual | own
            yield from self._records(where, source | own if own else source, whole)

    def _listed(self, source: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        listed = source.get("pairs")
        if not isinstance(listed, list) or TEXTS & self.fields.named.keys():
            return [{}]
        is_ours = listed and all(isinstance(x, dict) and "caption" in x for x in listed)
        return listed if is_ours else [{}]

    def _records(
        self, where: str, source: Mapping[str, Any], usual: Mapping[str, Any] | None
    ) -> Iterator[tuple[str, Record]]:
        record = self.fields.parts(source, usual)
        if self.require_negated and record["negated"] is None:
            self.dropped += 1
            return
        captions = record.pop("captions")
        if "captions" not in self.fields.named:
            yield where, record
        elif isinstance(captions, list | tuple | str | None):
            listed = captions if isinstance(captions, (list, tuple)) else [captions]
            yield from ((where, record | {"caption": caption}) for caption in listed)
        else:
            self.note("captions is not a list of strings", where)

    def pair(self, where: str, record: dict) -> Pair | None:
        """The pair of a record with the fields of `Pair`; None where it has problems, noted."""
        image, text = self.name(record["image"], where), record["caption"]
        if self.is_lenient and (text is None or (isinstance(text, str) and not text.strip())):
            self.lacking.note("no caption", where)
            return None
        caption = self._text(text, "caption", where)
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
        about = record["object"], record["provenance"]
        return Pair(image, caption, negated, foils, *about, image_id=image_id)

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


def coco_records(file: PairFile) -> Iterator[tuple[str, Record]]:
    """Of each annotation that is used."""
    if given := {"image", "image_id"} & file.fields.named.keys():
        raise PairError(
            f"{file.path}: data.fields names {min(given)}, which COCO JSON says itself."
        )
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
        usual = annotation | {"negated": annotation.get("updated_caption")}
        found = [record for _, record in file.records(where, annotation, usual)]
        if not found:
            continue
        image_id = identity(annotation.get("image_id"))
        if image_id is None:
            file.note("image_id is missing or no id", where)
        elif image_id not in images:
            file.note('image_id is not among "images"', f"{image_id} in {where}")
        elif images[image_id] is not None:
            yield from ((where, record | images[image_id]) for record in found)


def jsonl_records(file: PairFile) -> Iterator[tuple[str, Record]]:
    """Of each line."""
    number = 0
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
                if text.strip():
                    yield from file.records(where, source)
        except ValueError as error:
            raise PairError(f"{file.path}, line {number + 1}: {error}; nothing was read.") from None


def parquet_records(file: PairFile) -> Iterator[tuple[str, Record]]:
    """Of each row."""
    table = pair_tables.Table.of(file.path)
    for row, source in enumerate(pair_tables.rows(table, file.fields.named)):
        yield from file.records(f"row {row}", source)


def csv_records(file: PairFile) -> Iterator[tuple[str, Record]]:
    """Of each line of a table, for each of its captions. Raises PairError for no such table."""
    path, named = file.path, file.fields.named
    file.fields = Reader({})  # the header says where fields are
    delimiter = DELIMITERS[path.suffix.lower()]
    csv.field_size_limit(_LONGEST_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            columns = _columns(path, header, delimiter, named)
            places = {part: [header.index(name) for name in x] for part, x in named.items()}
            for values in reader:
                where = f"line {reader.line_num}"
                if len(values) != len(columns):
                    if values:
                        file.note(f"not {len(columns)} fields as the header", where)
                    continue
                row = {name: value or None for name, value in zip(columns, values, strict=True)}
                row |= {part: values[at[0]] or None for part, at in places.items()}
                foils = [values[at] for at in places.get("foils", ())]
                for record in _of_row(file, row, where, foils or [row.get("foils")]):
                    yield from file.records(where, record)
        except (csv.Error, UnicodeDecodeError) as error:
            what = "UTF-8" if isinstance(error, UnicodeDecodeError) else "CSV"
            raise PairError(
                f"{path} is not {what} after line {reader.line_num}: {error}; nothing was read."
            ) from None


def _columns(path: Any, header: list[str], delimiter: str, named: Named) -> list[str]:
    """What each column is called here, "" for one that a named one takes the place of."""
    listed = first([name[:40] for name in header], 20)
    if len(header) == 1:
        found = max(_BETWEEN, key=header[0].count)
        if found != delimiter and header[0].count(found):
            raise PairError(
                f"{path} has {_BETWEEN[found]} between its columns, where {_BETWEEN[delimiter]} "
                f"should be in a {path.suffix} file: give it the other extension or write it again."
            )
    for name in names_of(named):
        if name not in header:
            raise missing(path, name, header)
    columns = [_COLUMNS.get(name, name) for name in header]
    hidden = set(named)
    if {"caption", "captions"} & hidden:
        hidden |= {"caption", "captions", "correct_answer"}
    columns = ["" if name in hidden else name for name in columns]
    twice = [name for i, name in enumerate(columns) if name and name in columns[:i]]
    if twice:
        raise PairError(f'{path} has two columns for "{twice[0]}"; it has: {listed}.')
    there = {*columns, *named}
    has_choices = {"correct_answer", "caption_0"} <= there
    has_caption = has_choices or {"caption", "captions"} & there
    for name, is_there in (("image", "image" in there), ("caption", has_caption)):
        if not is_there:
            other = first([k for k, v in _COLUMNS.items() if v == name])
            raise PairError(f'{path} has no column "{name}" (or {other}); it has: {listed}.')
    return columns


def _of_row(
    file: PairFile, row: dict[str, Any], where: str, foils: list[str | None]
) -> Iterator[dict[str, Any]]:
    def listed(name: str, text: str | None) -> list | None:
        """A list, or one text; None where it is neither."""
        text = text or ""
        if not text.lstrip().startswith(("[", "(")):
            return [text] if text else []
        try:
            value = list(read_literal(text))
        except (ValueError, TypeError):
            value = [None]
        if all(isinstance(item, str) for item in value):
            return value
        file.note(f"{name} is not a Python list of strings", where)
        return None

    parts = [listed("foils", text) for text in foils]
    if None in parts:
        return
    foils = list(itertools.chain(*parts))
    record = row | {"foils": foils}
    choices = list(itertools.takewhile(row.__contains__, (f"caption_{i}" for i in range(100))))
    if "correct_answer" in row and choices:
        number = row["correct_answer"] or ""
        if not number.isdecimal() or int(number) >= len(choices):
            file.note(f"correct_answer is not a number from 0 to {len(choices) - 1}", where)
            return
        true = choices.pop(int(number))
        yield record | {"caption": row[true], "foils": [row[name] for name in choices] + foils}
    elif row.get("caption") is None and "captions" in row:
        for caption in listed("captions", row["captions"]) or ():
            yield record | {"caption": caption}
    else:
        yield record


def cc_neg_records(file: PairFile) -> Iterator[tuple[str, Record]]:
    """Of CC-Neg's `ccneg_preprocessed.pt`, without the records that it is evaluated on.

    Its negated captions are false of their images ("a cat and not a dog" of one of both): foils.
    """
    content = plain_pickle.load_torch(
        file.path, "of torch files CC-Neg's ccneg_preprocessed.pt is read alone", PairError
    )
    content = content if isinstance(content, dict) else {}
    paths, annotations = content.get("image_paths"), content.get("annotations")
    if not isinstance(paths, list) or not isinstance(annotations, list):
        raise PairError(
            f'{file.path} has no lists "image_paths" and "annotations", as CC-Neg\'s file has them.'
        )
    if len(paths) != len(annotations) or len(paths) <= CC_NEG_EVALUATION:
        raise PairError(
            f"{file.path} has {len(paths):,} image_paths and {len(annotations):,} annotations: as "
            f"many of both are wanted, of which the last {CC_NEG_EVALUATION:,} are for evaluation."
        )
    for index, path in enumerate(paths[:-CC_NEG_EVALUATION]):
        where, annotation = f"index {index}", annotations[index]
        if not isinstance(annotation, dict):
            file.note("not an object", where)
            continue
        image = path.removeprefix(CC_NEG_FOLDER) if isinstance(path, str) else path
        source = annotation | {"image": image}
        usual = {"image": image, "caption": _inside(annotation, "json", annotation).get("caption")}
        usual["foils"] = _inside(annotation, "sop_data", {}).get("negative-prompt")
        yield from file.records(where, source, usual)


def _inside(source: Mapping[str, Any], key: str, otherwise: Mapping[str, Any]) -> Mapping[str, Any]:
    inside = source.get(key)
    return inside if isinstance(inside, Mapping) else otherwise


def tar_records(file: PairFile, pattern: str) -> Iterator[tuple[str, Record]]:
    """Of each sample of webdataset's tars: members whose names differ after the first dot only.

    A sample is a record with its members as fields, `json` an object. What data.fields does not
    name is the caption in `txt`, else under "caption" in `json`, and there what data_gen writes.
    Samples without an image are left out and counted.
    """
    tars, named, plans = TarShards(pattern), file.fields.named, {}
    for number, shard in enumerate(tars.found):
        for key, members in tars.samples(number):
            where, suffixes = f"{shard.name}/{key}", tuple(members)
            if suffixes not in plans:
                plans[suffixes] = _plan(suffixes, named)
            photos, texts = plans[suffixes]
            if not photos:
                file.fields.see(dict.fromkeys(suffixes))
                likely = [s for s in suffixes if f".{s.rpartition('.')[2]}" in PHOTO_SUFFIXES][:1]
                hint = "".join(
                    f" but {s}: to use it name it in data.fields, image={s}" for s in likely
                )
                file.lacking.note(f"no image{hint}", where)
                continue
            if len(photos) > 1:
                file.note("several images: name one in data.fields, as image=jpg", where)
                continue
            source: dict[str, Any] = dict.fromkeys(suffixes)
            image = source[photos[0]] = f"{shard.name}/{members[photos[0]].name}"
            for suffix in texts:
                source[suffix] = _read(file, tars, number, members[suffix], suffix, where)
            about = _inside(source, "json", {})
            caption = source.get("txt") or about.get("caption")
            usual = {part: about.get(part) for part in _OF_TARS}
            yield from file.records(where, source, usual | {"image": image, "caption": caption})


def _plan(suffixes: tuple[str, ...], named: Named) -> tuple[list[str], list[str]]:
    """Which members of a sample are its image, and which are read for what they say."""
    photos = [s for s in suffixes if f".{s}" in PHOTO_SUFFIXES]
    photos = [s for s in suffixes if s in named["image"]] if "image" in named else photos
    texts = {"txt"} & set(suffixes) if not {"caption", "captions"} & named.keys() else set()
    texts |= {"json"} & set(suffixes)
    for name in names_of(named):
        starts = [name, *(name[:i] for i, letter in enumerate(name) if letter == ".")]
        texts |= {max(found, key=len)} if (found := set(starts) & set(suffixes)) else set()
    return photos, sorted(texts - set(photos))


def _read(
    file: PairFile, tars: TarShards, shard: int, member: Member, suffix: str, where: str
) -> Any:
    """What a member says: a JSON value, or text; None where it cannot be read, which is noted."""
    is_json = suffix.rpartition(".")[2] == "json"
    if member.size > (strict_json.LONGEST_LINE if is_json else 4 * LONGEST_TEXT):
        file.note(f"the member .{suffix} is too long", f"{where} ({member.size:,} bytes)")
        return None
    content = tars.read(shard, member.offset, member.size)
    try:
        return strict_json.loads(content) if is_json else content.decode("utf-8-sig").rstrip("\r\n")
    except ValueError as error:
        what = "not valid JSON" if is_json else "not UTF-8"
        file.note(f"the member .{suffix} is {what}", f"{where} ({str(error)[:100]})")
        return None


def shard_records(file: PairFile, pattern: str) -> Iterator[tuple[str, Record]]:
    """Of each row of Parquet files, which may hold the images too."""
    shards = Shards(pattern.partition("#")[0], ".parquet")
    for number, (name, path, size, _) in enumerate(shards.found):
        table = pair_tables.Table(path, name, size, functools.partial(shards.file, number))
        for row, source in enumerate(pair_tables.rows(table, file.fields.named)):
            where = f"{name} row {row}"
            if source.get("status", "success") in ("success", None):
                yield from file.records(where, source)
            else:
                file.lacking.note("no image", where)


def array_records(file: PairFile, pattern: str) -> Iterator[tuple[str, Record]]:
    """Of each record of ArrayRecord files that is a JSON object in UTF-8."""
    import grain

    for shard in Shards(pattern, ".array_record*").found:
        with reported(shard.path, "ArrayRecord"):
            copy = remote.local_copy(storage.path(shard.path))
            source = grain.sources.ArrayRecordDataSource(str(copy))
            count = len(source)
        for index in range(count):
            where = f"{shard.name}/{index}"
            with reported(shard.path, "ArrayRecord"):
                content = source[index]
            try:
                record = strict_json.loads(content)
            except ValueError as error:
                file.note("not valid JSON", f"{where} ({str(error)[:100]})")
                continue
            yield from file.records(where, record)


# By what `data.sources.kind_of` says of a set of shards, and by the form of a single file.
OF_SHARDS = {"wds": tar_records, "parquet": shard_records, "arrayrecord": array_records}
OF_FILES = {
    "coco": coco_records,
    "jsonl": jsonl_records,
    "parquet": parquet_records,
    "table": csv_records,
    "torch": cc_neg_records,
}
