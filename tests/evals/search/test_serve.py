"""What the live page's server answers, and what it refuses."""

import concurrent.futures
import io
import json
import os
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from evals.search import __main__ as search
from evals.search import ranking, serve
from evals.search.live import Live
from evals.search.ranking import PhotoFolder
from quickstart import __main__ as quickstart
from quickstart import world

ROOT = Path(__file__).resolve().parents[3]
OF_QUERIES = {"a", "no", "but", "without"}  # words that are no kind and no colour
pytestmark = pytest.mark.usefixtures("one_device_mesh")


@pytest.fixture(scope="module")
def client(live):
    server = serve.Server(live, 5, ["a cat", "<script>alert(1)</script>"], is_loopback=True)
    return TestClient(server.app, "http://localhost:8765", raise_server_exceptions=False)


def png(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def ask(client, **form):
    return client.post("/api/captions", content=json.dumps(form))


def test_the_page_holds_no_markup_from_outside_and_says_what_it_may_load(client):
    page = client.get("/")
    assert page.status_code == 200 and page.headers["cache-control"] == "no-store"
    assert "<script>alert" not in page.text and "text <b>tuned" not in page.text
    assert "text &lt;b&gt;tuned&lt;/b&gt;" in page.text and "12 photos, 3 models" in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "sha256-" in policy
    assert not re.search(r"https?://|style=|\son\w+=", page.text)  # nothing that it forbids
    script = client.get("/serve.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert "innerHTML" not in script.text and script.headers["x-content-type-options"] == "nosniff"


def test_a_query_is_answered_as_the_command_ranks(client, live, three_models, tmp_path):
    answer = client.get("/api/search", params={"q": "no dog & co"}).json()
    kept, scores = ranking.rank(three_models, live.folder, ["no dog & co"], cache=tmp_path)
    wanted = ranking.shown(live.folder, kept, {n: s[0] for n, s in scores.items()}, 5)
    assert [column["name"] for column in answer["columns"]] == [m.name for m in three_models]
    for column, rows in zip(answer["columns"], wanted.values(), strict=True):
        assert [r["name"] for r in column["rows"]] == [r["name"] for r in rows]
        wanted_scores = pytest.approx([r["score"] for r in rows], abs=1e-6)
        assert [r["score"] for r in column["rows"]] == wanted_scores
    assert answer["seconds"] > 0 and answer["cut"] is False
    mixed = client.get("/api/search", params={"q": "no dog & co", "alpha": "0,1"}).json()
    assert mixed["columns"][1]["rows"] == answer["columns"][0]["rows"]
    assert mixed["columns"][2] == answer["columns"][2]


def test_a_photo_of_the_folder_is_a_small_copy_by_its_number(client, live):
    answer = client.get("/photos/3?size=large&v=x")
    assert (
        answer.headers["content-type"] == "image/jpeg"
        and "max-age" in answer.headers["cache-control"]
    )
    original = live.folder.open(live.folder.refs[3].path)
    assert Image.open(io.BytesIO(answer.content)).size == original.size


@pytest.mark.parametrize(
    "path",
    [
        *("/photos/12", "/photos/-1", "/photos/x", "/photos/", "/photos/1/2", "/photos/1e0"),
        *("/photos/99999999999999999999999", "/photos/3?size=huge", "/photos/3?size=../small"),
        *("/photos/../serve.py", "/photos/%2e%2e/serve.py", "/photos/..%2f..%2fetc%2fpasswd"),
        *("/serve.py", "/serve.html", "/../serve.py", "//etc/passwd", "/photos/3%00", "/docs"),
    ],
)
def test_nothing_else_is_there(client, path):
    answer = client.get(path)
    assert answer.status_code == 404 and set(answer.json()) == {"error"}


def test_a_photo_that_became_a_link_out_of_the_folder_is_not_sent(
    three_models, photos, tmp_path, monkeypatch
):
    root = tmp_path / "root"
    root.mkdir()
    for name in ("1.png", "2.png"):
        (root / name).write_bytes((photos.data / "photos" / name).read_bytes())
    monkeypatch.setattr(Live, "_compile", lambda self: None)
    live = Live(three_models[:1], PhotoFolder(root), cache=tmp_path / "cache")
    client = TestClient(serve.Server(live, 5, [], is_loopback=False).app)
    (root / "1.png").unlink()
    (root / "1.png").symlink_to(photos.data / "photos" / "1.png")
    (root / "2.png").write_bytes(b"no photo")
    for place in (0, 1):
        answer = client.get(f"/photos/{place}")
        assert answer.status_code == 404 and "cannot be read any more" in answer.json()["error"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({}, "the query is empty"),
        ({"q": "  \n"}, "the query is empty"),
        ({"q": "a" * 10_000}, "the query has more than 1,000 characters"),
        ({"q": "a", "alpha": "1"}, "give 2 values of alpha"),
        ({"q": "a", "alpha": "1,2"}, "from 0 to 1 in steps of 0.05"),
        ({"q": "a", "alpha": "1,-0.05"}, "from 0 to 1 in steps of 0.05"),
        ({"q": "a", "alpha": "1,0.501"}, "from 0 to 1 in steps of 0.05"),
        ({"q": "a", "alpha": "1,nan"}, "an alpha is no number"),
        ({"q": "a", "alpha": "1,inf"}, "an alpha is no number"),
        ({"q": "a", "alpha": "1,x"}, "an alpha is no number"),
    ],
)
def test_queries_that_cannot_be_answered(client, query, message):
    answer = client.get("/api/search", params=query)
    assert answer.status_code == 400 and message in answer.json()["error"]


def test_captions_of_an_upload_and_of_a_photo_of_the_folder(client, live):
    data = live.folder.read(live.folder.refs[4].path)
    sent = client.post("/api/photos", content=data).json()
    assert sent["url"].startswith("data:image/jpeg;base64,")
    captions = ["a cat", "no cat", "a dog"]
    uploaded = ask(client, photo=sent["photo"], captions=captions, alpha=[0.5, 1]).json()
    own = ask(client, photo=4, captions=captions, alpha=[0.5, 1]).json()
    for ours, theirs in zip(uploaded["columns"], own["columns"], strict=True):
        assert [r["caption"] for r in ours["rows"]] == [r["caption"] for r in theirs["rows"]]
        assert [r["score"] for r in ours["rows"]] == pytest.approx(
            [r["score"] for r in theirs["rows"]], abs=1e-6
        )
        assert sum(r["share"] for r in ours["rows"]) == pytest.approx(1)
    assert [row["was"] for row in own["columns"][0]["rows"]] == [None] * 3
    assert ask(client, photo=4, captions=captions).json()["columns"][1]["alpha"] == 1


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        (b"", 422, "the image file is empty"),
        (b"no image" * 100, 422, "this is not an image that Pillow can read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, "this is not an image"),
        (png(8, 8, b"\0" * 10), 422, "damaged or cut short"),
        (png(60_000, 60_000), 422, "too large to decode safely"),
        (bytes(50 * 2**20), 413, "the photo has more than 32,768 KiB"),
    ],
    ids=["empty", "text", "svg", "cut", "bomb", "50 MB"],
)
def test_uploads_that_are_no_photo_or_too_large(client, live, data, status, message):
    before = len(live._uploads)
    answer = client.post("/api/photos", content=data)
    assert answer.status_code == status and message in answer.json()["error"]
    assert len(live._uploads) == before


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        ("{", 422, "JSON"),
        ("[1]", 400, "no list of captions"),
        ("[" * 100_000, 422, "the request"),
        ('{"photo": 1, "captions": []}', 400, "give 1 to 32 captions"),
        ('{"photo": 1, "captions": ["a", "a"]}', 400, "no two of them the same"),
        (json.dumps({"photo": 1, "captions": [str(i) for i in range(33)]}), 400, "give 1 to 32"),
        ('{"photo": 1, "captions": [1]}', 400, "a caption is empty"),
        ('{"photo": 1, "captions": [" "]}', 400, "a caption is empty"),
        ('{"photo": 1, "captions": ["\\ud800"]}', 400, "no Unicode text"),
        (json.dumps({"photo": 1, "captions": ["a" * 1001]}), 400, "more than 1,000 characters"),
        (json.dumps({"photo": 1, "captions": ["a" * 2**19]}), 413, "more than 256 KiB"),
        ('{"photo": "../../etc/passwd", "captions": ["a"]}', 404, "not kept any more"),
        ('{"photo": 99, "captions": ["a"]}', 404, "there is no such photo"),
        ('{"photo": true, "captions": ["a"]}', 404, "there is no such photo"),
        ('{"photo": 1, "captions": ["a"], "alpha": [[1], 2]}', 400, "an alpha is no number"),
    ],
)
def test_captions_that_cannot_be_ranked(client, content, status, message):
    answer = client.post("/api/captions", content=content)
    assert answer.status_code == status and message in answer.json()["error"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "127.0.0.1:9000", "origin": "http://127.0.0.1:9000"}, 200),  # through a tunnel
        ({"host": "[::1]:8765"}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"host": "evil.example"}, 403),  # its name leads to 127.0.0.1 by now
        ({"host": "localhost.evil.example:8765"}, 403),
        ({"host": "evil.example@localhost:8765x"}, 403),
        ({"host": "192.168.1.5:8765"}, 403),
        ({"host": ""}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:3000"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
    ],
)
def test_other_sites_are_refused(client, headers, status):
    answer = client.get("/api/search?q=a", headers=headers)
    assert answer.status_code == status
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["content-security-policy"]


def test_an_address_that_others_reach_has_any_name_and_refuses_other_sites(live):
    client = TestClient(serve.Server(live, 5, [], is_loopback=False).app, "http://box.local:80")
    assert client.get("/").status_code == 200
    assert client.get("/", headers={"origin": "http://box.local"}).status_code == 200
    assert client.get("/", headers={"origin": "http://evil.example"}).status_code == 403


def test_the_other_methods_are_refused(client):
    assert client.get("/api/photos").status_code == 405
    assert client.delete("/photos/1").status_code == 405
    assert client.post("/api/search?q=a").status_code == 405


def test_an_error_of_ours_is_one_line_for_the_page(client, monkeypatch):
    def fails(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(Live, "_texts", fails)
    answer = client.get("/api/search?q=another")
    assert answer.status_code == 422 and "too little memory" in answer.json()["error"]
    monkeypatch.setattr(Live, "_texts", lambda *_: 1 / 0)
    answer = client.get("/api/search?q=another")
    assert answer.status_code == 500 and "its terminal says where" in answer.json()["error"]


def test_requests_wait_in_turn_and_one_that_was_given_up_is_not_computed(live, served, monkeypatch):
    begun, asked, inside = threading.Event(), [], []
    answered, released = live.search, threading.Event()

    def search_slowly(query, *arguments):
        inside.append(query)
        assert len(inside) == 1, "two requests at a time in one model"
        asked.append(query)
        begun.set()
        assert query != "first" or released.wait(60)
        inside.clear()
        return answered(query, *arguments)

    monkeypatch.setattr(live, "search", search_slowly)
    with served(live) as url, concurrent.futures.ThreadPoolExecutor() as pool:

        def get(query: str) -> int:
            with urllib.request.urlopen(f"{url}api/search?q={query}", timeout=60) as answer:
                return answer.status

        first = pool.submit(get, "first")
        assert begun.wait(60)
        address = ("127.0.0.1", int(url.rstrip("/").rpartition(":")[2]))
        with socket.create_connection(address) as given_up:
            given_up.sendall(b"GET /api/search?q=given-up HTTP/1.1\r\nHost: localhost\r\n\r\n")
            time.sleep(0.3)  # until the server waits for its turn
        last = pool.submit(get, "last")
        time.sleep(0.3)
        released.set()
        assert first.result(60) == last.result(60) == 200
    assert asked == ["first", "last"]


def test_make_demo_shows_what_the_quickstart_writes():
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    command = re.search(r"python -m (evals\.search .*)", makefile)[1].replace("$(PORT)", "8765")
    args = search._parser().parse_args(shlex.split(command)[1:])
    assert args.serve and len(args.queries) > 2
    written = [word for _, words in quickstart.commands("runs/quickstart") for word in words]
    for model in args.model:
        assert f"--out={model.partition('=')[2]}" in written
    assert args.images == "runs/quickstart/world/heldout/images"
    assert "--world=runs/quickstart/world/heldout" in written
    words = " ".join(args.queries).split()
    assert {word for word in words if word not in OF_QUERIES} <= {*world.KINDS, *world.COLOURS}


@pytest.mark.slow
def test_the_command_prints_its_address_answers_and_stops_on_ctrl_c(
    tiny_checkpoint, photos, tmp_path
):
    command = [sys.executable, "-m", "evals.search", "--serve", f"--model=tuned={tiny_checkpoint}"]
    command += [f"--images={photos.data}", f"--out={tmp_path}/out", "--port=0"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipe) as process:
        try:
            line = process.stdout.readline()
            url = re.match(r"(http://127\.0\.0\.1:\d+/) is open; Ctrl-C stops", line)[1]
            with urllib.request.urlopen(f"{url}api/search?q=a", timeout=60) as answer:
                assert len(json.load(answer)["columns"][0]["rows"]) == 12
            process.send_signal(signal.SIGINT)
            out, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130 and not out
    assert "compiling" in error and error.splitlines()[-1].startswith("stopped; ")
    assert "Traceback" not in error and not (tmp_path / "out" / "results.json").exists()


def test_what_cannot_be_served_is_one_line_before_any_model_is_read(
    photos, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("negclip_jax.runtime.console.set_up_logging", lambda: None)
    shared = ["--model=none/at/all", f"--images={photos.data}", f"--out={tmp_path}"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert search.main([*shared, "--serve", f"--port={port}"]) == 1
        assert f"--port={port} cannot be served (" in capsys.readouterr().err
    assert search.main([*shared, "--serve", "--port=70000"]) == 1
    assert "cannot be served" in capsys.readouterr().err
    assert search.main([*shared, "--serve", "--host=no.such.host.invalid"]) == 1
    assert "--host=no.such.host.invalid" in capsys.readouterr().err
    assert search.main(shared) == 1
    assert "there is no query" in capsys.readouterr().err


def test_without_its_packages_the_install_command_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("negclip_jax.runtime.console.set_up_logging", lambda: None)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert search.main(["--serve", "--model=x", f"--images={tmp_path}"]) == 1
    assert "pip install -e '.[serve]'" in capsys.readouterr().err
