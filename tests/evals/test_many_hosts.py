"""Two processes with two devices each and no disk in common evaluate together."""

import json
from pathlib import Path

import pytest
from processes import free_port
from tiny_benchmark import write_items

from evals import __main__ as command_line


@pytest.fixture(scope="module")
def hosts(tiny_checkpoint, photos, forked, tmp_path_factory) -> Path:
    """Folder with `INDEX.json` and the output folder `INDEX` of both."""
    data, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("out")
    (data / "photos").symlink_to(photos.data / "photos")
    (data / "bad.png").write_bytes(b"no image")
    write_items(data, images=12)
    script, port = Path(__file__).with_name("host.py"), free_port()
    # A batch that only one of them runs would keep it waiting for ever.
    ends = forked.finish(
        [[script, i, port, tiny_checkpoint, data, out] for i in range(2)], devices=2, seconds=120
    )
    assert [end.status for end in ends] == [0, 0], ends
    return out


def left(out: Path, index: int) -> dict:
    return json.loads((out / f"{index}.json").read_text())


def test_both_run_the_same_batches(hosts):
    """13 images and 49 texts in batches of at most 8, and both find the photo that is broken."""
    first, second = (left(hosts, i) for i in range(2))
    assert first == second
    assert first["processes"] == 2 and first["statuses"] == [1, 1]
    assert first["encoded"][0].count("images") == 2 and first["encoded"][0].count("texts") == 7


def test_what_the_main_process_kept_is_sent_to_the_other(hosts):
    assert left(hosts, 1)["encoded"][1] == ["images"]  # the broken one is tried again
    assert {p.suffix for p in (hosts / "0" / "embeddings").glob("*.*")} == {".rows", ".bin"}
    assert {p.suffix for p in (hosts / "1" / "embeddings").glob("*.*")} == {".bin"}


def test_the_main_process_writes_the_numbers_of_one_process_alone(
    hosts, tiny_checkpoint, tiny_benchmarks, tmp_path, one_device_mesh, monkeypatch
):
    monkeypatch.setattr("negclip_jax.runtime.console.set_up_logging", lambda: None)
    assert not (hosts / "1" / "results.json").exists()
    alone = tmp_path / "out"
    flags = [f"--model=m={tiny_checkpoint}", f"--data={tiny_benchmarks}", f"--out={alone}"]
    assert command_line.main(flags) == 0
    found, expected = (
        json.loads((out / "results.json").read_text())["benchmarks"] for out in (hosts / "0", alone)
    )
    for name in ("tiny", "kept"):
        assert found[name]["rows"] == expected[name]["rows"]
    assert "bad.png" in found["broken"]["errors"]["m"]
