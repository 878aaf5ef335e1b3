"""Generation at size, at a small one."""

import json

import pytest

from bench import generation
from data_gen.annotations import InstanceVerifier
from data_gen.stages.ingest import read_captions


def test_the_made_up_files_are_of_coco(tmp_path):
    generation.write_coco(tmp_path, 1200)
    ingested = read_captions(str(tmp_path / "captions.json"))
    assert ingested.captions == 6000 and len(ingested.images) == 1200 and not ingested.rejects
    boxes = InstanceVerifier(
        tmp_path / "instances.json", ((i.image_id, i.file_name) for i in ingested.images)
    )
    assert len(boxes.present) == 1200 and len(boxes.names) == 80
    assert any(boxes.crowds.values()) and dict(boxes.visible) != dict(boxes.present)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["captions.json", "instances.json"]


@pytest.mark.slow
def test_commands_are_measured(tmp_path, monkeypatch, capsys):
    every = generation.commands

    def some(*args):
        return {name: every(*args)[name] for name in ("run", "export")}

    monkeypatch.setattr(generation, "commands", some)
    generation.main(["--captions=500", f"--json={tmp_path / 'a.json'}"])
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["many"]["captions"] == 500 and found["few"]["captions"] == 50
    assert found["many"]["run"]["peak_bytes"] > 2**25 and found["many"]["export"]["cpu_s"] > 0.1
    assert "pairs.parquet" in found["many"]["export_bytes"]
    assert "| run " in capsys.readouterr().out


def test_too_few_captions():
    with pytest.raises(SystemExit, match="at least 500"):
        generation.main(["--captions=10"])


def test_a_command_that_fails_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(generation, "commands", lambda *_: {"status": ["status", "--out=none"]})
    with pytest.raises(SystemExit, match=r"data_gen status failed: .*holds no run"):
        generation.main(["--captions=500"])
