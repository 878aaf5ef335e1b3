"""A CLIP in the place of a judge, where no visual question answering model is at hand.

CLIP compares, it does not answer. It is therefore given statements without any negation, which it
understands best, and a picture scores

- affirmative, where it is nearer to "a photo of a man" than to "a photo";
- negation, where it is nearer to "a photo of a man" than to "a photo of a man wearing a hat", the
  prompt with its negating word taken out; of several denied things, than to each statement.

Nearer: the greater cosine of unit features; a tie fails. This is no published protocol, and CLIP's
own faults are in it: compare models, and trust the difference more than the numbers.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evals import models
from evals.images import DataRoots, ImageRef
from evals.text_to_image.judge import Verdict
from evals.text_to_image.pictures import FOLDER, Picture
from evals.text_to_image.prompts import Prompt
from negclip_jax.common.errors import InputError
from negclip_jax.embeddings.encoder import Encoder

LABEL = "CLIP stand-in, not a VQA judge"
_NEUTRAL, _STATEMENT = "a photo", "a photo of {}"


class StandIn:
    """A CLIP that compares pictures with statements."""

    kind, label = "clip_stand_in", LABEL

    def __init__(self, out: Path, prompts: Sequence[Prompt], model: str, **arguments: Any):
        """Loads the model with the arguments of `evals.models.load`; embeddings are kept in `out`.

        Raises InputError for no such model, or prompts that do not negate.
        """
        bare = [prompt.text for prompt in prompts if not (prompt.affirmative and prompt.affirmed)]
        if bare:
            raise InputError(
                f"{len(bare)} of {len(prompts)} prompts do not say what is there and what is not, "
                f"such as {bare[0]!r}: a stand-in needs a negating word, and the key Question1 or "
                "Affirmative where the words before it do not say what is there"
            )
        self._out = out
        self._prompts = {prompt.text: prompt for prompt in prompts}
        self._model = models.load(model, **arguments)
        self._verdicts: dict[str, Verdict] = {}

    def described(self) -> dict[str, Any]:
        """For `results.json`."""
        described = models.described(self._model)
        return {"model": self._model.name, "statement": _STATEMENT, "neutral": _NEUTRAL} | described

    def look(self, pictures: Sequence[Picture]) -> None:
        """Compares all pictures; their embeddings are cached by the files' bytes."""
        refs = {picture.file: ImageRef(picture.file) for picture in pictures}
        asked = {}  # the neutral statement, the affirmative one, and those that deny the prompt
        for picture in pictures:
            prompt = self._prompts[picture.prompt]
            statements = map(_STATEMENT.format, (prompt.affirmative, *prompt.affirmed))
            asked[picture.file] = (_NEUTRAL, *statements)
        texts = list(dict.fromkeys(text for statements in asked.values() for text in statements))
        roots = DataRoots((self._out / FOLDER,))
        cache = self._out / "embeddings"
        images = list(refs.values())
        with contextlib.closing(Encoder(self._model, images, texts, roots, cache=cache)) as encoder:
            image_rows, text_rows = encoder.features(images, texts)
        rows = dict(zip(texts, text_rows, strict=True))
        for file, image in zip(refs, image_rows, strict=True):
            cosines = np.stack([rows[text] for text in asked[file]]) @ image
            self._verdicts[file] = _verdict(asked[file], cosines)

    def verdict(self, picture: Picture) -> Verdict | None:
        """What a picture scores; None before `look`."""
        return self._verdicts.get(picture.file)


def _verdict(statements: Sequence[str], cosines: np.ndarray) -> Verdict:
    neutral, affirmative, *affirmed = map(float, cosines)
    rivals = [neutral, *affirmed]
    names = [statements[0], *statements[2:]]
    holds = [affirmative > rival for rival in rivals]
    reasons = tuple(
        (f"nearer to “{statements[1]}” than to “{n}”", f"{affirmative:.3f} : {r:.3f}", h, True)
        for n, r, h in zip(names, rivals, holds, strict=True)
    )
    return Verdict(holds[0], all(holds[1:]), reasons)
