"""Published annotation files, read as they are: JSON, JSON lines, CSV, Python literals.

Everything wrong with the records of a file is collected and comes in one message.
"""

import contextlib
import csv
import io
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.images import DataRoots, FileEmpty, FileMissing, ImageRef
from negclip_jax.common import records, strict_json
from negclip_jax.common.decoding import ImageError
from negclip_jax.common.errors import InputError
from negclip_jax.common.problems import first
from negclip_jax.common.progress import told
from negclip_jax.common.strict_json import parse_json, read_text

# What pandas writes for an empty cell, and how it shortens one of more than 50 characters.
_NOTHING = {"nan", "NaN", "<NA>", "NaT", "None", "null", "NULL"}
_CUT = re.compile(r".{47}\.\.\.", re.DOTALL)
_SEVERAL = re.compile(r"\[.*\]|.*[^\s;|][;|][^\s;|].*", re.DOTALL)
AVAILABLE = "available"  # stands for every name whose files are there


class Fields(records.Fields):
    """The fields of a published file's records."""

    advice = "Is it the published file? Correct these records or get it again; nothing was scored."

    def caption(self, record: Any, key: str, where: str) -> str:
        """A text that is one caption, not a list of them ("['a', 'b']", "a;b")."""
        text = self.text(record, key, where)
        if _SEVERAL.fullmatch(text):
            self.note(f'"{key}" holds several texts', where)
        return text

    def check_boxes(
        self, roots: DataRoots, boxes: Iterable[tuple[ImageRef, str]], tolerated: float = 0.0
    ) -> list[str]:
        """Notes boxes that reach more than a pixel out of their photo, where the photo is there.

        Many of them say that the photos are not those that were annotated (copies of another size,
        say), and crops would be filled up with black. Up to a share `tolerated` is taken for
        careless annotation and only told in the notes returned. `boxes` are references and the
        places where they stand.
        """
        every, sizes = list(boxes), {}
        paths = dict.fromkeys(ref.path for ref, _ in every)
        for path in paths.keys() - roots.missing(paths):
            with contextlib.suppress(ImageError):  # what cannot be read is named when it is encoded
                sizes[path] = roots.size(path)
        present = [(ref, where) for ref, where in every if ref.path in sizes]
        outside = []
        for ref, where in present:
            x, y, w, h = ref.box
            width, height = sizes[ref.path]
            if x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:
                outside.append(f"{where}: {[x, y, w, h]} in {ref.path} of {width} x {height}")
        if outside and len(outside) <= tolerated * len(present):
            return [f"{len(outside)} of {len(present)} boxes reach out of their photo."]
        for where in outside:
            self.note("a box lies outside its photo", where)
        return []


def load_available(
    names: Sequence[str],
    every: Iterable[str],
    load: Callable[[str], Mapping[str, Any]],
    *,
    allow_subset: bool,
    items: tuple[str, str] = ("items", "items"),
    skip_subsets: bool = False,
    where: str = "below the data folders",
) -> dict[str, Any]:
    """What is scored, from several published files: everything wrong comes in one message.

    Args:
      names: of benchmarks or sources, or `[AVAILABLE]`; `every` has all that there are.
      load: reads the file of a name, to sets of items by their names. Each set has `file`,
        `total`, `scored` (items whose photos are there) and `missing` (photos that are not).
      items: what they are called in the plural, and in "FILE holds no ...".
      skip_subsets: whether AVAILABLE leaves out a set that lacks photos, or complains of it.

    Raises InputError with one line for each set that cannot be scored.
    """
    skips = list(names) == [AVAILABLE]
    loaded: dict[str, Any] = {}
    problems, absent = [], []
    for name in told(list(every if skips else names), "files that are read"):
        try:
            sets = load(name)
        except InputError as error:
            if skips and isinstance(error, FileMissing):
                absent.append(f"{name} ({error})" if isinstance(error, FileEmpty) else name)
            else:
                problems.append(f"{name}: {error}" if name in every else str(error))
            continue
        for title, found in sets.items():
            if found.scored and (allow_subset or not found.missing):
                loaded[title] = found
                continue
            complaint = f"{title}: {found.file} holds no {items[1]}"
            if found.missing and not found.scored:
                listed = first(found.missing)
                complaint = f"{title}: none of its photos is {where}: {listed}"
            elif found.missing:
                complaint = (
                    f"{title}: {len(found.missing):,} photos are not {where}, so that "
                    f"{found.total - found.scored:,} of {found.total:,} {items[0]} cannot be "
                    f"scored: {first(found.missing)}. Add them, or give --allow-subset to score "
                    "the others, marked as a subset"
                )
            if skips and skip_subsets:
                logging.info("left out: %s", complaint)
            elif skips and not found.scored:
                absent.append(title if found.missing else complaint)
            else:
                problems.append(complaint)
    if problems:
        raise InputError("\n".join(problems))
    if absent:
        logging.info("left out, for their files or photos are not there: %s", ", ".join(absent))
    return loaded


def read_parts(
    roots: DataRoots,
    names: Mapping[str, Sequence[str]],
    download: str,
    column: str,
    records: Callable[[Path], Iterable[tuple[Any, Any]]],
    item: Callable[..., Any],
) -> tuple[Path, list[Any], list[str]]:
    """A benchmark of several files, those of them that are there.

    `names` has for each part the file names that it may have; `records` reads a file to places and
    records, `item` see `read_items`, which is told its part under the keyword `column`. Returns the
    folder of the first file, all items, and a note about the parts that are not there. Raises
    FileMissing where no part is.
    """
    files: dict[str, Path] = {}
    for part, wanted in names.items():
        with contextlib.suppress(FileMissing):
            files[part] = roots.find(*wanted, download=download)
    if not files:
        roots.find(*(wanted[0] for wanted in names.values()), download=download)
    items = []
    for part, file in files.items():
        items += read_items(file, records(file), item, **{column: part})
    absent = ", ".join(part for part in names if part not in files)
    notes = [f"Parts whose file is not there or empty: {absent}."] if absent else []
    return next(iter(files.values())).parent, items, notes


def read_items(
    file: Path, records: Iterable[tuple[Any, Any]], item: Callable[..., Any], **options: Any
) -> list[Any]:
    """`item(fields, where, record, **options)` of each (place, record) of a file, or InputError."""
    fields = Fields(file)
    items = [item(fields, str(where), record, **options) for where, record in records]
    fields.done()
    return items


def read_json(path: Path, kind: type | tuple[type, ...]) -> Any:
    """A JSON file whose outermost value is a non-empty `kind`: list, dict or either.

    Raises InputError for anything else, and for two equal keys in an object, of which `json` would
    silently keep the last.
    """
    return _nonempty(path, strict_json.read_json(path, kind))


def read_json_lines(path: Path) -> list[dict]:
    """One JSON object a line, blank lines left out. Raises InputError."""
    lines = read_text(path).split("\n")  # splitlines would split at U+2028 too, inside a caption
    numbered = [(i, line) for i, line in enumerate(lines, 1) if line.strip()]
    return _nonempty(path, [parse_json(line, f"{path} line {i}") for i, line in numbered])


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file with a header line that names at least `columns`. Raises InputError."""
    csv.field_size_limit(1 << 24)
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    try:
        names = reader.fieldnames or []
        rows = list(reader)
    except csv.Error as error:
        raise InputError(f"{path} is not CSV after line {reader.line_num}: {error}.") from None
    missing = [name for name in columns if name not in names]
    if missing:
        raise InputError(
            f"{path} has no column {', '.join(missing)}; its columns are {', '.join(names)}: is it "
            "the published file?"
        )
    fields = Fields(path)
    for i, row in enumerate(rows):
        if None in row:
            fields.note("there are more cells than columns", f"row {i}")
        for name in columns or names:
            if row[name] in _NOTHING:
                row[name] = None
            elif row[name] and _CUT.fullmatch(row[name]):
                fields.note(f'"{name}" was cut with "..." when the file was written', f"row {i}")
    fields.done()
    return _nonempty(path, rows)


def _nonempty(path: Path, content: Any) -> Any:
    if not content:
        raise FileEmpty(f"{path} holds no items.")
    return content
