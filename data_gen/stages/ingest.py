"""Captions files into images with usable captions; what is not usable is a row with its reason."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_gen.work import Caption, ImageItem, Question
from negclip_jax.common import coco
from negclip_jax.common.errors import InputError
from negclip_jax.common.records import as_written, identity
from negclip_jax.data.records import unsafe_name

LONGEST_CAPTION = 512  # characters


@dataclass(frozen=True)
class Ingested:
    """What a captions file holds: images by id, and rows of the table of rejects."""

    images: list[ImageItem]
    rejects: list[dict[str, Any]]

    @property
    def captions(self) -> int:
        return sum(len(image.captions) for image in self.images)


def read_captions(path: str, max_rejects: float = 1.0) -> Ingested:
    """Reads COCO JSON, or JSONL or Parquet with the columns `image` and `caption`.

    Images come sorted by id, numbers by their size. Raises InputError for a file that is neither,
    for two different captions with one id, and where more than `max_rejects` (a share) of the
    captions cannot be used.
    """
    tables = path.lower().endswith((".jsonl", ".ndjson", ".parquet"))
    images, annotations = (_read_records if tables else _read_coco)(path)
    reader = _Reader(path, images)
    reader.read(annotations)
    refused = sum(1 for row in reader.rejects if row["caption_id"] is not None)
    if refused > max_rejects * max(len(annotations), 1):
        shown = "; ".join(f"{row['caption_id']}: {row['detail']}" for row in reader.rejects[:3])
        raise InputError(
            f"{path}: {refused} of {len(annotations)} captions cannot be used, more than "
            f"{max_rejects:.0%} (max_rejects): {shown}"
        )
    images = reader.images()
    if not images:
        raise InputError(f"{path} has no usable caption")
    return Ingested(images, reader.rejects)


class _Reader:
    """Annotations of one file on their way into images."""

    def __init__(self, path: str, images: Sequence[tuple[Any, Any]]):
        """`images`: id and file name of each, in any spelling of the ids (`records.identity`)."""
        self._path = path
        self._ids = {_key(given): as_written(given) for given, _ in reversed(images)}
        self._names: dict[str, str] = {}  # by the first spelling of each id
        for given, name in images:
            image_id = self._ids[_key(given)]
            if self._names.setdefault(image_id, name) != name:
                raise InputError(f"{path}: two images have the id {image_id}; give each its own")
        self._captions: dict[str, list[Caption]] = {}
        self._seen: dict[str, tuple[str, str]] = {}  # caption id to image id and text
        self._bad_names = {i: reason for i, n in self._names.items() if (reason := unsafe_name(n))}
        self.rejects: list[dict[str, Any]] = []

    def read(self, annotations: Sequence[Any]) -> None:
        for index, row in enumerate(annotations):
            if not isinstance(row, dict):
                self._reject(None, f"row {index}", "not_an_object", "it is no JSON object")
                continue
            caption_id = row.get("id", f"row {index}")
            given = row.get("image_id")
            image_id = self._ids.get(_key(given), str(given))
            self._add(image_id, str(caption_id), row.get("caption"))

    def _add(self, image_id: str, caption_id: str, text: Any) -> None:
        if image_id not in self._names:
            self._reject(image_id, caption_id, "image_unknown", f"no image has the id {image_id}")
            return
        if image_id in self._bad_names:
            detail = f"the image name {self._names[image_id]!r} {self._bad_names[image_id]}"
            self._reject(image_id, caption_id, "image_outside", detail)
            return
        problem = _problem(text)
        if problem:
            self._reject(image_id, caption_id, *problem)
            return
        text = " ".join(text.split())
        known = self._seen.setdefault(caption_id, (image_id, text))
        if known != (image_id, text):
            raise InputError(
                f"{self._path}: two different captions have the id {caption_id} ({known[1]!r} and "
                f"{text!r}); give every caption its own id"
            )
        captions = self._captions.setdefault(image_id, [])
        if any(caption.id == caption_id for caption in captions):
            self._reject(image_id, caption_id, "duplicate", "the same caption is there already")
            return
        captions.append(Caption(caption_id, text))

    def _reject(self, image_id: str | None, caption_id: str, code: str, detail: str) -> None:
        self.rejects.append(
            {
                "image_id": image_id,
                "file_name": self._names.get(image_id),
                "caption_id": caption_id,
                "code": code,
                "detail": detail,
            }
        )

    def images(self) -> list[ImageItem]:
        return [
            ImageItem(image_id, self._names[image_id], tuple(self._captions[image_id]))
            for image_id in sorted(self._captions, key=id_order)
        ]


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


def _read_coco(path: str) -> tuple[list[tuple[Any, Any]], list[Any]]:
    """Ids and names of the images, and the rows of captions."""
    content = coco.read_lists(Path(path), ("images", "annotations"))
    for index, image in enumerate(content["images"]):
        known = isinstance(image, dict) and "file_name" in image
        if not known or identity(image.get("id")) is None:
            raise InputError(f"{path}: images[{index}] has no id or no file_name")
    return [(row["id"], row["file_name"]) for row in content["images"]], content["annotations"]


def _read_records(path: str) -> tuple[list[tuple[Any, Any]], list[Any]]:
    from negclip_jax.data.pairs import read_pairs

    pairs = read_pairs(path, require_negated=False)
    rows = [
        {"id": i, "image_id": pair.image_id, "caption": pair.caption}
        for i, pair in enumerate(pairs)
    ]
    return [(pair.image_id, pair.image) for pair in pairs], rows


def with_questions(
    images: Sequence[ImageItem], questions: str, answers: str
) -> Iterator[ImageItem]:
    """The images that VQAv2 asks yes/no questions about, with these questions.

    Files: VQAv2's `questions` (`question_id`, `image_id`, `question`) and `annotations`
    (`question_id`, `answers` of ten annotators). Raises InputError.
    """
    asked = coco.read_lists(Path(questions), ("questions",), layout="VQAv2")["questions"]
    answered = coco.read_lists(Path(answers), ("annotations",), layout="VQAv2")["annotations"]
    try:
        by_image = _by_image(asked, answered)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{questions} and {answers} are not in VQAv2's layout ({error!r} in one of their rows)"
        ) from None
    for image in images:
        asked = tuple(by_image.get(identity(image.image_id), ()))
        if asked:
            yield ImageItem(image.image_id, image.file_name, image.captions, asked)


def _by_image(asked: Sequence[dict], answered: Sequence[dict]) -> dict[str, list[Question]]:
    """The questions that most annotators answered with yes or no, by image id."""
    texts = {row["question_id"]: (identity(row["image_id"]), row["question"]) for row in asked}
    found: dict[str, list[Question]] = {}
    for row in answered:
        votes = [str(answer.get("answer", "")).strip().lower() for answer in row["answers"]]
        yes, no = votes.count("yes"), votes.count("no")
        if row["question_id"] in texts and yes + no > len(votes) / 2:
            image_id, text = texts[row["question_id"]]
            question = Question(str(row["question_id"]), text, yes, no, len(votes))
            found.setdefault(image_id, []).append(question)
    return found
