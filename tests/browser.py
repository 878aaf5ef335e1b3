"""What headless Chromium makes of a page of the project, on a phone and on a desk."""

import html
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
WIDTHS = (390, 1100)


def measure(
    path: Path, script: str, *, dark: bool = False, widths: Sequence[int] = WIDTHS, height=900
) -> tuple[list[Any], np.ndarray]:
    """Opens a page in frames of these widths.

    Args:
      path: of the page; its photos are loaded at once, not as they come into sight.
      script: JavaScript expression of `page`, the frame's document, and `view`, its window.

    Returns:
      The expression's value for each width, and a picture of all frames, `[height, width, 3]`.
    """
    if BROWSER is None:
        pytest.skip("no Chromium here")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "page.html").write_text(path.read_text().replace(' loading="lazy"', ""))
        frame = (
            f'<iframe src="page.html" style="border:0; height:{height}px; width:{{}}px"></iframe>'
        )
        (folder / "frames.html").write_text(
            f'<body style="margin:0; display:flex">{"".join(map(frame.format, widths))}'
            "<script>addEventListener('load', () => { document.title = JSON.stringify("
            "[...document.querySelectorAll('iframe')].map(frame => { const page = "
            f"frame.contentDocument, view = frame.contentWindow; return {script} }})) }})</script>"
        )
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += ["--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}"]
        command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
        command += [f"--window-size={sum(widths)},{height}", f"--screenshot={folder / 'shot.png'}"]
        command += ["--dump-dom", (folder / "frames.html").as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        title = html.unescape(re.search(r"<title>(.*?)</title>", done.stdout)[1])
        return json.loads(title), np.asarray(Image.open(folder / "shot.png").convert("RGB"))


def check_fit(path: Path) -> None:
    """Fails where a page must be scrolled sideways, or a dark one is bright."""
    script = "[page.documentElement.scrollWidth, page.querySelectorAll('h1').length]"
    for dark in (False, True):
        found, pixels = measure(path, script, dark=dark)
        assert found == [[width, 1] for width in WIDTHS], "wider than the screen"
        assert (np.median(pixels) < 64) == dark and np.median(pixels) != 128
