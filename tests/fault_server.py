"""The benchmark's loopback server with faults on order, and small photos that it knows."""

import asyncio
import collections
import contextlib
import hashlib
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from aiohttp import web
from PIL import Image

from bench.loopback import LoopbackServer, last_turn
from negclip_jax.common.chat.client import ChatSettings

RETRY_AFTER = 0.2  # seconds, as the server says when it is asked too often
POOL = ["umbrella", "dog", "bicycle", "kite", "laptop", "bus", "horse", "clock"]
TEXTS = ["A man sits on a bench", "A person on a seat", "Some grass and the {}"]
PLACES = ["a lake", "a wall", "the sea", "a gate", "a tower", "a bridge", "a fence", "a hill"]
IMPATIENT = ChatSettings(
    backoff=0.01,
    timeout=0.5,
    max_outage_seconds=1.0,
    breaker_failures=5,
    breaker_pause=0.05,
    tries=4,
)


class FaultServer(LoopbackServer):
    """`faults` maps a name to a function of the body: whether this request gets that fault."""

    def __init__(self, *args, faults: dict[str, Callable] | None = None, **options):
        super().__init__(*args, **options)
        self.faults = faults or {}
        self.given: collections.Counter = collections.Counter()
        self.keys: list[str | None] = []

    async def fault(self, request: web.Request, body: dict) -> web.StreamResponse | None:
        self.keys.append(request.headers.get("Authorization"))
        for name, applies in self.faults.items():
            if name in _RESPONSES and applies(body):
                self.given[name] += 1
                return await _RESPONSES[name](request)
        return None

    def reworded(self, body: dict, text: str, stage: str) -> str:
        for name, applies in self.faults.items():
            if name in _WORDS and applies(body):
                self.given[name] += 1
                return _WORDS[name](text)
        return text


async def _rate_limited(request):
    return web.Response(status=429, headers={"Retry-After": str(RETRY_AFTER)}, text="slow down")


async def _status(request, status, text="no"):
    return web.json_response({"error": {"message": text}}, status=status)


async def _hang(request):
    await asyncio.sleep(30)


async def _reset(request):
    request.transport.abort()
    return web.Response()


async def _truncated(request):
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"choices": [')
    request.transport.close()
    return response


async def _endless(request):
    """An answer that never ends."""
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(ConnectionError, asyncio.CancelledError):
        while True:
            await response.write(b'{"a": ' * 20_000)
    return response


async def _text(request, text):
    return web.Response(text=text, content_type="text/html")


_RESPONSES = {
    "429": _rate_limited,
    "500": lambda request: _status(request, 500, "CUDA error"),
    "503": lambda request: _status(request, 503),
    "400": lambda request: _status(request, 400, "maximum context length is 4096 tokens"),
    "401": lambda request: _status(request, 401, "invalid api key"),
    "404": lambda request: _status(request, 404, "model not found"),
    "hang": _hang,
    "reset": _reset,
    "truncated": _truncated,
    "html": lambda request: _text(request, "<html>Bad gateway</html>"),
    "endless": _endless,
    "deep": lambda request: _text(request, '{"a":' * 100_000),
    "empty": lambda request: _text(request, ""),
    "no message": lambda request: _text(request, '{"choices": []}'),
}


def _shuffled(text: str) -> str:
    """Each unit of a joint answer at another's number."""
    units = json.loads(text)
    values = list(units.values())
    return json.dumps(dict(zip(units, values[1:] + values[:1], strict=True)))


def _one_missing(text: str) -> str:
    return json.dumps({number: unit for number, unit in json.loads(text).items() if number != "2"})


_WORDS = {
    "shuffled": _shuffled,
    "one missing": _one_missing,
    "prose": lambda text: "I think there might be something like that in the image.",
    "refusal": lambda text: "I'm sorry, but I cannot help with that.",
    "chatty": lambda text: f"Sure, here is the new caption: {text}",
    "no negation": lambda text: text.replace(" with no ", " with "),
    "200 words": lambda text: text + " and a street" * 66,
    "markup": lambda text: f"**{text}**<end_of_turn>",
    "nothing": lambda text: "",
    "half a pair": lambda text: "\ud83d" + text + " \x00 \udc00",
}


def first(count: int, of: Callable[[dict], bool] = lambda body: True) -> Callable[[dict], bool]:
    """Applies to the first `count` requests that `of` holds for."""
    left = [count]

    def applies(body: dict) -> bool:
        if left[0] and of(body):
            left[0] -= 1
            return True
        return False

    return applies


def every(number: int) -> Callable[[dict], bool]:
    """Applies to each request whose turn it is: one in `number`."""
    seen = itertools.count(1)
    return lambda body: next(seen) % number == 0


def always(body: dict) -> bool:
    return True


def has_photo(body: dict) -> bool:
    return not isinstance(body["messages"][-1]["content"], str)


def rewrites(body: dict) -> bool:
    return "Absent:" in last_turn(body)[0]


def shares(body: dict) -> bool:
    """Text requests about several photos or captions."""
    text = last_turn(body)[0]
    return not has_photo(body) and ("Captions of photo 2:" in text or "\n2. Caption:" in text)


def says(text: str) -> Callable[[dict], bool]:
    """Requests whose last turn has the text."""
    return lambda body: text in last_turn(body)[0]


def photo(seed: int, size: tuple[int, int] = (48, 40)) -> bytes:
    """A small JPEG that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


def world(folder: Path, images: int, captions: int = 3) -> dict[str, frozenset[str]]:
    """Writes `captions.json` and `photos/` and returns what each photo shows, for the server."""
    (folder / "photos").mkdir(parents=True)
    shows, listed, annotations = {}, [], []
    for i in range(images):
        data, name = photo(i), f"{i:03d}.jpg"
        (folder / "photos" / name).write_bytes(data)
        named = ("person", "bench", "grass", PLACES[i % 8].split()[1])  # by the captions
        shows[hashlib.sha256(data).hexdigest()] = frozenset(
            (POOL[i % 8], POOL[(i + 3) % 8], *named)
        )
        listed.append({"id": i + 1, "file_name": name})
        for j in range(captions):
            text = TEXTS[j].format(POOL[i % 8]) + f" near {PLACES[i % 8]}{'.' if j else ''}"
            annotations.append({"id": 10 * i + j, "image_id": i + 1, "caption": text})
    content = {"images": listed, "annotations": annotations}
    (folder / "captions.json").write_text(json.dumps(content))
    return shows


def arguments(folder: Path, out: Path, server: LoopbackServer, *more: str) -> list[str]:
    """The command that runs the world in `folder` into `out` against a server."""
    return [
        "run",
        f"--captions={folder}/captions.json",
        f"--images={folder}/photos",
        f"--out={out}",
        f"--llm-url={server.url}",
        f"--mllm-url={server.url}",
        "--config.shard_images=4",
        "--config.engine.backoff=0.01",
        "--config.engine.timeout=5",
        "--config.engine.max_outage_seconds=5",
        *more,
    ]


def table(out: Path, name: str) -> list[dict]:
    """The rows of a table of a run."""
    from data_gen.records import read_table

    return read_table(out, name).to_pylist()


def tables(out: Path) -> dict[str, bytes]:
    """Every Parquet file of a run's tables by its name."""
    return {str(path.relative_to(out)): path.read_bytes() for path in out.glob("*/part-*.parquet")}
