"""The page holds the photos, marks what moved and escapes whatever a file or query is called."""

import re
from pathlib import Path

import browser
import numpy as np
import pytest
from PIL import Image

from evals.search import ranking as page
from evals.search.ranking import PhotoFolder

MODELS = {name: {"facts": {"weights": name}} for name in ("base", "tuned")}


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "my photos"
    root.mkdir()
    for name in ("a.jpg", "b <i>.jpg", "c#1.jpg"):
        Image.new("RGB", (30, 20)).save(root / name)
    return PhotoFolder(root)


SCORES = {"base": np.float32([0.3, 0.2, 0.1]), "tuned": np.float32([0.1, 0.2, 0.3])}


def test_the_first_photos_of_each_model_with_their_former_rank(folder):
    base, tuned = page.shown(folder, [0, 1, 2], SCORES, 2).values()
    assert [row["name"] for row in base] == ["a.jpg", "b <i>.jpg"]
    assert [row["was"] for row in base] == [None, None]
    assert [(row["name"], row["rank"], row["was"]) for row in tuned] == [
        ("c#1.jpg", 1, 3),
        ("b <i>.jpg", 2, None),
    ]
    assert tuned[0]["score"] == pytest.approx(0.3)


def test_long_names_keep_both_ends_and_the_page_fits(folder, tmp_path):
    name = "IMG_20240102_" + "x" * 60 + "_final.jpg"
    Path(folder.root, "a.jpg").rename(Path(folder.root, name))
    found = PhotoFolder(Path(folder.root))
    (tmp_path / "out").mkdir()
    queries = {"a dog": page.shown(found, [0, 1, 2], SCORES, 3)}
    path = page.write(tmp_path / "out", found, MODELS, queries, photos=3)
    assert re.search(r'name">IMG_20240102_x+…x+_final.jpg<', path.read_text())
    assert f'title="{name}"' in path.read_text()
    browser.check_fit(path)


def test_the_page_is_whole_and_escaped(folder, tmp_path):
    folder.skipped["evil<script>.jpg"] = "it is no file"
    out = tmp_path / "out"
    out.mkdir()
    query = "<b>no</b> dog & co"
    queries = {query: page.shown(folder, [0, 1, 2], SCORES, 3)}
    path = page.write(out, folder, MODELS, queries, photos=3)
    text = path.read_text()
    assert text.count("data:image/jpeg;base64") == 6
    assert "&lt;b&gt;no&lt;/b&gt; dog &amp; co" in text and "<b>no</b>" not in text
    assert "b &lt;i&gt;.jpg" in text and "<script>" not in text
    assert 'href="../my%20photos/c%231.jpg"' in text
    assert "was 3" in text and "1 left out" in text
    assert "http" not in text
