"""Answers from a function: for dry runs and tests, without a network."""

from collections.abc import Callable

from negclip_jax.common.chat.messages import ChatRequest, ChatResult


class ScriptedEngine:
    """Calls `answer` for each request; counts them."""

    def __init__(self, answer: Callable[[ChatRequest], ChatResult | str]):
        """`answer` gives a result or just its text."""
        self._answer = answer
        self.requests: list[ChatRequest] = []

    async def generate(self, request: ChatRequest) -> ChatResult:
        self.requests.append(request)
        answer = self._answer(request)
        return ChatResult(text=answer, finish_reason="stop") if isinstance(answer, str) else answer

    async def close(self) -> None:
        """Nothing is open."""
