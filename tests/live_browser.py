"""A headless Chromium, driven through its DevTools protocol."""

import asyncio
import base64
import contextlib
import json
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
from browser import BROWSER

_SECONDS = 60.0
_CODES = {"Enter": 13, "Escape": 27, "Home": 36}
_CODES |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


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

    async def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        found = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))


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
