"""A text tower without its vision code: features, training, export, evaluation, by the commands."""

import json
import shutil

import numpy as np
import pytest
import torch
from interop import libraries
from processes import commands
from safetensors.torch import load_file, save_file
from tiny_benchmark import write_items
from tiny_runs import ROOT

from evals import __main__ as evaluate
from negclip_jax.interop import export, image_features, open_clip, readers

MODEL = {  # a ResNet, which is not read here
    "embed_dim": 24,
    "custom_text": True,
    "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32},
    "text_cfg": {"context_length": 24, "vocab_size": 600, "width": 32, "heads": 4, "layers": 2},
}


@pytest.fixture
def checkpoint(tmp_path, tiny_vocabulary):
    package = libraries.load("open_clip")
    torch.manual_seed(0)
    made = package.CustomTextCLIP(**{k: v for k, v in MODEL.items() if k != "custom_text"})
    folder = tmp_path / "resnet"
    folder.mkdir()
    described = {"model_cfg": MODEL, "preprocess_cfg": {"interpolation": "bilinear"}}
    (folder / open_clip.CONFIG).write_text(json.dumps(described))
    state = {k: v.contiguous().clone() for k, v in made.state_dict().items()}
    save_file(state, folder / open_clip.WEIGHTS[0])
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(tiny_vocabulary / name, folder / name)
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("one_device_mesh")
def test_from_features_to_evaluation(
    checkpoint, tiny_pairs, tiny_benchmarks, forked, tmp_path, monkeypatch, capsys
):
    """Photos are gone once their features are there, and the vision half is as it was."""
    monkeypatch.setattr("negclip_jax.runtime.console.set_up_logging", lambda: None)
    for name, photos in (("train", tiny_pairs / "images"), ("bench", tiny_benchmarks / "photos")):
        flags = ["--library=open_clip", f"--model={checkpoint}", f"--images={photos}"]
        assert image_features.main([*flags, f"--out={tmp_path / name}"]) == 0
    data = tmp_path / "annotations"
    data.mkdir()
    write_items(data, images=12)
    benchmark = tmp_path / "tiny_bench.py"
    benchmark.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "import tiny_benchmark\n"
        "def load(roots, download): return tiny_benchmark.load(roots)\n"
        "told = dict.fromkeys(['title', 'task', 'source', 'licence', 'download'], 'x')\n"
        "BENCHMARKS = {'own': told | {'size': 24}}\n"
    )
    workdir = tmp_path / "run"
    settings = {
        "model.checkpoint": checkpoint,
        "data.pairs": tiny_pairs / "pairs.json",
        "data.features": f"{tmp_path}/{{train,bench}}/*.parquet",
        "eval.benchmarks": "own",
        "eval.benchmark_files": benchmark,
        "eval.data": data,
        "eval.every": "4 steps",
        "train.batch_size": 16,
        "train.total": "8 steps",
        "optim.lr": 1e-3,
        "optim.warmup": "0 steps",
        "checkpoint.every": "4 steps",
    }
    (command,) = commands(settings, workdir, 1, {})
    (end,) = forked.finish([command], devices=1)
    assert end.status == 0, end.output[-3000:]
    lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    logged = {line["step"]: line for line in lines}
    assert np.isfinite(logged[8]["val/loss"]) and "bench/own/accuracy" in logged[8]

    out = tmp_path / "exported"
    assert export.main([f"--model={workdir}@8", f"--out={out}", "--layout=open_clip"]) == 0
    before, after = (load_file(d / open_clip.WEIGHTS[0]) for d in (checkpoint, out))
    for name, tensor in before.items():
        assert not name.startswith("visual.") or torch.equal(tensor, after[name])
    changed = [n for n in before if not torch.equal(before[n], after[n])]
    assert any(name.startswith("text.") for name in changed)
    assert readers.read_any(out)[0].vision is None

    flags = [
        f"--model=m={out}",
        f"--data={data}",
        "--benchmarks=own",
        f"--benchmark-file={benchmark}",
        f"--out={tmp_path / 'e'}",
    ]
    assert evaluate.main(flags) == 1  # without features
    assert "photo" in capsys.readouterr().err
    assert evaluate.main([*flags, f"--features={tmp_path / 'bench'}"]) == 0
    document = json.loads((tmp_path / "e" / "results.json").read_text())
    found = document["benchmarks"]["own"]["rows"]["m"]["metrics"]["accuracy"]["value"]
    np.testing.assert_allclose(found, logged[8]["bench/own/accuracy"])
    settings["data.features"] = f"{tmp_path}/train"
    (end,) = forked.finish(commands(settings, tmp_path / "r", 1, {}), devices=1)
    assert end.status == 1 and "add the features of their images" in end.output
