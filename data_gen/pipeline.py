"""A few images through all stages, and which of its captions says that which object is absent."""

import asyncio
import collections
from collections.abc import Coroutine, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from data_gen import labels
from data_gen.annotations import InstanceVerifier, certain, is_category, unsaid
from data_gen.engines.cache import Cache
from data_gen.engines.probe import Pending
from data_gen.images import Photo, PhotoError, PhotoFolder
from data_gen.records import NAMED, Assignment, Candidate, ImageItem, Rows, Verdict, shuffled
from data_gen.settings import Settings
from data_gen.stages.propose import Proposer, filtered
from data_gen.stages.rewrite import RewriteStage, Work
from data_gen.stages.verify import Verifier
from negclip_jax.common.chat.messages import THINKS, is_transient
from negclip_jax.common.errors import InputError
from negclip_jax.common.records import identity
from negclip_jax.language.mentions import named_categories
from negclip_jax.language.negation import cue_of
from negclip_jax.language.twins import place_of
from negclip_jax.language.vocabulary import CATEGORIES

T = TypeVar("T")
FIRST_ANSWERS = 100
_CANDIDATE_COLUMNS = ("caption_id", "object", "question", "source", "key", "reject_reason")


class UselessAnswers(InputError):
    """None of a stage's first answers can be used. `stage`: which."""

    def __init__(self, message: str, stage: str):
        super().__init__(message, status=4)
        self.stage = stage


class FirstAnswers:
    """Stops a run whose first hundred answers of a stage are all of no use.

    A model that thinks aloud, or answers in a form that is not read, would be asked about every
    photo for nothing.
    """

    def __init__(self, cache: Cache | None, enough_mass: float):
        """`enough_mass`: p_yes + p_no from which an answer is yes or no."""
        self._cache, self._enough = cache, enough_mass
        self._useful: set[str] = set()
        self._useless: dict[str, list[tuple[str, str]]] = {}

    def count(self, rows: Rows) -> None:
        """Adds an image's answers. Raises UselessAnswers."""
        for row in rows.candidates:
            if row["source"] == "llm":
                reason = row["reject_reason"]
                named = reason in (None, "mentioned", "duplicate")
                self._add("propose", row["key"], named, reason)
        for row in rows.verdicts:
            answered = row["verdict"] != "error" and row["mass"] >= self._enough
            if row["key"] is not None:
                self._add("verify", row["key"], answered, row["error_code"] or row["verdict"])
        for row in rows.pairs:
            if row["rewriter"] == "llm":
                stage = "rewrite" if row["question"] is None else "merge"
                self._add(stage, row["keys"]["rewrite"], row["accepted"], ", ".join(row["reasons"]))

    def _add(self, stage: str, key: str, is_useful: bool, reason: str | None) -> None:
        if is_useful:
            self._useful.add(stage)
        if stage in self._useful:
            return
        useless = self._useless.setdefault(stage, [])
        useless.append((key, reason or "unusable"))
        if len(useless) < FIRST_ANSWERS:
            return
        why = collections.Counter(reason for _, reason in useless).most_common(3)
        texts = (self._cache.text(key) for key, _ in useless if self._cache is not None)
        example = next((f", for example {text[:200]!r}" for text in texts if text), "")
        advice = "`python -m data_gen probe` shows what the model answers"
        raise UselessAnswers(
            f"none of the first {len(useless)} answers of the stage {stage} can be used "
            f"({', '.join(f'{reason}: {number}' for reason, number in why)}){example}; "
            f"{THINKS if why[0][0] == 'thinking' else advice}. After a repair the same command "
            "goes on and asks these again",
            stage,
        )


@dataclass(frozen=True)
class ImagePipeline:
    """Takes images through all stages, together; one object serves a whole run.

    `boxes`: the annotations of its images, where there are some. `present`: how many things that
    captions name are asked about; None where no model looks. `threads` decode photos.
    """

    config: Settings
    proposer: Proposer
    verifier: Verifier
    stage: RewriteStage
    folder: PhotoFolder | None
    boxes: InstanceVerifier | None
    present: int | None
    threads: Executor

    async def process(self, images: Sequence[ImageItem]) -> list[Rows]:
        """All rows that each image adds to the tables. Raises Pending, EndpointError, InputError.

        What ends with a transient error is done once more: what was answered is in the cache, and
        what failed may be over. `images`: those that share requests to the LLM.
        """
        rows, usable = await self._looked_at(images)
        if _shaken(rows):
            rows, usable = await self._looked_at(images)
        works = list(usable.values())
        pairs = await self.stage.run(works)
        if _shaken([Rows(pairs=written) for written in pairs]):
            pairs = await self.stage.run(works)
        for place, written in zip(usable, pairs, strict=True):
            rows[place].pairs.extend(written)
        return rows

    async def _looked_at(self, images: Sequence[ImageItem]) -> tuple[list[Rows], dict[int, Work]]:
        """Rows but for pairs, and by its place what is to be written for each usable image."""
        opened = await _all(self._open(image) for image in images)
        usable = [place for place, (rows, _) in enumerate(opened) if not rows.rejects]
        proposed = await self.proposer.propose([images[place] for place in usable])
        works = await _all(
            self._look(images[place], *opened[place], found)
            for place, found in zip(usable, proposed, strict=True)
        )
        return [rows for rows, _ in opened], dict(zip(usable, works, strict=True))

    async def _open(self, image: ImageItem) -> tuple[Rows, Photo | None]:
        """Its rows so far, `rejects` only if it cannot be used, and its photo."""
        rows, photo = Rows(), None
        shared = {"image_id": image.image_id, "file_name": image.file_name}
        if self.folder is not None:
            loop = asyncio.get_running_loop()
            try:
                photo = await loop.run_in_executor(self.threads, self.folder.load, image.file_name)
            except PhotoError as error:
                rows.rejects.append({**shared, "code": error.code, "detail": str(error)})
                return rows, None
            shared |= {"image_sha256": photo.sha256, "width": photo.width, "height": photo.height}
        shared["source"] = Path(self.config.input.captions).name
        shared["split"] = Path(image.file_name).parent.name or None
        rows.items.extend({**shared, "caption_id": c.id, "caption": c.text} for c in image.captions)
        return rows, photo

    async def _look(
        self, image: ImageItem, rows: Rows, photo: Photo | None, proposed: Sequence[Candidate]
    ) -> Work:
        """Adds candidates, verdicts and labels to its rows; returns what is to be written."""
        candidates = self._candidates(image, proposed)
        rows.candidates.extend(
            {"image_id": image.image_id} | {name: getattr(c, name) for name in _CANDIDATE_COLUMNS}
            for c in candidates
        )
        verdicts = await self._verdicts(image, photo, candidates)
        about = {"image_id": image.image_id}
        rows.verdicts.extend(about | {"mass": v.mass} | asdict(v) for v in verdicts)
        found = labels.of_image(image, self.boxes, rows.verdicts)
        rows.labels.extend({**label._asdict(), "file_name": image.file_name} for label in found)
        # Objects that are surely in the photo: annotated or seen by the verifier; where no model
        # looks, COCO's categories that captions name.
        seen = {v.object for v in verdicts if v.verdict == "present" and v.question is None}
        present = set(seen)
        known = identity(image.image_id)
        is_known = self.boxes is not None and known in self.boxes.present
        if is_known:
            present |= self.boxes.visible[known]
            seen |= self.boxes.large[known]
        # Where boxes know the photo, a word of a caption adds nothing: "an orange cat".
        if not present and self.present is None and not is_known:
            present = {name for text in image.texts for name in named_categories(text)}
        sure = certain(sorted(present), image.texts, seen)
        assignments = assign(
            image, candidates, verdicts, sure, seed=self.config.seed, **self.config.assign
        )
        return Work(image, assignments, sorted(present))

    def _candidates(self, image: ImageItem, proposed: Sequence[Candidate]) -> list[Candidate]:
        candidates = list(proposed)
        if self.config.pipeline == "vqa" or self.config.propose.filter:
            # A model may name more than it was asked for: the first usable ones count.
            candidates, usable = [], 0
            for candidate in filtered(proposed, image.texts):
                usable += candidate.reject_reason is None and candidate.source == "llm"
                if usable <= self.config.propose.number or candidate.reject_reason is not None:
                    candidates.append(candidate)
        if not self.present or all(candidate.reject_reason for candidate in candidates):
            return candidates
        # What captions name is never said to be absent, but asked about for its label.
        named = labels.unsaid_by_others(image, self.present, self.config.seed, self.boxes)
        return candidates + [Candidate(name, NAMED, reject_reason="mentioned") for name in named]

    async def _verdicts(
        self, image: ImageItem, photo: Photo | None, candidates: Sequence[Candidate]
    ) -> list[Verdict]:
        asked = (c for c in candidates if c.reject_reason is None or c.source == NAMED)
        unique = {(c.object, c.question): c for c in asked}
        verdicts = await self.verifier.verify(image, photo, list(unique.values()))
        order = {key: place for place, key in enumerate(unique)}
        return sorted(verdicts, key=lambda v: order[v.object, v.question])


def _shaken(rows: Iterable[Rows]) -> bool:
    return any(is_transient(code) for own in rows for code in own.codes())


async def _all(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Their results. Raises Pending when each has asked for all that it can ask now."""

    async def settled(work: Coroutine[Any, Any, T]) -> T | Pending:
        try:
            return await work
        except Pending as pending:
            return pending

    tasks = [asyncio.ensure_future(settled(work)) for work in works]
    try:
        found = await asyncio.gather(*tasks)
    except BaseException:  # of one: the others are not waited for
        for task in tasks:
            task.cancel()
        raise
    if pending := next((result for result in found if isinstance(result, Pending)), None):
        raise pending
    return found


def assign(
    image: ImageItem,
    candidates: Sequence[Candidate],
    verdicts: Sequence[Verdict],
    present: Sequence[str] = (),
    *,
    captions_per_object: int,
    skip_negated: bool,
    seed: int,
) -> list[Assignment]:
    """One absent object for each caption, as far as they go, by a hash of caption and seed.

    An object serves at most `captions_per_object` captions of its image. A candidate that was
    proposed for one caption serves that one only. With `skip_negated`, captions that negate
    something already are left alone: one negation is enough. `present`: what is surely in the
    photo: a caption's false twin is of it, so that its absent object is of the same kind if one is.
    """
    absent = {(v.object, v.question): v for v in verdicts if v.verdict == "absent"}
    free = [c for c in candidates if c.reject_reason is None and (c.object, c.question) in absent]
    captions = [c for c in image.captions if not (skip_negated and cue_of(c.text))]
    own = {c.caption_id: c for c in free if c.caption_id is not None}
    left = {caption.id: unsaid(present, caption.text) for caption in captions}
    if own:
        pairs = [(caption, own[caption.id]) for caption in captions if caption.id in own]
    else:  # in turns: each object once before any of them twice
        # In an order of this image: one order for all would leave some objects to the last.
        turns = shuffled(free, seed, image.image_id, "object") * captions_per_object
        order, pairs = {c.id: i for i, c in enumerate(captions)}, []
        for caption in shuffled(captions, seed, "caption")[: len(turns)]:
            kind = is_category(left[caption.id])
            turns.sort(key=lambda c: (c.object in CATEGORIES) != kind) if present else None
            pairs.append((caption, turns.pop(0)))
        pairs.sort(key=lambda pair: order[pair[0].id])
    assigned = []
    for caption, candidate in pairs:
        found, alone = left[caption.id]
        beside = shuffled(found, seed, caption.id) if alone else ()
        beside = sorted(beside, key=lambda name: not place_of(name, caption.text))
        there = candidate.there or next(iter(beside), None)
        verdict = absent[candidate.object, candidate.question]
        assigned.append(Assignment(caption, candidate, verdict, there))
    return assigned
