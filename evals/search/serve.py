"""The server of the live page: `python -m evals.search --serve`.

It is meant for one person on one machine, and for browsers in which other sites are open as well:
on a loopback address it answers to loopback names only, so that no site can reach it through a name
of its own (DNS rebinding), and it takes requests of its own page alone. Photos are asked for by
their number and sent as small copies; nothing that a request says is ever a path. Models have one
thread, for which requests wait in turn; one whose browser has given up is not computed.
"""

import argparse
import asyncio
import base64
import concurrent.futures
import functools
import hashlib
import ipaddress
import logging
import re
import secrets
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evals import command_line, models
from evals.search.live import STEPS, Gone, Live
from evals.search.ranking import photos_of
from negclip_jax.common import strict_json
from negclip_jax.common.errors import InputError, device_errors, one_line, say
from negclip_jax.common.page.template import render
from negclip_jax.common.page.thumbnails import file_jpeg, jpeg_url
from negclip_jax.data.feature_files import open_features

UPLOAD_BYTES = 2**25
CAPTIONS, CHARACTERS = 32, 1000
_FORM_BYTES = 2**18
_SIDES = {"small": 352, "large": 1200}  # pixels of copies of photos
_FIRST = 24  # photos that are shown before there is a query
_HERE = Path(__file__).parent
_HOST = re.compile(r"(\[(?P<six>[0-9a-fA-F:]+)\]|(?P<name>[A-Za-z0-9.-]+))(:\d+)?")
_GIVEN_UP = 499  # nobody reads this answer


def run(args: argparse.Namespace) -> None:
    """Encodes, compiles and serves until Ctrl-C. Raises InputError."""
    command_line.require_writable(args.out)
    args.features = open_features(args.features) if args.features else None
    folder = photos_of(args.images, args.features)
    bound = _bind(args.host, args.port)  # that a port is taken is said before the minutes of work
    with bound:
        cache = command_line.embedding_cache(args)
        live = Live(command_line.load_models(args.model, args), folder, cache=cache)
        address, port = bound.getsockname()[:2]
        is_loopback = ipaddress.ip_address(address).is_loopback
        app = Server(live, args.top, args.queries, is_loopback=is_loopback).app
        quiet = {"access_log": False, "log_config": None, "log_level": logging.WARNING}
        limits = {"limit_concurrency": 256, "timeout_graceful_shutdown": 2, "server_header": False}
        config = uvicorn.Config(app, lifespan="off", ws="none", **quiet, **limits)
        bound.listen(128)
        shown = args.host if not ipaddress.ip_address(address).is_unspecified else "localhost"
        url = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/"
        if not is_loopback:
            logging.warning("whoever reaches port %d of this machine sees these photos", port)
        say(f"{url} is open; Ctrl-C stops")
        sys.stdout.flush()
        if args.open:
            threading.Thread(target=webbrowser.open, args=[url], daemon=True).start()
        try:
            uvicorn.Server(config).run(sockets=[bound])
        finally:
            live.close()


def _bind(host: str, port: int) -> socket.socket:
    try:
        if not 0 <= port < 2**16:
            raise OSError("ports have numbers from 0 to 65,535")
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"--host={host} --port={port} cannot be served ({reason}): give another --port, or "
            "--port=0 for a free one"
        ) from error
    return bound


class Server:
    """The page and what it asks for; `app` is for uvicorn."""

    def __init__(self, live: Live, top: int, examples: Sequence[str], *, is_loopback: bool):
        """Renders the page; with `is_loopback`, requests to a loopback name alone are answered."""
        self._live, self._top = live, top
        self._kept = frozenset(live.kept)
        self._turn = asyncio.Lock()
        self._worker = concurrent.futures.ThreadPoolExecutor(1, "models")
        self._decoders = concurrent.futures.ThreadPoolExecutor(2, "photos")
        self._copies = {
            size: functools.lru_cache(most)(functools.partial(self._copy, _SIDES[size]))
            for size, most in (("small", 2048), ("large", 64))
        }
        state = {
            "models": [{"name": one_line(m.name), "fixed": self._fixed(m)} for m in live.models],
            "examples": list(dict.fromkeys(examples)),
            "first": live.kept[:_FIRST],
            "steps": STEPS,
            "uploads": not live.folder.given,
            "version": secrets.token_hex(4),  # of photos' addresses: another run has other photos
            "limits": {"bytes": UPLOAD_BYTES, "captions": CAPTIONS, "characters": CHARACTERS},
        }
        self._page = render(
            _HERE / "serve.html",
            state=state,
            models={one_line(m.name): models.described(m) for m in live.models},
            photos=len(live.kept),
            folder=one_line(str(live.folder.root)),
            skipped=[(one_line(n), one_line(why)) for n, why in live.folder.skipped.items()],
        )
        styles = re.findall(r"<style>(.*?)</style>", self._page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in styles)
        hashes = " ".join(f"'sha256-{digest}'" for digest in digests)
        policy = (
            f"default-src 'none'; script-src 'self'; style-src {hashes}; "
            "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        )
        starlette = Starlette(
            routes=[
                Route("/", self._front),
                Route("/serve.js", self._script),
                Route("/photos/{place:int}", self._photo),
                Route("/api/search", self._search),
                Route("/api/photos", self._upload, methods=["POST"]),
                Route("/api/captions", self._captions, methods=["POST"]),
            ],
            exception_handlers={HTTPException: _refused, InputError: _failed, Exception: _crashed},
        )
        self.app = _Guard(starlette, policy, is_loopback=is_loopback)

    async def _front(self, request: Request) -> Response:
        return HTMLResponse(self._page)

    async def _script(self, request: Request) -> Response:
        return FileResponse(_HERE / "serve.js", media_type="text/javascript")

    async def _photo(self, request: Request) -> Response:
        place, size = request.path_params["place"], request.query_params.get("size", "small")
        if place not in self._kept or size not in self._copies:
            raise HTTPException(404, "there is no such photo")
        loop = asyncio.get_running_loop()
        data = await loop.run_in_executor(self._decoders, self._copies[size], place)
        if not data:
            raise HTTPException(404, "this photo cannot be read any more")
        headers = {"cache-control": "private, max-age=86400"}
        return Response(data, media_type="image/jpeg", headers=headers)

    async def _search(self, request: Request) -> Response:
        query = _text(request.query_params.get("q", ""), "the query")
        alphas = self._alphas(request.query_params.get("alpha", "").split(",") or [])
        return await self._computed(request, self._live.search, query, alphas, self._top)

    async def _captions(self, request: Request) -> Response:
        body = await _body(request, _FORM_BYTES, "the captions")
        form = strict_json.parse_json(body, "the request")
        if not isinstance(form, dict) or not isinstance(form.get("captions"), list):
            raise HTTPException(400, "the request has no list of captions")
        captions = [_text(caption, "a caption") for caption in form["captions"]]
        if not captions or len(set(captions)) < len(captions) or len(captions) > CAPTIONS:
            raise HTTPException(400, f"give 1 to {CAPTIONS} captions, no two of them the same")
        photo, alphas = form.get("photo"), form.get("alpha", [])
        if not (isinstance(photo, str) or (type(photo) is int and photo in self._kept)):
            raise HTTPException(404, "there is no such photo")
        alphas = self._alphas(alphas if isinstance(alphas, list) else [])
        return await self._computed(request, self._live.captions, photo, captions, alphas)

    async def _upload(self, request: Request) -> Response:
        data = await _body(request, UPLOAD_BYTES, "the photo")
        loop = asyncio.get_running_loop()
        name = await loop.run_in_executor(self._decoders, self._live.upload, data)
        side = _SIDES["small"]
        small = await loop.run_in_executor(self._decoders, file_jpeg, data, side)
        return JSONResponse({"photo": name, "url": jpeg_url(small)})

    async def _computed(self, request: Request, work: Callable, *args: Any) -> Response:
        """What the models answer, with `seconds`, in turn."""
        async with self._turn:
            if await request.is_disconnected():
                return Response(status_code=_GIVEN_UP)
            started = time.monotonic()
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._worker, _with_device_errors, work, *args)
        return JSONResponse(found | {"seconds": time.monotonic() - started})

    def _alphas(self, given: Sequence[Any]) -> list[int]:
        """Steps of alpha of each model but the first; without any, the models themselves."""
        count = len(self._live.models) - 1
        try:
            steps = [float(alpha) * STEPS for alpha in given if alpha != ""] or [STEPS] * count
            rounded = [round(step) for step in steps]
        except (TypeError, ValueError, OverflowError):
            raise HTTPException(400, "an alpha is no number") from None
        fits = all(
            abs(a - b) < 1e-6 and 0 <= b <= STEPS for a, b in zip(steps, rounded, strict=True)
        )
        if not fits or len(steps) != count:
            raise HTTPException(
                400, f"give {count} values of alpha, from 0 to 1 in steps of {1 / STEPS:g}"
            )
        return rounded

    def _fixed(self, model: models.Model) -> str:
        """Why a column has no slider; empty where it has one."""
        if model is self._live.models[0]:
            return "the first model"
        return one_line(self._live.unmixable.get(model.name, ""))

    def _copy(self, side: int, place: int) -> bytes:
        folder = self._live.folder
        try:
            return file_jpeg(folder.read(folder.refs[place].path), side)
        except InputError:  # it is a link that leads out of the folder by now
            return b""


class _Guard:
    """Refuses requests that the page did not send, and says in each answer what the page may do."""

    def __init__(self, app: ASGIApp, policy: str, *, is_loopback: bool):
        self._app, self._is_loopback = app, is_loopback
        self._headers = {
            "content-security-policy": policy,
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "same-origin",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(self._headers)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        app = self._app
        if reason := self._why_refused(Headers(scope=scope), scope["path"]):
            app = JSONResponse({"error": reason}, 403)
        await app(scope, receive, send_with_headers)

    def _why_refused(self, headers: Headers, path: str) -> str:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._is_loopback and not _is_loopback_name(host):
            return "this server answers to localhost alone: open the address that it printed"
        if origin is not None and origin.partition("://")[2] != host:
            return "this request comes from another site"
        if path != "/" and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return "this request comes from another site"
        return ""


def _is_loopback_name(host: str) -> bool:
    if (parts := _HOST.fullmatch(host)) is None:
        return False
    name = parts["six"] or parts["name"].lower()
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _with_device_errors(work: Callable, *args: Any) -> dict[str, Any]:
    with device_errors(command_line.LESS_MEMORY):
        return work(*args)


async def _body(request: Request, most: int, what: str) -> bytes:
    """The body. One that is a little too large is read to its end, as browsers want to be heard."""
    data, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= most:
            data += chunk
        else:
            data.clear()
        if size > 4 * most:
            break
    if size > most:
        raise HTTPException(413, f"{what} has more than {most // 2**10:,} KiB")
    return bytes(data)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise HTTPException(400, f"{what} is empty")
    if len(value) > CHARACTERS:
        raise HTTPException(400, f"{what} has more than {CHARACTERS:,} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise HTTPException(400, f"{what} is no Unicode text") from None
    return value


def _refused(request: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _failed(request: Request, error: InputError) -> Response:
    return JSONResponse({"error": str(error)}, 404 if isinstance(error, Gone) else 422)


def _crashed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the server failed; its terminal says where"}, 500)
