"""What every engine can be asked, what it can do, and how it says that the answer comes later."""

from dataclasses import dataclass
from typing import Protocol

from negclip_jax.common.chat.messages import ChatRequest, ChatResult


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
