"""Both sides encode the same items to the same features."""

import json

import pytest

from bench import encode


@pytest.mark.long
def test_both_sides_agree(tmp_path, capsys):
    path = tmp_path / "encode.json"
    flags = ["--arch=tiny", "--texts=70", "--images=3", "--repetitions=1", f"--json={path}"]
    encode.main(flags)
    result = json.loads(path.read_text())
    for kind, count in (("texts", 70), ("images", 3)):
        assert result[kind]["count"] == count and result[kind]["ratio"] > 0
        assert result[kind]["largest_difference"] < 1e-5
    assert f"{result['texts']['ratio']:.2f} x" in capsys.readouterr().out
