"""The command line: what it accepts, what it says of mistakes, and how it stops."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from absl import flags
from absl.testing import flagsaver
from safetensors.torch import load_file
from tiny_runs import ROOT, checkpoint_steps, read_metrics

import launch
from negclip_jax.common import renamed_keys
from negclip_jax.common.errors import InputError
from negclip_jax.common.signals import Interrupted
from negclip_jax.runtime import console
from negclip_jax.training import loop

CONFIG = f"--config={ROOT}/configs/negationclip.py"


@pytest.fixture
def run_launch(monkeypatch, capsys):
    """Function of arguments to (exit status, what stderr says), in this process."""
    monkeypatch.setattr(console, "set_up_logging", lambda: None)

    def run(*arguments: str) -> tuple[int, str]:
        argv = ["launch.py", *arguments]
        monkeypatch.setattr(sys, "argv", argv)
        with flagsaver.flagsaver():
            try:
                launch.main(launch.parse_flags(argv))
                status = 0
            except SystemExit as stopped:
                status = stopped.code
        return status, capsys.readouterr().err

    yield run
    flags.FLAGS.mark_as_parsed()


@pytest.fixture
def given(monkeypatch) -> list:
    """Configurations that reach train(), which does nothing."""
    configs = []

    def train(config, workdir, evaluators):
        configs.append((config.copy_and_resolve_references(), workdir))
        raise launch_end

    launch_end = SystemExit(0)
    monkeypatch.setattr(loop, "train", train)
    return configs


def test_every_key_can_be_set(run_launch, given):
    status, err = run_launch(
        f"{CONFIG}:vit_l_14",
        "--workdir=runs/x",
        "--config.model.checkpoint=/some/where",
        "--config.optim.lr=1e-5",
        "--config.train.total=3 epochs",
        "--config.train.ema_decay=0.9",
        "--config.data.workers=2",
        "--config.log.tensorboard=False",
        "--config.optim.freeze=('vision/.*',)",
    )
    assert (status, err) == (0, "")
    ((config, workdir),) = given
    assert workdir == "runs/x"
    assert config.model.to_dict() == {
        "checkpoint": "/some/where",
        "dtype": None,
        "remat": True,
        "scan": True,
    }
    assert (config.optim.lr, config.train.total, config.train.ema_decay) == (1e-5, "3 epochs", 0.9)
    assert config.optim.freeze == ("vision/.*",) and config.log.tensorboard is False
    assert config.data.packing is None


def test_deterministic_reaches_all_programs_before_jax_is_used(run_launch, given, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_disable_metadata=false")
    assert run_launch(CONFIG, "--workdir=x") == (0, "")
    assert os.environ["XLA_FLAGS"] == "--xla_dump_disable_metadata=false"
    assert run_launch(CONFIG, "--workdir=x", "--config.runtime.deterministic=True") == (0, "")
    flags = "--xla_dump_disable_metadata=false --xla_gpu_deterministic_ops=true"
    assert os.environ["XLA_FLAGS"] == flags
    command = "import jax; print(jax.jit(lambda x: x + 1)(1.0))"  # XLA knows it, also on a CPU
    done = subprocess.run(
        [sys.executable, "-c", command],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.returncode) == ("2.0\n", 0)


@pytest.mark.slow
def test_debug_runs_from_nothing_and_again(run_launch, tmp_path, one_device, monkeypatch):
    """No file is given: it makes its own, once, and ends with a checkpoint and a trace."""
    words = [f"--config={ROOT}/configs/debug.py", f"--workdir={tmp_path}/run"]
    words += ["--config.train.total=14 steps", "--config.runtime.compilation_cache="]
    status, err = run_launch(*words)
    assert status == 0 and "done: 14 steps in " in err, err
    assert checkpoint_steps(tmp_path / "run")[-1] == 14
    assert read_metrics(tmp_path / "run")[14]["loss"] < read_metrics(tmp_path / "run")[1]["loss"]
    assert len(list((tmp_path / "run" / "profile").rglob("process_0.*"))) == 2
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "made").rglob("*")}
    assert len(made) > 96
    again = []
    monkeypatch.setattr(loop, "train", lambda *_: sys.exit(again.append(1)))
    run_launch(*words, "--config.train.total=16 steps")
    assert again == [1]
    assert made == {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "made").rglob("*")}


def test_made_scenes_stay_behind_files_of_the_user(run_launch, given, tmp_path, monkeypatch):
    (tmp_path / "made").mkdir()
    words = [f"--config={ROOT}/configs/debug.py", f"--workdir={tmp_path}"]
    assert run_launch(*words, "--config.data.pairs=mine.json") == (0, "")
    ((config, _),) = given
    assert config.data.pairs == "mine.json"
    assert config.data.images == f"{tmp_path}/made/images"
    assert config.model.checkpoint == f"{tmp_path}/made/checkpoint"


def test_made_scenes_need_a_disk(run_launch, given):
    status, err = run_launch(f"--config={ROOT}/configs/debug.py", "--workdir=gs://bucket/run")
    assert status == 1 and "runtime.made_scenes makes files: give it a --workdir on a disk" in err


@pytest.mark.parametrize("form", ["--config.data.packing=False", "--noconfig.data.packing"])
def test_what_follows_from_the_family_can_be_set(run_launch, given, form):
    words = ("--config.optim.freeze=()", form)
    assert run_launch(CONFIG, "--workdir=x", *words) == (0, "")
    ((config, _),) = given
    assert config.optim.freeze == () and config.data.packing is False


@pytest.mark.parametrize("form", ["{}=mix", "{} mix"])
def test_a_key_that_was_renamed_can_be_set_by_its_old_name(run_launch, given, form):
    renamed_keys._warn.cache_clear()
    setting = form.format("--config.data.captions").split(" ")
    more = ("--config.runtime.silence=5", "--config.data.original_fraction=0.25")
    status, err = run_launch(CONFIG, "--workdir=x", *setting, *more)
    assert status == 0 and [line.split(";")[0] for line in err.splitlines()] == [
        "config.data.captions is now called config.data.caption_mode",
        "config.runtime.silence is now called config.runtime.heartbeat_timeout",
    ]
    ((config, _),) = given
    assert (config.data.caption_mode, config.runtime.heartbeat_timeout) == ("mix", 5.0)
    assert "captions" not in config.data.to_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([CONFIG], r"flags are required: --workdir\n"),
        (["--workdir=x"], r"flags are required: --config\n"),
        ([], r"flags are required: --config, --workdir\n"),
        ([f"{CONFIG}:vit_b_31", "--workdir=x"], r"unknown variant 'vit_b_31'; choose one of: vit"),
        (["--config=configs/none.py", "--workdir=x"], r"configs/none\.py"),
        ([CONFIG, "--workdir=x", "--wordkir=y"], r"Unknown command line flag 'wordkir'. Did you"),
        (["--config.optim.lrr=1"], r"there is no configuration key 'lrr'; did you mean 'lr'\?"),
        (["--config.optm.lr=1"], r"there is no configuration key 'optm'; did you mean 'optim'"),
        (["--config.zzz=1"], r"there is no configuration key 'zzz'; configs/common\.py has them"),
        (["--config.optim.lr=fast"], r"flag --config\.optim\.lr=fast: could not convert"),
        (["--config.train.batch_size=1.5"], r"flag --config\.train\.batch_size=1\.5: invalid"),
        (["--config.train.ema_decay=x"], r"flag --config\.train\.ema_decay=x: could not convert"),
        (["--config.log.tensorboard=maybe"], r"flag --config\.log\.tensorboard=maybe"),
        (["--config.optim=3"], r"flag --config\.optim=3: .*is not a dict"),
    ],
    ids=lambda value: "".join(value[-1:]).partition("=")[0] if isinstance(value, list) else "",
)
def test_a_wrong_flag_is_a_sentence(run_launch, given, arguments, message):
    if arguments and arguments[0].startswith("--config."):
        arguments = [CONFIG, "--workdir=x", *arguments]
    status, err = run_launch(*arguments)
    assert status == 2 and given == []
    assert re.search(message, err) and err.startswith("error: ")
    assert err.endswith("\nSee python launch.py --help\n")
    assert "Traceback" not in err and len(err.splitlines()) <= 4


def test_bad_input_is_a_sentence(run_launch, monkeypatch):
    def train(config, workdir, evaluators):
        raise InputError("config.data.pairs is not set: pass --config.data.pairs=...")

    monkeypatch.setattr(loop, "train", train)
    assert run_launch(CONFIG, "--workdir=x") == (
        1,
        "error: config.data.pairs is not set: pass --config.data.pairs=...\n",
    )
    arguments = (CONFIG, "--workdir=x", "--config.runtime.distributed=host:1")
    status, err = run_launch(*arguments)
    assert status == 1 and "needs runtime.process_id and runtime.num_processes" in err


def test_how_to_continue_after_a_signal(run_launch, monkeypatch):
    def train(config, workdir, evaluators):
        raise Interrupted(signal.SIGTERM, 7)

    monkeypatch.setattr(loop, "train", train)
    status, err = run_launch(CONFIG, "--workdir=x", "--config.train.total=15 epochs")
    assert status == 128 + signal.SIGTERM
    assert err == (
        "stopped by SIGTERM after step 7; to continue:\n"
        f"  python launch.py {CONFIG} --workdir=x '--config.train.total=15 epochs'\n"
    )


def test_a_run_with_its_last_line(run_launch, make_config, short_run, tmp_path, one_device):
    overrides = [f"--config.{k}={v}" for k, v in short_run.items() if v is not None]
    overrides.append("--config.runtime.compilation_cache=")
    status, err = run_launch(
        CONFIG, f"--workdir={tmp_path / 'run'}", *overrides, "--config.train.total=2 steps"
    )
    assert status == 0, err
    assert re.search(r"^done: 2 steps in 0:\d\d; export with\n  python -m negclip_jax", err, re.M)


# The rest needs processes of its own.


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpfull", "--helpshort"])
def test_help_is_no_error(flag):
    command = [sys.executable, "launch.py", flag]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        done.stdout.startswith("Fine-tunes CLIP on negation pairs.") and "--workdir" in done.stdout
    )


def test_settings_are_checked_before_benchmarks_are_read(run_launch):
    changes = ["--config.eval.benchmarks=pope", "--config.eval.data=absent"]
    status, err = run_launch(f"{CONFIG}:vit_b_32", "--workdir=runs/x", *changes)
    assert status == 1 and "config.data.pairs is not set" in err


def test_the_first_real_command_without_torch(short_run, tiny_checkpoint, forked, tmp_path):
    """`pytorch_model.bin`, as the README's checkpoint is published, where `import torch` fails."""
    folder = tmp_path / "published"
    shutil.copytree(tiny_checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    changes = short_run | {"model.checkpoint": str(folder), "train.total": "2 steps"}
    changes |= {"eval.every": "2 steps", "runtime.compilation_cache": ""}
    overrides = [f"--config.{k}={v}" for k, v in changes.items() if v is not None]
    argv = [CONFIG + ":vit_b_32", f"--workdir={tmp_path / 'run'}", *overrides]

    def run(*argv) -> str:
        (end,) = forked.finish([argv], devices=1, events=[{"without_torch": True}])
        assert end.status == 0, end.output[-3000:]
        return end.output

    assert "done: 2 steps" in run("launch.py", *argv)
    assert checkpoint_steps(tmp_path / "run")[-1] == 2
    flags = [f"--model={tmp_path / 'run'}@last", f"--out={tmp_path / 'out'}"]
    said = run("-m", "negclip_jax.interop.export", *flags)
    assert "the export as NumPy, straight from the files reads it" in said


def test_help_is_quick_and_knows_nothing_of_jax():
    code = (
        "import runpy, sys; sys.argv = ['launch.py', '--help']\n"
        "heavy = {'jax', 'flax', 'grain', 'numpy', 'jaxtyping'}\n"
        "try: runpy.run_path('launch.py', run_name='__main__')\n"
        "finally: print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "HEAVY []" in done.stdout, done.stdout[-300:]
    assert "--config=configs/negationclip.py:vit_b_32 --workdir=runs/b32" in done.stdout
    assert "The same command started" in done.stdout and "--workdir" in done.stdout


@pytest.fixture(scope="module")
def interrupted(short_run, forked, tmp_path_factory):
    """A real run in a session of its own, stopped by Ctrl-C, in a relative working directory."""
    path = tmp_path_factory.mktemp("interrupted")
    arguments = short_run | {"train.total": "1000000 steps", "data.workers": 1}
    overrides = [f"--config.{k}={v}" for k, v in arguments.items() if v is not None]
    argv = [ROOT / "launch.py", CONFIG, "--workdir=runs/x", *overrides]
    process = forked.start(argv, path / "output", devices=1, cwd=path)
    log, deadline = path / "runs" / "x" / "train.log", time.monotonic() + 120
    while not (log.exists() and "step 10: val/" in log.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends Ctrl-C to the whole group
    status = process.wait(60)
    return status, (path / "output").read_text(), path


def test_ctrl_c_saves_and_says_how_to_continue(interrupted):
    status, output, path = interrupted
    assert status == 130 and "Traceback" not in output
    stopped = re.search(
        r"^stopped by SIGINT after step (\d+); to continue:\n  python (.*)launch\.py --config=.*"
        r" --workdir=runs/x .*'--config\.train\.total=1000000 steps'",
        output,
        re.M,
    )
    assert stopped, output
    step = int(stopped[1])
    assert checkpoint_steps(path / "runs" / "x")[-1] == step
    assert max(read_metrics(path / "runs" / "x")) == step


def test_without_a_terminal_the_output_is_plain_lines(interrupted):
    _, output, _ = interrupted
    assert "\x1b" not in output and "\r" not in output
    assert re.search(
        r"^step \d+/1000000  loss \d\.\d{4}  [\d,]+ pairs/s  data wait \d+%  ETA [\d:]+$",
        output,
        re.M,
    )
    assert "64 to train on, 16 to validate" in output
