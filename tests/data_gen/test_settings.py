"""Configuration files and flags: variants, changes, and user errors."""

from types import SimpleNamespace

import pytest

from configs import data_gen as configuration
from data_gen.prompts import load_prompts
from data_gen.settings import at, fingerprint, load, require
from negclip_jax.common.errors import InputError

VARIANTS = ("per_image", "frugal", "per_caption", "random_objects")


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_loads_as_it_is_written(variant):
    loaded = load(f":{variant}", {})
    assert loaded.to_dict() == configuration.get_config(variant).to_dict()


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from configs.data_gen import base\n"
        "def get_config():\n    c = base()\n    c.foils = 5\n    return c\n"
    )
    assert load(str(path), {}).foils == 5


def test_changes_take_the_keys_type():
    changes = {
        "seed": "3",
        "verify.absent_at": "1",
        "propose.filter": "false",
        "llm.url": "http://h/v1",
        "limit": "20",
    }
    config = load(None, changes)
    assert config.seed == 3 and config.limit == 20
    assert config.verify.absent_at == 1.0 and isinstance(config.verify.absent_at, float)
    assert config.propose.filter is False and config.llm.url == "http://h/v1"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"verify.absentat": "1"}, "no configuration key 'verify.absentat'"),
        ({"nothing.here": "1"}, "no configuration key"),
        ({"verify": "1"}, "is a section"),
        ({"seed": "x"}, "seed is a whole number; 'x' is none"),
        ({"verify.absent_at": "1.5"}, "must be between 0 and 1"),
        ({"limit": "0"}, "must be at least 1"),
        ({"foils": "-1"}, "must be at least 0"),
        ({"pipeline": "p3"}, "must be one of absence, vqa"),
        ({"verify.method": "guess"}, "must be one of auto, logprobs"),
    ],
)
def test_mistakes(changes, said):
    with pytest.raises(InputError, match=said):
        load(None, changes)


def test_files_that_are_no_settings(tmp_path):
    with pytest.raises(InputError, match="there is no configuration file"):
        load(str(tmp_path / "none.py"), {})
    with pytest.raises(InputError, match="unknown variant 'x'"):
        load(":x", {})
    path = tmp_path / "other.py"
    path.write_text("def get_config():\n    return {}\n")
    with pytest.raises(InputError, match="gives no settings of data_gen"):
        load(str(path), {})


def test_missing_flags_are_named():
    with pytest.raises(InputError, match="--captions is missing"):
        require(load(None, {}), "input.captions")


def test_the_fingerprint_is_of_what_decides_the_tables():
    prompts = load_prompts()

    def of(**changes):
        named = {key.replace("__", "."): value for key, value in changes.items()}
        return fingerprint(load(None, named), prompts, [])

    base = of()
    neutral = {"engine__concurrency": "3", "limit": "2", "llm__url": "http://x", "max_errors": "1"}
    assert all(of(**{key: value}) == base for key, value in neutral.items())
    decisive = {"seed": "1", "verify__absent_at": "0.9", "llm__model": "m", "foils": "0"}
    assert len({base, *(of(**{key: value}) for key, value in decisive.items())}) == 5


OLD_FILE = """
from ml_collections import ConfigDict
from configs.data_gen import base
def get_config():
    config = base()
    config.verify.wave, config.rewrite.enforce, config.engine.give_up = 4, False, 9.0
    del config.verify.questions_per_round
    config.propose.per, config.rewrite.per, config.verify.mass = "caption", "caption", 0.4
    return config
"""
RENAMED = {
    "verify.wave": ("verify.questions_per_round", "4", 4),
    "verify.mass": ("verify.min_answer_probability", "0.4", 0.4),
    "propose.per": ("propose.unit", "caption", "caption"),
    "rewrite.per": ("rewrite.unit", "caption", "caption"),
    "rewrite.enforce": ("rewrite.require_rules", "False", False),
    "engine.give_up": ("engine.max_outage_seconds", "9", 9.0),
}


def test_old_names_are_read_with_a_warning(tmp_path, caplog):
    flags = load(None, {old: text for old, (_, text, _) in RENAMED.items()})
    assert "--config.verify.wave is now called verify.questions_per_round" in caplog.text
    (tmp_path / "old.py").write_text(OLD_FILE)
    file = load(str(tmp_path / "old.py"), {})
    assert "old.py: rewrite.enforce is now called rewrite.require_rules" in caplog.text
    for old, (new, _, value) in RENAMED.items():
        section, name = old.split(".")
        assert at(flags, new) == at(file, new) == value and name not in flags[section]
    assert flags.to_dict() == file.to_dict()


FINGERPRINTS = {  # of the version with the old names, and an empty set of prompts
    "per_image": "a6303b97abc2147a4542add92bb613dd",
    "frugal": "8d8eb5b47343d132bda7052a481ecb56",
    "per_caption": "022cbb2f5dc9e6548bd6c3ae45d96062",
    "random_objects": "5536b70314d3640d28384d4a4650d62f",
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_of_an_earlier_version_is_not_made_again(variant):
    prompts = {"propose": SimpleNamespace(id="propose-1")}
    older = {"propose.present": "0", "propose.others": "0"}
    assert fingerprint(load(f":{variant}", older), prompts, []) == FINGERPRINTS[variant]
    changed = load(None, older | {old: text for old, (_, text, _) in RENAMED.items()})
    assert fingerprint(changed, prompts, []) == "4b760968affae109cec1d41773b01760"
