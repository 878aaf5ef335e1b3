"""Batch files: the line's form, sizes, and what comes back."""

import asyncio
import json

import pytest

from data_gen.engines import batchfile
from data_gen.engines.batchfile import BatchEngine, import_answers
from data_gen.engines.cache import Cache
from data_gen.engines.probe import Pending
from negclip_jax.common.chat.messages import ChatImage, ChatRequest
from negclip_jax.common.errors import InputError

PHOTO = ChatImage("ab", "file", b"\xff\xd8jpeg")


def request(i: int, photo=None) -> ChatRequest:
    return ChatRequest("verify", "m", (("user", f'{i} "quoted"'),), photo)


def export(folder, *requests, model="m"):
    engine = BatchEngine(folder, "mllm", model)

    async def ask():
        for r in requests:
            with pytest.raises(Pending):
                await engine.generate(r)
        await engine.close()

    asyncio.run(ask())
    return [p.read_text().splitlines() for p in sorted(folder.glob("mllm-*.jsonl"))]


def test_a_line_is_what_batch_services_read(tmp_path):
    ((line, _),) = export(tmp_path, request(1, PHOTO), request(2), request(1, PHOTO))
    content = json.loads(line)
    assert content["custom_id"] == f"verify-{request(1, PHOTO).key}"
    assert (content["method"], content["url"]) == ("POST", "/v1/chat/completions")
    assert content["body"]["messages"][0]["content"][1]["text"] == '1 "quoted"'


def test_files_are_cut_and_old_ones_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(batchfile, "MAX_LINES", 2)
    files = export(tmp_path, *(request(i) for i in range(5)))
    assert [len(lines) for lines in files] == [2, 2, 1]
    assert [len(lines) for lines in export(tmp_path, request(9))] == [1]
    monkeypatch.setattr(batchfile, "MAX_BYTES", 300)
    assert len(export(tmp_path, *(request(i) for i in range(3)))) == 3


def output(key: str, text="No", status=200, stage="verify") -> str:
    body = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": {}}
    response = {"status_code": status, "body": body if status == 200 else {"error": text}}
    return json.dumps({"custom_id": f"{stage}-{key}", "response": response})


def test_answers_of_every_kind(tmp_path):
    lines = [
        output(request(2).key, "Yes"),
        output(request(1).key),
        output(request(3).key, "too long", 400),
        output(request(4).key, "later", 500),
        '{"custom_id": "somebody else\'s"}',
        "",
    ]
    (tmp_path / "out.jsonl").write_text("\n".join(lines))
    cache = Cache(tmp_path / "c.sqlite")
    counts = import_answers(cache, [tmp_path / "out.jsonl"])
    assert counts == {"imported": 3, "failed": 1, "unknown": 1}
    assert cache.get(request(1)).text == "No" and cache.get(request(2)).text == "Yes"
    assert cache.get(request(3)).error == "refused" and cache.get(request(4)) is None


@pytest.mark.parametrize("text", ["no json", "[1]", '{"custom_id": '])
def test_what_is_no_batch_output(tmp_path, text):
    (tmp_path / "out.jsonl").write_text(f"{output(request(1).key)}\n{text}\n")
    with pytest.raises(InputError, match="is no batch output: line 2"):
        import_answers(Cache(tmp_path / "c.sqlite"), [tmp_path / "out.jsonl"])


def test_the_model_has_to_be_named(tmp_path):
    with pytest.raises(InputError, match="give --mllm-model"):
        export(tmp_path, model=None)
