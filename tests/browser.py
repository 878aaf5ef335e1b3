"""A headless Chromium, driven through its DevTools protocol, and what it makes of a page."""

import asyncio
import base64
import contextlib
import io
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from PIL import Image

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
WIDTHS = (390, 1100)  # a phone and a desk
_SECONDS = 60.0
_CODES = {"Enter": 13, "Escape": 27, "Home": 36}
_CODES |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


def measure(
    path: Path, script: str, *, dark: bool = False, widths: Sequence[int] = WIDTHS, height=900
) -> tuple[list[Any], np.ndarray]:
    """Opens a page in windows of these widths.

    Args:
      path: of the page; its photos are loaded at once, not as they come into sight.
      script: JavaScript expression of `page`, the document, and `view`, its window.

    Returns:
      The expression's value for each width, and a picture of all windows, `[height, width, 3]`.
    """
    return asyncio.run(_measure(path, script, (dark,), widths, height))[0]


def check_fit(path: Path) -> None:
    """Fails where a page must be scrolled sideways, or a dark one is bright."""
    script = "[page.documentElement.scrollWidth, page.querySelectorAll('h1').length]"
    each = asyncio.run(_measure(path, script, (False, True), WIDTHS, 900))
    for dark, (found, pixels) in zip((False, True), each, strict=True):
        assert found == [[width, 1] for width in WIDTHS], "wider than the screen"
        assert (np.median(pixels) < 64) == dark and np.median(pixels) != 128


async def _measure(
    path: Path, script: str, schemes: Sequence[bool], widths: Sequence[int], height: int
) -> list[tuple[list[Any], np.ndarray]]:
    if BROWSER is None:
        pytest.skip("no Chromium here")
    made = f"JSON.stringify((({{page, view}}) => ({script}))({{page: document, view: window}}))"
    each = []
    # Processes of the browser may still write their last files when it has ended.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        page = Path(name) / "page.html"
        page.write_text(path.read_text().replace(' loading="lazy"', ""))
        async with opened(Path(name) / "profile") as browser:
            for dark in schemes:
                values, pictures = [], []
                for width in widths:
                    url = f"{page.as_uri()}?{width}{dark}"
                    await browser.goto(url, width=width, height=height, dark=dark)
                    values.append(json.loads(await browser.value(made)))
                    picture = Image.open(io.BytesIO(await browser.picture()))
                    pictures.append(np.asarray(picture.convert("RGB")))
                each.append((values, np.concatenate(pictures, axis=1)))
    return each


class Browser:
    """One page. Made by `opened`."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self._socket, self._sent = socket, 0
        self.problems: list[str] = []  # what the console says

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command of the protocol."""
        self._sent += 1
        await self._socket.send_json({"id": self._sent, "method": method, "params": params})
        while True:
            message = await self._socket.receive_json(timeout=_SECONDS)
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.problems.append(json.dumps(message["params"]))
            if message.get("id") == self._sent:
                assert "error" not in message, message
                return message["result"]

    async def value(self, expression: str) -> Any:
        """What an expression gives, a promise's value included."""
        found = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Waits for an expression to be true; returns its value."""
        started = time.monotonic()
        while not (value := await self.value(expression)):
            if time.monotonic() - started > _SECONDS:
                shown = await self.value("document.body.innerText")
                raise AssertionError(f"never true: {expression}; the page says: {shown}")
            await asyncio.sleep(0.02)
        return value

    async def type(self, text: str) -> None:
        """Types into what has the focus, character by character."""
        for character in text:
            await self.call(
                "Input.dispatchKeyEvent", type="char", text=character.replace("\n", "\r")
            )

    async def press(self, key: str) -> None:
        """A key by its name, such as "Enter"."""
        about = {"key": key, "code": key, "windowsVirtualKeyCode": _CODES.get(key, 0)}
        text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
        await self.call("Input.dispatchKeyEvent", type="keyDown", **about, **text)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    async def goto(self, url: str, *, width: int = 1100, height: int = 900, dark: bool = False):
        """Opens a page in a window of this size."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await self.call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])
        await self.call("Page.navigate", url=url)
        await self.until(
            f"location.href === {json.dumps(url)} && document.readyState === 'complete'"
        )

    async def picture(self) -> bytes:
        """What of the page is in the window, as a PNG."""
        found = await self.call("Page.captureScreenshot")
        return base64.b64decode(found["data"])


@contextlib.asynccontextmanager
async def opened(profile: Path) -> AsyncIterator[Browser]:
    """Starts Chromium with an empty profile, and ends it."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--no-first-run", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    process = subprocess.Popen([*command, "about:blank"], stderr=subprocess.DEVNULL)
    try:
        port, started = profile / "DevToolsActivePort", time.monotonic()
        while not (port.exists() and len(port.read_text().split()) == 2):
            assert process.poll() is None and time.monotonic() - started < _SECONDS
            await asyncio.sleep(0.05)
        address = f"http://127.0.0.1:{port.read_text().split()[0]}/json"
        async with aiohttp.ClientSession() as session:
            while True:
                async with session.get(address) as answer:
                    pages = [t for t in await answer.json() if t["type"] == "page"]
                if pages:
                    break
                await asyncio.sleep(0.05)
            url = pages[0]["webSocketDebuggerUrl"]
            async with session.ws_connect(url, max_msg_size=2**28) as socket:
                browser = Browser(socket)
                for domain in ("Page", "Runtime", "Log"):
                    await browser.call(f"{domain}.enable")
                yield browser
    finally:
        process.kill()
        process.wait()
