"""Captions files into images with usable captions; what is not usable is a row with its reason."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_gen.records import Caption, ImageItem, Question
from negclip_jax.common import coco, strict_json
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
    if not tables and Path(path).is_file():
        with open(path, "rb") as file:
            other = strict_json.other_format(Path(path).suffix.lower(), file.readline(1 << 20))
        if other:
            raise InputError(
                f"{path} is {other}. Captions are read from COCO JSON, and from JSONL or Parquet "
                'with the columns "image" and "caption": convert it, e.g. with pandas'
            )
    photos, annotations = (_read_records if tables else _read_coco)(path)
    ids = {_key(given): as_written(given) for given, _ in reversed(photos)}
    names: dict[str, str] = {}  # of files, by the first spelling of each id
    for given, name in photos:
        image_id = ids[_key(given)]
        if names.setdefault(image_id, name) != name:
            raise InputError(f"{path}: two images have the id {image_id}; give each its own")
    bad_names = {i: reason for i, name in names.items() if (reason := unsafe_name(name))}
    captions: dict[str, dict[str, Caption]] = {}  # by id of the image, then by their own
    seen: dict[str, tuple[str, str]] = {}  # caption id to image id and text
    rejects: list[dict[str, Any]] = []
    for index, row in enumerate(annotations):
        image_id, caption_id = None, f"row {index}"
        problem: tuple[str, str] | None = ("not_an_object", "it is no JSON object")
        if isinstance(row, dict):
            given, text = row.get("image_id"), row.get("caption")
            image_id, caption_id = ids.get(_key(given), str(given)), str(row.get("id", caption_id))
            problem = _problem(text)
            if image_id not in names:
                problem = "image_unknown", f"no image has the id {image_id}"
            elif image_id in bad_names:
                detail = f"the image name {names[image_id]!r} {bad_names[image_id]}"
                problem = "image_outside", detail
        if problem is None:
            text = " ".join(text.split())
            known = seen.setdefault(caption_id, (image_id, text))
            if known != (image_id, text):
                raise InputError(
                    f"{path}: two different captions have the id {caption_id} ({known[1]!r} and "
                    f"{text!r}); give every caption its own id"
                )
            of_image = captions.setdefault(image_id, {})
            if caption_id in of_image:
                problem = "duplicate", "the same caption is there already"
            of_image.setdefault(caption_id, Caption(caption_id, text))
        if problem is not None:
            about = {"image_id": image_id, "file_name": names.get(image_id)}
            about |= {"caption_id": caption_id, "code": problem[0], "detail": problem[1]}
            rejects.append(about)
    if len(rejects) > max_rejects * max(len(annotations), 1):
        shown = "; ".join(f"{row['caption_id']}: {row['detail']}" for row in rejects[:3])
        raise InputError(
            f"{path}: {len(rejects)} of {len(annotations)} captions cannot be used, more than "
            f"{max_rejects:.0%} (max_rejects): {shown}"
        )
    if not captions:
        raise InputError(f"{path} has no usable caption")
    order = sorted(captions, key=id_order)
    return Ingested([ImageItem(i, names[i], tuple(captions[i].values())) for i in order], rejects)


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
