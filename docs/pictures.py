"""Pictures of the report pages for this documentation, of what `make docs` left in runs/docs.

    python docs/pictures.py

Needs Chromium. The photos are scenes that the quickstart draws.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).resolve().parent
RUNS = Path("runs/docs")  # below the root of the clone; pages show such paths
WIDTH, MOST_BYTES = 1100, 120_000
# The page, and how many pixels of its height are shown.
PAGES = {
    "evaluation": (RUNS / "eval" / "report.html", 1000),
    "generation": (RUNS / "small_generation" / "report.html", 820),
    "search": (RUNS / "search" / "report.html", 900),
}
SEARCH = [f"--model={name}={RUNS / name}" for name in ("base", "tuned")]
SEARCH += [f"--images={RUNS / 'world' / 'heldout' / 'images'}", f"--out={RUNS / 'search'}"]


def main() -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("docs/pictures.py: there is no Chromium here")
    os.chdir(DOCS.parent)
    texts = ("no star", "a circle but no square")
    subprocess.run([sys.executable, "-m", "evals.search", *SEARCH, *texts], check=True)
    for name, (page, height) in PAGES.items():
        with tempfile.TemporaryDirectory() as folder:
            shot = Path(folder) / "shot.png"
            # Light, and each photo at once, not as it comes into sight.
            (Path(folder) / "page.html").write_text(page.read_text().replace(' loading="lazy"', ""))
            options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
            options += ["--blink-settings=preferredColorScheme=1", f"--user-data-dir={folder}/own"]
            options += [f"--window-size={WIDTH},{height}", f"--screenshot={shot}"]
            address = (Path(folder) / "page.html").as_uri()
            subprocess.run([browser, *options, address], check=True, capture_output=True)
            picture = DOCS / f"{name}.webp"  # of 64 colours a palette would lose the models'
            Image.open(shot).convert("RGB").save(picture, quality=80, method=6)
        size = picture.stat().st_size
        print(f"{picture}: {size:,} bytes")
        if size > MOST_BYTES:
            sys.exit(f"docs/pictures.py: {picture.name} is too large for a repository")


if __name__ == "__main__":
    main()
