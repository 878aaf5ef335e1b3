"""The units of work that stages hand on: an image with its captions, and what was found out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from negclip_jax.common.provenance import content_hash


@dataclass(frozen=True, slots=True)
class Caption:
    """One caption of an image."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Question:
    """A yes/no question of VQAv2 with the votes of its annotators."""

    id: str
    text: str
    yes: int
    no: int
    votes: int


@dataclass(frozen=True, slots=True)
class ImageItem:
    """An image with its usable captions, and its questions where the pipeline has some."""

    image_id: str
    file_name: str
    captions: tuple[Caption, ...]
    questions: tuple[Question, ...] = ()

    @property
    def texts(self) -> list[str]:
        """The captions' texts."""
        return [caption.text for caption in self.captions]

    @property
    def content(self) -> list:
        """Everything in it, for a hash."""
        captions = [[caption.id, caption.text] for caption in self.captions]
        questions = [[q.id, q.text, q.yes, q.no, q.votes] for q in self.questions]
        return [self.image_id, self.file_name, captions, questions]


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that may be absent; fields as in `data_gen.records.CANDIDATES`."""

    object: str
    source: str
    question: str | None = None
    caption_id: str | None = None
    key: str | None = None
    model: str | None = None
    prompt_id: str | None = None
    reject_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether it is absent; fields as in `data_gen.records.VERDICTS`."""

    object: str
    verdict: str
    p_yes: float
    p_no: float
    method: str
    question: str | None = None
    model: str | None = None
    prompt_id: str | None = None
    key: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error_code: str | None = None

    @property
    def mass(self) -> float:
        return self.p_yes + self.p_no

    def row(self, image_id: str) -> dict[str, Any]:
        """The row of the table."""
        names = (f for f in self.__slots__)
        return {"image_id": image_id, "mass": self.mass} | {n: getattr(self, n) for n in names}


@dataclass(frozen=True, slots=True)
class Assignment:
    """A caption that is to say that something is absent."""

    caption: Caption
    candidate: Candidate
    verdict: Verdict


@dataclass(slots=True)
class Rows:
    """What one image adds to each table."""

    items: list[Mapping[str, Any]] = field(default_factory=list)
    rejects: list[Mapping[str, Any]] = field(default_factory=list)
    candidates: list[Mapping[str, Any]] = field(default_factory=list)
    verdicts: list[Mapping[str, Any]] = field(default_factory=list)
    pairs: list[Mapping[str, Any]] = field(default_factory=list)

    def codes(self) -> set[str]:
        """Everything that went wrong with the image, by its codes."""
        found = {row["reject_reason"] for row in self.candidates}
        found |= {row["error_code"] for row in self.verdicts}
        found |= {reason for row in self.pairs for reason in row["reasons"]}
        return {code for code in found if code}


def chance(*parts: Any) -> float:
    """A number in [0, 1) that depends on its arguments only: the same on every machine."""
    return int(content_hash(parts)[:13], 16) / 16**13


def shuffled(things: Sequence[Any], *parts: Any) -> list[Any]:
    """The things in an order that depends on `parts` and the things only."""
    return sorted(things, key=lambda thing: content_hash([*parts, repr(thing)]))
