"""One image through all stages, and which of its captions says that which object is absent."""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from data_gen.images import Photo, PhotoError, PhotoFolder
from data_gen.rules import cue_of
from data_gen.settings import Settings
from data_gen.stages.propose import Proposer, filtered, filtered_questions
from data_gen.stages.rewrite import RewriteStage
from data_gen.stages.verify import Verifier
from data_gen.work import Assignment, Candidate, Caption, ImageItem, Rows, Verdict, shuffled
from negclip_jax.common.chat.messages import is_transient
from negclip_jax.common.records import identity
from negclip_jax.language.mentions import named_categories


class ImagePipeline:
    """Takes an image through all stages; one object serves a whole run.

    `visible`: annotated objects that are plain to see, by image id. `threads` decode photos.
    `source`: name of the captions file, for the table.
    """

    def __init__(
        self,
        config: Settings,
        proposer: Proposer,
        verifier: Verifier,
        stage: RewriteStage,
        folder: PhotoFolder | None,
        visible: Mapping[str, frozenset[str]],
        threads: Executor,
        source: str,
    ):
        self._config, self._proposer = config, proposer
        self._verifier, self._stage = verifier, stage
        self._folder, self._visible, self._threads = folder, visible, threads
        self._source = source

    async def process(self, image: ImageItem) -> Rows:
        """All rows that the image adds to the tables. Raises Pending, EndpointError, InputError.

        An image that ends with a transient error goes through once more: what was answered is in
        the cache, and what failed may be over.
        """
        rows = await self._once(image)
        if any(is_transient(code) for code in rows.codes()):
            rows = await self._once(image)
        return rows

    async def _once(self, image: ImageItem) -> Rows:
        rows = Rows()
        photo = None
        if self._folder is not None:
            loop = asyncio.get_running_loop()
            try:
                photo = await loop.run_in_executor(
                    self._threads, self._folder.load, image.file_name
                )
            except PhotoError as error:
                rows.rejects.append(_photo_reject(image, error))
                return rows
        rows.items.extend(_item_rows(image, photo, self._source))
        candidates = await self._candidates(image)
        rows.candidates.extend(_candidate_row(image, c) for c in candidates)
        verdicts = await self._verdicts(image, photo, candidates)
        rows.verdicts.extend(verdict.row(image.image_id) for verdict in verdicts)
        assignments = assign(
            image, candidates, verdicts, seed=self._config.seed, **self._config.assign
        )
        present = self._known_present(image, verdicts)
        rows.pairs.extend(await self._stage.run(image, assignments, present))
        return rows

    async def _candidates(self, image: ImageItem) -> list[Candidate]:
        candidates = await self._proposer.propose(image)
        if self._config.pipeline == "vqa":
            kept = filtered_questions(candidates, image.texts)
        elif self._config.propose.filter:
            kept = filtered(candidates, image.texts)
        else:
            return candidates
        return _first_usable(kept, self._config)

    async def _verdicts(
        self, image: ImageItem, photo: Photo | None, candidates: Sequence[Candidate]
    ) -> list[Verdict]:
        unique = {(c.object, c.question): c for c in candidates if c.reject_reason is None}
        verdicts = await self._verifier.verify(image, photo, list(unique.values()))
        order = {key: place for place, key in enumerate(unique)}
        return sorted(verdicts, key=lambda v: order[v.object, v.question])

    def _known_present(self, image: ImageItem, verdicts: Sequence[Verdict]) -> list[str]:
        """Objects that are surely in the photo: annotated, seen by the verifier, or mentioned."""
        names = {v.object for v in verdicts if v.verdict == "present" and v.question is None}
        names |= self._visible.get(identity(image.image_id), frozenset())
        if not names:
            names = {name for text in image.texts for name in named_categories(text)}
        return sorted(names)


def _first_usable(candidates: Sequence[Candidate], config: Settings) -> list[Candidate]:
    """A model may name more than it was asked for: the first usable ones count."""
    kept, usable = [], 0
    for candidate in candidates:
        usable += candidate.reject_reason is None
        if usable > config.propose.number and candidate.reject_reason is None:
            continue
        kept.append(candidate)
    return kept


def _photo_reject(image: ImageItem, error: PhotoError) -> dict[str, Any]:
    return {
        "image_id": image.image_id,
        "file_name": image.file_name,
        "code": error.code,
        "detail": str(error),
    }


def _item_rows(image: ImageItem, photo: Photo | None, source: str) -> list[dict[str, Any]]:
    shared = {"image_id": image.image_id, "file_name": image.file_name, "source": source}
    shared["split"] = Path(image.file_name).parent.name or None
    if photo is not None:
        shared |= {"image_sha256": photo.sha256, "width": photo.width, "height": photo.height}
    return [{**shared, "caption_id": c.id, "caption": c.text} for c in image.captions]


def _candidate_row(image: ImageItem, candidate: Candidate) -> dict[str, Any]:
    names = ("caption_id", "object", "question", "source", "key", "reject_reason")
    return {"image_id": image.image_id} | {name: getattr(candidate, name) for name in names}


def assign(
    image: ImageItem,
    candidates: Sequence[Candidate],
    verdicts: Sequence[Verdict],
    *,
    captions_per_object: int,
    skip_negated: bool,
    seed: int,
) -> list[Assignment]:
    """One absent object for each caption, as far as they go, by a hash of caption and seed.

    An object serves at most `captions_per_object` captions of its image. A candidate that was
    proposed for one caption serves that one only. With `skip_negated`, captions that negate
    something already are left alone: one negation is enough.
    """
    absent = {(v.object, v.question): v for v in verdicts if v.verdict == "absent"}
    free = [
        candidate
        for candidate in candidates
        if candidate.reject_reason is None and (candidate.object, candidate.question) in absent
    ]
    captions = [c for c in image.captions if not (skip_negated and cue_of(c.text))]
    own = {c.caption_id: c for c in free if c.caption_id is not None}
    if own:
        pairs = [(caption, own[caption.id]) for caption in captions if caption.id in own]
    else:
        pairs = _spread(captions, free, captions_per_object, seed)
    return [Assignment(c, o, absent[o.object, o.question]) for c, o in pairs]


def _spread(
    captions: Sequence[Caption], objects: Sequence[Candidate], most: int, seed: int
) -> list[tuple[Caption, Candidate]]:
    """Objects over captions in turns: each object once before any of them twice."""
    turns = shuffled(objects, seed, "object") * most
    order = {c.id: i for i, c in enumerate(captions)}
    chosen = list(zip(shuffled(captions, seed, "caption"), turns, strict=False))
    return sorted(chosen, key=lambda pair: order[pair[0].id])
