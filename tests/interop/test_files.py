"""Where checkpoints are found, and how their problems are reported."""

import huggingface_hub
import pytest

from negclip_jax.interop import files
from negclip_jax.interop.files import CheckpointError, resolve


def test_report_lists_ten_of_each_kind_with_totals():
    problems = {"missing": [f"m{i}" for i in range(13)], "unknown": ["u"], "wrong shape": []}
    report = files.problem_report("DIR", problems, "Do this.")
    assert report.splitlines() == [
        "DIR cannot be used:",
        "  missing (13): m0, m1, m2, m3, m4, m5, m6, m7, m8, m9 and 3 more",
        "  unknown (1): u",
        "  Do this.",
    ]


def test_resolve_local_directory(tmp_path, monkeypatch):
    assert resolve(tmp_path) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    assert resolve("~/mine") == tmp_path / "mine"


@pytest.mark.parametrize("name", ["./gone", "/gone/model", "~/gone", "a/b/c", ""])
def test_resolve_never_asks_the_hub_for_a_path(name, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="there is no checkpoint directory"):
        resolve(name)


def test_resolve_file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(CheckpointError, match=r"is a file; give the directory"):
        resolve(path)


@pytest.mark.parametrize("has_safetensors", [True, False])
def test_resolve_hub_id_asks_for_pickles_only_without_safetensors(
    has_safetensors, tmp_path, monkeypatch
):
    asked = []

    def snapshot_download(repo_id, allow_patterns):
        asked.append(allow_patterns)
        if has_safetensors:
            (tmp_path / "model.safetensors").touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve("someone/clip") == tmp_path
    assert not any("bin" in pattern for pattern in asked[0])
    assert len(asked) == (1 if has_safetensors else 2)


def test_resolve_hub_id_offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"'no-one/none' is not a local.*check the name"):
        resolve("no-one/none")
