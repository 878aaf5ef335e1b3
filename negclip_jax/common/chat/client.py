"""Asks one of several servers of a model until there is an answer or no point in asking again.

What each failure gets: refused keys, models and paths (401, 403, 404) raise EndpointError; 400,
413, 422 and their like are permanent errors of the request; 408, 425, 429, 5xx, resets, time-outs
and answers that are no chat completion are tried again after a wait. A 500 that repeats for one
request while others succeed is the request's own fault (a poisoned image on `transformers serve`):
three tries, then one for each further question about the image. While no request is answered,
tries are not counted: the server is down, the requests wait for it, and after
`max_outage_seconds` EndpointError is raised.
"""

import asyncio
import collections
import email.utils
import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from negclip_jax.common.chat import messages
from negclip_jax.common.chat.messages import Adjusted, ChatRequest, ChatResult
from negclip_jax.common.errors import InputError

_PERMANENT = (400, 405, 406, 409, 413, 414, 415, 422)
_CONGESTED = ("timeout", "http_429", "http_503")
_OWN_FAULT_TRIES = 3
_LONGEST_ANSWER = 2**24  # bytes
_CONNECT_SECONDS = 10.0
_DETAIL = 500  # characters of a server's error text that are kept
_WINDOW = 16  # answers, at least, between two looks at the latency
_jitter = random.Random(0)


class EndpointError(InputError):
    """A server that answers no request: down, a wrong key, an unknown model."""

    def __init__(self, message: str):
        super().__init__(message, status=3)


@dataclass(frozen=True)
class ChatSettings:
    """Patience: tries a request, seconds, requests in flight and a minute to each server."""

    concurrency: int = 256
    start_concurrency: int = 8
    timeout: float = 120.0
    tries: int = 5
    max_outage_seconds: float = 300.0
    backoff: float = 0.5
    breaker_failures: int = 20
    breaker_pause: float = 5.0
    longest_retry_after: float = 120.0
    per_minute: float = 0.0


class NoAnswer(Exception):
    """One try that brought no answer; another may. `code` is the error of a ChatResult."""

    def __init__(self, code: str, detail: str, wait: float = 0.0):
        super().__init__(detail)
        self.code, self.wait = code, wait


class _Refused(Exception):
    """The request itself is wrong; asking again changes nothing."""


class _Host:
    """One server: its address, its limits and its breaker."""

    def __init__(self, url: str, settings: ChatSettings):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InputError(f"{url!r} is no server address; one looks like http://HOST:8000/v1")
        self.url = url.rstrip("/")
        self.limit = AdaptiveLimit(settings.start_concurrency, settings.concurrency)
        self.breaker = Breaker(settings.breaker_failures, settings.breaker_pause)
        self.pace = Pace(settings.per_minute)
        self.paused_until = 0.0

    def admits(self, now: float) -> bool:
        return now >= self.paused_until and self.breaker.admits(now)


class ChatClient:
    """Chat completions from one or several servers of the same model.

    `adjusted` are fields of the body that the server wants otherwise, found by its refusals; a run
    keeps them and gives them to the client of the next one.
    """

    def __init__(
        self, urls: Sequence[str], settings: ChatSettings, key_variable: str | None = None
    ):
        """Opens no connection yet.

        `urls` stand before /chat/completions, e.g. http://HOST:8000/v1; an API key in the
        environment variable `key_variable`. Raises InputError for a URL that is no address.
        """
        self._hosts = [_Host(url, settings) for url in urls]
        self._settings, self._key_variable = settings, key_variable
        self._headers = {"Content-Type": "application/json"}
        if key_variable and (key := os.environ.get(key_variable)):
            self._headers["Authorization"] = f"Bearer {key}"
        self._session: aiohttp.ClientSession | None = None
        self.adjusted: Adjusted = {}
        self._poisoned: set[str] = set()  # SHA-256 of images on which the server stumbles

    @property
    def url(self) -> str:
        """The address of the first server."""
        return self._hosts[0].url

    async def generate(self, request: ChatRequest) -> ChatResult:
        """The answer to a request, or its error; EndpointError where no request can succeed.

        Questions about one image go to one server, whose cache then knows the image.
        """
        image = request.image and request.image.sha256
        tries = sent = server_errors = 0
        failed, first_failure = None, 0.0
        while True:
            host = await self._host(image, failed)
            sent += 1
            about, adjusted = {"attempts": sent, "host": host.url}, dict(self.adjusted)
            try:
                return replace(await self._once(host, request), **about)
            except _Refused as refused:
                said = str(refused)
                sent_fields = messages.fields_of(request, adjusted)
                self.adjusted.update(messages.adjustment(said, sent_fields))
                if self.adjusted != adjusted:  # by this request, or by another meanwhile
                    continue
                code = "content_filter" if messages.is_filtered(said) else "refused"
                return ChatResult(error=code, detail=said, permanent=True, **about)
            except NoAnswer as caught:
                failed, first_failure = caught, first_failure or time.monotonic()
            if not host.breaker.is_open:
                tries += 1
                server_errors += failed.code == "http_500"
                # Its own fault: it fails like that alone, or its image is known for it.
                others_succeed = host.breaker.last_success > first_failure
                own = server_errors >= _OWN_FAULT_TRIES and others_succeed
                if failed.code == "http_500" and (own or image in self._poisoned):
                    if image is not None:
                        self._poisoned.add(image)
                    detail = f"{failed}, {server_errors} times, while other requests succeed"
                    return ChatResult(error="server_error", detail=detail, permanent=True, **about)
                if tries >= self._settings.tries:
                    return ChatResult(error=failed.code, detail=str(failed), **about)
            await asyncio.sleep(max(failed.wait, full_jitter(tries or 1, self._settings.backoff)))

    async def models(self, tries: int = 1) -> list[dict[str, Any]]:
        """The first server's models, each with its "id"; NoAnswer where it lists none."""
        while True:
            tries -= 1
            try:
                async with self._client().get(self.url + "/models") as response:
                    data, status = await _bounded(response), response.status
                if status != 200:
                    raise NoAnswer(f"http_{status}", _status_text(status, data))
                listed = _json_object(data).get("data")
                if not isinstance(listed, list) or not all(
                    isinstance(model, dict) and "id" in model for model in listed
                ):
                    raise NoAnswer("bad_response", f"no list of models: {_start(data)!r}")
                return listed
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failed = NoAnswer("connection", str(error) or type(error).__name__)
            except NoAnswer as caught:
                failed = caught
            if tries <= 0:
                raise failed
            await asyncio.sleep(self._settings.backoff)

    async def close(self) -> None:
        """Ends the connections; a further request opens new ones."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            total = self._settings.timeout
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total, sock_connect=min(total, _CONNECT_SECONDS)),
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
            )
        return self._session

    async def _host(self, image: str | None, failed: NoAnswer | None) -> _Host:
        """The server for a request, once there is one that takes it: its own, or the idlest."""
        if image:
            first = int(image[:8], 16) % len(self._hosts)
            order = self._hosts[first:] + self._hosts[:first]
        else:
            order = sorted(self._hosts, key=lambda host: host.limit.in_flight)
        while True:
            now = time.monotonic()
            for host in order:
                if host.admits(now):
                    return host
            answered = max(host.breaker.last_success for host in order)
            down = all(host.breaker.is_open for host in order)
            if down and now - answered > self._settings.max_outage_seconds:
                raise EndpointError(
                    f"{order[0].url} has not answered for {now - answered:.0f} s"
                    f" (last: {failed or 'no answer'}); start the server and run the same command "
                    "again: all answers so far are kept"
                )
            ready = min(max(host.paused_until, host.breaker.open_until) for host in order)
            await asyncio.sleep(min(max(ready - now, 0.02), 1.0))

    async def _once(self, host: _Host, request: ChatRequest) -> ChatResult:
        """One try, and what the limits and the breaker of the server learn from it."""
        await host.pace.turn()
        await host.limit.acquire()
        started = time.monotonic()
        try:
            # The body is made when it is its turn: thousands may wait, each with an image.
            result = await self._post(host, messages.body_of(request, self.adjusted))
        except NoAnswer as failed:
            if failed.code in _CONGESTED:
                host.limit.congested(started)
            if failed.code in ("http_429", "http_500"):  # "later" and "not this": it is alive
                host.breaker.alive()
            else:
                host.breaker.failure()
            if failed.wait:
                host.paused_until = max(host.paused_until, time.monotonic() + failed.wait)
            raise
        except _Refused:
            host.breaker.success()
            raise
        finally:
            host.limit.release()
        seconds = time.monotonic() - started
        host.limit.answered(seconds)
        host.breaker.success()
        return replace(result, latency_ms=1000 * seconds)

    async def _post(self, host: _Host, body: bytes) -> ChatResult:
        try:
            async with self._client().post(host.url + "/chat/completions", data=body) as response:
                data = await _bounded(response)
                status, headers = response.status, response.headers
        except TimeoutError:
            raise NoAnswer("timeout", f"no answer in {self._settings.timeout:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            said = str(error) or type(error).__name__
            raise NoAnswer("connection", f"the connection failed ({said})") from None
        if status == 200:
            try:
                return messages.result_of(_json_object(data))
            except ValueError as error:
                raise NoAnswer("bad_response", str(error)) from None
        said = _status_text(status, data)
        if status in (401, 403):
            where = f" in {self._key_variable}" if self._key_variable else ""
            raise EndpointError(
                f"{host.url} refuses the key ({said}); set the right API key{where}"
            )
        if status == 404:
            raise EndpointError(
                f"{host.url} has no such model or path ({said}); check the address, which usually "
                "ends in /v1, and the model's name"
            )
        if status in _PERMANENT:
            raise _Refused(said)
        wait = min(_retry_after(headers), self._settings.longest_retry_after)
        raise NoAnswer(f"http_{status}", said, wait)


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    """The body, as far as an answer can be long; the rest of an endless one is not read."""
    data = bytearray()
    async for block in response.content.iter_any():
        data += block
        if len(data) > _LONGEST_ANSWER:
            response.close()
            break
    return bytes(data[:_LONGEST_ANSWER])


def _json_object(data: bytes) -> Mapping[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise NoAnswer("bad_response", f"the answer is no JSON object: {_start(data)!r}")
    return content


def _start(data: bytes) -> str:
    return data[:60].decode("utf-8", "replace")


def _status_text(status: int, data: bytes) -> str:
    """The status and the server's words, at most 500 characters, from their usual places."""
    text = data.decode("utf-8", "replace")
    try:
        content = json.loads(text)
        error = content.get("error", content.get("detail", content))
        text = error.get("message", str(error)) if isinstance(error, dict) else str(error)
    except (ValueError, RecursionError, AttributeError):
        pass
    text = " ".join(messages.valid(text).split())[:_DETAIL]
    return f"status {status}: {text}" if text else f"status {status}"


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds to wait: Retry-After is a number or a date (RFC 9110, 10.2.3), Azure's in ms."""
    text = headers.get("Retry-After", "")
    for value, unit in ((headers.get("retry-after-ms", ""), 1000), (text, 1)):
        try:
            return max(0.0, float(value) / unit)
        except ValueError:
            continue
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0


class AdaptiveLimit:
    """Requests in flight to one server, found by trying.

    The limit doubles while that raises the throughput (answers per second, from the median
    latency) by a tenth at least, and otherwise goes back to where it was. A 429, a 503 or a
    timeout halves it, once for all requests that were in flight then.
    """

    def __init__(self, start: int, cap: int):
        self.limit = min(start, cap)
        self._cap = cap
        self.in_flight = 0
        self._waiting: collections.deque[asyncio.Future] = collections.deque()
        self._latencies: list[float] = []
        self._best, self._best_limit = 0.0, self.limit  # the best throughput so far, and where
        self._settled = False  # one more doubling did not help
        self._last_cut = 0.0

    async def acquire(self) -> None:
        """Waits until one more request may be in flight; first come, first served."""
        if self.in_flight < self.limit and not self._waiting:
            self.in_flight += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was ours already
                self.release()
            raise

    def release(self) -> None:
        """Gives the place of a finished request to the next."""
        self.in_flight -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self.in_flight < self.limit:
            turn = self._waiting.popleft()
            if not turn.cancelled():
                self.in_flight += 1
                turn.set_result(None)

    def answered(self, latency: float) -> None:
        """Notes an answer after `latency` seconds."""
        self._latencies.append(latency)
        if len(self._latencies) >= max(_WINDOW, self.limit):
            self._look()

    def congested(self, started: float) -> None:
        """Notes a refusal of a request that was sent at `started` (time.monotonic)."""
        if started > self._last_cut:
            self._last_cut = time.monotonic()
            self.limit = max(1, self.limit // 2)
            self._latencies.clear()
            self._best, self._settled = 0.0, True

    def _look(self) -> None:
        latency = sorted(self._latencies)[len(self._latencies) // 2]
        self._latencies.clear()
        throughput = self.limit / max(latency, 1e-6)
        if self._settled:
            # The server may have more room than at the last look: feel for it, slowly.
            self.limit = min(self._cap, self.limit + max(1, self.limit // 16))
        elif throughput > 1.1 * self._best:
            self._best, self._best_limit = throughput, self.limit
            self.limit = min(self._cap, 2 * self.limit)
        else:
            self.limit, self._settled = self._best_limit, True
        self._admit()


class Breaker:
    """Leaves a server alone after failures in a row, then lets a single request try again."""

    def __init__(self, failures: int, pause: float, longest_pause: float = 60.0):
        """Opens after `failures` in a row for `pause` seconds, doubling up to `longest_pause`."""
        self._threshold, self._first_pause, self._longest = failures, pause, longest_pause
        self._failures, self._pause = 0, pause
        self.open_until = 0.0
        self._trying = False
        self.last_success = time.monotonic()

    @property
    def is_open(self) -> bool:
        """Whether requests must not be sent, or not more than one."""
        return self._failures >= self._threshold

    def admits(self, now: float) -> bool:
        """Whether a request may be sent now; while open, a single one after each pause."""
        if not self.is_open:
            return True
        if self._trying or now < self.open_until:
            return False
        self._trying = True
        return True

    def alive(self) -> None:
        """The server answered, though not as one would wish."""
        self._failures, self._pause, self._trying = 0, self._first_pause, False

    def success(self) -> None:
        """The server answered a request."""
        self.alive()
        self.last_success = time.monotonic()

    def failure(self) -> None:
        """The server did not answer at all, or only its proxy did."""
        self._failures += 1
        if self.is_open and (self._trying or self._failures == self._threshold):
            self.open_until = time.monotonic() + self._pause
            self._pause = min(self._longest, 2 * self._pause)
        self._trying = False


class Pace:
    """Spaces requests out where a provider allows only so many a minute."""

    def __init__(self, per_minute: float):
        """`per_minute`: requests; 0 for no limit."""
        self._gap = 60 / per_minute if per_minute else 0.0
        self._next = 0.0

    async def turn(self) -> None:
        """Waits for the next free moment."""
        if self._gap:
            now = time.monotonic()
            moment = max(now, self._next)
            self._next = moment + self._gap
            await asyncio.sleep(moment - now)


def full_jitter(attempt: int, base: float = 0.5, longest: float = 30.0) -> float:
    """Seconds to wait after failure number `attempt`, from 1: even in 0..base * 2^(attempt - 1).

    After M. Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).
    """
    return _jitter.uniform(0, min(longest, base * 2 ** (attempt - 1)))
