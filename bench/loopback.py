"""A server on loopback that speaks OpenAI's chat completions and answers from known scenes.

It stands for a language model and a multimodal one at once: it knows what each photo shows by the
photo's bytes, proposes objects, answers yes or no, and rewrites captions. It counts calls and
tokens as a real server would, a cached prefix included, and changes its behaviour by request: a
subclass overrides `fault` (tests/data_gen/fault_server.py).
"""

import asyncio
import base64
import collections
import hashlib
import json
import math
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from data_gen.prompts import load_prompts

_PROPOSE = load_prompts()["propose"]
IMAGE_TOKENS = 2341  # LLaVA-NeXT's for a photo of 640 x 480
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_REWRITE = re.compile(
    rf"^(?:(?P<number>\d+)\. )?Caption: (?P<caption>{_QUOTED})\s+Absent: (?P<object>{_QUOTED})",
    re.MULTILINE,
)
_MERGE = re.compile(rf"Caption: (?P<caption>{_QUOTED})\s+Question: (?P<question>{_QUOTED})")
_PUBLISHED = re.compile(rf"absence of the (?P<object>.+?) to the caption (?P<caption>{_QUOTED})")
_TOKEN = re.compile(r"\s*\w+|\s*\W")
_PHOTO = re.compile(rf"^Captions of photo (\d+):\n((?:{_QUOTED}\n)+)", re.MULTILINE)
_LISTED = re.compile(r"^\d+\. (.+)$", re.MULTILINE)
_OBJECT = re.compile(r"there (?:an? |any |)(.+?)(?: in this image)?\?")


@dataclass
class Counts:
    """What was asked. `prompt_tokens` is what had to be computed, `cached_tokens` what had not."""

    calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    by_stage: collections.Counter = field(default_factory=collections.Counter)
    by_body: collections.Counter = field(default_factory=collections.Counter)
    in_flight: int = 0
    peak: int = 0


@dataclass(eq=False)
class LoopbackServer:
    """Serves in a thread of its own; a context manager.

    What a server does not honour it ignores in silence, as some do.
    """

    shows: Mapping[str, frozenset[str]]  # SHA-256 of a photo as it is sent, to what it shows
    pool: list[str]  # what it proposes
    latency: float = 0.0  # seconds of each answer
    logprobs: bool = True  # whether it honours them; so with `choice`
    choice: bool = False
    prefix_cache: bool = False
    # Whether it names objects for several photos in one request, and answers a probe's several
    # questions; those about a photo that it knows it answers anyway.
    many: bool = False
    model: str = "loopback"
    counts: Counts = field(default_factory=Counts, init=False)
    url: str = field(default="", init=False)  # base URL, ends in /v1
    _prefixes: set[tuple] = field(default_factory=set, init=False)  # that are cached

    def __enter__(self) -> "LoopbackServer":
        started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, args=(started,), daemon=True)
        self._thread.start()
        started.wait(10)
        return self

    def __exit__(self, *_) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application(client_max_size=1 << 30)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        port = site._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"
        started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": self.model, "max_model_len": 8192}]})

    async def fault(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse | None:
        """A response instead of the answer, None to answer."""
        return None

    def reworded(self, body: dict[str, Any], text: str, stage: str) -> str:
        """The answer as it is given; a subclass makes it worse."""
        return text

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw)
        counts = self.counts
        counts.calls += 1
        counts.in_flight += 1
        counts.peak = max(counts.peak, counts.in_flight)
        counts.by_body[hashlib.sha256(raw).hexdigest()] += 1
        try:
            if self.latency:
                await asyncio.sleep(self.latency)
            response = await self.fault(request, body)
            return response or web.json_response(self._answer(body))
        finally:
            counts.in_flight -= 1

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        text, stage = self._text(body)
        words = self.reworded(body, text, stage).split()
        length, parts, cached = body.get("max_tokens", 1000), _parts(body), 0
        total, completion = sum(tokens for _, tokens in parts), min(len(words), length)
        usage: dict[str, Any] = {"prompt_tokens": total, "completion_tokens": completion}
        if self.prefix_cache:
            known = [n for n in range(len(parts) + 1) if tuple(parts[:n]) in self._prefixes]
            cached = sum(tokens for _, tokens in parts[: max(known, default=0)])
            self._prefixes.update(tuple(parts[:n]) for n in range(1, len(parts) + 1))
            usage["prompt_tokens_details"] = {"cached_tokens": cached}
        self.counts.by_stage[stage] += 1
        self.counts.prompt_tokens += total - cached
        self.counts.cached_tokens += cached
        self.counts.completion_tokens += completion
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": " ".join(words[:length])},
            "finish_reason": "length" if len(words) > length else "stop",
        }
        if self.logprobs and body.get("logprobs"):
            tokens, said = [], choice["message"]["content"]
            for token in _TOKEN.findall(said) if said.startswith("{") else words[:1] or [""]:
                other = "no" if token == "yes" else "yes"
                top = [{"token": token, "logprob": -0.05}, {"token": other, "logprob": -3.2}]
                tokens.append(top[0] | {"top_logprobs": top})
            choice["logprobs"] = {"content": tokens}
        return {"model": self.model, "choices": [choice], "usage": usage}

    def _text(self, body: dict[str, Any]) -> tuple[str, str]:
        """The answer and the stage that asked."""
        text, photo = last_turn(body)
        if self.choice and photo is None and "structured_outputs" in body:
            return body["structured_outputs"]["choice"][0], "probe"
        if photo is not None:
            shown = self.shows.get(_digest(photo))
            if shown is None and not self.many and _LISTED.search(text):
                return "One question at a time, please.", "verify"
            return self._look(text, shown or frozenset()), "verify"
        if "Say hello" in text or "in this image" in text:
            return "Hello there", "probe"
        if match := _PUBLISHED.search(text):
            return _negate(json.loads(match["caption"]), match["object"].strip()), "rewrite"
        if match := _MERGE.search(text):
            return _negate(json.loads(match["caption"]), _last_word(match["question"])), "merge"
        if matches := list(_REWRITE.finditer(text)):
            texts = [_negate(json.loads(m["caption"]), json.loads(m["object"])) for m in matches]
            if matches[0]["number"] is None:
                return texts[-1], "rewrite"
            numbers = [m["number"] for m in matches]
            return json.dumps(dict(zip(numbers, texts, strict=True))), "rewrite"
        if photos := _PHOTO.findall(text):
            if not self.many:
                return "One photo at a time, please.", "probe"
            return self._lists(photos, int(re.search(r"name (\d+) objects", text)[1])), "propose"
        order = sorted(self.pool, key=lambda name: _digest((name + text).encode()))
        if "one word" in text or "Name an object" in text:
            return next(name for name in order if name not in text), "propose"
        if "Ask " in text:
            return json.dumps([f"Is there a {name}?" for name in order[:6]]), "propose"
        number = re.search(r"Name (\d+) objects", text)
        return json.dumps(order[: int(number[1]) if number else 6]), "propose"

    def _lists(self, photos: list[tuple[str, str]], number: int) -> str:
        """Objects for several photos: of each those that it names where it is asked alone."""
        found = {}
        for place, captions in photos:
            turns = _PROPOSE.fill(captions=captions.strip(), number=str(number))
            body = {"messages": [{"content": text} for _, text in turns]}
            first = json.loads(captions.splitlines()[0])
            found[place] = {"caption": first, "objects": json.loads(self._text(body)[0])}
        return json.dumps(found)

    @staticmethod
    def _look(text: str, shown: frozenset[str]) -> str:
        """The answer to one question about a photo, or to a numbered list of them."""

        def answer(question: str) -> str:
            match = _OBJECT.search(question)
            return "yes" if (match[1] if match else _last_word(question)) in shown else "no"

        asked = _LISTED.findall(text)
        if not asked:
            return answer(text)
        return json.dumps({str(i): answer(question) for i, question in enumerate(asked, 1)})


def last_turn(body: dict[str, Any]) -> tuple[str, bytes | None]:
    """Text and photo of the last message."""
    content = body["messages"][-1]["content"]
    if isinstance(content, str):
        return content, None
    text = "".join(part.get("text", "") for part in content)
    url = next(part["image_url"]["url"] for part in content if part["type"] == "image_url")
    return text, base64.b64decode(url.partition(",")[2])


def _parts(body: dict[str, Any]) -> list[tuple[str, int]]:
    """The prompt as pieces with their tokens: a prefix of pieces can be cached."""
    parts = []
    for message in body["messages"]:
        content = message["content"]
        for part in [{"text": content}] if isinstance(content, str) else content:
            if "image_url" in part:
                parts.append((_digest(part["image_url"]["url"].encode()), IMAGE_TOKENS))
            else:
                parts.append((part["text"], math.ceil(1.3 * len(part["text"].split())) + 4))
    return parts


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _last_word(text: str) -> str:
    return re.findall(r"[\w-]+", text)[-1]


def _negate(caption: str, name: str) -> str:
    return f"{caption.rstrip('. ')}, with no {name} in sight."
