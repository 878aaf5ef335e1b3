"""Every command of the guide to TPUs has flags that its program knows."""

import argparse
import importlib
import re
import shlex
import sys

import pytest
from absl import flags
from absl.testing import flagsaver
from flax.traverse_util import flatten_dict
from tiny_runs import ROOT

import launch
from configs import negationclip
from negclip_jax.training.config import check_settings

GUIDE = ROOT / "docs" / "guides" / "tpu.md"
PARSERS = {"evals": "evals.__main__", "negclip_jax.interop.export": "negclip_jax.interop.export"}


def commands() -> list[list[str]]:
    """Words after `python` of the commands in the page's blocks, also of those within quotes."""
    found = []
    for block in re.findall(r"^```\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE):
        text = block.replace("\\\n", " ")
        for match in re.finditer(r"python3? ((?:launch\.py|-m [\w.]+) [^\n>&']*)", text):
            words = shlex.split(match[1])
            if words[:2] != ["-m", "venv"]:
                found.append(words)
    return found


def test_the_page_has_the_commands_from_training_to_the_export():
    programs = [words[1] if words[0] == "-m" else words[0] for words in commands()]
    assert programs == ["launch.py", "launch.py", "evals", "negclip_jax.interop.export"]


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words[:2]))
def test_flags_are_known(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    if words[0] == "launch.py":
        monkeypatch.setattr(sys, "argv", words)  # where ml_collections looks
        with flagsaver.flagsaver():
            assert launch.parse_flags(words) == ["launch.py"]
            config = launch._CONFIG.value
            check_settings(flatten_dict(config.to_dict(), sep="."))
            assert launch._WORKDIR.value == "gs://BUCKET/runs/b32"
            assert config.runtime.distributed in ("off", "auto")
        flags.FLAGS.mark_as_parsed()
        return
    parsed, parse = [], argparse.ArgumentParser.parse_args

    def stop(self, *arguments):
        parsed.append(parse(self, *arguments))
        raise LookupError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(LookupError):
        importlib.import_module(PARSERS[words[1]]).main(words[2:])
    assert parsed


def test_settings_named_in_the_text_are_keys_with_such_values():
    text = GUIDE.read_text()
    named = dict(re.findall(r"`--config\.([\w.]+)='?([^`']+)'?`", text))
    assert named.keys() >= {"model.dtype", "train.microbatches", "checkpoint.every", "mesh.fsdp"}
    config = negationclip.get_config()
    for key, value in named.items():
        kind = config[key.partition(".")[0]].get_type(key.partition(".")[2])
        parsed = value == "True" if kind is bool else kind(value)
        config.update_from_flattened_dict({key: parsed})
    config.update_from_flattened_dict({"data.pairs": "x", "data.images": "y"})
    check_settings(flatten_dict(config.to_dict(), sep="."))
