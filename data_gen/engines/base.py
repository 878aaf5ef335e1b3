"""What every engine understands: a chat request, with at most one photo, and its result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from data_gen.images import Photo
from negclip_jax.common.errors import InputError
from negclip_jax.common.provenance import content_hash

KEY_VERSION = 1  # raise it when a change of this file makes old answers wrong


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One question to a model.

    Attributes:
      stage: propose, verify, rewrite, merge or probe; for statistics and part of the key.
      model: the name that the server knows the model by.
      messages: (role, text) turns. A photo goes before the text of the last one: the turns before
        it are a prefix of all requests, and with the photo a prefix of all questions about it.
      max_tokens: upper bound of the answer.
      temperature, top_p: sampling; 0 is greedy.
      top_logprobs: alternatives of the first token to return, 0 for none.
      choice: the only answers allowed, empty for any; `choice_by` names the server's dialect.
      schema: JSON schema of the answer, None for free text.
      sample: number of this sample of the same question; also its seed's.
    """

    stage: str
    model: str
    messages: tuple[tuple[str, str], ...]
    photo: Photo | None = None
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
        object.__setattr__(self, "key", _key(self))

    @property
    def seed(self) -> int:
        """31 bits of the key: another request, another seed. Servers need not honour it."""
        return int(self.key[:8], 16) >> 1


def _key(request: ChatRequest) -> str:
    """blake2b-128 over what determines the answer: not URL, concurrency, timeouts or row order."""
    photo = request.photo
    content = {
        "version": KEY_VERSION,
        "stage": request.stage,
        "model": request.model,
        "messages": request.messages,
        "photo": photo and [photo.sha256, photo.encoding],
        "sampling": [request.max_tokens, request.temperature, request.top_p],
        "top_logprobs": request.top_logprobs,
        "choice": [request.choice, request.choice_by],
        "schema": request.schema,
        "sample": request.sample,
    }
    return content_hash(content)


@dataclass(frozen=True, slots=True)
class ChatResult:
    """An answer, or the reason why there is none.

    Attributes:
      text: the answer; empty with an error.
      finish_reason: the server's word, "length" for a cut answer.
      top: (token, log probability) of the first token's alternatives, None if not given.
      error: code of a failure (`permanent` if asking again would fail again), with `detail`.
      latency_ms, attempts, host: of the last call; they are in no table (see `data_gen.records`).
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


class EndpointError(InputError):
    """A server that answers nobody: down, a wrong key, an unknown model. The run stops."""

    def __init__(self, message: str):
        super().__init__(message, status=3)


class Pending(Exception):
    """The answer will come later, from a batch file: the image waits for another run."""
