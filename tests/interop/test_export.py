"""The export command, from a run and from a checkpoint."""

import dataclasses
import inspect
import json
import math
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from flax import traverse_util
from interop import tiny
from safetensors.numpy import load_file

from negclip_jax.checkpoints import restore
from negclip_jax.common.errors import InputError
from negclip_jax.interop import export, huggingface, openai
from negclip_jax.interop.writing import copy_non_weights


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tiny.saved(tmp_path_factory.mktemp("base") / "base")
    (directory / "vocab.json").write_text("{}")
    return directory


@pytest.fixture
def run(base, tmp_path, monkeypatch):
    """A training run without the training: its base files, and parameters moved by the step."""
    workdir = tmp_path / "runs" / "b32"
    copy_non_weights(base, workdir / "base")
    (workdir / "checkpoints").mkdir()
    _, params = tiny.load(base)

    def restore_params(directory, step="best", *, ema=False):
        assert str(directory) == str(workdir)
        number = {"best": 20, "last": 30}.get(step, step)
        if int(number) > 30:
            raise InputError(f"no checkpoint of step {step}; there are: 20, 30")
        scale = np.float32(int(number) + (0.5 if ema else 0))
        return params | {"logit_scale": scale}, int(number)

    # The stand-in must not outlive a change of what it stands for.
    real = inspect.signature(restore.restore_params).parameters
    assert list(real) == ["workdir", "step", "ema"]
    monkeypatch.setattr(restore, "restore_params", restore_params)
    return workdir


def scale_of(directory):
    return float(load_file(directory / "model.safetensors")["logit_scale"])


@pytest.mark.parametrize(
    ("choice", "scale", "label"),
    [
        ("", 20, "step 20 of"),
        ("@last", 30, "step 30 of"),
        ("+ema", 20.5, "step 20 of .*, moving average"),
        ("@7+ema", 7.5, "step 7 of .*, moving average"),
    ],
)
def test_from_a_run(choice, scale, label, run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("negclip_jax.common.progress.FIRST_SECONDS", math.inf)  # on a busy machine
    out = tmp_path / "exported" / "b32"
    flags = ["--layout=huggingface", f"--out={out}"]
    status = export.main([f"--model={run}{choice}", *flags])
    printed = capsys.readouterr()
    assert status == 0 and not printed.err
    assert scale_of(out) == scale
    assert (out / "vocab.json").read_text() == "{}"
    assert re.search(f"wrote {out}: 0.2 MB of weights and 2 other files, from {label}", printed.out)
    assert "differ by at most 0.0e+00" in printed.out


@pytest.mark.parametrize(
    ("flags", "scale", "renamed"),
    [
        (["--workdir={run}"], 20, ["--workdir"]),
        (["--workdir={run}", "--step=7", "--ema"], 7.5, ["--workdir", "--ema", "--step"]),
        (["--checkpoint={run}@last"], 30, ["--checkpoint"]),
    ],
)
def test_the_old_flags_work_with_a_warning(flags, scale, renamed, run, tmp_path, capsys):
    out = tmp_path / "out"
    assert export.main([*(flag.format(run=run) for flag in flags), f"--out={out}"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" is now --model=PATH")[0] for line in said] == [
        f"warning: {flag}" for flag in renamed
    ]
    assert scale_of(out) == scale


def test_a_name_is_the_title_of_the_card(run, tmp_path):
    out = tmp_path / "out"
    assert export.main([f"--model=My CLIP={run}@last", f"--out={out}"]) == 0
    assert "\n# My CLIP\n" in (out / "README.md").read_text() and scale_of(out) == 30


def test_printed_code_loads_the_export(base, tmp_path, capsys):
    assert export.main([f"--model={base}", f"--out={tmp_path / 'out'}"]) == 0
    code = capsys.readouterr().out.split("load it with\n\n")[1]
    code = "\n".join(line for line in code.splitlines() if "Processor.from" not in line)
    names = {}
    exec(code, names)  # the processor needs a tokenizer, which this checkpoint lacks
    assert isinstance(names["model"], transformers.CLIPModel)


def test_converts_dtype_and_says_what_it_costs(base, tmp_path, capsys):
    out = tmp_path / "out"
    assert export.main([f"--model={base}", f"--out={out}", "--dtype=bfloat16"]) == 0
    difference = float(re.search(r"at most (\S+)", capsys.readouterr().out).group(1))
    assert 1e-4 < difference < 0.5
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def test_export_that_reads_back_differently_is_an_error(base, tmp_path, monkeypatch, capsys):
    _, params = tiny.load(base)
    flat = traverse_util.flatten_dict(params, sep="/")
    flat["text_projection"] = flat["text_projection"] * 2
    other = traverse_util.unflatten_dict(flat, sep="/")

    def broken(stage, what):
        huggingface.write(stage, dataclasses.replace(what, params=other))

    monkeypatch.setitem(export.LAYOUTS, "huggingface", broken)
    assert export.main([f"--model={base}", f"--out={tmp_path / 'out'}"]) == 1
    assert "does not read back" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--model={tmp}/gone/"], "there is no checkpoint directory .*gone"),
        (["--model={run}@99"], "no checkpoint of step 99; there are: 20, 30"),
        (["--model={tmp}"], r"has no config\.json"),
        (["--model=./gone"], "there is no checkpoint directory"),
        (["--model={base}+ema"], "@STEP and .ema choose in a training run, and .* is none"),
        (["--model={base}@7"], "@STEP and the moving average choose in a training run"),
        (["--model={base}", "--out={base}", "--overwrite"], "must not contain each other"),
        (["--model={base}", "--out={run}"], "is not empty"),
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
        ([], "the following arguments are required: --model, --out"),
        (["--out=x"], "the following arguments are required: --model"),
        (["--model=a"], "required: --out"),
        (["--workdir=a", "--model=b", "--out=x"], "--workdir: --model=PATH@STEP+ema says it alone"),
        (["--workdir=a", "--checkpoint=b", "--out=x"], "--workdir, --checkpoint: --model=PATH"),
        (["--model=a", "--out=x", "--layout=keras"], "invalid choice"),
    ],
)
def test_wrong_flags(flags, reason, capsys):
    with pytest.raises(SystemExit) as caught:
        export.main(flags)
    assert caught.value.code == 2 and reason in capsys.readouterr().err


@pytest.mark.slow
def test_as_a_command():
    command = [sys.executable, "-m", "negclip_jax.interop.export", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "[NAME=]PATH[@STEP][+ema]" in done.stdout and "--workdir" not in done.stdout


def params_of(directory):
    return tiny.load(directory)[1]


def test_interpolation_with_the_base(base, tmp_path, capsys):
    tuned = tiny.saved(tmp_path / "tuned", tiny.torch_clip(std=0.3))
    flags = [f"--model={tuned}", f"--base={base}"]
    for alpha in ("0", "0.25", "1"):
        out = tmp_path / alpha
        assert export.main([*flags, f"--alpha={alpha}", f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    assert f"from 0.25 of {tuned} and 0.75 of {base}" in printed
    tiny.assert_equal_params(params_of(tmp_path / "0"), params_of(base))
    tiny.assert_equal_params(params_of(tmp_path / "1"), params_of(tuned))
    expected = (
        0.75 * params_of(base)["text_projection"] + 0.25 * params_of(tuned)["text_projection"]
    )
    mixed = params_of(tmp_path / "0.25")
    np.testing.assert_allclose(mixed["text_projection"], expected, atol=1e-6)
    assert mixed["logit_scale"] == params_of(base)["logit_scale"], "shared weights stay bit-equal"


def test_interpolation_of_a_run_with_what_it_started_from(run, base, tmp_path):
    (run / "config.json").write_text(json.dumps({"model": {"checkpoint": str(base)}}))
    out = tmp_path / "out"
    assert export.main([f"--model={run}", "--alpha=0.5", f"--out={out}"]) == 0
    assert scale_of(out) == pytest.approx((20 + scale_of(base)) / 2)


def test_single_towers_and_their_way_back(base, tmp_path, capsys):
    text, whole = tmp_path / "text", tmp_path / "whole"
    flags = ["--architecture=CLIPTextModelWithProjection"]
    assert export.main([f"--model={base}", f"--out={text}", *flags]) == 0
    assert "differ by at most 0.0e+00" in capsys.readouterr().out
    assert export.main([f"--model={text}", f"--base={base}", f"--out={whole}"]) == 0
    tiny.assert_equal_params(params_of(whole), params_of(base))


@pytest.mark.parametrize(
    ("source", "flags"),
    [
        ("CLIPTextModelWithProjection", ["--architecture=CLIPTextModel"]),
        ("CLIPTextModelWithProjection", ["--layout=diffusers"]),
        ("CLIPVisionModelWithProjection", ["--architecture=CLIPVisionModelWithProjection"]),
    ],
)
def test_one_tower_needs_no_base(source, flags, base, tmp_path, capsys):
    """What transformers saved of one tower, in the names of its version."""
    getattr(transformers, source).from_pretrained(base).save_pretrained(tmp_path / "tower")
    out = tmp_path / "out"
    assert export.main([f"--model={tmp_path / 'tower'}", f"--out={out}", *flags]) == 0
    written = load_file(next(out.rglob("model.safetensors")))
    expected = load_file(base / "model.safetensors")
    assert written and all(np.array_equal(expected[name], x) for name, x in written.items())
    card = (out / "README.md").read_text()
    assert ("| text tower |" in card) == ("Text" in source)
    assert ("| vision tower |" in card) == ("Vision" in source)
    assert ("| features |" in card) == (flags != ["--architecture=CLIPTextModel"])
    capsys.readouterr()
    assert export.main([f"--model={tmp_path / 'tower'}", f"--out={tmp_path / 'x'}"]) == 1
    assert re.search("tower alone; give a full CLIPModel", capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_stays_half_through_all_layouts(dtype, tmp_path):
    model = tiny.torch_clip(tiny.OPENAI_TEXT, tiny.OPENAI_VISION).to(getattr(torch, dtype))
    directory = tiny.saved(tmp_path / "first", model)
    for i, layout in enumerate(("openai", "open_clip", "huggingface")):
        out = tmp_path / str(i)
        assert export.main([f"--model={directory}", f"--layout={layout}", f"--out={out}"]) == 0
        directory = out
    written, first = (
        safetensors.torch.load_file(d / "model.safetensors")
        for d in (directory, tmp_path / "first")
    )
    for name, tensor in first.items():
        assert written[name].dtype == tensor.dtype == getattr(torch, dtype)
        assert torch.equal(written[name], tensor)
    mixed = tmp_path / "mixed"
    flags = [f"--model={directory}", f"--base={tmp_path / 'first'}", "--alpha=0.5"]
    assert export.main([*flags, "--layout=open_clip", f"--out={mixed}"]) == 0
    stored = safetensors.torch.load_file(mixed / "open_clip_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


def test_a_checkpoint_is_not_replaced_by_its_own_export(openai_file, tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(openai_file, folder / "model.pt")
    (folder / "config.json").write_text("{}")
    flags = [f"--model={folder / 'model.pt'}", f"--out={folder}", "--overwrite"]
    assert export.main(flags) == 1
    assert "must not contain each other" in capsys.readouterr().err
    assert (folder / "model.pt").is_file()


@pytest.fixture(scope="module")
def openai_file(tmp_path_factory):
    """A bare state dict in OpenAI's names, as NegationCLIP released its weights."""
    folder = tmp_path_factory.mktemp("openai")
    model = tiny.torch_clip(tiny.OPENAI_TEXT, tiny.OPENAI_VISION)
    openai.save(folder / "out", *tiny.load(tiny.saved(folder / "hf", model)))
    (folder / "alone").mkdir()
    return (folder / "out" / "model.pt").rename(folder / "alone" / "negationclip.pt")


def test_converts_a_lone_state_dict(openai_file, tiny_vocabulary, tmp_path, capsys):
    out = tmp_path / "out"
    flags = [f"--model={openai_file}", f"--out={out}", "--layout=huggingface"]
    assert export.main(flags) == 0
    printed = capsys.readouterr().out
    assert "no tokenizer came along" in printed and "AutoProcessor" not in printed
    assert "activation quick_gelu, assumed: OpenAI's clip has no other" in printed
    assert export.main([*flags, f"--tokenizer={tiny_vocabulary}", "--overwrite"]) == 0
    assert "AutoProcessor" in capsys.readouterr().out
    assert (out / "vocab.json").is_file() and (out / "preprocessor_config.json").is_file()
    card = (out / "README.md").read_text()
    assert "assumed: OpenAI's clip has no other" in card and "differ by at most" in card


def test_diffusers_says_what_fits(base, tmp_path, capsys):
    flags = [f"--model={base}", "--layout=diffusers", f"--out={tmp_path / 'out'}"]
    assert export.main(flags) == 0
    assert "text tower 32 wide: fits neither Stable Diffusion" in capsys.readouterr().out


def test_card_of_a_run(run, tmp_path):
    (run / "config.json").write_text(json.dumps({"model": {"checkpoint": "a/b"}, "seed": 3}))
    (run / "metrics.jsonl").write_text('{"step": 20, "loss": 1, "val/loss": 0.25}\n')
    (run / "base" / "README.md").write_text("---\nlicense: mit\n---\n")
    out = tmp_path / "out"
    assert export.main([f"--model={run}", f"--out={out}"]) == 0
    card = (out / "README.md").read_text()
    for words in ("license: mit", "base_model: a/b", "| seed | 3 |", "0.25", "step 20 of"):
        assert words in card
    assert (out / "README.base.md").read_text().startswith("---\nlicense: mit")
    assert export.main([f"--model={run}", f"--out={out}", "--overwrite", "--license=x"]) == 0
    assert "license: x" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--model={base}", "--alpha=1.5"], "--alpha=1.5 is not between 0"),
        (
            ["--model={base}", "--alpha=0.5"],
            "does not say what it was tuned from: give",
        ),
        (["--model={base}", "--layout=openai"], "OpenAI's clip cannot run this model: .*head"),
        (
            ["--model={base}", "--layout=openai", "--architecture=CLIPTextModel"],
            "of --layout=hug",
        ),
        (["--model={base}", "--activation=gelu"], "says quick_gelu, not gelu"),
        (["--model={base}", "--alpha=0.5", "--base={file}"], "different models and cannot"),
        (["--model={base}", "--scores={base}/config.json"], r"is no results\.json"),
        (["--model={base}", "--tokenizer={tmp}"], r"has no vocab\.json"),
        (["--model={base}", "--base={base}"], "--base goes with --alpha"),
        (["--model={run}", "--activation=gelu"], "a run knows its activation"),
        (["--model={file}", "--activation=relu"], "unknown activation 'relu'"),
    ],
)
def test_errors_of_conversions_are_sentences(
    flags, reason, base, run, openai_file, tmp_path, capsys
):
    out = tmp_path / "out"
    places = {"base": base, "run": run, "file": openai_file, "tmp": tmp_path}
    flags = [flag.format(**places) for flag in flags]
    assert export.main([*flags, f"--out={out}"]) == 1
    printed = capsys.readouterr()
    assert re.match(f"error: .*{reason}", printed.err, re.DOTALL) and not printed.out
    assert not out.exists()


def test_it_says_how_long_it_takes(run, tmp_path, monkeypatch, capsys):
    """As if each step took ten seconds."""
    monkeypatch.setattr("negclip_jax.common.progress.FIRST_SECONDS", 0.0)
    monkeypatch.setattr("negclip_jax.common.progress.EVERY_SECONDS", 0.0)
    assert export.main([f"--model={run}", f"--out={tmp_path / 'out'}"]) == 0
    lines = capsys.readouterr().err.splitlines()
    told = [re.fullmatch(r"export, steps: (\d) of 4, ETA \d+:\d\d", line)[1] for line in lines]
    assert told == ["1", "2", "3"]
