"""What a server can do, found by asking for it and looking at the answer.

Silence says nothing: `transformers serve` ignores logprobs, schemas and much more with only a
warning in its own log. A choice counts as supported when an answer keeps to one that nobody would
give freely.
"""

import io
import json
from dataclasses import dataclass, replace
from typing import Protocol

from PIL import Image

from data_gen.images import encode
from negclip_jax.common.chat.client import ChatClient, EndpointError, NoAnswer
from negclip_jax.common.chat.messages import CHOICE_DIALECTS, ChatRequest, ChatResult

_OPTIONS = ("zebra-7", "quartz-4")
_SCHEMA = {
    "type": "object",
    "properties": {"quartz": {"type": "integer"}},
    "required": ["quartz"],
    "additionalProperties": False,
}
_HELLO = (("user", "Say hello."),)
_LOOK = (("user", 'Is there a dog in this image? Answer only with "yes" or "no".'),)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a server was seen to do when it was asked to.

    Attributes:
      model: the name to ask for.
      images: it answered a question with a photo.
      image_tokens: prompt tokens that a 640 x 480 photo costs, 0 if unknown.
      logprobs: it returned the alternatives of a token.
      choice: dialect in which it keeps to a list of answers, "" for none.
      schema: it kept to a JSON schema.
      prefix_cache: it reported cached tokens for a repeated prefix.
      system: it takes a system turn; the chat templates of some models refuse one.
      context: tokens it accepts, 0 if it does not say.
    """

    model: str
    images: bool = False
    image_tokens: int = 0
    logprobs: bool = False
    choice: str = ""
    schema: bool = False
    prefix_cache: bool = False
    system: bool = True
    context: int = 0


class Engine(Protocol):
    """Answers requests. Raises EndpointError where no request can be answered."""

    async def generate(self, request: ChatRequest) -> ChatResult: ...

    async def close(self) -> None: ...


class Pending(Exception):
    """The answer will come later, from a batch file: the image waits for another run."""


async def probe(engine: ChatClient, model: str | None, *, images: bool) -> Capabilities:
    """Asks a server for everything that a run could use: seven to ten short requests.

    Args:
      model: its name; None for the first one that the server lists.
      images: ask about a photo as well.

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
    hello = await engine.generate(ChatRequest("probe", name, _HELLO, max_tokens=1))
    _require(hello, url, "a plain question")
    # vLLM says its `max_model_len`, other servers nothing.
    context = next((m.get("max_model_len") for m in listed if m["id"] == name), None)
    can = Capabilities(name, context=context if isinstance(context, int) else 0)
    top = await engine.generate(
        ChatRequest("probe", name, _HELLO, max_tokens=1, top_logprobs=20, sample=1)
    )
    choice = await _choice_dialect(engine, name)
    schema = await engine.generate(
        ChatRequest("probe", name, _HELLO, max_tokens=40, schema=_SCHEMA)
    )
    system = await engine.generate(
        ChatRequest("probe", name, (("system", "Be brief."), *_HELLO), max_tokens=1)
    )
    can = replace(
        can,
        system=system.error is None,
        logprobs=top.error is None and top.top is not None and len(top.top) > 1,
        choice=choice,
        schema=_keeps_to_schema(schema),
    )
    return await _with_images(engine, can, url) if images else can


def _require(result: ChatResult, url: str, what: str) -> None:
    if result.error is not None:
        raise EndpointError(
            f"{url} does not answer {what} ({result.error}: {result.detail}); check that the "
            "server runs, its address and the model's name"
        )


async def _choice_dialect(engine: ChatClient, name: str) -> str:
    for dialect in CHOICE_DIALECTS:
        request = ChatRequest(
            "probe", name, _HELLO, max_tokens=8, choice=_OPTIONS, choice_by=dialect
        )
        result = await engine.generate(request)
        if result.error is None and result.text.strip() in _OPTIONS:
            return dialect
    return ""


def _keeps_to_schema(result: ChatResult) -> bool:
    try:
        return result.error is None and "quartz" in json.loads(result.text)
    except (ValueError, TypeError):
        return False


async def _with_images(engine: ChatClient, can: Capabilities, url: str) -> Capabilities:
    """Two questions about one photo: whether it sees, what a photo costs, whether it remembers."""
    picture = io.BytesIO()
    Image.radial_gradient("L").resize((640, 480)).convert("RGB").save(picture, "JPEG", quality=60)
    photo = encode(picture.getvalue(), "probe.jpg", 672)
    plain = await engine.generate(ChatRequest("probe", can.model, _LOOK, max_tokens=1))
    seen = [
        await engine.generate(ChatRequest("probe", can.model, _LOOK, photo, max_tokens=1, sample=i))
        for i in range(2)
    ]
    _require(seen[0], url, "a question about a photo; a multimodal model is needed there")
    return replace(
        can,
        images=True,
        image_tokens=max(0, seen[0].prompt_tokens - plain.prompt_tokens),
        prefix_cache=seen[1].cached_tokens > 0,
    )


def describe(role: str, can: Capabilities) -> str:
    """One line for the terminal."""
    known = [
        f"logprobs {'yes' if can.logprobs else 'no'}",
        f"choice {can.choice or 'no'}",
        f"JSON schema {'yes' if can.schema else 'no'}",
    ]
    if can.images:
        cached = "yes" if can.prefix_cache else "not reported"
        known += [f"{can.image_tokens} tokens a photo", f"prefix cache {cached}"]
    if not can.system:
        known.append("no system turn")
    if can.context:
        known.append(f"context {can.context}")
    return f"{role}: {can.model} ({', '.join(known)})"
