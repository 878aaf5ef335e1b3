"""A model that sees the pictures and answers: is it a man, does he wear a hat?

Protocol of SpaceVLM's notebook (github.com/sepehrkr/SpaceVLM, `T2I/`): a visual question answering
model is asked `Question1`, to be answered yes, and `Question2`, to be answered no; a picture's
affirmative score is 1 where the first holds, its negation score where the second does, and its
score is their product. An answer other than a plain yes or no fails its question. Of several
`Question2` each must be answered no.
"""

import asyncio
import contextlib
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evals import models
from evals.images import DataRoots, ImageRef
from evals.text_to_image.pictures import FOLDER, Picture
from evals.text_to_image.prompts import Prompt
from negclip_jax.common.chat.client import ChatClient, ChatSettings, EndpointError, NoAnswer
from negclip_jax.common.chat.messages import ChatImage, ChatRequest, ChatResult, is_transient
from negclip_jax.common.errors import InputError
from negclip_jax.common.storage import Journal
from negclip_jax.embeddings.encoder import Encoder
from negclip_jax.runtime import console

LABEL = "CLIP stand-in, not a VQA judge"
_NEUTRAL, _STATEMENT = "a photo", "a photo of {}"
ANSWERS = "answers.jsonl"
_INSTRUCTION = "Answer with one word: yes or no."
_MAX_TOKENS = 16  # room for "yes" in any vocabulary; who needs more does not answer plainly
_KEY = "OPENAI_API_KEY"
_PLAIN = re.compile(r"""["'*`]*(yes|no)["'*`]*[.!]?["'*`]*""", re.IGNORECASE)


class JudgeError(InputError):
    """A server that cannot be asked: down, too slow, a wrong key, address or model."""


def patience(
    *, timeout: float = 120.0, tries: int = 5, concurrency: int = 8, backoff: float = 2.0
) -> ChatSettings:
    """Seconds for one try, tries of one question, questions in flight, seconds between tries.

    A question whose tries are used up stops the command: the breaker, which would wait for the
    server instead of counting tries, never opens.
    """
    return ChatSettings(
        concurrency=concurrency,
        start_concurrency=concurrency,
        timeout=timeout,
        tries=tries,
        backoff=backoff,
        breaker_failures=tries * concurrency + 1,
        longest_retry_after=30.0,
    )


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a picture scores."""

    affirmative: bool  # what the prompt asks for is there
    negation: bool  # what it denies is not there
    # For the page: question or statement, answer or comparison, whether it holds, whether the
    # answer was plain.
    reasons: tuple[tuple[str, str, bool, bool], ...]

    @property
    def both(self) -> bool:
        """The score: a man, and no hat."""
        return self.affirmative and self.negation


def plain(text: str) -> str:
    """ "yes" or "no" where the answer is that word alone, but for case, quotes and a full stop."""
    found = _PLAIN.fullmatch(text.strip())
    return found[1].lower() if found else ""


class Judge:
    """A visual question answering model behind an OpenAI-compatible server."""

    kind = "vqa"

    def __init__(
        self,
        out: Path,
        prompts: Sequence[Prompt],
        url: str,
        *,
        model: str = "",
        settings: ChatSettings | None = None,
    ):
        """Opens the answers that an earlier command has got, in `out`; nothing is asked yet.

        `url` is that of the server before /chat/completions; the key is in OPENAI_API_KEY. Its only
        `model` need not be named. Raises InputError for no address, or prompts without questions.
        """
        bare = [prompt.text for prompt in prompts if not (prompt.present and prompt.absent)]
        if bare:
            raise InputError(
                f"{len(bare)} of {len(prompts)} prompts have no questions for a judge, such as "
                f"{bare[0]!r}: give Question1 and Question2 in --prompts, or --stand-in instead"
            )
        self._settings = settings or patience()
        try:
            self._client = ChatClient([url], self._settings, _KEY)
        except InputError as error:
            raise InputError(f"--judge={error}") from None
        self._completions = 0
        self._out, self.model = out, model
        self._questions = {prompt.text: (prompt.present, *prompt.absent) for prompt in prompts}
        self._journal = Journal(out / ANSWERS)
        # The model's text, or the problem that took its place.
        self._answers = {
            (row["judge"], row["image"], row["question"]): (row["answer"], row["problem"])
            for row in self._journal.rows
            if {"judge", "image", "question", "answer", "problem"} <= row.keys()
        }

    @property
    def label(self) -> str:
        return f"VQA judge {self.model or self._client.url}"

    def described(self) -> dict[str, Any]:
        """For `results.json`."""
        return {"url": self._client.url, "model": self.model, "instruction": _INSTRUCTION}

    def look(self, pictures: Sequence[Picture]) -> None:
        """Asks what has not been answered and keeps each answer at once. Raises JudgeError."""
        try:
            asyncio.run(self._ask_all(pictures))
        except (JudgeError, EndpointError) as error:
            missing = len(self._unanswered(pictures))
            raise JudgeError(
                f"the judge {error}; {missing:,} answers are missing: those that came are kept, "
                "and the same command asks for the rest alone"
            ) from None

    async def _choose_model(self) -> None:
        try:
            listed = await self._client.models(self._settings.tries)
        except NoAnswer as failed:
            raise JudgeError(
                f"{self._client.url} does not list its models ({failed}): check the address, "
                f"which usually ends in /v1, and the key in {_KEY}, or give --judge-model=NAME"
            ) from None
        names = [str(model["id"]) for model in listed]
        if len(names) != 1:
            shown = ", ".join(names[:8]) or "none"
            raise JudgeError(
                f"{self._client.url} offers {len(names)} models ({shown}): give --judge-model"
            )
        self.model = names[0]

    def _unanswered(self, pictures: Sequence[Picture]) -> list[tuple[Picture, str]]:
        """Questions to ask, each once: base and tuned may have drawn the same picture."""
        asked = [(picture, q) for picture in pictures for q in self._questions[picture.prompt]]
        wanted = {(self.model, picture.sha256, q): (picture, q) for picture, q in asked}
        return [wanted[key] for key in wanted if key not in self._answers]

    async def _ask_all(self, pictures: Sequence[Picture]) -> None:
        workers = []
        try:
            if not self.model:
                await self._choose_model()
            left = self._unanswered(pictures)
            questions = iter(left)
            with console.Bar("answers", len(left)) as bar:

                async def work() -> None:
                    for picture, question in questions:
                        png = (self._out / picture.file).read_bytes()
                        image = ChatImage(picture.sha256, "file", png, "image/png")
                        turn = ("user", f"{question} {_INSTRUCTION}")
                        request = ChatRequest("judge", self.model, (turn,), image, _MAX_TOKENS)
                        self._keep(picture, question, await self._client.generate(request))
                        bar.advance(1)

                workers = [asyncio.create_task(work()) for _ in range(self._settings.concurrency)]
                await asyncio.gather(*workers)
        finally:  # one has given up: the others' questions are asked by the next command
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            await self._client.close()

    def _keep(self, picture: Picture, question: str, result: ChatResult) -> None:
        """Keeps an answer; one that no model gave is an answer too, to fail its question.

        Raises JudgeError where the server has not answered, or has never given a completion.
        """
        answer, problem = result.text, ""
        if result.error is None:
            self._completions += 1
        elif is_transient(result.error) and result.error != "bad_response":
            raise JudgeError(
                f"{result.host} did not answer in {result.attempts} tries (last: {result.detail})"
            )
        elif not self._completions:
            raise JudgeError(
                f"{result.host} has given no chat completion ({result.detail}): check the "
                "address, which usually ends in /v1, and that the model takes images"
            )
        else:
            answer, problem = "", result.detail or result.error
        row = {"judge": self.model, "image": picture.sha256, "question": question}
        self._journal.append(row | {"answer": answer, "problem": problem})
        self._answers[self.model, picture.sha256, question] = answer, problem

    def verdict(self, picture: Picture) -> Verdict | None:
        """What a picture scores; None while an answer is missing."""
        questions = self._questions[picture.prompt]
        found = [self._answers.get((self.model, picture.sha256, q)) for q in questions]
        if None in found:
            return None
        words = [plain(text) for text, _ in found]
        holds = [words[0] == "yes", *(word == "no" for word in words[1:])]
        shown = [text or problem or "(nothing)" for text, problem in found]
        reasons = zip(questions, shown, holds, map(bool, words), strict=True)
        return Verdict(holds[0], all(holds[1:]), tuple(reasons))


def count_answers(verdicts: Mapping[Picture, Verdict]) -> dict[str, int]:
    """How many answers were a plain yes or no, and how many were anything else."""
    reasons = [reason for verdict in verdicts.values() for reason in verdict.reasons]
    plain = sum(was_plain for *_, was_plain in reasons)
    return {"plain": plain, "other": len(reasons) - plain}


class StandIn:
    """A CLIP in the place of a judge, where no visual question answering model is at hand.

    CLIP compares, it does not answer. It is therefore given statements without any negation, which
    it understands best, and a picture scores

    - affirmative, where it is nearer to "a photo of a man" than to "a photo";
    - negation, where it is nearer to "a photo of a man" than to "a photo of a man wearing a hat",
      the prompt with its negating word taken out; of several denied things, than to each statement.

    Nearer: the greater cosine of unit features; a tie fails. This is no published protocol, and
    CLIP's own faults are in it: compare models, and trust the difference more than the numbers.
    """

    kind, label = "clip_stand_in", LABEL

    def __init__(self, out: Path, prompts: Sequence[Prompt], model: str, **arguments: Any):
        """Loads the model (`evals.models.load`). InputError also for prompts that do not negate."""
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
