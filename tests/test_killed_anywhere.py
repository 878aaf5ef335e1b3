"""Killed twenty times, a run ends as if nothing had been: `KILL_SEED=7 pytest THIS` for others."""

import os
import random
from collections import Counter
from pathlib import Path

import jax
import pytest
from kills import PHASES, Site, kill_in
from tiny_runs import assert_equal, checkpoint_steps, read_metrics

from negclip_jax.training.checkpoint import restore_params

SEED = int(os.environ.get("KILL_SEED", "0"))
STEPS = 160
# Of the phases of training, in which order chance decides; the cache is built only once.
KILLS = {"start-up": 2, "steps": 4, "save": 5, "evaluation": 4}
FIRST_KILLS = ["cache building", "cache building"]
EXPORT_KILLS = 3


@pytest.fixture(scope="module")
def settings(short_run) -> dict:
    changes = {
        "train.total": f"{STEPS} steps",
        "train.ema_decay": 0.8,
        "data.captions": "mix",
        "eval.every": "8 steps",
        "eval.batch_size": 2,
        "checkpoint.every": "4 steps",
        "log.every": "2 steps",
        "log.tensorboard": True,
        "runtime.compilation_cache": "{workdir}/compilation_cache",
    }
    return short_run | changes


@pytest.fixture(scope="module")
def undisturbed(settings, tmp_path_factory) -> Site:
    site = Site(tmp_path_factory.mktemp("undisturbed"), settings)
    site.finish(site.train)
    site.finish(site.export)
    return site


@pytest.fixture(scope="module")
def killed(settings, tmp_path_factory) -> Site:
    """The same, killed in every phase; what lay about after each kill is in `site.litter`."""
    site = Site(tmp_path_factory.mktemp("killed"), settings)
    rng = random.Random(SEED)
    plan = [phase for phase, count in KILLS.items() for _ in range(count)]
    rng.shuffle(plan)
    phases, litter = [], []
    for phase in FIRST_KILLS + plan:
        phases += kill_in(site, site.train, phase, rng)
        litter.append(site.leftovers())
    site.finish(site.train)
    for _ in range(EXPORT_KILLS):
        phases += kill_in(site, site.export, "export", rng)
        litter.append(site.leftovers())
    site.finish(site.export)
    hit = Counter(phase for kill in phases for phase in kill)
    print(
        f"\nseed {SEED}: {len(phases)} kills, in {dict(hit)}; left by one: {max(map(len, litter))}"
    )
    assert len(phases) >= 20 and set(hit) == set(PHASES)
    return site


def test_parameters_and_optimizer_are_equal(killed, undisturbed):
    for step in ("last", "best"):
        for ema in (True, False):
            ours, theirs = (
                restore_params(str(s.workdir), step, ema=ema) for s in (killed, undisturbed)
            )
            assert_equal(ours, theirs)
    assert checkpoint_steps(killed.workdir) == checkpoint_steps(undisturbed.workdir)


def test_metrics_have_no_gap_and_no_duplicate(killed, undisturbed):
    assert list(read_metrics(killed.workdir)) == list(range(STEPS + 1))
    ours, theirs = (s.workdir / "metrics.jsonl" for s in (killed, undisturbed))
    assert ours.read_bytes() == theirs.read_bytes()


def test_exports_are_equal(killed, undisturbed):
    ours, theirs = (contents(s.root / "exported") for s in (killed, undisturbed))
    assert ours.keys() == theirs.keys() and "model.safetensors" in ours
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert jax.device_count() == 8  # compared in another process than the one that wrote


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_nothing_is_left_of_what_was_killed(killed, undisturbed):
    assert killed.leftovers() == undisturbed.leftovers() == []
    ours, theirs = ({p.name for p in s.workdir.iterdir()} for s in (killed, undisturbed))
    assert ours == theirs
    ours, theirs = (names(s.workdir / "features") for s in (killed, undisturbed))
    assert ours == theirs


def names(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))
