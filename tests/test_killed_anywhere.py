"""Killed twenty times, a run ends as if nothing had been: `KILL_SEED=7 pytest THIS` for others."""

import os
import random
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
import pytest
from kills import Site, kill_in, stop
from tiny_runs import assert_equal, checkpoint_steps, read_metrics

from negclip_jax.checkpoints.manager import restore_params

SEED = int(os.environ.get("KILL_SEED", "0"))
STEPS = 160
# Of the phases of training, in which order chance decides; the cache is built only once.
KILLS = {"start-up": 2, "steps": 4, "save": 5, "evaluation": 4}
FIRST_KILLS = ["cache building", "cache building"]
EXPORT_KILLS = 3


@pytest.fixture(scope="module")
def settings(short_run, tmp_path_factory) -> dict:
    changes = {
        "train.total": f"{STEPS} steps",
        "train.ema_decay": 0.8,
        "data.captions": "mix",
        "eval.every": "8 steps",
        "eval.batch_size": 2,
        "checkpoint.every": "4 steps",
        "log.every": "2 steps",
        "log.tensorboard": True,
        "runtime.compilation_cache": str(tmp_path_factory.mktemp("compiled")),
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
    assert len(phases) >= 20 and set(KILLS) | {"cache building", "export"} <= set(hit)
    return site


def test_parameters_and_optimizer_are_equal(killed, undisturbed):
    for step in ("last", "best"):
        for ema in (True, False):
            ours, theirs = (
                restore_params(str(s.workdir), step, ema=ema) for s in (killed, undisturbed)
            )
            assert_equal(ours, theirs)
    assert checkpoint_steps(killed.workdir) == checkpoint_steps(undisturbed.workdir)
    assert_equal(optimizer_state(killed), optimizer_state(undisturbed))


def optimizer_state(site: Site) -> Any:
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(site.workdir / "checkpoints" / str(STEPS) / "opt_state")


def test_metrics_have_no_gap_and_no_duplicate(killed, undisturbed):
    assert list(read_metrics(killed.workdir)) == list(range(STEPS + 1))
    ours, theirs = (s.workdir / "metrics.jsonl" for s in (killed, undisturbed))
    assert ours.read_bytes() == theirs.read_bytes()


def test_exports_are_equal(killed, undisturbed):
    ours, theirs = (contents(s.root / "exported") for s in (killed, undisturbed))
    assert ours.keys() == theirs.keys() and "model.safetensors" in ours
    assert [name for name in ours if ours[name] != theirs[name]] == []


CONTINUE = r"; to continue:\n  python \S*launch\.py --config=\S+ --workdir=run "


@pytest.fixture(scope="module")
def stopped(settings, tmp_path_factory) -> Site:
    """The same, preempted in every phase; how it ended each time is checked here."""
    site = Site(tmp_path_factory.mktemp("stopped"), settings)
    term = 128 + signal.SIGTERM
    for phase in ("import", "cache building", "compilation"):
        assert stop(site, site.train, phase, signal.SIGTERM) == term, site.output
        assert re.search(r"^stopped at once by SIGTERM" + CONTINUE, site.output, re.M), site.output
        assert checkpoint_steps_or_none(site) == []
    for phase in ("steps", "save", "evaluation"):
        assert stop(site, site.train, phase, signal.SIGTERM) == term, site.output
        found = re.search(r"^stopped by SIGTERM after step (\d+)" + CONTINUE, site.output, re.M)
        assert found and re.search(rf"^saved step {found[1]} in \d", site.output, re.M), site.output
        assert (
            checkpoint_steps(site.workdir)[-1] == max(read_metrics(site.workdir)) == int(found[1])
        )
        assert "Traceback" not in site.output
    # Which of the two Python handles first is not said.
    both = (signal.SIGTERM, signal.SIGINT)
    assert stop(site, site.train, "steps", *both) in (128 + s for s in both), site.output
    assert re.search(r"^stopped at once by SIG(INT|TERM)" + CONTINUE, site.output, re.M)
    site.finish(site.train)
    assert stop(site, site.export, "export", signal.SIGTERM) == term, site.output
    assert "stopped at once by SIGTERM; no export is there in part" in site.output
    assert not (site.root / "exported").exists()
    site.finish(site.export)
    return site


def checkpoint_steps_or_none(site: Site) -> list[int]:
    return checkpoint_steps(site.workdir) if (site.workdir / "checkpoints").exists() else []


def test_a_run_that_was_preempted_everywhere_is_the_same(stopped, undisturbed):
    ours, theirs = (restore_params(str(s.workdir), "best") for s in (stopped, undisturbed))
    assert_equal(ours, theirs)
    ours, theirs = ((s.workdir / "metrics.jsonl").read_bytes() for s in (stopped, undisturbed))
    assert ours == theirs
    ours, theirs = (contents(s.root / "exported") for s in (stopped, undisturbed))
    assert ours == theirs
    assert stopped.leftovers() == []


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
