"""Configuration files and flags: variants, changes, and mistakes in a sentence."""

import pytest

from configs import data_gen as configuration
from data_gen.prompts import load_prompts
from data_gen.settings import fingerprint, load, require
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
        ({"seed": "x"}, "seed is a int; 'x' is none"),
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
