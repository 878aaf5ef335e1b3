"""Pictures on disk: drawn once, whole, and never under other settings."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evals.text_to_image.pictures import LINES, MANIFEST, Pictures, file_of, seed_of
from negclip_jax.common.errors import InputError

TEXTS = ["a man not wearing a hat", "a room with no window"]
SETTINGS = {"steps": 2, "weights": {"unet": "abc"}}


class Painter:
    """Noise by seed; `calls` are (model, prompt, number of seeds); stops after `patience` calls."""

    def __init__(self, patience=1000):
        self.calls, self._patience = [], patience

    def draw(self, model, prompt, seeds):
        if len(self.calls) == self._patience:
            raise KeyboardInterrupt
        self.calls.append((model, prompt, len(seeds)))
        rngs = [np.random.default_rng([seed, len(model)]) for seed in seeds]
        return [Image.fromarray(r.integers(0, 256, (8, 8, 3), np.uint8)) for r in rngs]


def draw(out, painter, texts=TEXTS, count=3, batch_size=1, settings=SETTINGS):
    return Pictures(out, settings, 0).draw(painter, texts, count, batch_size=batch_size)


def files(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_both_models_start_from_the_same_seeds_and_interleave(tmp_path):
    painter = Painter()
    pictures = draw(tmp_path / "out", painter, batch_size=2)
    assert [call[:2] for call in painter.calls[::2]] == [
        (model, text) for text in TEXTS for model in ("base", "tuned")
    ]
    assert [call[2] for call in painter.calls] == [2, 1] * 4
    base, tuned = ([p.seed for p in pictures if p.model == model] for model in ("base", "tuned"))
    assert base == tuned and len(set(base)) == 6
    assert all((tmp_path / "out" / p.file).is_file() and len(p.sha256) == 64 for p in pictures)


def test_seeds_depend_on_prompt_index_and_command_alone():
    assert seed_of(0, "a", 0) == seed_of(0, "a", 0) < 2**53
    assert len({seed_of(s, p, i) for s in (0, 1) for p in "ab" for i in range(3)}) == 12


def test_file_names_are_readable_safe_and_distinct():
    name = file_of("base", "../A room, with NO “window”?", 3)
    assert name.startswith("images/base/a-room-with-no-window-") and name.endswith("-3.png")
    assert file_of("base", "a room!", 0) != file_of("base", "a room?", 0)
    assert file_of("base", "日本", 0).startswith("images/base/prompt-")
    assert len(file_of("base", "word " * 99, 0)) < 90


@pytest.mark.parametrize("batch_size", [1, 2])
def test_killed_and_started_again_it_draws_what_is_missing(tmp_path, batch_size):
    draw(tmp_path / "whole", Painter(), batch_size=batch_size)
    out = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        draw(out, Painter(patience=3), batch_size=batch_size)
    survivors = files(out)
    second = Painter()
    draw(out, second, batch_size=batch_size)
    assert sum(call[2] for call in second.calls) == 12 - 3 * batch_size + (batch_size == 2)
    assert files(out) == files(tmp_path / "whole")
    assert survivors.items() - {(LINES, survivors[LINES])} <= files(out).items()
    third = Painter()
    draw(out, third, batch_size=batch_size)
    assert third.calls == []


def test_damaged_missing_and_unlisted_pictures_are_drawn_again(tmp_path):
    out = tmp_path / "out"
    first, second, third, *_ = draw(out, Painter())
    whole = files(out)
    (out / first.file).write_bytes(whole[first.file][:50])
    (out / second.file).unlink()
    lines = (out / LINES).read_bytes().split(b"\n")
    (out / LINES).write_bytes(b"\n".join([*lines[:2], *lines[3:]])[:-7])  # no third, half a last
    left = (out / first.file).with_name(f".{Path(first.file).stem}.0.partial.png")
    left.write_bytes(b"half")
    painter = Painter()
    draw(out, painter)
    assert len(painter.calls) == 4
    assert {n: b for n, b in files(out).items() if n.endswith(".png")} == {
        n: b for n, b in whole.items() if n.endswith(".png")
    }
    assert not list(out.rglob("*.partial*"))
    assert third.file in {json.loads(row)["file"] for row in (out / LINES).open()}


def test_lines_of_another_manifest_do_not_count(tmp_path):
    """As where somebody has put two folders together."""
    draw(tmp_path / "a", Painter())
    draw(tmp_path / "b", Painter(), settings=SETTINGS | {"steps": 9})
    for name in ("a", "b"):
        rows = [json.loads(line) for line in (tmp_path / name / LINES).open()]
        assert len({row["manifest"] for row in rows}) == 1 and rows[0]["seed"] < 2**53
    (tmp_path / "a" / LINES).write_bytes((tmp_path / "b" / LINES).read_bytes())
    painter = Painter()
    draw(tmp_path / "a", painter)
    assert len(painter.calls) == 12


def test_more_prompts_and_pictures_leave_the_others(tmp_path):
    draw(tmp_path, Painter(), TEXTS[:1], count=1)
    painter = Painter()
    draw(tmp_path, painter, count=2)
    assert len(painter.calls) == 6


def test_other_settings_are_refused_by_name(tmp_path):
    draw(tmp_path, Painter())
    other = {"steps": 20, "weights": {"unet": "abd"}}
    with pytest.raises(InputError, match=r"steps \(2 there, 20 now\), weights\.unet \(abc there"):
        draw(tmp_path, Painter(), settings=other)


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"is not empty and has no manifest\.json"):
        draw(tmp_path, Painter())
    with pytest.raises(InputError, match="is not empty"):
        draw(tmp_path / "thesis.tex", Painter())


def test_a_damaged_manifest(tmp_path):
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        draw(tmp_path, Painter())


def test_a_picture_of_one_colour_is_marked(tmp_path):
    class Black:
        def draw(self, model, prompt, seeds):
            return [Image.new("RGB", (8, 8)) for _ in seeds]

    assert all(p.blank for p in draw(tmp_path / "black", Black()))
    assert not any(p.blank for p in draw(tmp_path / "noise", Painter()))
