"""The whole published fine-tuning, tiny: all parts are measured, what is extrapolated says so."""

import contextlib
import io
import json
import time

import numpy as np
import pytest
from PIL import Image

from bench import material, paper
from bench.timed_launch import Clock

REST = ["--batch-size=32", "--epochs=1", "--no-reference"]


@pytest.fixture(scope="module")
def result(tmp_path_factory, forked) -> dict:
    path, said = tmp_path_factory.mktemp("paper") / "paper.json", io.StringIO()

    def timed(command: list[str]) -> float:
        (end,) = forked.finish([command])
        assert end.status == 0, end.output
        return end.seconds

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(paper, "timed", timed)
        paper.main(["--arch=tiny", "--scale=0.0004", *REST, f"--json={path}"])
    return json.loads(path.read_text()) | {"said": said.getvalue()}


@pytest.mark.slow
def test_all_parts_of_a_run_and_its_export(result):
    assert (result["photos"], result["pairs"], result["steps"]) == (33, 92, 2)
    assert result["evaluations"] == 2 and result["saves"] == 1  # before the first step too
    parts = ["start-up", "compilation", "feature cache", "epochs", "validation", "saving", "export"]
    assert list(result["seconds"]) == parts and min(result["seconds"].values()) > 0
    assert result["photos_per_second"] == pytest.approx(33 / result["seconds"]["feature cache"])
    assert 0 < result["decode_share"] < 1
    assert result["bytes"].keys() >= {"photos", "features", "examples", "checkpoints", "export"}
    assert min(result["bytes"][name] for name in ("features", "checkpoints", "export")) > 1000
    assert "at full size, extrapolated" in result["said"] and "load " in result["said"]


RESULT = {
    "photos": paper.PHOTOS // 100,
    "pairs": paper.PAIRS // 100,
    "batch_size": 512,
    "steps": 3 * 15,
    "evaluations": 16,
    "saves": 15,
    "seconds": {
        "start-up": 10.0,
        "compilation": 5.0,
        "feature cache": 100.0,
        "epochs": 1000.0,
        "validation": 16.0,
        "saving": 3.0,
        "export": 20.0,
    },
    "photos_per_second": 8.27,
    "decode_share": 0.5,
    "bytes": {"photos": 10**8, "features": 2 * 10**6, "checkpoints": 5 * 10**8},
    "reference": {"pairs": 256, "seconds": 64.0},
}


def test_what_grows_with_the_data_is_multiplied_and_the_rest_is_not():
    (_, rows), (_, disk) = paper.tables(RESULT)
    full = {name: float(value.replace(",", "")) for name, _, value, _ in rows}
    steps = 183_200 // 512 * 15
    assert (full["start-up"], full["compilation"], full["saving"]) == (10, 5, 3)
    assert full["feature cache"] == pytest.approx(10_000, rel=0.01)
    assert full["epochs"] == pytest.approx(1000 / 45 * steps, rel=0.001)
    assert full["validation"] == pytest.approx(1600, rel=0.01)
    parts = sum(full[name] for name in RESULT["seconds"])
    assert full["total"] == pytest.approx(parts, abs=5)
    # A quarter of a second a pair, as the slice took.
    theirs = full["published recipe, PyTorch"]
    assert theirs == pytest.approx(steps * 512 / 4, abs=1)
    note = rows[-1][-1]
    assert note == f"a slice of 256 pairs, 4.0 pairs/s; steps alone, {theirs / parts:.1f} x"
    assert [row[2] for row in disk] == ["10,010", "200", "500"]


def test_nothing_of_ours_is_extrapolated_from_a_whole_run():
    whole = {"photos": paper.PHOTOS, "pairs": paper.PAIRS, "steps": 183_200 // 512 * 15}
    (_, rows), (header, disk) = paper.tables(RESULT | whole)
    assert [row[0] for row in rows if row[2]] == ["published recipe, PyTorch"]
    assert header == ["on disk", "MB"] and {len(row) for row in disk} == {2}


def test_copies_of_a_photo_are_other_files_and_the_same_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(material, "_DISTINCT", 2)
    path, images = material.write_pairs(tmp_path, 12, 5)
    files = sorted(images.iterdir())
    assert len({f.read_bytes() for f in files}) == 5
    first, third = (np.asarray(Image.open(files[i])) for i in (0, 2))
    assert (first == third).all() and first.shape == (480, 640, 3)
    lines = [json.loads(line) for line in path.open()]
    assert len(lines) == 12 and {line["image"] for line in lines} == {f.name for f in files}


def test_no_second_counts_twice():
    class Work:
        def outer(self):
            time.sleep(0.02)
            self.inner()
            clock.on_event("/jax/core/compile/backend_compile_duration", 0.005)
            clock.on_event("/jax/another/event", 5.0)

        def inner(self):
            time.sleep(0.03)

    clock = Clock()
    clock.part(Work, "outer", "outer")
    clock.part(Work, "inner", "inner")
    began = time.perf_counter()
    Work().outer()
    whole = time.perf_counter() - began
    assert clock.seconds.keys() == {"outer", "inner", "compilation"}
    assert clock.seconds["compilation"] == 0.005 and clock.seconds["inner"] >= 0.03
    assert clock.seconds["outer"] > 0.014 and sum(clock.seconds.values()) <= whole


@pytest.mark.slow
def test_bad_flags_exit_with_a_one_line_message():
    with pytest.raises(SystemExit, match=r"bench\.paper: --scale=2\.0 is not between 0 and 1"):
        paper.main(["--arch=tiny", "--scale=2"])
    with pytest.raises(SystemExit, match=r"train\.batch_size=4096 is larger than the 7\d training"):
        paper.main(["--arch=tiny", "--scale=0.0004", "--batch-size=4096", "--no-reference"])
