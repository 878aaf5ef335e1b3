"""A chat request with at most one image, its JSON body, and the result in a server's answer.

The protocol is OpenAI's chat completions, as vLLM, SGLang, llama.cpp, Ollama and transformers
serve it. The body is put together by hand: an image's base64 text is made once and copied into
each body, never through a JSON encoder.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from negclip_jax.common.provenance import content_hash

KEY_VERSION = 1  # raise it when a change of this file makes old answers wrong
_IMAGE = "\ue000photo\ue000"  # stands for the image in the JSON text; private use, in no caption

# How servers are told to keep to a list of answers: what each calls it.
CHOICE_DIALECTS = {
    "structured_outputs": lambda options: {"structured_outputs": {"choice": list(options)}},  # vLLM
    "guided_choice": lambda options: {"guided_choice": list(options)},  # vLLM before 0.12
    "regex": lambda options: {"regex": "(" + "|".join(options) + ")"},  # SGLang
    "grammar": lambda options: {
        "grammar": "root ::= " + " | ".join(json.dumps(option) for option in options)
    },  # llama.cpp
}


@dataclass(frozen=True)
class ChatImage:
    """An image as it is sent.

    Attributes:
      sha256: of the file's bytes, in hexadecimal.
      encoding: how `data` was made from the file; with `sha256` it stands for the bytes sent.
      data: JPEG, PNG or WebP bytes.
      mime: their type.
    """

    sha256: str
    encoding: str
    data: bytes = field(repr=False)
    mime: str = "image/jpeg"

    @cached_property
    def data_url(self) -> bytes:
        """`data:image/...;base64,...`, encoded once for all questions about the image."""
        return b"data:%s;base64,%s" % (self.mime.encode(), base64.b64encode(self.data))


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One question to a model.

    Attributes:
      stage: what it is asked for, e.g. "verify"; for statistics and part of the key.
      model: the name that the server knows the model by.
      messages: (role, text) turns. An image goes before the text of the last one: the turns before
        it are a prefix of all requests, and with the image a prefix of all questions about it.
      max_tokens: upper bound of the answer.
      temperature, top_p: sampling; 0 is greedy.
      top_logprobs: alternatives of the first token to return, 0 for none.
      choice: the only answers allowed, empty for any; `choice_by` names the server's dialect.
      schema: JSON schema of the answer, None for free text.
      sample: number of this sample of the same question; also its seed's.
      key: blake2b-128 over what determines the answer: not URL, concurrency or timeouts.
    """

    stage: str
    model: str
    messages: tuple[tuple[str, str], ...]
    image: ChatImage | None = None
    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_logprobs: int = 0
    choice: tuple[str, ...] = ()
    choice_by: str = ""
    schema: Mapping[str, Any] | None = None
    sample: int = 0
    key: str = field(init=False, default="")

    def __post_init__(self):
        content = {
            "version": KEY_VERSION,
            "stage": self.stage,
            "model": self.model,
            "messages": self.messages,
            "photo": self.image and [self.image.sha256, self.image.encoding],
            "sampling": [self.max_tokens, self.temperature, self.top_p],
            "top_logprobs": self.top_logprobs,
            "choice": [self.choice, self.choice_by],
            "schema": self.schema,
            "sample": self.sample,
        }
        object.__setattr__(self, "key", content_hash(content))

    @property
    def seed(self) -> int:
        """31 bits of the key: another request, another seed. Servers need not honour it."""
        return int(self.key[:8], 16) >> 1


@dataclass(frozen=True, slots=True)
class ChatResult:
    """An answer, or the reason why there is none.

    Attributes:
      text: the answer; empty with an error.
      finish_reason: the server's word, "length" for a cut answer.
      top: (token, log probability) of the first token's alternatives, None if not given.
      error: code of a failure (`permanent` if asking again would fail again), with `detail`.
      latency_ms, attempts, host: of the last call.
    """

    text: str = ""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    top: Sequence[tuple[str, float]] | None = None
    error: str | None = None
    detail: str | None = None
    permanent: bool = False
    latency_ms: float = 0.0
    attempts: int = 1
    host: str = ""


def is_transient(code: str | None) -> bool:
    """Whether an error code stands for a failure that may be over when it is asked again."""
    known = ("timeout", "connection", "bad_response", "batch")
    return code is not None and (code in known or code.startswith("http_"))


def body_of(request: ChatRequest) -> bytes:
    """The JSON body of a request, UTF-8."""
    text = json.dumps(fields_of(request), ensure_ascii=False, separators=(",", ":"))
    body = text.encode("utf-8", "surrogatepass")
    if request.image is None:
        return body
    head, tail = body.split(_IMAGE.encode(), 1)
    return b"".join((head, request.image.data_url, tail))


def fields_of(request: ChatRequest) -> dict[str, Any]:
    """The fields of the body, with a mark where the image's data URL belongs."""
    turns: list[dict[str, Any]] = [
        {"role": role, "content": text} for role, text in request.messages
    ]
    if request.image is not None:
        turns[-1]["content"] = [
            {"type": "image_url", "image_url": {"url": _IMAGE}},
            {"type": "text", "text": turns[-1]["content"]},
        ]
    fields: dict[str, Any] = {
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


def result_of(body: Mapping[str, Any]) -> ChatResult:
    """The answer in a chat completion. Raises ValueError where there is no message in it."""
    try:
        choice = body["choices"][0]
        text = choice["message"].get("content")
        if isinstance(text, list):  # parts, as some servers answer
            text = "".join(part.get("text", "") for part in text)
        usage = body.get("usage") or {}
        details = usage.get("prompt_tokens_details") or {}
        return ChatResult(
            text=valid(text) if isinstance(text, str) else "",
            finish_reason=choice.get("finish_reason"),
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
            cached_tokens=int(details.get("cached_tokens") or 0),
            top=_first_token(choice.get("logprobs")),
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        shown = json.dumps(body)[:200]
        raise ValueError(f"the answer has no message ({error!r}): {shown}") from None


def _first_token(logprobs: Any) -> tuple[tuple[str, float], ...] | None:
    """The first token's alternatives, whatever is there of them."""
    try:
        first = logprobs["content"][0]
        top = first.get("top_logprobs") or [first]
        return tuple((str(entry["token"]), float(entry["logprob"])) for entry in top)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None


def valid(text: str) -> str:
    """The text with "?" for halves of surrogate pairs, which JSON can hold and no file can."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
