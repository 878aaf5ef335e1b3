"""Which caption says that which object is absent."""

from collections.abc import Sequence

from data_gen.rules import cue_of
from data_gen.work import Assignment, Candidate, Caption, ImageItem, Verdict, shuffled


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
