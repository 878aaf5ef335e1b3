"""The old names of renamed keys: in configuration files, and as flat settings of an older run."""

import pytest

from configs import common
from negclip_jax.common import renamed_keys


@pytest.fixture(autouse=True)
def warnings(caplog):
    """Function to the messages so far; what was said before counts as not said."""
    renamed_keys._warn.cache_clear()
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("key", renamed_keys.RENAMED)
def test_a_new_key_is_declared_and_the_old_one_is_not(key):
    section, name = key.split(".")
    declared = common.base().to_dict()
    assert name not in declared[section]
    section, name = renamed_keys.RENAMED[key].split(".")
    assert name in declared[section]


def test_a_file_that_uses_the_old_name(warnings):
    config = common.base()
    config.data.captions = "mix"  # what a file of last month does
    config.update_from_flattened_dict({"runtime.silence": 7.0})
    assert config.data.caption_mode == config.data.captions == "mix"
    assert config.runtime.heartbeat_timeout == 7.0
    assert config.to_dict().keys() == common.base().to_dict().keys()
    assert "captions" not in config.data.to_dict() and "silence" not in config.runtime.to_dict()
    assert warnings() == [
        "config.data.captions is now called config.data.caption_mode; the old name is read in this "
        "release only",
        "config.runtime.silence is now called config.runtime.heartbeat_timeout; the old name is "
        "read in this release only",
    ]


def test_a_copy_of_a_configuration_answers_too():
    config = common.base().copy_and_resolve_references().lock()
    config.data.captions = "mix"
    assert config.data.caption_mode == "mix"


def test_new_names_and_other_mistakes_are_not_touched(warnings):
    config = common.base().lock()
    config.data.caption_mode = "mix"
    with pytest.raises(AttributeError, match="silence"):
        config.data.silence = 3.0  # of another section
    with pytest.raises(AttributeError, match="caption_mode"):
        config.data.caption_mod = "mix"
    assert warnings() == []


def test_settings_of_an_older_run(warnings):
    old = {"data.captions": "mix", "optim.lr": 0.1}
    expected = {"data.caption_mode": "mix", "optim.lr": 0.1}
    assert renamed_keys.with_new_keys(old, warn=False) == expected and warnings() == []
    assert renamed_keys.with_new_keys(old) == expected and len(warnings()) == 1
    assert renamed_keys.with_new_keys(expected) == expected and len(warnings()) == 1
