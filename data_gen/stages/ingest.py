"""Captions files into images with usable captions; what is not usable is a row with its reason.

A million captions are bytes and numbers (`common.packed`), from which images are made as they are
asked for.
"""

import collections
import functools
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from data_gen.records import Caption, ImageItem, Question
from negclip_jax.common import coco, strict_json
from negclip_jax.common.errors import InputError
from negclip_jax.common.packed import Index, Texts
from negclip_jax.common.records import as_written, identity
from negclip_jax.data.pair_records import DELIMITERS
from negclip_jax.data.pairs import Pair, PairError, iter_pairs
from negclip_jax.data.records import unsafe_name
from negclip_jax.data.sources import kind_of

LONGEST_CAPTION = 512  # characters


@dataclass(frozen=True)
class _Columns:
    """What a captions file holds: of each image id and name, of each caption id and text."""

    image_ids: Texts
    file_names: Texts
    caption_ids: Texts
    texts: Texts
    order: np.ndarray  # int64 `[I]`, the images that have captions, in order of their ids
    starts: np.ndarray  # int64 `[I + 1]`; captions of the i-th of them: `captions[starts[i]:...]`
    captions: np.ndarray  # int64, places of captions


class Images(Sequence[ImageItem]):
    """Images with their captions, in order of their ids; each is made when it is asked for."""

    def __init__(self, columns: _Columns, places: range):
        self._columns, self._places = columns, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> ImageItem: ...
    @overload
    def __getitem__(self, place: slice) -> "Images": ...
    def __getitem__(self, place: int | slice) -> "ImageItem | Images":
        if isinstance(place, slice):
            return Images(self._columns, self._places[place])
        place, of = self._places[place], self._columns
        captions = of.captions[of.starts[place] : of.starts[place + 1]].tolist()
        row = int(of.order[place])
        return ImageItem(
            of.image_ids[row],
            of.file_names[row],
            tuple(Caption(of.caption_ids[i], of.texts[i]) for i in captions),
        )


@dataclass(frozen=True)
class Ingested:
    """What a captions file holds: images by id, and rows of the table of rejects."""

    images: Sequence[ImageItem]
    rejects: list[dict[str, Any]]

    @property
    def captions(self) -> int:
        return sum(len(image.captions) for image in self.images)


def read_captions(path: str, max_rejects: float = 1.0, fields: str = "") -> Ingested:
    """Reads captions from COCO JSON, or from whatever pairs are read from: `data.pairs.iter_pairs`.

    `fields`: which field of a record is what, see `data.fields`; none for COCO JSON.

    Images come sorted by id, numbers by their size. Raises InputError for a file that is neither,
    for two different captions with one id, and where more than `max_rejects` of the captions cannot
    be used.
    """
    suffixes = (".jsonl", ".ndjson", ".parquet", *DELIMITERS)
    if kind_of(path)[0] or path.lower().endswith(suffixes):
        read = functools.partial(iter_pairs, path, require_negated=False, fields=fields, log=False)
        try:
            return _ingested(
                path, lambda: _photos_of(read()), lambda: _rows_of(read()), max_rejects
            )
        except PairError as error:
            raise InputError(str(error).replace("data.fields", "input.fields")) from None
    if fields:
        raise InputError(f"input.fields={fields} is not for COCO JSON: its fields have fixed names")
    if Path(path).is_file():
        with open(path, "rb") as file:
            other = strict_json.other_format(Path(path).suffix.lower(), file.readline(1 << 20))
        if other:
            raise InputError(
                f"{path} is {other}. Captions are read from COCO JSON, from JSONL, Parquet, .csv "
                'or .tsv with the columns "image" and "caption", and from tars as wds:PATTERN: '
                "convert it, e.g. with pandas"
            )
    try:
        file, lists = Path(path), ("images", "annotations")
        images, captions = (
            functools.partial(strict_json.elements, file, key, to_end=key == lists[-1])
            for key in lists
        )
        return _ingested(path, lambda: _photos(path, images()), captions, max_rejects)
    except strict_json.Irregular:
        content = coco.read_lists(file, lists)
        photos = functools.partial(_photos, path, content["images"])
        return _ingested(path, photos, lambda: content["annotations"], max_rejects)


def _ingested(
    path: str,
    photos: Callable[[], Iterable[tuple[Any, Any]]],
    annotations: Callable[[], Iterable[Any]],
    max_rejects: float,
) -> Ingested:
    """What is read, from the ids and names of images, and rows of captions."""
    keys, image_ids, file_names, bad_names = Texts(), Texts(), Texts(), dict[int, str]()
    odd_names: dict[int, Any] = {}  # which are no text
    for given, name in photos():
        if reason := unsafe_name(name):
            bad_names[len(keys)] = reason
        if not isinstance(name, str):
            odd_names[len(keys)] = name
        keys.append(_key(given))
        image_ids.append(as_written(given))  # by the first spelling of each
        file_names.append(name if isinstance(name, str) else "")
    images = Index(keys)

    def name_of(row: int) -> Any:
        return odd_names.get(row, file_names[row])

    for row, first in images.repeated():
        if name_of(row) != name_of(first):
            image_id = image_ids[first]
            raise InputError(f"{path}: two images have the id {image_id}; give each its own")
    rejects: list[dict[str, Any]] = []  # with the place of each row, at first
    caption_ids, texts, of_image, rows = Texts(), Texts(), array("q"), array("q")

    def reject(row: int, image_id: str | None, name: Any, caption: str, *problem: str) -> None:
        about = {"row": row, "image_id": image_id, "file_name": name, "caption_id": caption}
        rejects.append(about | dict(zip(("code", "detail"), problem, strict=True)))

    number = 0
    for number, row in enumerate(annotations(), 1):
        caption_id = f"row {number - 1}"
        if not isinstance(row, dict):
            reject(number, None, None, caption_id, "not_an_object", "it is no JSON object")
            continue
        given, text = row.get("image_id"), row.get("caption")
        image, caption_id = images.first(_key(given)), str(row.get("id", caption_id))
        problem = _problem(text)
        if image < 0:
            image_id, name = str(given), None
            problem = "image_unknown", f"no image has the id {image_id}"
        else:
            image_id, name = image_ids[image], name_of(image)
            if image in bad_names:
                problem = "image_outside", f"the image name {name!r} {bad_names[image]}"
        if problem is not None:
            reject(number, image_id, name, caption_id, *problem)
            continue
        caption_ids.append(caption_id)
        texts.append(" ".join(text.split()))
        of_image.append(image)
        rows.append(number)
    is_usable = np.ones(len(texts), bool)
    for i, first in Index(caption_ids).repeated():
        if (of_image[i], texts[i]) != (of_image[first], texts[first]):
            raise InputError(
                f"{path}: two different captions have the id {caption_ids[i]} "
                f"({texts[first]!r} and {texts[i]!r}); give every caption its own id"
            )
        is_usable[i] = False
        image_id, name = image_ids[of_image[i]], name_of(of_image[i])
        problem = "duplicate", "the same caption is there already"
        reject(rows[i], image_id, name, caption_ids[i], *problem)
    rejects.sort(key=lambda row: row.pop("row"))
    if len(rejects) > max_rejects * max(number, 1):
        shown = "; ".join(f"{row['caption_id']}: {row['detail']}" for row in rejects[:3])
        raise InputError(
            f"{path}: {len(rejects)} of {number} captions cannot be used, more than "
            f"{max_rejects:.0%} (max_rejects): {shown}"
        )
    if not is_usable.any():
        raise InputError(f"{path} has no usable caption")
    usable = np.flatnonzero(is_usable)
    images_used, own = np.unique(np.frombuffer(of_image, np.int64)[usable], return_inverse=True)
    order = _by_id(image_ids, images_used)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    starts = np.concatenate([[0], np.cumsum(np.bincount(rank[own], minlength=len(order)))])
    captions = usable[np.argsort(rank[own], kind="stable")]
    columns = _Columns(
        image_ids, file_names, caption_ids, texts, images_used[order], starts, captions
    )
    return Ingested(Images(columns, range(len(order))), rejects)


def _by_id(image_ids: Texts, rows: np.ndarray) -> np.ndarray:
    """The order of `id_order` of these rows' ids, as places in `rows`."""
    numbers = np.fromiter(
        (id_order(image_ids[row])[:2] for row in rows.tolist()), "i8,i8", len(rows)
    )
    others = np.zeros(len(rows), np.int64)
    if numbers["f0"].any():
        rank = np.empty(len(image_ids), np.int64)
        rank[image_ids.order()] = np.arange(len(image_ids))
        others = np.where(numbers["f0"], rank[rows], 0)
    return np.lexsort((others, numbers["f1"], numbers["f0"]))


def _key(image_id: Any) -> str:
    return identity(image_id) or repr(image_id)


def id_order(image_id: str) -> tuple[int, int, str]:
    """Sort key: numbers by size, then other ids by their letters."""
    number = int(image_id) if image_id.isdecimal() and len(image_id) < 19 else None
    return (1, 0, image_id) if number is None else (0, number, image_id)


def _problem(text: Any) -> tuple[str, str] | None:
    """Code and message of what is wrong with a caption."""
    if not isinstance(text, str):
        return "caption_not_text", f"the caption is {type(text).__name__}, not text"
    if not text.strip():
        return "caption_empty", "the caption is empty"
    if len(text) > LONGEST_CAPTION:
        return "caption_too_long", f"the caption has {len(text)} characters"
    if not text.isprintable():
        bad = next((c for c in text if not c.isprintable() and c not in "\t\n\r\u00a0\u200b"), None)
        if bad is not None:
            return "caption_control", f"the caption has the character U+{ord(bad):04X}"
    return None


def _photos(path: str, images: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Ids and names of the images of COCO JSON."""
    for index, image in enumerate(images):
        known = isinstance(image, dict) and "file_name" in image
        if not known or identity(image.get("id")) is None:
            raise InputError(f"{path}: images[{index}] has no id or no file_name")
        yield image["id"], image["file_name"]


def _photos_of(pairs: Iterable[Pair]) -> Iterator[tuple[str, str]]:
    """The same of pairs; of an image with several captions in a row once."""
    before = None
    for pair in pairs:
        if before != (before := (pair.image_id, pair.image)):
            yield before


def _rows_of(pairs: Iterable[Pair]) -> Iterator[dict[str, Any]]:
    """Their captions as rows of COCO JSON."""
    for i, pair in enumerate(pairs):
        yield {"id": i, "image_id": pair.image_id, "caption": pair.caption}


def with_questions(
    images: Sequence[ImageItem], questions: str, answers: str
) -> Iterator[ImageItem]:
    """The images that VQAv2 asks yes/no questions about, with these questions.

    Files: VQAv2's `questions` (`question_id`, `image_id`, `question`) and `annotations`
    (`question_id`, `answers` of ten annotators). Raises InputError.
    """
    asked = coco.read_lists(Path(questions), ("questions",), layout="VQAv2")["questions"]
    answered = coco.read_lists(Path(answers), ("annotations",), layout="VQAv2")["annotations"]
    found = collections.defaultdict[str, list[Question]](list)  # by image
    try:
        texts = {row["question_id"]: (identity(row["image_id"]), row["question"]) for row in asked}
        for row in answered:
            votes = [str(answer.get("answer", "")).strip().lower() for answer in row["answers"]]
            yes, no = votes.count("yes"), votes.count("no")
            if row["question_id"] in texts and yes + no > len(votes) / 2:  # else no yes/no question
                image_id, text = texts[row["question_id"]]
                question = Question(str(row["question_id"]), text, yes, no, len(votes))
                found[image_id].append(question)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{questions} and {answers} are not in VQAv2's layout ({error!r} in one of their rows)"
        ) from None
    for image in images:
        if own := found.get(identity(image.image_id)):
            yield ImageItem(image.image_id, image.file_name, image.captions, tuple(own))
