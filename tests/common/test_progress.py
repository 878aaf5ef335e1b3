"""Long work says how far it is and how long it takes still."""

import pytest

from negclip_jax.common import progress
from negclip_jax.common.progress import estimate, human_seconds, told


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00"), (59.6, "1:00"), (125, "2:05"), (3723, "1:02:03"), (100_000, "27:46:40")],
)
def test_seconds_for_a_person(seconds, shown):
    assert human_seconds(seconds) == shown


def test_the_estimate_leaves_out_what_was_done_before():
    assert estimate(1000, 4000, 12.0) == "1,000 of 4,000, ETA 0:36"
    assert estimate(1000, 2000, 10.0, before=900) == "1,000 of 2,000, ETA 1:40"
    assert estimate(0, 10, 5.0).startswith("0 of 10")
    assert estimate(1000, None, 5.0) == "1,000"


def test_a_line_comes_after_five_seconds_and_then_every_ten_on_stderr(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    seen = []
    for item in told(["a", "b", "c", "d", "e"], "photos"):
        seen.append(item)
        now[0] += 6
    assert seen == ["a", "b", "c", "d", "e"]
    printed = capsys.readouterr()
    assert printed.err == "photos: 1 of 5, ETA 0:24\nphotos: 3 of 5, ETA 0:12\n"
    assert not printed.out


def test_quick_work_says_nothing(capsys):
    assert list(told(range(1000), "rows")) == list(range(1000))
    assert capsys.readouterr().err == ""
