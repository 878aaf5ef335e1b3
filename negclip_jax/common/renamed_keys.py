"""Configuration keys that had another name. For one release the old name works, with a warning.

It works on a command line and in a configuration file (`configs.common.Section`), and in the
`config.json` of a run that an earlier release started. Delete a line once a release has had it.
"""

import functools
import logging
from collections.abc import Mapping
from typing import Any

# Old to new, as "section.key".
RENAMED = {
    "data.captions": "data.caption_mode",
    "runtime.silence": "runtime.heartbeat_timeout",
}


def new_key(key: str, present: Mapping[str, Any]) -> str:
    """Today's name of a key of the section that holds `present`: mostly `key` itself."""
    if key in present:
        return key
    for old, new in RENAMED.items():
        name = new.rpartition(".")[2]
        if key == old.rpartition(".")[2] and name in present:
            _warn(old, new)
            return name
    return key


def with_new_keys(settings: Mapping[str, Any], *, warn: bool = True) -> dict[str, Any]:
    """`{"section.key": value}` of an earlier release under today's names."""
    for old in settings.keys() & RENAMED.keys() if warn else ():
        _warn(old, RENAMED[old])
    return {RENAMED.get(key, key): value for key, value in settings.items()}


@functools.cache  # once in a process: a key is looked up several times to be set
def _warn(old: str, new: str) -> None:
    message = "config.%s is now called config.%s; the old name is read in this release only"
    logging.getLogger(__name__).warning(message, old, new)
