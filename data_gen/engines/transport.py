"""POST to one of several servers until there is an answer or no point in asking again.

What each failure gets: refused (401, 403, 404) stops the run; 400, 413, 422 are permanent errors
of the request; 408, 425, 429, 5xx, resets, time-outs and answers that are no JSON are tried again
after a wait. A 500 that repeats for one request while others succeed is the request's own fault
(a poisoned image on `transformers serve`): three tries, then one for each further question about
the photo. While nobody gets an answer, tries are not counted: the server is down, the requests
wait for it, and after `max_outage_seconds` seconds the run stops.
"""

import asyncio
import email.utils
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from data_gen.engines.base import EndpointError
from data_gen.engines.limits import AdaptiveLimit, Breaker, Pace, full_jitter
from negclip_jax.common.errors import InputError

_PERMANENT = (400, 405, 406, 409, 413, 414, 415, 422)
_CONGESTED = (429, 503)
_OWN_FAULT_TRIES = 3
_LONGEST_ANSWER = 2**24  # bytes
_DETAIL = 500  # characters of a server's error text that are kept


@dataclass(frozen=True)
class TransportSettings:
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


@dataclass(frozen=True)
class Reply:
    """What came of a request: `body` is a JSON object, or `error` a code with `detail`."""

    body: Mapping[str, Any] | None
    error: str | None = None
    detail: str | None = None
    permanent: bool = False
    latency_ms: float = 0.0
    attempts: int = 1
    host: str = ""


class _Failed(Exception):
    """One try that brought no answer."""

    def __init__(self, code: str, detail: str, *, wait: float = 0.0, congested: bool = False):
        super().__init__(detail)
        self.code, self.wait, self.congested = code, wait, congested


class _Refused(Exception):
    """The request itself is wrong; asking again changes nothing."""


class Host:
    """One server: its address, its limits and its breaker."""

    def __init__(self, url: str, settings: TransportSettings):
        """`url` ends before /chat/completions, e.g. http://HOST:8000/v1. Raises InputError."""
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

    @property
    def ready_at(self) -> float:
        """When to look again, on the clock of time.monotonic."""
        return max(self.paused_until, self.breaker.open_until)


class Transport:
    """Requests to servers that all serve the same model."""

    def __init__(self, urls: list[str], api_key: str | None, settings: TransportSettings):
        self.hosts = [Host(url, settings) for url in urls]
        self._settings = settings
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._session: aiohttp.ClientSession | None = None
        self._poisoned: set[str] = set()  # photos on which the server stumbles

    async def post(
        self, path: str, body: Callable[[], bytes], affinity: str | None = None
    ) -> Reply:
        """Sends a JSON body.

        Args:
          path: below the server's URL.
          body: makes the body when it is its turn: thousands may wait, each with a photo.
          affinity: hexadecimal digits; equal ones go to the same server.

        Raises EndpointError where no request can succeed.
        """
        tries = sent = 0
        failed, first_failure = None, 0.0
        while True:
            host = await self._host(affinity, failed)
            sent += 1
            try:
                content, seconds = await self._once(host, path, body)
                return Reply(content, latency_ms=1000 * seconds, attempts=sent, host=host.url)
            except _Refused as refused:
                return Reply(
                    None, "refused", str(refused), permanent=True, attempts=sent, host=host.url
                )
            except _Failed as caught:
                failed, first_failure = caught, first_failure or time.monotonic()
            if not host.breaker.is_open:
                tries += 1
                others_succeed = host.breaker.last_success > first_failure
                if self._is_own_fault(failed, tries, others_succeed, affinity):
                    detail = f"{failed}, {tries} times, while other requests succeed"
                    return Reply(
                        None, "server_error", detail, permanent=True, attempts=sent, host=host.url
                    )
                if tries >= self._settings.tries:
                    return Reply(None, failed.code, str(failed), attempts=sent, host=host.url)
            await asyncio.sleep(max(failed.wait, full_jitter(tries or 1, self._settings.backoff)))

    def _is_own_fault(
        self, failed: _Failed, tries: int, others_succeed: bool, affinity: str | None
    ) -> bool:
        """Whether a 500 comes from the request: others succeed, or the photo is known for it."""
        if failed.code != "http_500":
            return False
        if affinity in self._poisoned:
            return True
        own = tries >= _OWN_FAULT_TRIES and others_succeed
        if own and affinity is not None:
            self._poisoned.add(affinity)
        return own

    async def get(self, path: str) -> Mapping[str, Any] | None:
        """A JSON object from the first server, or None where there is none (no retry)."""
        try:
            async with self._client().get(self.hosts[0].url + path) as response:
                content = json.loads(await _bounded(response))
                return content if response.status == 200 and isinstance(content, dict) else None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RecursionError):
            return None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=self._settings.timeout, sock_connect=10)
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                timeout=timeout,
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
            )
        return self._session

    async def _host(self, affinity: str | None, failed: _Failed | None) -> Host:
        """The server for a request, once there is one that takes it: its own, or the idlest."""
        if affinity:
            first = int(affinity[:8], 16) % len(self.hosts)
            order = self.hosts[first:] + self.hosts[:first]
        else:
            order = sorted(self.hosts, key=lambda host: host.limit.in_flight)
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
            ready = min(host.ready_at for host in order)
            await asyncio.sleep(min(max(ready - now, 0.02), 1.0))

    async def _once(self, host: Host, path: str, body: Callable[[], bytes]) -> Mapping[str, Any]:
        await host.pace.turn()
        await host.limit.acquire()
        started = time.monotonic()
        try:
            content = await self._answer(host, path, body())
        except _Failed as failed:
            if failed.congested:
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
        return content, seconds

    async def _answer(self, host: Host, path: str, body: bytes) -> Mapping[str, Any]:
        try:
            async with self._client().post(host.url + path, data=body) as response:
                data = await _bounded(response)
                status, retry_after = response.status, response.headers.get("Retry-After")
        except TimeoutError:
            seconds = self._settings.timeout
            raise _Failed("timeout", f"no answer in {seconds:g} s", congested=True) from None
        except (aiohttp.ClientError, OSError) as error:
            said = str(error) or type(error).__name__
            raise _Failed("connection", f"the connection failed ({said})") from None
        if status == 200:
            return _json_object(data)
        self._raise(host, status, _error_text(data), retry_after)

    def _raise(self, host: Host, status: int, text: str, retry_after: str | None) -> None:
        said = f"status {status}: {text}" if text else f"status {status}"
        if status in (401, 403):
            raise EndpointError(f"{host.url} refuses the key ({said}); set the right API key")
        if status == 404:
            raise EndpointError(
                f"{host.url} has no such model or path ({said}); check the address, which usually "
                "ends in /v1, and the model's name"
            )
        if status in _PERMANENT:
            raise _Refused(said)
        wait = min(_seconds(retry_after), self._settings.longest_retry_after)
        raise _Failed(f"http_{status}", said, wait=wait, congested=status in _CONGESTED)


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
        start = data[:60].decode("utf-8", "replace")
        raise _Failed("bad_response", f"the answer is no JSON object: {start!r}")
    return content


def _error_text(data: bytes) -> str:
    """The server's words, at most 500 characters of them, from the usual places in its JSON."""
    text = data.decode("utf-8", "replace")
    try:
        content = json.loads(text)
        error = content.get("error", content.get("detail", content))
        text = error.get("message", str(error)) if isinstance(error, dict) else str(error)
    except (ValueError, RecursionError, AttributeError):
        pass
    return " ".join(valid(text).split())[:_DETAIL]


def valid(text: str) -> str:
    """The text with "?" for halves of surrogate pairs, which JSON can hold and no file can."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _seconds(retry_after: str | None) -> float:
    """Retry-After in seconds; it may be a number or a date (RFC 9110, 10.2.3)."""
    if not retry_after:
        return 0.0
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0
