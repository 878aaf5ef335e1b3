"""Questions about pictures to a server that speaks OpenAI's chat completions.

What each failure gets: time-outs, lost connections and the statuses 408, 425, 429 and 5xx are tried
again after a wait, and when the tries are used up the server counts as down; 401, 403 and 404 stop
at once, since no question will fare better. A refused question (any other 4xx), and an answer that
is no chat completion, such as a proxy's HTML page, is an answer that cannot be used, unless the
server has never given a completion: then the address is wrong.
"""

import asyncio
import base64
import dataclasses
import json
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from negclip_jax.common.errors import InputError

_MAX_TOKENS = 16  # room for "yes" in any vocabulary; who needs more does not answer plainly
_LATER = (408, 425, 429)
_SHOWN = 120  # characters of an answer in a message
_CONNECT_SECONDS = 10


class JudgeError(InputError):
    """A server that cannot be asked: down, too slow, a wrong key, address or model."""


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long to wait for a server.

    Attributes:
      timeout: seconds for one try.
      tries: of one question.
      wait: seconds before the second try, doubled before each further one.
      longest: of these waits, also where the server names one (Retry-After).
    """

    timeout: float = 120.0
    tries: int = 5
    wait: float = 1.0
    longest: float = 30.0


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came back: the model's text, or the `problem` that took its place."""

    text: str
    problem: str = ""


class _NoAnswer(Exception):
    """One try that brought nothing; another may."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


class _NoCompletion(Exception):
    """An answer that is no chat completion."""


class Chat:
    """A session with one server; an asynchronous context manager."""

    def __init__(self, url: str, key: str | None, patience: Patience):
        """`url` ends before /chat/completions, e.g. http://HOST:8000/v1. Raises InputError."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InputError(
                f"--judge={url} is no server address; one looks like http://HOST:8000/v1"
            )
        self.url = url.rstrip("/")
        self._patience = patience
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._completions = 0

    async def __aenter__(self) -> "Chat":
        timeout = aiohttp.ClientTimeout(
            total=self._patience.timeout, sock_connect=min(_CONNECT_SECONDS, self._patience.timeout)
        )
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout)
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self._session.close()

    async def models(self) -> list[str]:
        """Names of the models that the server offers; raises JudgeError where it does not say."""
        _, body = await self._retried("GET", "/models", None)
        try:
            return [str(model["id"]) for model in json.loads(body)["data"]]
        except (ValueError, TypeError, KeyError):
            raise JudgeError(
                f"the judge {self.url} does not list its models ({_start(body)}): check the "
                "address, which usually ends in /v1, or give --judge-model=NAME"
            ) from None

    async def ask(self, model: str, png: bytes, question: str) -> Answer:
        """The model's answer to a question about a picture. Raises JudgeError."""
        url = "data:image/png;base64," + base64.b64encode(png).decode()
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": question},
        ]
        request = {
            "model": model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": _MAX_TOKENS,
        }
        for left in reversed(range(self._patience.tries)):
            status, body = await self._retried("POST", "/chat/completions", request)
            try:
                text = _completion(status, body)
            except _NoCompletion as problem:
                # A page of a proxy may be gone the next time; a refusal will not.
                if left and status == 200:
                    await asyncio.sleep(self._wait(self._patience.tries - left))
                    continue
                if not self._completions:
                    raise JudgeError(
                        f"the judge {self.url} has given no chat completion ({problem}): check "
                        "the address, which usually ends in /v1, and that the model takes images"
                    ) from None
                return Answer("", str(problem))
            self._completions += 1
            return Answer(text)
        raise AssertionError("the last try returns or raises")

    async def _retried(self, method: str, path: str, request: dict | None) -> tuple[int, bytes]:
        for attempt in range(1, self._patience.tries + 1):
            try:
                return await self._once(method, path, request)
            except _NoAnswer as failed:
                if attempt == self._patience.tries:
                    raise JudgeError(
                        f"the judge {self.url} did not answer in {attempt} tries (last: {failed})"
                    ) from None
                await asyncio.sleep(max(self._wait(attempt), failed.wait))
        raise AssertionError("the last try returns or raises")

    async def _once(self, method: str, path: str, request: dict | None) -> tuple[int, bytes]:
        try:
            async with self._session.request(method, self.url + path, json=request) as response:
                body, status = await response.read(), response.status
                later = response.headers.get("Retry-After", "")
        except TimeoutError:
            raise _NoAnswer(f"nothing in {self._patience.timeout:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _NoAnswer(str(error) or type(error).__name__) from None
        if status in (401, 403):
            raise JudgeError(
                f"the judge {self.url} refuses the key (status {status}: {_start(body)}): set "
                "OPENAI_API_KEY"
            )
        if status == 404:
            raise JudgeError(
                f"the judge {self.url} has no such model or path (status 404: {_start(body)}): "
                "check the address, which usually ends in /v1, and --judge-model"
            )
        if status in _LATER or status >= 500:
            wait = min(_seconds(later), self._patience.longest)
            raise _NoAnswer(f"status {status}: {_start(body)}", wait)
        return status, body

    def _wait(self, attempt: int) -> float:
        return min(self._patience.longest, self._patience.wait * 2 ** (attempt - 1))


def _completion(status: int, body: bytes) -> str:
    """The text of a chat completion; some servers send it in parts, or null for an empty one."""
    if status != 200:
        raise _NoCompletion(f"status {status}: {_start(body)}")
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, TypeError, KeyError, IndexError):
        raise _NoCompletion(f"no chat completion: {_start(body)}") from None
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _seconds(retry_after: str) -> float:
    """Retry-After where it is a number; it may be a date as well, which our own wait serves."""
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        return 0.0


def _start(body: bytes) -> str:
    """The first words of an answer, on one line."""
    text = " ".join(body[: 4 * _SHOWN].decode("utf-8", "replace").split())
    return text[:_SHOWN] if text else "nothing"
