"""Benchmarks inside the training loop give the numbers of the command."""

import json

import numpy as np
import pytest
from tiny_runs import read_metrics

from evals import in_training, models, runner
from evals.images import DataRoots
from evals.results import Results
from negclip_jax.common.errors import InputError
from negclip_jax.embeddings import encoder
from negclip_jax.training.loop import train

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.mark.slow
def test_training_logs_what_the_command_reports(
    make_config, tiny_benchmarks, tmp_path, monkeypatch
):
    encoded = []
    original = encoder.Tower.encode_next

    def counted(tower):
        encoded.append(tower.label)
        original(tower)

    monkeypatch.setattr(encoder.Tower, "encode_next", counted)
    roots, workdir = DataRoots((tiny_benchmarks,)), tmp_path / "run"
    built = in_training.evaluators(["tiny", "kept"], roots, cache=tmp_path / "evals")
    changes = {"train.total": "4 steps", "eval.every": "2 steps", "checkpoint.every": "2 steps"}
    changes |= {"checkpoint.best": "bench/tiny/error", "optim.lr": 1e-2, "checkpoint.keep": 3}
    train(make_config(changes), str(workdir), built)
    logged = read_metrics(workdir)
    assert {"bench/tiny/accuracy", "bench/tiny/error", "bench/kept/accuracy"} <= logged[4].keys()
    # Three evaluations: the vision tower is frozen, so images were encoded for the first alone.
    assert encoded.count("training: images") == 1 and encoded.count("training: texts") == 3

    model = models.load(f"{workdir}@4")
    results = Results(tmp_path / "out", {"models": {}, "seed": 0}, {})
    loaded = runner.load_problems(["tiny", "kept"], roots, allow_subset=False)
    runner.run([model], loaded, roots, results, cache=tmp_path / "cache")
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    for name in ("tiny", "kept"):
        found = document["benchmarks"][name]["rows"][model.name]["metrics"]["accuracy"]["value"]
        np.testing.assert_allclose(found, logged[4][f"bench/{name}/accuracy"])
        np.testing.assert_allclose(1 - found, logged[4][f"bench/{name}/error"])


def test_wrong_names_are_told_before_training(tiny_benchmarks, tmp_path):
    with pytest.raises(InputError, match="there is no benchmark 'valsee'"):
        in_training.evaluators(["valsee"], DataRoots((tiny_benchmarks,)), cache=tmp_path)


def test_no_names_no_evaluator(tiny_benchmarks, tmp_path):
    assert in_training.evaluators([], DataRoots((tiny_benchmarks,)), cache=tmp_path) == {}


def test_launch_passes_the_configured_benchmarks(make_config, tiny_benchmarks, tmp_path):
    import launch

    config = make_config({})
    section = config.eval
    assert launch._benchmarks(config, str(tmp_path)) == {}
    section.benchmarks, section.data = "tiny, kept", str(tiny_benchmarks)
    assert list(launch._benchmarks(config, str(tmp_path))) == ["bench"]
    section.data = None
    with pytest.raises(InputError, match=r"eval\.benchmarks needs config\.eval\.data=DIR"):
        launch._benchmarks(config, str(tmp_path))
