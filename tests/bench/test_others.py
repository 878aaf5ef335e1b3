"""The smaller benchmarks end to end, on little."""

import contextlib
import io
import json

import numpy as np
import pytest
from bench_in_process import InProcess

from bench import harness, images, loader, material, prepared, startup
from bench.harness import Side
from negclip_jax.data.tokenizer import load_tokenizer
from negclip_jax.training import inputs


@pytest.fixture(scope="module")
def of_images(tmp_path_factory) -> dict:
    """In this process: what a side in another one is has tests of its own."""
    path = tmp_path_factory.mktemp("images") / "images.json"
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(images, "Side", InProcess)
        images.main(["--limit=6", "--repetitions=1", f"--json={path}"])
    return json.loads(path.read_text()) | {"said": said.getvalue()}


def test_images_compare_speed_and_pixels(of_images):
    assert of_images["images"] == 6
    ratio = of_images["images_per_second_and_core"]
    ratio /= of_images["reference_images_per_second_and_core"]
    assert of_images["ratio"] == pytest.approx(ratio)
    assert 0 < of_images["mean_difference_levels"] < 0.01
    assert of_images["max_difference_levels"] <= 2
    assert f"{of_images['ratio']:.2f} x" in of_images["said"]


def test_images_without_photos(tmp_path):
    with pytest.raises(SystemExit, match=r"holds no \*\.jpg"):
        images.main([f"--images={tmp_path}"])


def test_loader_counts_tokens_and_captions(tmp_path, capsys):
    captions = tmp_path / "captions.txt"
    rng = np.random.default_rng(1)
    captions.write_text("\n".join(material.negated_caption(rng) for _ in range(300)))
    path = tmp_path / "loader.json"
    sizes = ["--batch-size=64", "--repetitions=1", "--photos=48"]
    loader.main([f"--captions={captions}", *sizes, f"--json={path}"])
    result = json.loads(path.read_text())
    assert result["captions"] == 300
    assert 20 < result["tokens_per_caption"] < 25
    assert 1 < result["tokens_computed_per_real"] < 1.4 < result["tokens_padded_per_real"]
    read = result["sources"]
    assert read["photos"] == 48
    for source in ("folder", "tars", "parquet"):
        assert read[f"{source}_reads_per_second"] > read[f"{source}_batches_per_second"] > 0
    assert read["folder_batches_ratio"] == 1 != read["tars_batches_ratio"]
    printed = capsys.readouterr().out
    assert "tokenized/s" in printed and "| parquet " in printed


def test_loader_without_the_file(tmp_path):
    with pytest.raises(SystemExit, match=r"absent\.txt"):
        loader.main([f"--captions={tmp_path / 'absent.txt'}"])


@pytest.mark.slow
def test_startup_times_each_part(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(startup, "DEPTHS", (2, 3))
    path = tmp_path / "startup.json"
    startup.main(["--arch=tiny", f"--json={path}"])
    result = json.loads(path.read_text())
    assert set(result["compile_seconds_by_layers"]) == {"2", "3"}
    assert all(seconds > 0 for seconds in result["compile_seconds_by_layers"].values())
    assert result["help_seconds"] > 0
    assert "launch.py --help" in capsys.readouterr().out


def test_made_photos_and_captions_are_sized_like_real_ones(tmp_path):
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    photo = material.photo(rng)
    photo.save(buffer, "JPEG", quality=88)
    assert photo.size == (640, 480)
    assert 120_000 < len(buffer.getvalue()) < 220_000
    material.write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    _, offsets = tokenizer.encode_ragged([material.negated_caption(rng) for _ in range(2000)])
    lengths = np.diff(offsets)
    assert abs(lengths.mean() - 22.4) < 0.3 and abs(lengths.std() - 3.6) < 0.3


@pytest.mark.parametrize("side", [InProcess, pytest.param(Side, marks=pytest.mark.long)])
def test_prepared_starts_twice_and_keeps_what_it_read(side, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(inputs, "open_images", inputs.open_images)  # which a side replaces
    monkeypatch.setattr(harness, "Side", side)
    monkeypatch.setattr(prepared, "_STEPS", 5)
    path = tmp_path / "prepared.json"
    prepared.main(["--pairs=1500", "--repetitions=1", f"--json={path}"])
    found, said = json.loads(path.read_text()), capsys.readouterr().out
    # Two captions of 22.4 tokens, two bytes each, and 8 for where each ends; image and its name.
    assert 120 < found["kept_bytes_per_pair"] < 160
    assert found["second_start"]["seconds"] > 0 and found["captions_per_second"] > 0
    assert "1,500 pairs, two captions each" in said and "at 100 M, extrapolated" in said
