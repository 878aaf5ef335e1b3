"""What a run writes down about itself, so that its pairs can be explained years later."""

import dataclasses
import json
import os
import platform
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_gen import shards
from data_gen.engines.base import Capabilities
from data_gen.engines.cache import read_statistics
from data_gen.prompts import Prompt
from data_gen.settings import Settings
from negclip_jax.common import storage, strict_json
from negclip_jax.common.errors import InputError
from negclip_jax.common.provenance import file_facts, git_revision, package_versions

_KEYS = {"run_id", "roles", "inputs", "captions", "images", "ingest_rejects", "config", "calls"}
_PACKAGES = ("negclip-jax", "aiohttp", "pyarrow", "pillow", "ml-collections", "ray", "vllm")


def input_facts(config: Settings) -> dict[str, dict[str, Any]]:
    """Facts of every input file that the settings name."""
    files = {name: path for name, path in config.input.items() if path and name != "images"}
    return {name: file_facts(path) for name, path in sorted(files.items())}


def write_manifest(
    run: Path,
    config: Settings,
    prompts: Mapping[str, Prompt],
    capabilities: Mapping[str, Capabilities],
    about: Mapping[str, Any],
) -> None:
    """Writes `manifest.json` of a run directory: settings, prompts in full, versions, counts.

    `about`: what only the run knows (run_id, roles, methods, facts of the input files).
    """
    content = {
        **about,
        "config": config.to_dict(),
        "prompts": {p.id: [list(turn) for turn in p.turns] for p in prompts.values()},
        "capabilities": {role: dataclasses.asdict(can) for role, can in capabilities.items()},
        "packages": {n: v for n, v in package_versions(_PACKAGES).items() if v is not None},
        "python": platform.python_version(),
        "git": git_revision(),
        "counts": counts(run),
        "calls": read_statistics(run / "cache.sqlite"),
    }
    storage.write_json(run / "manifest.json", content, sort_keys=True)


def read_manifest(run: Path) -> dict[str, Any]:
    """The manifest of a run. Raises InputError where there is none."""
    try:
        content = strict_json.load(run / "manifest.json")
        if not isinstance(content, dict) or not content.keys() >= _KEYS:
            raise ValueError
    except (OSError, ValueError):
        raise InputError(f"{run} holds no run of data_gen (no readable manifest.json)") from None
    return content


def counts(run: Path) -> dict[str, int]:
    """Rows of all tables, images and accepted pairs, over the finished shards."""
    total: dict[str, int] = {}
    for mark in shards.read_marks(run):
        for name, number in mark["rows"].items():
            total[name] = total.get(name, 0) + number
    return total


def log_session(run: Path, content: Mapping[str, Any]) -> None:
    """Adds a line to `sessions.jsonl`: when and where the run was worked on, and how it ended."""
    line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    line |= {"host": socket.gethostname(), "pid": os.getpid(), **content}
    with (run / "sessions.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
