"""A chat request with at most one image, its JSON body, and the result in a server's answer.

The protocol is OpenAI's chat completions, as vLLM, SGLang, llama.cpp, Ollama and transformers
serve it. The body is put together by hand: an image's base64 text is made once and copied into
each body, never through a JSON encoder.
"""

import base64
import bisect
import itertools
import json
import re
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

# Codes of answers that are none: the model only thought, it declined, a filter took the answer.
NO_ANSWER = ("thinking", "refusal", "content_filter")
THINKS = (
    "the model only thought and gave no answer; switch thinking off where the server is started, "
    "or by a field of the body (data_gen: --config.engine.extra_body.reasoning_effort=low, or "
    "--config.engine.extra_body.chat_template_kwargs.enable_thinking=false), or raise max_tokens"
)
# Reasons to finish, OpenAI's and Gemini's, and texts of refusals that come from a content filter.
_FILTERS = ("content_filter", "safety", "prohibited_content", "blocklist", "recitation")
_FILTERED = re.compile(
    r"content[_ -]?(?:filter|policy|management)|data_inspection_failed|inappropriate content|"
    r"moderation|safety system",
    re.IGNORECASE,
)
# Thoughts in the text: <think> (Qwen, DeepSeek), [THINK] (Magistral), channels (gpt-oss), more.
_THOUGHT = r"(?:think|thinking|thoughts?|reasoning)"
_THOUGHT_BEGINS = re.compile(
    rf"[<\[\u25c1]{_THOUGHT}[>\]\u25b7]|<\|channel\|>\s*(?:analysis|commentary)", re.IGNORECASE
)
_THOUGHT_ENDS = re.compile(
    rf"[<\[\u25c1]/{_THOUGHT}[>\]\u25b7]|<\|channel\|>\s*final\s*<\|message\|>", re.IGNORECASE
)
_SPECIAL_END = re.compile(r"\s*(?:<\|\w{1,30}\|>\s*)+$")
_BLANK = " \t\r\n\u0120\u010a\u2581"  # with the marks that tokenizers write for space and line end
_TEXT_VALUE = re.compile(r'"([^"\\]{1,40})"\s*:\s*"(?=[^"])')
_UNSUPPORTED = re.compile(
    r"unsupported|n(?:o|')t support|unknown|unrecognized|unexpected|extra (?:inputs|fields)|"
    r"not (?:permitted|allowed)|forbidden|deprecated|cannot (?:both|find field)|only the default",
    re.IGNORECASE,
)

# How a server wants a field of the body: under another name, as a smaller number, or not at all.
Adjusted = dict[str, str | int | None]


@dataclass(frozen=True)
class ChatImage:
    """An image as it is sent."""

    sha256: str  # of the file's bytes, in hexadecimal
    encoding: str  # how `data` was made from the file; with `sha256` it stands for the bytes sent
    data: bytes = field(repr=False)  # JPEG, PNG or WebP bytes
    mime: str = "image/jpeg"  # their type
    # Where the server finds the image itself (http, https or file), "" to send `data`.
    address: str = field(default="", kw_only=True)

    @cached_property
    def data_url(self) -> bytes:
        """`data:image/...;base64,...`, encoded once for all questions about the image."""
        if self.address:
            return self.address.encode()
        return b"data:%s;base64,%s" % (self.mime.encode(), base64.b64encode(self.data))


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One question to a model."""

    stage: str  # what it is asked for, e.g. "verify"; for statistics and part of the key.
    model: str  # the name that the server knows the model by
    # (role, text) turns. An image goes before the text of the last one: the turns before it are a
    # prefix of all requests, and with the image a prefix of all questions about it.
    messages: tuple[tuple[str, str], ...]
    image: ChatImage | None = None
    max_tokens: int = 64  # upper bound of the answer
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    top_logprobs: int = 0  # alternatives of the first token to return, 0 for none
    choice: tuple[str, ...] = ()  # the only answers allowed, empty for any
    choice_by: str = ""  # the server's dialect
    schema: Mapping[str, Any] | None = None  # JSON schema of the answer, None for free text
    sample: int = 0  # number of this sample of the same question; also its seed's
    # Further fields of the body, as the server knows them, None for one that is to be left out.
    extra: Mapping[str, Any] = field(default_factory=dict)
    # Of what determines the answer: not URL, concurrency or timeouts.
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
        if self.extra:  # else the key is what it was before there were such fields
            content["extra"] = self.extra
        object.__setattr__(self, "key", content_hash(content))

    @property
    def seed(self) -> int:
        """31 bits of the key: another request, another seed. Servers need not honour it."""
        return int(self.key[:8], 16) >> 1


@dataclass(frozen=True, slots=True)
class ChatResult:
    """An answer, or the reason why there is none."""

    text: str = ""  # the answer; empty with an error
    finish_reason: str | None = None  # the server's word, "length" for a cut answer
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    # (token, log probability) of the alternatives of the answer's first token that is not blank,
    # behind a thought; None if not given.
    top: Sequence[tuple[str, float]] | None = None
    position: int = 0  # of that token
    # Where the answer is a JSON object of texts, alternatives of the first token of each value, by
    # its name; None if not given.
    values: Mapping[str, Sequence[tuple[str, float]]] | None = None
    thinks: bool = False  # whether there were thoughts, which are not in `text`
    error: str | None = None  # code of a failure
    detail: str | None = None
    permanent: bool = False  # whether asking again would fail again
    latency_ms: float = 0.0  # of the last call
    attempts: int = 1
    host: str = ""


def is_transient(code: str | None) -> bool:
    """Whether an error code stands for a failure that may be over when it is asked again."""
    known = ("timeout", "connection", "bad_response", "batch")
    return code is not None and (code in known or code.startswith("http_"))


def body_of(request: ChatRequest, adjusted: Adjusted | None = None) -> bytes:
    """The JSON body of a request, UTF-8."""
    fields = fields_of(request, adjusted)
    body = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
    encoded = body.encode("utf-8", "surrogatepass")
    if request.image is None:
        return encoded
    head, tail = encoded.split(_IMAGE.encode(), 1)
    return b"".join((head, request.image.data_url, tail))


def fields_of(request: ChatRequest, adjusted: Adjusted | None = None) -> dict[str, Any]:
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
    for name, how in (adjusted or {}).items():
        if name in fields:
            value = fields.pop(name)
            if how is not None:
                fields |= {how: value} if isinstance(how, str) else {name: min(value, how)}
    return {name: value for name, value in (fields | request.extra).items() if value is not None}


def adjustment(said: str, sent: Mapping[str, Any]) -> Adjusted:
    """What to change in a body that a server refused, naming one of its fields; empty if nothing.

    Servers differ in the name of `max_tokens`, in how many alternatives of a token they give, and
    whether they sample at all.
    """
    if "top_logprobs" in sent and "logprobs" in said:
        allowed = [int(n) for n in re.findall(r"\b\d{1,2}\b", said)]
        most = max((n for n in allowed if 0 < n < sent["top_logprobs"]), default=0)
        if most or sent["top_logprobs"] > 5:
            return {"top_logprobs": most or 5}
        return {"top_logprobs": None, "logprobs": None}
    if not _UNSUPPORTED.search(said):
        return {}
    for name in ("max_tokens", "max_completion_tokens", "seed", "top_p", "temperature"):
        if name in sent and re.search(rf"\b{name}\b", said):
            if name == "max_tokens":
                return {"max_tokens": "max_completion_tokens"}
            return {name.replace("_completion", ""): None}
    return {}


def is_filtered(said: str) -> bool:
    """Whether a refusal comes from a content filter, not from what the request asks for."""
    return bool(_FILTERED.search(said))


def result_of(body: Mapping[str, Any]) -> ChatResult:
    """The answer in a chat completion, without thoughts. Raises ValueError for no message.

    Its `error` is one of `NO_ANSWER` where there is a message and no answer in it.
    """
    try:
        choice = body["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        text = message.get("content")
        if isinstance(text, list):  # parts, as some servers answer
            text = "".join(str(part.get("text") or "") for part in text)
        text, thinks = without_thoughts(valid(text) if isinstance(text, str) else "")
        usage = body.get("usage") or {}
        unseen = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens")
        apart = message.get("reasoning_content") or message.get("reasoning") or unseen
        thinks = thinks or bool(apart)
        refusal = message.get("refusal")
        error = detail = None
        if str(finish).lower() in _FILTERS:
            error, detail = "content_filter", "the server's filter took the answer"
        elif refusal and not text:
            error, detail = "refusal", valid(str(refusal))[:500]
        elif thinks and not text.strip():
            error, detail = "thinking", THINKS
        details = usage.get("prompt_tokens_details") or {}
        position, top = _first_token(choice.get("logprobs"))
        return ChatResult(
            text="" if error else text,
            finish_reason=finish,
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
            cached_tokens=int(details.get("cached_tokens") or 0),
            top=top,
            position=position,
            values=_first_of_values(choice.get("logprobs")),
            thinks=thinks,
            error=error,
            detail=detail,
            permanent=error in ("content_filter", "refusal"),  # a model can be told not to think
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        shown = json.dumps(body)[:200]
        raise ValueError(f"the answer has no message ({error!r}): {shown}") from None


def without_thoughts(text: str) -> tuple[str, bool]:
    """The text behind the model's thoughts, and whether there are any; "" where they do not end."""
    ends = [match.end() for match in _THOUGHT_ENDS.finditer(text)]
    rest = text[ends[-1] :].lstrip() if ends else text
    if _THOUGHT_BEGINS.search(rest):
        return "", True
    return _SPECIAL_END.sub("", rest) if ends else rest, bool(ends)


def _first_token(logprobs: Any) -> tuple[int, tuple[tuple[str, float], ...] | None]:
    """Place and alternatives of the answer's first token, whatever is there of them."""
    try:
        tokens = logprobs["content"]
        texts = [str(entry["token"]) for entry in tokens]
        start = max((i + 1 for i, t in enumerate(texts) if _THOUGHT_ENDS.search(t)), default=0)
        said = (i for i in range(start, len(texts)) if texts[i].strip(_BLANK))
        place = next(said, 0)
        top = tokens[place].get("top_logprobs") or [tokens[place]]
        return place, tuple((str(entry["token"]), float(entry["logprob"])) for entry in top)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return 0, None


def _first_of_values(logprobs: Any) -> Mapping[str, tuple[tuple[str, float], ...]] | None:
    """Alternatives of the first token of each text in a JSON object, by the names of the texts."""
    try:
        tokens = logprobs["content"]
        texts = [str(entry["token"]) for entry in tokens]
        said, ends = "".join(texts), list(itertools.accumulate(map(len, texts)))
        found = {}
        for match in _TEXT_VALUE.finditer(said):  # a token may hold the quotation mark as well
            top = tokens[bisect.bisect_right(ends, match.end())]["top_logprobs"]
            found[match[1]] = tuple((str(e["token"]), float(e["logprob"])) for e in top)
        return found or None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None


def valid(text: str) -> str:
    """The text with "?" for halves of surrogate pairs, which JSON can hold and no file can."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
