"""Any server that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, Ollama, transformers.

aiohttp and a body put together by hand, as a warm server can outrun a heavier client: the photo's
base64 text is made once and copied into each body, never through a JSON encoder.
"""

import json
from collections.abc import Mapping
from typing import Any

from data_gen.engines.base import ChatRequest, ChatResult
from data_gen.engines.transport import Reply, Transport, TransportSettings, valid

PATH = "/chat/completions"
_PHOTO = "\ue000photo\ue000"  # stands for the photo in the JSON text; private use, in no caption

# How servers are told to keep to a list of answers: what each calls it.
CHOICE_DIALECTS = {
    "structured_outputs": lambda options: {"structured_outputs": {"choice": list(options)}},  # vLLM
    "guided_choice": lambda options: {"guided_choice": list(options)},  # vLLM before 0.12
    "regex": lambda options: {"regex": "(" + "|".join(options) + ")"},  # SGLang
    "grammar": lambda options: {
        "grammar": "root ::= " + " | ".join(json.dumps(option) for option in options)
    },  # llama.cpp
}


class OpenAIEngine:
    """Chat completions from one or several servers of the same model."""

    def __init__(self, urls: list[str], api_key: str | None, settings: TransportSettings):
        """`urls` end before /chat/completions. Raises InputError for one that is no address."""
        self.transport = Transport(urls, api_key, settings)

    async def generate(self, request: ChatRequest) -> ChatResult:
        """Questions about one photo go to one server, whose cache then knows the photo."""
        affinity = request.photo.sha256 if request.photo else None
        reply = await self.transport.post(PATH, lambda: body_of(request), affinity)
        return result_of(reply)

    async def models(self) -> Mapping[str, Any] | None:
        """What /models says, or None: some servers have no such list."""
        return await self.transport.get("/models")

    async def close(self) -> None:
        await self.transport.close()


def body_of(request: ChatRequest) -> bytes:
    """The JSON body of a request, UTF-8."""
    text = json.dumps(fields_of(request), ensure_ascii=False, separators=(",", ":"))
    body = text.encode("utf-8", "surrogatepass")
    if request.photo is None:
        return body
    head, tail = body.split(_PHOTO.encode(), 1)
    return b"".join((head, request.photo.data_url, tail))


def fields_of(request: ChatRequest) -> dict[str, Any]:
    """The fields of the body, with a mark where the photo's data URL belongs."""
    turns = [{"role": role, "content": text} for role, text in request.messages]
    if request.photo is not None:
        turns[-1]["content"] = [
            {"type": "image_url", "image_url": {"url": _PHOTO}},
            {"type": "text", "text": turns[-1]["content"]},
        ]
    fields = {
        "model": request.model,
        "messages": turns,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
    }
    if request.temperature > 0:
        fields |= {"top_p": request.top_p, "seed": request.seed}
    if request.top_logprobs:
        fields |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    if request.choice:
        fields |= CHOICE_DIALECTS[request.choice_by](request.choice)
    if request.schema is not None:
        schema = {"name": "answer", "strict": True, "schema": request.schema}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    return fields


def result_of(reply: Reply) -> ChatResult:
    """The answer in a reply; one that has no message in it is a `bad_response`."""
    about = {"latency_ms": reply.latency_ms, "attempts": reply.attempts, "host": reply.host}
    if reply.error is not None:
        return ChatResult(
            error=reply.error, detail=reply.detail, permanent=reply.permanent, **about
        )
    try:
        choice = reply.body["choices"][0]
        text = choice["message"].get("content")
        if isinstance(text, list):  # parts, as some servers answer
            text = "".join(part.get("text", "") for part in text)
        usage = reply.body.get("usage") or {}
        details = usage.get("prompt_tokens_details") or {}
        return ChatResult(
            text=valid(text) if isinstance(text, str) else "",
            finish_reason=choice.get("finish_reason"),
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
            cached_tokens=int(details.get("cached_tokens") or 0),
            top=_first_token(choice.get("logprobs")),
            **about,
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        shown = json.dumps(reply.body)[:200]
        detail = f"the answer has no message ({error!r}): {shown}"
        return ChatResult(error="bad_response", detail=detail, **about)


def _first_token(logprobs: Any) -> tuple[tuple[str, float], ...] | None:
    """The first token's alternatives, whatever is there of them."""
    try:
        first = logprobs["content"][0]
        top = first.get("top_logprobs") or [first]
        return tuple((str(entry["token"]), float(entry["logprob"])) for entry in top)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None
