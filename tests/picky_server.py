"""Servers that people run: one refuses fields of the body, the model of another thinks aloud."""

from aiohttp import web
from fault_server import FaultServer


class PickyServer(FaultServer):
    """Refuses what a function of the body names; `bodies` are those that it answered.

    `refuses(body)` gives an error text or None. `says(text)` makes the message of an answer's text,
    `tokens(text)` the list of log probabilities, with "content" of OpenAI's form.
    """

    def __init__(self, *args, refuses=None, says=None, tokens=None, headers=None, **options):
        super().__init__(*args, **options)
        self._refuses, self._says, self._tokens = refuses, says, tokens
        self.bodies: list[dict] = []

    async def fault(self, request: web.Request, body: dict) -> web.StreamResponse | None:
        error = self._refuses and self._refuses(body)
        if error:
            return web.json_response({"error": {"message": error}}, status=400)
        self.bodies.append(body)
        return await super().fault(request, body)

    def _answer(self, body: dict) -> dict:
        answer = super()._answer(body)
        (choice,) = answer["choices"]
        text = choice["message"]["content"]
        if self._says is not None:
            choice["message"] |= self._says(text)
        if self._tokens is not None and body.get("logprobs"):
            limit = body.get("max_tokens") or body.get("max_completion_tokens")
            listed = [
                {
                    "token": t,
                    "top_logprobs": [{"token": t, "logprob": p}, {"token": "?", "logprob": -9}],
                }
                for t, p in self._tokens(text)
            ]
            choice["logprobs"] = {"content": listed[:limit]}
        return answer


def o_series(body: dict) -> str | None:
    """A reasoning model of OpenAI's."""
    if "max_tokens" in body:
        return (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
            "'max_completion_tokens' instead."
        )
    for name in ("temperature", "top_p", "seed"):
        if name in body:
            return f"Unsupported value: '{name}' does not support {body[name]} with this model."
    if body.get("top_logprobs", 0) > 5:
        return "top_logprobs must be between 0 and 5"
    if len(body["messages"]) > 1:
        return "this model takes a single user turn"
    return None


def thinks_aloud(text: str) -> dict:
    return {"content": f"<think>\nOkay, the user asks. Yes or no?\n</think>\n\n{text}"}


def thinks_without_end(text: str) -> dict:
    return {"content": "<think>\nOkay, the user asks for"}


def thinks_apart(text: str) -> dict:
    return {"content": None, "reasoning_content": "Okay, the user asks"}
