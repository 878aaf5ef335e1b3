"""The measurement of the evaluation, on a tiny model and a slice of real files."""

import json

import pytest

from bench import evals


@pytest.mark.slow
def test_the_command_against_encoding_alone(shared_data, tmp_path, monkeypatch, capsys):
    from tiny_runs import use_one_device

    slices = shared_data / "benchmarks" / "slices"
    if not slices.is_dir():
        pytest.skip(f"{slices} is not there")
    data = tmp_path / "data"
    data.mkdir()
    for file in slices.glob("sugarcrepe_*.json"):
        (data / file.name).symlink_to(file)
    photos = shared_data / "coco" / "photos"
    use_one_device(monkeypatch)
    monkeypatch.setattr("negclip_jax.runtime.console.set_up_logging", lambda: None)
    path = tmp_path / "evals.json"
    flags = [f"--data={data}", f"--data={photos}", f"--json={path}", "--arch=tiny"]
    evals.main([*flags, f"--tokenizer={shared_data / 'clip_tokenizer'}"])
    result = json.loads(path.read_text())
    assert result["ratio"] == pytest.approx(
        result["command_seconds"] / result["encoding"]["seconds"]
    )
    assert result["encoding"]["images"] > 5 and result["encoding"]["texts"] > 10
    assert result["again_seconds"] < result["command_seconds"]
    assert f"{result['ratio']:.2f} x" in capsys.readouterr().out


def test_a_folder_without_files_is_a_user_error(tmp_path):
    with pytest.raises(SystemExit, match=r"bench\.evals: no benchmark has its files below"):
        evals.main([f"--data={tmp_path}", f"--tokenizer={tmp_path}", "--arch=tiny"])
