"""A real server: `transformers serve` with a random Llama and a random LLaVA, text and photos.

Random weights say nothing sensible: these tests are about the wire, not about wit.
"""

import importlib.util
import json
import time
import urllib.error
import urllib.request

import pytest
from fault_server import table, world
from processes import free_port

from data_gen.cli import main

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("fastapi") is None or importlib.util.find_spec("uvicorn") is None,
    reason="needs `transformers serve`: pip install -e '.[serving]'",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(base URL, name of the text model, name of the multimodal model)."""
    import tiny_chat_models
    from transformers.cli.serve import Serve

    folder = tmp_path_factory.mktemp("models")
    text, multimodal = tiny_chat_models.write(folder)
    url = f"http://127.0.0.1:{(port := free_port())}"
    # In a thread: a process would import PyTorch and Transformers once more.
    serving = Serve(host="127.0.0.1", port=port, device="cpu", non_blocking=True)
    try:
        _wait(f"{url}/health")
        yield f"{url}/v1", text, multimodal
    finally:
        serving.kill_server()


def _wait(url: str, seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise AssertionError("the server does not answer")


def flags(server) -> list[str]:
    url, text, multimodal = server
    return [
        f"--llm-url={url}",
        f"--llm-model={text}",
        f"--mllm-url={url}",
        f"--mllm-model={multimodal}",
        "--config.engine.concurrency=4",
    ]


@pytest.mark.slow
def test_probe_sees_what_it_ignores_in_silence(server, capsys):
    assert main(["probe", *flags(server)]) == 3  # what random weights say cannot be used
    found = capsys.readouterr().out.splitlines()
    text, images = (line for line in found if not line.startswith(" "))
    assert any("cannot be used: its rewrite is no caption" in line for line in found)
    assert "logprobs no, choice no, JSON schema no" in text
    assert "tokens a photo" in images and " 0 tokens a photo" not in images


def test_a_run_and_its_repetition(server, tmp_path, capsys):
    world(tmp_path / "w", 2, captions=2)
    command = [
        "run",
        f"--captions={tmp_path}/w/captions.json",
        f"--images={tmp_path}/w/photos",
        f"--out={tmp_path}/run",
        *flags(server),
        "--config.propose.by=file",
        f"--objects={tmp_path}/objects.json",
        "--config.rewrite.max_tokens=12",
        "--config.verify.max_tokens=3",
    ]
    names = {"1": ["umbrella", "clock"], "2": ["horse", "bottle"]}
    (tmp_path / "objects.json").write_text(json.dumps(names))
    assert main(command) == 3
    verdicts = table(tmp_path / "run", "verdicts")
    asked = {row["object"] for row in verdicts}
    assert asked > {"umbrella", "clock", "horse", "bottle"}  # and what the captions name
    assert all(row["prompt_tokens"] > 0 for row in verdicts)
    # Nonsense is never an absence.
    assert all(row["verdict"] in ("unsure", "present") for row in verdicts if row["p_no"] == 0)
    assert not any(row["error_code"] for row in verdicts)
    accepted = [row for row in table(tmp_path / "run", "pairs") if row["accepted"]]
    assert not accepted
    calls = json.loads((tmp_path / "run" / "manifest.json").read_text())["calls"]
    assert main(command) == 3
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["calls"] == calls


@pytest.mark.slow
def test_templates_need_no_llm(server, tmp_path):
    """Only the multimodal model is asked; the grammar writes."""
    world(tmp_path / "w", 1, captions=1)
    (tmp_path / "objects.json").write_text(json.dumps({"1": ["clock"]}))
    command = [
        "run",
        f"--captions={tmp_path}/w/captions.json",
        f"--images={tmp_path}/w/photos",
        f"--objects={tmp_path}/objects.json",
        f"--out={tmp_path}/run",
        *flags(server)[2:],
        "--config.verify.method=substring",  # whatever the random model says is an absence
    ]
    assert main(command) == 0
    (row,) = table(tmp_path / "run", "pairs")
    assert row["accepted"] and row["rewriter"].startswith("template:")
    assert row["models"]["verify"] == server[2]
