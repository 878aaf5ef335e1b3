"""Uploading an export, against a loopback server that takes what `huggingface_hub` sends."""

import base64
import http.server
import json
import threading

import huggingface_hub
import pytest
from interop import tiny

from negclip_jax.interop import export


class Hub(http.server.BaseHTTPRequestHandler):
    """Repositories' creation, their visibility, and commits whose files stand in the request."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server = self.server
        server.asked.append(self.path)
        if self.path in server.refused:
            return self._answer({"error": server.refused[self.path]}, 403)
        if self.headers["Authorization"] != "Bearer hf_secret":
            return self._answer({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            server.created.append(json.loads(body))
            return self._answer({"url": f"{server.address}/me/clip"})
        if self.path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if self.path.startswith("/api/models/me/clip/preupload/"):
            files = json.loads(body)["files"]
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            told = [{"path": file["path"]} | mode for file in files]
            return self._answer({"files": told})
        assert self.path == "/api/models/me/clip/commit/main"
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self._answer({"commitUrl": f"{server.address}/me/clip/commit/1", "commitOid": "1"})

    def do_GET(self):
        assert self.path.startswith("/api/models/me/clip")
        self._answer({"id": "me/clip", "private": self.server.private, "siblings": []})

    def _answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    found.address = f"http://127.0.0.1:{found.server_port}"
    found.asked, found.created, found.files = [], [], {}
    found.private, found.refused = True, {}
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", found.address)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.saved(tmp_path_factory.mktemp("hub") / "tiny clip")


def run(checkpoint, out, *flags, layout="huggingface"):
    return export.main([f"--model={checkpoint}", f"--out={out}", f"--layout={layout}", *flags])


def test_the_export_is_there_byte_by_byte_with_a_card_that_loads_it(
    server, checkpoint, tmp_path, capsys
):
    assert run(checkpoint, tmp_path / "out", "--push-to-hub=me/clip", "--private") == 0
    local = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert "model.safetensors" in local and server.files == local
    assert server.created[0]["name"] == "clip" and server.created[0]["organization"] == "me"
    assert server.created[0].get("private") or server.created[0].get("visibility") == "private"
    card = huggingface_hub.ModelCard(server.files["README.md"].decode())
    assert card.data.library_name == "transformers" and card.data.license == "unknown"
    assert 'CLIPModel.from_pretrained("me/clip")' in card.content
    assert str(tmp_path) not in card.content
    assert f"uploaded to {server.address}/me/clip" in capsys.readouterr().out


def test_nothing_is_uploaded_of_an_export_that_failed(server, checkpoint, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise export.InputError("what was written does not read back as it was")

    monkeypatch.setattr(export, "_check", fails)
    assert run(checkpoint, tmp_path / "out", "--push-to-hub=me/clip") == 1
    assert not server.asked and not (tmp_path / "out").exists()


def test_a_public_repository_is_not_taken_for_a_private_one(server, checkpoint, tmp_path, capsys):
    server.private = False
    assert run(checkpoint, tmp_path / "out", "--push-to-hub=me/clip", "--private") == 1
    assert "me/clip is public already" in capsys.readouterr().err and not server.files
    assert run(checkpoint, tmp_path / "again", "--push-to-hub=me/clip") == 0 and server.files


def test_what_the_hub_refuses_is_one_line_and_the_export_stays(
    server, checkpoint, tmp_path, capsys
):
    server.refused = {"/api/models/me/clip/commit/main": "You have no right to write here."}
    assert run(checkpoint, tmp_path / "out", "--push-to-hub=me/clip") == 1
    told = capsys.readouterr().err.strip()
    assert f"the export is in {tmp_path / 'out'}, and was not uploaded to me/clip" in told
    assert "You have no right to write here." in told and "\n" not in told
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_no_network(server, checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert run(checkpoint, tmp_path / "out", "--push-to-hub=me/clip") == 1
    told = capsys.readouterr().err.strip()
    assert "was not uploaded to me/clip" in told and "refused" in told and "\n" not in told


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--push-to-hub=a/b/c"], "--push-to-hub=a/b/c: Repo id must be"),
        (["--private"], "--private goes with --push-to-hub=NAME"),
        (["--push-to-hub=me/clip", "--out=gs://b/c"], "uploads a folder of this machine, not gs:"),
    ],
)
def test_wrong_flags_are_told_before_the_weights_are_read(tmp_path, capsys, flags, message):
    assert run("absent", tmp_path / "out", *flags) == 1
    assert message in capsys.readouterr().err


def test_no_token(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert run("absent", tmp_path / "out", "--push-to-hub=me/clip") == 1
    assert "needs a token that may write: set HF_TOKEN" in capsys.readouterr().err


def test_every_layout_is_loaded_from_the_hub():
    assert export.usage_from_hub('x("local-dir:{out}")', "me/clip") == 'x("hf-hub:me/clip")'
    assert export.usage_from_hub('x("{out}")', "me/clip") == 'x("me/clip")'
    code = export.usage_from_hub('f("{out}/model.pt")', "me/clip")
    assert code.endswith('snapshot_download("me/clip")\nf(out + "/model.pt")')
