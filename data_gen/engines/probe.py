"""What a server can do, found by asking for it and looking at the answer.

Silence says nothing: `transformers serve` ignores logprobs, schemas and much more with only a
warning in its own log. A choice counts as supported when an answer keeps to one that no model gives
freely. What a run will ask is asked once in earnest: a question about a picture, a rewrite.
"""

import asyncio
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from PIL import Image, ImageDraw

from data_gen import answers, rules
from data_gen.images import encode
from data_gen.prompts import Prompt, Turns, lines, most_tokens, quoted
from negclip_jax.common.chat.client import ChatClient, EndpointError, NoAnswer
from negclip_jax.common.chat.messages import (
    CHOICE_DIALECTS,
    NO_ANSWER,
    Adjusted,
    ChatImage,
    ChatRequest,
    ChatResult,
)

TOP_LOGPROBS = 20
TOKENS_AN_OBJECT = 12  # of a JSON list, generously
# Of prompt and answer, where units share a request: some servers cut off what is beyond their 4,096
# in silence, and in a longer answer a model is likelier to lose its place.
MOST_TOKENS = 4096
_TOP_OF_EACH = 5  # where each token of an answer has its own
_ANSWERS = ("yes", "no", "unsure")  # a schema must leave a way to be unsure: it is asked again
_ENOUGH_MASS = 0.5  # of "yes" and "no" together, for a token to be an answer
_OPTIONS = ("zebra-7", "quartz-4")
_SCHEMA = answers.object_schema({"quartz": {"type": "integer"}})
_HELLO = (("user", "Say hello."),)
_TURNS = (("user", "Say A."), ("assistant", "A"), *_HELLO)
_QUESTION = "Is there a red circle in this image?"  # there is
_SEVERAL = (_QUESTION, "Is there a dog in this image?", "Are there people in this image?")
_CAPTION, _OBJECT = "A man rides a horse on a beach.", "umbrella"
_PHOTOS = ((_CAPTION, "A rider near the sea."), ("A bus stops in a narrow street.",))
# Rules that a usable model may break once; a rewrite that breaks another one is none.
_FORGIVEN = {"grammar", "invented", "lost", "double_negation", "too_long"}


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a server was seen to do when it was asked to."""

    model: str  # the name to ask for
    images: bool = False  # it answered a question with a photo
    image_tokens: int = 0  # prompt tokens that a 640 x 480 photo costs, 0 if unknown
    logprobs: bool = False  # it returned the alternatives of a token
    choice: str = ""  # dialect in which it keeps to a list of answers, "" for none
    schema: bool = False  # it kept to a JSON schema
    many: bool = False  # it answered several questions about a photo in one request
    several: bool = False  # it named objects for several photos in one request
    prefix_cache: bool = False  # it reported cached tokens for a repeated prefix
    system: bool = True  # it takes a system turn; the chat templates of some models refuse one
    turns: bool = True  # it takes earlier turns of user and assistant
    context: int = 0  # tokens it accepts, 0 if it does not say
    blank_tokens: int = 0  # before the first one of a yes or no: line ends, an empty thought
    thinks: bool = False  # thoughts were seen
    # Fields of the body that it wants otherwise (`ChatClient.adjusted`).
    adjusted: Adjusted = field(default_factory=dict)
    extra_body: Mapping[str, Any] = field(default_factory=dict)  # added to every body
    answers: Mapping[str, str] = field(default_factory=dict)  # to the questions asked in earnest
    problems: tuple[str, ...] = ()  # why its answers could not be used; empty if they can

    def request(
        self, stage: str, messages: Turns, image: ChatImage | None = None, **options: Any
    ) -> ChatRequest:
        """A request to this model; `options` of `ChatRequest`."""
        return ChatRequest(stage, self.model, messages, image, extra=self.extra_body, **options)

    def request_many(
        self, stage: str, prompt: Prompt, questions: Sequence[str], image: ChatImage | None
    ) -> ChatRequest:
        """One request with several questions about a photo, read by `answers.many_masses`."""
        count = len(questions)
        return self.request(
            stage,
            prompt.fill(questions=lines(questions, numbered=True)),
            image,
            max_tokens=12 * count + 10 + self.blank_tokens,
            schema=answers.numbered_schema(count, _ANSWERS) if self.schema else None,
            top_logprobs=_TOP_OF_EACH if self.logprobs else 0,
        )

    def request_lists(
        self, stage: str, prompt: Prompt, photos: Sequence[Sequence[str]], number: int, **options
    ) -> ChatRequest:
        """One request for objects of several photos, read by `answers.numbered_lists`.

        `photos`: the captions of each; `number`: objects of each; `options`: for sampling.
        """
        told = (f"Captions of photo {i}:\n{lines(list(c))}" for i, c in enumerate(photos, 1))
        return self.request(
            stage,
            prompt.fill(photos="\n".join(told), number=str(number)),
            max_tokens=sum(self.list_tokens(captions, number) for captions in photos),
            schema=answers.lists_schema(len(photos)) if self.schema else None,
            **options,
        )

    @staticmethod
    def list_tokens(captions: Sequence[str], number: int) -> int:
        """Tokens that the answer for one of several photos may have: a caption and a list."""
        return most_tokens(captions[0]) + number * TOKENS_AN_OBJECT + 20

    def parts(self, prompt: Prompt, sizes: Sequence[int]) -> list[list[int]]:
        """Places of units in order, in lists of as many as have room in one request together.

        `sizes`: tokens of each, with its part of the answer.
        """
        room = min(self.context or MOST_TOKENS, MOST_TOKENS)
        room -= sum(most_tokens(text) + 4 for _, text in prompt.turns)
        parts, used = list[list[int]](), room + 1
        for place, size in enumerate(sizes):
            if used + size > room:
                parts, used = [*parts, []], 0
            parts[-1].append(place)
            used += size
        return parts

    @property
    def doubts(self) -> tuple[str, ...]:
        """What is worth a warning: problems, and a "no" to what is plain to see in a picture."""
        if answers.yes_or_no(self.answers.get("look", "")) != "no":
            return self.problems
        return (*self.problems, f"no to {_QUESTION!r}, and there is one: does it see photos?")

    def fitting(self, prompt: Prompt) -> Prompt:
        """The prompt in the form that the model takes."""
        if not self.turns:
            return prompt.in_one_turn()
        return prompt if self.system else prompt.without_system()


class Engine(Protocol):
    """Answers requests. Raises EndpointError where no request can be answered."""

    async def generate(self, request: ChatRequest) -> ChatResult: ...

    async def close(self) -> None: ...


class Pending(Exception):
    """The answer will come later, from a batch file: the image waits for another run."""


async def probe(
    engine: ChatClient,
    model: str | None,
    prompts: Mapping[str, Prompt],
    *,
    looks: bool,
    writes: bool,
    max_tokens: int = 10,
    extra_body: Mapping[str, Any] | None = None,
) -> Capabilities:
    """Asks a server for everything that a run could use: a dozen short requests, most at once.

    `model`: its name; None for the first one that the server lists. `looks`, `writes`: whether it
    is to look at photos, and to propose and rewrite. `max_tokens`: of an answer about a photo.

    Raises EndpointError for a server that is down, refuses the key, does not know the model, or
    cannot see where it has to.
    """
    url = engine.url
    try:
        listed = await engine.models()
    except NoAnswer:  # some servers have no such list
        listed = []
    if not model and not listed:
        raise EndpointError(
            f"{url} is down or lists no models (no usable answer from {url}/models); check the "
            "address, or give the model's name with --llm-model or --mllm-model"
        )
    name = model or str(listed[0]["id"])
    # vLLM says its `max_model_len`, other servers nothing.
    context = next((m.get("max_model_len") for m in listed if m["id"] == name), None)
    can = Capabilities(
        name,
        context=context if isinstance(context, int) else 0,
        adjusted=engine.adjusted,
        extra_body=extra_body or {},
    )

    async def ask(messages=_HELLO, image: ChatImage | None = None, **options: Any) -> ChatResult:
        return await engine.generate(can.request("probe", messages, image, **options))

    def require(result: ChatResult, what: str) -> None:
        if result.error is not None and result.error not in NO_ANSWER:
            raise EndpointError(
                f"{url} does not answer {what} ({result.error}: {result.detail}); check that the "
                "server runs, its address and the model's name"
            )

    require(await ask(max_tokens=16), "a plain question")  # and finds fields that it refuses
    choices = [ask(max_tokens=8, choice=_OPTIONS, choice_by=way) for way in CHOICE_DIALECTS]
    schema, system, turns, top, *chosen = await asyncio.gather(
        ask(max_tokens=40, schema=_SCHEMA),
        ask((("system", "Be brief."), *_HELLO), max_tokens=16),
        ask(_TURNS, max_tokens=16),
        ask(max_tokens=16, top_logprobs=TOP_LOGPROBS, sample=1),
        *choices,
    )
    dialects = zip(CHOICE_DIALECTS, chosen, strict=True)
    kept = (way for way, result in dialects if result.text.strip() in _OPTIONS)
    try:
        keeps_schema = "quartz" in json.loads(schema.text)
    except (ValueError, TypeError):
        keeps_schema = False
    can = replace(
        can,
        system=system.error is None or system.error in NO_ANSWER,
        turns=turns.error is None or turns.error in NO_ANSWER,
        logprobs=top.top is not None and len(top.top) > 1,
        choice=next(kept, ""),
        schema=keeps_schema,
        thinks=top.thinks or system.thinks,
    )
    if looks:
        can = await _looking(ask, require, can, can.fitting(prompts["verify"]), max_tokens)
        many = can.request_many("probe", can.fitting(prompts["verify_many"]), _SEVERAL, _picture())
        masses = answers.many_masses(await engine.generate(many), len(_SEVERAL))
        can = replace(can, many=None not in masses)
    if not writes:
        return can
    if several := prompts.get("propose_many"):
        sampling = {"temperature": 0.7, "top_p": 0.95}
        asked = can.request_lists("probe", can.fitting(several), _PHOTOS, 3, **sampling)
        first = [captions[0] for captions in _PHOTOS]
        lists = answers.numbered_lists((await engine.generate(asked)).text, first)
        can = replace(can, several=None not in lists)
    return await _writing(ask, can, can.fitting(prompts["rewrite"]))


async def _writing(ask, can: Capabilities, prompt: Prompt) -> Capabilities:
    """One rewrite as a run asks for it: whether it is a caption."""
    messages = prompt.fill(caption=quoted(_CAPTION), object=quoted(_OBJECT), style='use "with no"')
    found = await ask(messages, max_tokens=120, temperature=0.7, top_p=0.95)
    text = answers.clean(found.text)
    about = {"caption": _CAPTION, "obj": _OBJECT, "count_tokens": lambda text: len(text.split())}
    broken = [found.error] if found.error else rules.check(text, **about)
    can = replace(can, thinks=can.thinks or found.thinks)
    can.answers["rewrite"] = text + (f" ({', '.join(broken)})" if broken else "")
    if set(broken) - _FORGIVEN:
        said = found.detail or f"{found.text[:200]!r} breaks the rules {', '.join(broken)}"
        can = replace(can, problems=(*can.problems, f"its rewrite is no caption: {said}"))
    return can


def _picture() -> ChatImage:
    """A red circle."""
    picture, drawn = Image.new("RGB", (640, 480), "white"), io.BytesIO()
    ImageDraw.Draw(picture).ellipse((170, 90, 470, 390), fill="red")
    picture.save(drawn, "JPEG", quality=60)
    return encode(drawn.getvalue(), "probe.jpg", 672)


async def _looking(ask, require, can: Capabilities, prompt: Prompt, limit: int) -> Capabilities:
    """One question about a picture in the ways of a run: whether it sees and what that costs."""
    photo, messages = _picture(), prompt.fill(question=_QUESTION)
    plain, seen = await asyncio.gather(
        ask(messages, max_tokens=limit), ask(messages, photo, max_tokens=limit)
    )
    require(seen, "a question about a photo; a multimodal model is needed there")
    again, top = await asyncio.gather(
        ask(messages, photo, max_tokens=limit, sample=1),
        ask(messages, photo, max_tokens=max(limit, 16), top_logprobs=TOP_LOGPROBS),
    )
    mass = sum(answers.yes_no_mass(top.top or ())) if top.error is None else 0.0
    said, problems = answers.yes_or_no(seen.text), []
    if said is None and mass < _ENOUGH_MASS:
        problems = [f"neither yes nor no to {_QUESTION!r}: {seen.detail or repr(seen.text[:200])}"]
    can.answers["look"] = seen.text.strip()[:200] or seen.error or "nothing"
    return replace(
        can,
        images=True,
        image_tokens=max(0, seen.prompt_tokens - plain.prompt_tokens),
        prefix_cache=again.cached_tokens > 0,
        # A server whose first token is never the answer is asked for text instead.
        logprobs=can.logprobs and mass >= _ENOUGH_MASS,
        blank_tokens=top.position,
        thinks=can.thinks or seen.thinks or top.thinks,
        problems=(*can.problems, *problems),
    )


def describe(role: str, can: Capabilities) -> str:
    """What was found, for the terminal: one line, one for each answer and each problem."""
    known = [
        f"logprobs {'yes' if can.logprobs else 'no'}",
        f"choice {can.choice or 'no'}",
        f"JSON schema {'yes' if can.schema else 'no'}",
    ]
    if can.images:
        cached = "yes" if can.prefix_cache else "not reported"
        known.append(f"several questions in one request {'yes' if can.many else 'no'}")
        known += [f"{can.image_tokens} tokens a photo", f"prefix cache {cached}"]
    if "rewrite" in can.answers:
        known.append(f"several photos in one text request {'yes' if can.several else 'no'}")
    known += [] if can.system else ["no system turn"]
    known += [] if can.turns else ["no earlier turns"]
    known += ["thinks"] if can.thinks else []
    for name, how in can.adjusted.items():
        known.append(f"no {name}" if how is None else f"{name} as {how}")
    if can.context:
        known.append(f"context {can.context}")
    told = [f"{role}: {can.model} ({', '.join(known)})"]
    if "look" in can.answers:
        told.append(f"  {_QUESTION} (there is one) {can.answers['look']!r}")
    if "rewrite" in can.answers:
        told.append(f"  {_CAPTION!r} without an {_OBJECT}: {can.answers['rewrite']!r}")
    told += [f"  cannot be used: {problem}" for problem in can.problems]
    return "\n".join([*told, *(f"  {doubt}" for doubt in can.doubts[len(can.problems) :])])
