"""The export command, from a run and from a checkpoint."""

import inspect
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import transformers
from flax import traverse_util
from interop import tiny
from safetensors.numpy import load_file

from negclip_jax.errors import InputError
from negclip_jax.interop import export, huggingface
from negclip_jax.training import checkpoint


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tiny.saved(tmp_path_factory.mktemp("base") / "base")
    (directory / "vocab.json").write_text("{}")
    return directory


@pytest.fixture
def run(base, tmp_path, monkeypatch):
    """A training run without the training: its base files, and parameters moved by the step."""
    workdir = tmp_path / "runs" / "b32"
    huggingface.copy_non_weights(base, workdir / "base")
    _, params = tiny.load(base)

    def restore_params(directory, step="best", *, ema=False):
        assert str(directory) == str(workdir)
        number = {"best": 20, "last": 30}.get(step, step)
        if int(number) > 30:
            raise InputError(f"no checkpoint of step {step}; there are: 20, 30")
        scale = np.float32(int(number) + (0.5 if ema else 0))
        return params | {"logit_scale": scale}, int(number)

    # The stand-in must not outlive a change of what it stands for.
    real = inspect.signature(checkpoint.restore_params).parameters
    assert list(real) == ["workdir", "step", "ema"]
    monkeypatch.setattr(checkpoint, "restore_params", restore_params)
    return workdir


def scale_of(directory):
    return float(load_file(directory / "model.safetensors")["logit_scale"])


@pytest.mark.parametrize(
    ("flags", "scale", "label"),
    [
        ([], 20, "step 20 of"),
        (["--step=last"], 30, "step 30 of"),
        (["--step=7", "--ema"], 7.5, "step 7 of .*, moving average"),
    ],
)
def test_from_a_run(flags, scale, label, run, tmp_path, capsys):
    out = tmp_path / "exported" / "b32"
    status = export.main([f"--workdir={run}", "--layout=huggingface", f"--out={out}", *flags])
    printed = capsys.readouterr()
    assert status == 0 and not printed.err
    assert scale_of(out) == scale
    assert (out / "vocab.json").read_text() == "{}"
    assert re.search(f"wrote {out}: 0.2 MB of weights and 2 other files, from {label}", printed.out)
    assert "differ by at most 0.0e+00" in printed.out


def test_printed_code_loads_the_export(base, tmp_path, capsys):
    assert export.main([f"--checkpoint={base}", f"--out={tmp_path / 'out'}"]) == 0
    code = capsys.readouterr().out.split("load it with\n\n")[1]
    code = "\n".join(line for line in code.splitlines() if "Processor.from" not in line)
    names = {}
    exec(code, names)  # the processor needs a tokenizer, which this checkpoint lacks
    assert isinstance(names["model"], transformers.CLIPModel)


def test_converts_dtype_and_says_what_it_costs(base, tmp_path, capsys):
    out = tmp_path / "out"
    assert export.main([f"--checkpoint={base}", f"--out={out}", "--dtype=bfloat16"]) == 0
    difference = float(re.search(r"at most (\S+)", capsys.readouterr().out).group(1))
    assert 1e-4 < difference < 0.5
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def test_export_that_reads_back_differently_is_an_error(base, tmp_path, monkeypatch, capsys):
    config, params = tiny.load(base)
    flat = traverse_util.flatten_dict(params, sep="/")
    flat["text_projection"] = flat["text_projection"] * 2
    other = traverse_util.unflatten_dict(flat, sep="/")
    broken = export.Layout(save=huggingface.save, load=lambda _: (config, other), usage="none")
    monkeypatch.setitem(export.LAYOUTS, "huggingface", broken)
    assert export.main([f"--checkpoint={base}", f"--out={tmp_path / 'out'}"]) == 1
    assert "does not read back" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--workdir={tmp}"], "has no base/.*not the --workdir of a run"),
        (["--workdir={tmp}/gone"], "there is no directory .*gone"),
        (["--workdir={run}", "--step=99"], "no checkpoint of step 99; there are: 20, 30"),
        (["--checkpoint={tmp}"], r"has no config\.json"),
        (["--checkpoint=./gone"], "there is no checkpoint directory"),
        (["--checkpoint={base}", "--ema"], "need --workdir, not --checkpoint"),
        (["--checkpoint={base}", "--out={base}", "--overwrite"], "must not contain each other"),
        (["--checkpoint={base}", "--out={run}"], "is not empty"),
    ],
)
def test_errors_are_sentences(flags, reason, base, run, tmp_path, capsys):
    places = {"base": base, "run": run, "tmp": tmp_path, "out": tmp_path / "out"}
    flags = [flag.format(**places) for flag in ["--out={out}", *flags]]
    assert export.main(flags) == 1
    printed = capsys.readouterr()
    assert re.match(f"error: .*{reason}", printed.err) and not printed.out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--out=x"], "one of the arguments --workdir --checkpoint is required"),
        (["--workdir=a", "--checkpoint=b", "--out=x"], "not allowed with"),
        (["--workdir=a"], "required: --out"),
        (["--workdir=a", "--out=x", "--layout=openai"], "invalid choice"),
    ],
)
def test_wrong_flags(flags, reason, capsys):
    with pytest.raises(SystemExit) as caught:
        export.main(flags)
    assert caught.value.code == 2 and reason in capsys.readouterr().err


def test_as_a_command():
    command = [sys.executable, "-m", "negclip_jax.interop.export", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--workdir" in done.stdout and "best|last|N" in done.stdout
