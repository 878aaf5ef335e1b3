"""From `--config=FILE:VARIANT` and flags to settings that are known to be right.

The files are ml-collections configurations like those of `launch.py`. They are read by their path:
this package does not import `configs`.
"""

import ast
import contextlib
import functools
import importlib.util
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_gen.prompts import Prompt
from negclip_jax.common.errors import InputError
from negclip_jax.common.provenance import content_hash
from negclip_jax.common.ranges import NOT_NEGATIVE, POSITIVE, SHARE, check_values
from negclip_jax.common.strict_json import parse_json

CACHE_MODES = ("write", "read", "off")  # here: importing the cache would import the chat client
Settings = ConfigDict  # the type, for modules that must not import ml_collections

DEFAULT = Path(__file__).resolve().parent.parent / "configs" / "data_gen.py"

# Keys that change where and how fast answers come, not what they are. A run goes on when they
# change; of the rest, a change makes its shards again, from cached answers where they still fit.
_NEUTRAL = ("engine", "limit", "prices", "export", "max_errors", "max_rejects", "prompts")
_NEUTRAL_KEYS = ("llm.url", "mllm.url", "llm.key_variable", "mllm.key_variable")
_NEUTRAL_KEYS += ("llm.images_per_request",)  # `generate.Job` adds what follows from it
IMAGES_PER_REQUEST = 4  # where that is open

# Keys that had another name: the old one is read for one release, with a warning.
_RENAMED = {
    "engine.give_up": "engine.max_outage_seconds",
    "propose.per": "propose.unit",
    "rewrite.enforce": "rewrite.require_rules",
    "rewrite.per": "rewrite.unit",
    "verify.mass": "verify.min_answer_probability",
    "verify.wave": "verify.questions_per_round",
}
# Keys that are younger than runs which may go on, with the values by which these were made.
_YOUNGER = {
    "input.fields": None,
    "propose.random": 0.0,
    "propose.present": 0,
    "propose.others": 0,
    "rewrite.style": "natural",
    "rewrite.before": 0.35,
    "rewrite.statements": 0.0,
    "rewrite.hold_out": "",
    "rewrite.foils_by": "edit",
    "rewrite.affirm": False,
    "engine.extra_body": "",
    "llm.images_per_request": 1,
    "images.by": "data",
    "images.url": "",
}

_EXTRA = "engine.extra_body"

_CHOICES = {
    "pipeline": ("absence", "vqa"),
    "images.by": ("data", "url", "file"),
    "engine.cache": CACHE_MODES,
    "propose.by": ("auto", "llm", "cooccurrence", "random", "file"),
    "propose.unit": ("image", "caption"),
    "verify.by": ("auto", "mllm", "instances"),
    "verify.method": ("auto", "logprobs", "choice", "text", "multi", "substring"),
    "rewrite.by": ("auto", "llm", "template"),
    "rewrite.unit": ("image", "caption"),
    "rewrite.style": ("natural", "plain"),
    "rewrite.foils_by": ("edit", "template"),
}
_RANGES = {
    key: limits
    for limits, keys in {
        SHARE: "max_errors max_rejects verify.absent_at verify.present_at "
        "verify.min_answer_probability rewrite.templates rewrite.before rewrite.statements "
        "propose.random propose.top_p rewrite.top_p",
        POSITIVE: "limit engine.concurrency engine.start_concurrency engine.tries engine.window "
        "llm.images_per_request images.long_side shard_images propose.number verify.max_tokens "
        "assign.captions_per_object rewrite.max_tokens rewrite.tries check.max_tokens",
        NOT_NEGATIVE: "verify.questions_per_round propose.present propose.others "
        "engine.per_minute engine.timeout engine.max_outage_seconds engine.backoff foils",
    }.items()
    for key in keys.split()
}


def load(source: str | None, changes: Mapping[str, str]) -> ConfigDict:
    """The settings of a file, FILE:VARIANT or :VARIANT, with changes, locked.

    `changes`: values as text, by dotted key ("verify.absent_at": "0.9"). Raises InputError for a
    file without settings, a key that there is not, and a value out of its range.
    """
    path, _, variant = (source or "").partition(":")
    config = _from_file(Path(path) if path else DEFAULT, variant)
    for key, text in changes.items():
        if key.startswith(_EXTRA + "."):
            _add_to_body(config, key.removeprefix(_EXTRA + "."), text)
            continue
        _change(config, _present_name(key, f"--config.{key}"), text)
    check_values(functools.partial(at, config), _CHOICES, _RANGES)
    extra_body(config)
    if config.images.by == "url" and not config.images.url:
        raise InputError("images.by=url needs images.url, what stands before a photo's name there")
    return config.lock()


def extra_body(config: ConfigDict) -> dict[str, Any]:
    """The fields that `engine.extra_body` adds to every request. Raises InputError."""
    text = config.engine.extra_body
    body = parse_json(text, _EXTRA) if text else {}
    if not isinstance(body, dict):
        raise InputError(f"{_EXTRA} is a JSON object of fields; {text!r} is none")
    return body


def _add_to_body(config: ConfigDict, key: str, text: str) -> None:
    """Sets `engine.extra_body.KEY=VALUE`; a value that is no JSON is text."""
    body = extra_body(config)
    *outer, name = key.split(".")
    inner = body
    for part in outer:
        inner = inner.setdefault(part, {})
    inner[name] = text
    with contextlib.suppress(ValueError):
        inner[name] = json.loads(text.lower() if text in ("True", "False") else text)
    config.engine.extra_body = json.dumps(body)


def _from_file(path: Path, variant: str) -> ConfigDict:
    if not path.is_file():
        raise InputError(f"there is no configuration file {path}")
    spec = importlib.util.spec_from_file_location("data_gen_settings", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(*([variant] if variant else []))
        config.verify.absent_at  # noqa: B018 another stage's settings have no such key
    except Exception as error:  # whatever the user's Python file raises
        raise InputError(f"{path} gives no settings of data_gen: {error}") from None
    for old in _RENAMED:
        section, name = old.split(".")
        if name in config[section]:  # beside the new name, too: then the file sets the old one
            _, new = _present_name(old, f"{path}: {old}").split(".")
            config[section][new] = config[section][name]
            del config[section][name]
    for key, value in _YOUNGER.items():  # files that were copied from an older one lack them
        section, name = key.split(".")
        if name not in config[section]:
            config[section][name] = value
    return config


def _present_name(key: str, where: str) -> str:
    """The name that a key has now; a warning that names `where` if it was another one."""
    if key in _RENAMED:
        logging.getLogger(__name__).warning(
            "%s is now called %s; the old name is read in this release only", where, _RENAMED[key]
        )
    return _RENAMED.get(key, key)


_KINDS = {bool: "True or False", int: "a whole number", float: "a number"}


def _change(config: ConfigDict, key: str, text: str) -> None:
    *sections, name = key.split(".")
    section = config
    for part in sections:
        section = section.get(part) if isinstance(section, ConfigDict) else None
    if not isinstance(section, ConfigDict) or name not in section:
        raise InputError(f"there is no configuration key {key!r}; configs/data_gen.py has them all")
    if isinstance(section[name], ConfigDict):
        raise InputError(f"{key} is a section; give one of its keys: {', '.join(section[name])}")
    kind, value = section.get_type(name), text
    if kind is not str:
        with contextlib.suppress(ValueError, SyntaxError):  # still text then, and refused
            value = None if text in ("None", "") else ast.literal_eval(text.capitalize())
        if kind is float and type(value) is int:
            value = float(value)
        if value is not None and type(value) is not kind:
            raise InputError(f"{key} is {_KINDS[kind]}; {text!r} is none")
    section[name] = value


def at(config: ConfigDict, key: str) -> Any:
    """The value of a dotted key."""
    for part in key.split("."):
        config = config[part]
    return config


def require(config: ConfigDict, *keys: str) -> None:
    """Raises InputError that names the flag for the first of `keys` without a value."""
    for key in keys:
        if at(config, key) is None:
            raise InputError(f"--{key.removeprefix('input.').replace('.', '-')} is missing")


def fingerprint(config: ConfigDict, prompts: Mapping[str, Prompt], extra: Any) -> str:
    """A hash of everything in the settings, prompts and `extra` that decides the tables.

    Input files count by what is in them, which `extra` brings in, not by where they are.
    """
    content = config.to_dict()
    for key in _NEUTRAL:
        content.pop(key)
    for old, new in _RENAMED.items():  # runs of the old names have the same fingerprint
        section, name = old.split(".")
        if section in content:
            content[section][name] = content[section].pop(new.split(".")[1])
    for key in _NEUTRAL_KEYS:
        section, name = key.split(".")
        content[section].pop(name)
    for key, value in _YOUNGER.items():
        section, name = key.split(".")
        if section in content and content[section].get(name) == value:
            content[section].pop(name)
    content["input"] = {name: value is not None for name, value in content["input"].items()}
    content["prompts"] = sorted(prompt.id for prompt in prompts.values())
    return content_hash([content, extra])
