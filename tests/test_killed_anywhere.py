"""Killed at any moment, a run ends as if nothing had been.

`pytest -m slow THIS` kills at three fixed moments, `pytest -m long THIS` twenty times at moments
that chance decides, and `KILL_SEED=7` chooses others.
"""

import dataclasses
import os
import random
import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
import pytest
from kills import Site, kill_in, stop
from tiny_runs import assert_equal, checkpoint_steps, read_metrics

from negclip_jax.checkpoints.restore import restore_params

SEED = int(os.environ.get("KILL_SEED", "0"))


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long the run is, and in which phases it is ended; the cache is built only once.

    Attributes:
      name: of the plan.
      steps: of the run.
      shuffled: whether chance decides the order of `kills` and the moment within a phase.
      first_kills, kills, export_kills: phases of training, and how often the export is killed.
      early_stops, late_stops: phases in which SIGTERM comes: before the first update, and later.
      stops_export: whether SIGTERM also stops an export, and two signals come at once.
    """

    name: str
    steps: int
    shuffled: bool
    first_kills: tuple[str, ...]
    kills: tuple[str, ...]
    export_kills: int
    early_stops: tuple[str, ...]
    late_stops: tuple[str, ...]
    stops_export: bool


SHORT = Plan(
    name="short",
    steps=16,
    shuffled=False,
    first_kills=("cache building",),
    kills=("save",),
    export_kills=1,
    early_stops=("compilation",),
    late_stops=("save",),
    stops_export=False,
)
LONG = Plan(
    name="long",
    steps=160,
    shuffled=True,
    first_kills=("cache building", "cache building"),
    kills=("start-up",) * 2 + ("steps",) * 4 + ("save",) * 5 + ("evaluation",) * 4,
    export_kills=3,
    early_stops=("import", "cache building", "compilation"),
    late_stops=("steps", "save", "evaluation"),
    stops_export=True,
)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(SHORT, marks=pytest.mark.slow),
        pytest.param(LONG, marks=pytest.mark.long),
    ],
    ids=lambda p: p.name,
)
def plan(request) -> Plan:
    return request.param


@pytest.fixture(scope="module")
def settings(plan, short_run, tmp_path_factory) -> dict:
    own_cache = str(tmp_path_factory.mktemp("compiled")) if plan is LONG else ""
    changes = {
        "train.total": f"{plan.steps} steps",
        "train.ema_decay": 0.8,
        "data.caption_mode": "mix",
        "eval.every": "8 steps",
        "eval.batch_size": 2,
        "checkpoint.every": "4 steps",
        "log.every": "2 steps",
        "log.tensorboard": plan is LONG,  # importing it takes a second of each process
        "runtime.compilation_cache": own_cache,  # "": the one of all tests
    }
    return short_run | changes


@pytest.fixture(scope="module")
def make_site(plan, settings, forked, tmp_path_factory) -> Callable[[str], Site]:
    """Function of a name; processes that import are killed as they do by the long plan."""
    forks = None if plan is LONG else forked
    return lambda name: Site(tmp_path_factory.mktemp(name), settings, forks)


@pytest.fixture(scope="module")
def undisturbed(make_site) -> Site:
    site = make_site("undisturbed")
    site.finish(site.train)
    site.finish(site.export)
    return site


@pytest.fixture(scope="module")
def killed(plan, make_site) -> Site:
    """The same, killed in every phase; what lay about after each kill is in `site.litter`."""
    site = make_site("killed")
    rng = random.Random(SEED) if plan.shuffled else None
    kills = list(plan.kills)
    if rng is not None:
        rng.shuffle(kills)
    phases, litter = [], []
    for phase in [*plan.first_kills, *kills]:
        phases += kill_in(site, site.train, phase, rng)
        litter.append(site.leftovers())
    site.finish(site.train)
    for _ in range(plan.export_kills):
        phases += kill_in(site, site.export, "export", rng)
        litter.append(site.leftovers())
    site.finish(site.export)
    hit = Counter(phase for kill in phases for phase in kill)
    print(
        f"\nseed {SEED}: {len(phases)} kills, in {dict(hit)}; left by one: {max(map(len, litter))}"
    )
    assert {*plan.first_kills, *plan.kills, "export"} <= set(hit)
    assert plan is not LONG or len(phases) >= 20
    return site


def test_parameters_and_optimizer_are_equal(plan, killed, undisturbed):
    for step in ("last", "best"):
        for ema in (True, False):
            ours, theirs = (
                restore_params(str(s.workdir), step, ema=ema) for s in (killed, undisturbed)
            )
            assert_equal(ours, theirs)
    assert checkpoint_steps(killed.workdir) == checkpoint_steps(undisturbed.workdir)
    assert checkpoint_steps(killed.workdir)[-1] == plan.steps
    assert_equal(optimizer_state(killed), optimizer_state(undisturbed))


def optimizer_state(site: Site) -> Any:
    step = str(checkpoint_steps(site.workdir)[-1])
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(site.workdir / "checkpoints" / step / "opt_state")


def test_metrics_have_no_gap_and_no_duplicate(plan, killed, undisturbed):
    assert list(read_metrics(killed.workdir)) == list(range(plan.steps + 1))
    ours, theirs = (s.workdir / "metrics.jsonl" for s in (killed, undisturbed))
    assert ours.read_bytes() == theirs.read_bytes()


def test_exports_are_equal(killed, undisturbed):
    ours, theirs = (contents(s.root / "exported") for s in (killed, undisturbed))
    assert ours.keys() == theirs.keys() and "model.safetensors" in ours
    assert [name for name in ours if ours[name] != theirs[name]] == []


CONTINUE = r"; to continue:\n  python \S*launch\.py --config=\S+ --workdir=run "


@pytest.fixture(scope="module")
def stopped(plan, make_site) -> Site:
    """The same, preempted in every phase; how it ended each time is checked here."""
    site = make_site("stopped")
    term = 128 + signal.SIGTERM
    for phase in plan.early_stops:
        assert stop(site, site.train, phase, signal.SIGTERM) == term, site.output
        assert re.search(r"^stopped at once by SIGTERM" + CONTINUE, site.output, re.M), site.output
        assert checkpoint_steps_or_none(site) == []
    for phase in plan.late_stops:
        assert stop(site, site.train, phase, signal.SIGTERM) == term, site.output
        found = re.search(r"^stopped by SIGTERM after step (\d+)" + CONTINUE, site.output, re.M)
        assert found and re.search(rf"^saved step {found[1]} in \d", site.output, re.M), site.output
        assert (
            checkpoint_steps(site.workdir)[-1] == max(read_metrics(site.workdir)) == int(found[1])
        )
        assert "Traceback" not in site.output
    if not plan.stops_export:
        site.finish(site.train)
        return site
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


def test_a_run_that_was_preempted_everywhere_is_the_same(plan, stopped, undisturbed):
    ours, theirs = (restore_params(str(s.workdir), "best") for s in (stopped, undisturbed))
    assert_equal(ours, theirs)
    ours, theirs = ((s.workdir / "metrics.jsonl").read_bytes() for s in (stopped, undisturbed))
    assert ours == theirs
    if plan.stops_export:
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
