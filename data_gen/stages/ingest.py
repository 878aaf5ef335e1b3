"""Captions files into images with usable captions; what is not usable is a row with its reason."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_gen.work import Caption, ImageItem, Question
from negclip_jax.common import strict_json
from negclip_jax.common.errors import InputError
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
    if path.lower().endswith((".jsonl", ".ndjson", ".parquet")):
        names, annotations = _read_records(path)
    else:
        content = read_json(path, ("images", "annotations"))
        names = _image_names(path, content["images"])
        annotations = content["annotations"]
    reader = _Reader(path, names)
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

    def __init__(self, path: str, names: Mapping[str, str]):
        self._path, self._names = path, names
        self._captions: dict[str, list[Caption]] = {}
        self._seen: dict[str, tuple[str, str]] = {}  # caption id to image id and text
        self._bad_names = {i: reason for i, n in names.items() if (reason := unsafe_name(n))}
        self.rejects: list[dict[str, Any]] = []

    def read(self, annotations: Sequence[Any]) -> None:
        for index, row in enumerate(annotations):
            if not isinstance(row, dict):
                self._reject(None, f"row {index}", "not_an_object", "it is no JSON object")
                continue
            caption_id = row.get("id", f"row {index}")
            self._add(str(row.get("image_id")), str(caption_id), row.get("caption"))

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


def id_order(image_id: str) -> tuple[int, int, str]:
    """Sort key: numbers by size, then other ids by their letters."""
    number = int(image_id) if image_id.isdecimal() and len(image_id) < 19 else None
    return (1, 0, image_id) if number is None else (0, number, image_id)


def _problem(text: Any) -> tuple[str, str] | None:
    """Code and sentence of what is wrong with a caption."""
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


def read_json(path: str, keys: Sequence[str]) -> dict[str, Any]:
    """A JSON object with these lists. Raises InputError that says what is missing."""
    content = strict_json.read_json(Path(path), (dict, list))
    for key in keys:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f'{path} has no list "{key}": it is not in the expected layout')
    return content


def _image_names(path: str, images: Sequence[Any]) -> dict[str, str]:
    names: dict[str, str] = {}
    for index, image in enumerate(images):
        try:
            image_id, name = str(image["id"]), image["file_name"]
        except (TypeError, KeyError):
            raise InputError(f"{path}: images[{index}] has no id or no file_name") from None
        if names.setdefault(image_id, name) != name:
            raise InputError(f"{path}: two images have the id {image_id}; give each its own")
    return names


def _read_records(path: str) -> tuple[dict[str, str], list[dict]]:
    from negclip_jax.data.pairs import PairError, read_pairs

    try:
        pairs = read_pairs(path, require_negated=False)
    except PairError as error:
        raise InputError(str(error)) from None
    names = {pair.image_id: pair.image for pair in pairs}
    rows = [
        {"id": i, "image_id": pair.image_id, "caption": pair.caption}
        for i, pair in enumerate(pairs)
    ]
    return names, rows


def with_questions(
    images: Sequence[ImageItem], questions: str, answers: str
) -> Iterator[ImageItem]:
    """The images that VQAv2 asks yes/no questions about, with these questions.

    Files: VQAv2's `questions` (`question_id`, `image_id`, `question`) and `annotations`
    (`question_id`, `answers` of ten annotators). Raises InputError.
    """
    asked = read_json(questions, ("questions",))["questions"]
    answered = read_json(answers, ("annotations",))["annotations"]
    try:
        by_image = _by_image(asked, answered)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{questions} and {answers} are not in VQAv2's layout ({error!r} in one of their rows)"
        ) from None
    for image in images:
        if image.image_id in by_image:
            asked = tuple(by_image[image.image_id])
            yield ImageItem(image.image_id, image.file_name, image.captions, asked)


def _by_image(asked: Sequence[dict], answered: Sequence[dict]) -> dict[str, list[Question]]:
    """The questions that most annotators answered with yes or no, by image id."""
    texts = {row["question_id"]: (str(row["image_id"]), row["question"]) for row in asked}
    found: dict[str, list[Question]] = {}
    for row in answered:
        votes = [str(answer.get("answer", "")).strip().lower() for answer in row["answers"]]
        yes, no = votes.count("yes"), votes.count("no")
        if row["question_id"] in texts and yes + no > len(votes) / 2:
            image_id, text = texts[row["question_id"]]
            question = Question(str(row["question_id"]), text, yes, no, len(votes))
            found.setdefault(image_id, []).append(question)
    return found
