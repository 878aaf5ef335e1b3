"""From addresses in the settings to engines that were seen to work."""

import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path

from data_gen.build import Models, Roles
from data_gen.engines.base import Capabilities, Engine
from data_gen.engines.cache import Cache, CachedEngine, ErrorShare
from data_gen.engines.probe import probe
from data_gen.settings import Settings
from negclip_jax.common import storage
from negclip_jax.common.chat.client import ChatClient, ChatSettings
from negclip_jax.common.errors import InputError

_CHAT_SETTINGS = tuple(field.name for field in dataclasses.fields(ChatSettings))


def open_engine(config: Settings, role: str, out: Path) -> Engine:
    """The engine of "llm" or "mllm", not yet connected. Raises InputError for a bad address.

    An address is one or several URLs, "vllm" for a model in this process, or "batch" for files in
    `out` that a batch service answers.
    """
    section = config[role]
    if section.url == "batch":
        from data_gen.engines.batchfile import BatchEngine

        return BatchEngine(out / "batch", role, section.model)
    if section.url == "vllm":
        from data_gen.engines.vllm import VLLMEngine

        return VLLMEngine(section.model)
    urls = [url.strip() for url in section.url.split(",") if url.strip()]
    if not urls:
        raise InputError(f"--{role}-url is empty")
    values = {name: config.engine[name] for name in _CHAT_SETTINGS if name in config.engine}
    return ChatClient(urls, ChatSettings(**values), section.key_variable)


@contextlib.asynccontextmanager
async def connected(
    config: Settings, roles: Roles, cache: Cache | None, out: Path
) -> AsyncIterator[Models]:
    """The engines that the roles need, probed, and closed at the end.

    What was found is kept in `capabilities.json` of the run directory `out`: a resumed run with
    the same addresses does not probe again. Answers come from `cache` first, if there is one.

    Raises EndpointError for a server that cannot do what its role needs.
    """
    known = out / "capabilities.json"
    needed = [r for r, need in (("llm", roles.needs_llm), ("mllm", roles.needs_mllm)) if need]
    found = _read(known)
    errors = ErrorShare(config.max_errors)
    bare: dict[tuple, Engine] = {}
    asked: dict[tuple, Engine] = {}
    async with contextlib.AsyncExitStack() as stack:
        for role in needed:
            address = _address(config, role)
            if address not in bare:  # a server for both roles is one engine, with one limit
                bare[address] = engine = open_engine(config, role, out)
                asked[address] = CachedEngine(engine, cache, errors) if cache else engine
                stack.push_async_callback(asked[address].close)
            if found.get(role, {}).get("address") != list(address):
                can = await probe_engine(bare[address], config[role].model, images=role == "mllm")
                found[role] = {"address": list(address), **dataclasses.asdict(can)}
        if needed:
            storage.write_json(known, found, sort_keys=True)
        can = {role: _capabilities(found[role]) for role in needed}
        by_role = {role: asked[_address(config, role)] for role in needed}
        yield Models(by_role.get("llm"), can.get("llm"), by_role.get("mllm"), can.get("mllm"))


async def probe_engine(engine: Engine, model: str | None, *, images: bool) -> Capabilities:
    """What the engine can: a server is asked, other engines know."""
    if isinstance(engine, ChatClient):
        return await probe(engine, model, images=images)
    return engine.capabilities()


def _address(config: Settings, role: str) -> tuple[str | None, str | None]:
    return config[role].url, config[role].model


def _read(path: Path) -> dict[str, dict]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _capabilities(content: dict) -> Capabilities:
    names = {field.name for field in dataclasses.fields(Capabilities)}
    return Capabilities(**{name: value for name, value in content.items() if name in names})
