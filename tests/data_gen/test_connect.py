"""Addresses to engines: several servers, one for two roles, what was found is kept, vLLM inside."""

import asyncio
import sys
import types

import pytest
from fault_server import POOL, FaultServer, always, arguments, tables, world

from data_gen import settings
from data_gen.build import open_engine
from data_gen.cli import main
from negclip_jax.common.chat.messages import ChatRequest
from negclip_jax.common.errors import InputError


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "w"
    return folder, world(folder, 8)


def test_several_servers_share_the_photos(scene, tmp_path):
    """All questions about a photo go to one server; the tables do not depend on how many."""
    folder, shows = scene
    with FaultServer(shows, POOL) as one:
        assert main(arguments(folder, tmp_path / "one", one)) == 0
    photos = {}

    def see(number):
        def spy(body):
            content = body["messages"][-1]["content"]
            if not isinstance(content, str):
                photos.setdefault(content[0]["image_url"]["url"], set()).add(number)
            return False

        return {"500": spy}

    with (
        FaultServer(shows, POOL, faults=see(0)) as first,
        FaultServer(shows, POOL, faults=see(1)) as second,
    ):
        urls = [f"--{role}-url={first.url},{second.url}" for role in ("llm", "mllm")]
        assert main([*arguments(folder, tmp_path / "two", first), *urls]) == 0
        assert first.counts.calls > 10 and second.counts.calls > 10
    assert len(photos) >= 8 and all(len(servers) == 1 for servers in photos.values())
    assert tables(tmp_path / "one") == tables(tmp_path / "two")


def test_one_of_two_servers_is_down(scene, tmp_path):
    folder, shows = scene
    with FaultServer(shows, POOL) as good, FaultServer(shows, POOL) as bad:
        bad.faults = {"reset": always}
        urls = [f"--{role}-url={good.url},{bad.url}" for role in ("llm", "mllm")]
        command = [*arguments(folder, tmp_path / "run", good), *urls]
        assert main([*command, "--config.engine.tries=9", "--config.max_errors=0.5"]) == 0


def test_the_key_comes_from_the_environment(scene, tmp_path, monkeypatch):
    folder, shows = scene
    monkeypatch.setenv("MY_KEY", "secret")
    with FaultServer(shows, POOL) as server:
        more = [f"--config.{role}.key_variable=MY_KEY" for role in ("llm", "mllm")]
        assert main(arguments(folder, tmp_path / "run", server, *more)) == 0
        assert set(server.keys) == {"Bearer secret"}
    written = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert not any(b"secret" in path.read_bytes() for path in written)


class FakeLLM:
    """What `VLLMEngine` uses of `vllm.LLM`: fails on a batch with an over-long prompt."""

    def __init__(self, model, **options):
        self.batches = []

    def chat(self, messages, sampling, use_tqdm):
        self.batches.append(len(messages))
        texts = [m[-1]["content"] for m in messages]
        if any("too long" in str(text) for text in texts):
            raise ValueError("the prompt has more tokens than the context")
        return [self._output(text) for text in texts]

    @staticmethod
    def _output(text):
        entry = types.SimpleNamespace(decoded_token="No", logprob=-0.1)
        answer = types.SimpleNamespace(
            text=f"No {text}", finish_reason="stop", token_ids=[1], logprobs=[{5: entry}]
        )
        return types.SimpleNamespace(
            outputs=[answer], prompt_token_ids=[1, 2, 3], num_cached_tokens=2
        )


def test_vllm_in_this_process(monkeypatch, tmp_path):
    fake = types.SimpleNamespace(LLM=FakeLLM, SamplingParams=lambda **options: options)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    config = settings.load(None, {"llm.url": "vllm", "llm.model": "m"})
    engine = open_engine(config, "llm", tmp_path)
    assert engine.capabilities().logprobs

    async def ask(*texts):
        requests = [ChatRequest("propose", "m", (("user", text),)) for text in texts]
        return await asyncio.gather(*(engine.generate(request) for request in requests))

    found = asyncio.run(ask("a", "b", "c"))
    assert [result.text for result in found] == ["No a", "No b", "No c"]
    assert engine._llm.batches == [3]  # one batch
    assert list(found[0].top) == [("No", -0.1)] and found[0].cached_tokens == 2
    good, bad = asyncio.run(ask("a", "far too long"))
    assert good.text == "No a" and bad.error == "refused" and "more tokens" in bad.detail


def test_vllm_has_to_be_there(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "vllm", None)
    config = settings.load(None, {"llm.url": "vllm", "llm.model": "m"})
    with pytest.raises(InputError, match=r"pip install -e '\.\[vllm\]'"):
        open_engine(config, "llm", tmp_path)
    config = settings.load(None, {"llm.url": "vllm"})
    with pytest.raises(InputError, match="give --llm-model"):
        open_engine(config, "llm", tmp_path)
