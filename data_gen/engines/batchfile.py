"""Requests as files for a batch service, and its answers back into the cache.

One request a line, as OpenAI, Together and `vllm run-batch` read it: {"custom_id", "method",
"url", "body"}, with the cache key as custom_id. Stages build on each other's answers, so a run
takes a few rounds of export, service and import; each continues where the last one stopped.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from data_gen.engines.cache import Cache
from data_gen.engines.probe import Capabilities, Pending
from negclip_jax.common import strict_json
from negclip_jax.common.chat import messages
from negclip_jax.common.chat.messages import ChatRequest, ChatResult
from negclip_jax.common.errors import InputError
from negclip_jax.common.progress import told

MAX_LINES, MAX_BYTES = 50_000, 95_000_000  # a file; the stricter of the services' limits


class BatchEngine:
    """Writes each request into a file; the answer comes with a later run."""

    def __init__(self, folder: Path, role: str, model: str | None):
        """Files are `folder`/ROLE-00000.jsonl and so on. Raises InputError without a model."""
        if not model:
            raise InputError(f"batch files name the model: give --{role}-model")
        self._folder, self._role, self._model = folder, role, model
        self._file, self._lines, self._bytes, self._number = None, 0, 0, 0
        self._written: set[str] = set()

    def capabilities(self) -> Capabilities:
        """What batch services can: vLLM and OpenAI return log probabilities."""
        return Capabilities(self._model, images=self._role == "mllm", logprobs=True)

    async def generate(self, request: ChatRequest) -> ChatResult:
        """Raises Pending, always."""
        if request.key not in self._written:
            self._written.add(request.key)
            head = {"custom_id": f"{request.stage}-{request.key}", "method": "POST"}
            text = json.dumps(head | {"url": "/v1/chat/completions"})
            self._write(b'%s, "body": %s}\n' % (text[:-1].encode(), messages.body_of(request)))
        raise Pending(request.key)

    def _write(self, line: bytes) -> None:
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            for old in self._folder.glob(f"{self._role}-*.jsonl"):
                old.unlink()  # its answers were imported, or it is written again now
        full = self._lines >= MAX_LINES or self._bytes + len(line) > MAX_BYTES
        if self._file is None or full:
            if self._file is not None:
                self._file.close()
            self._file = (self._folder / f"{self._role}-{self._number:05d}.jsonl").open("wb")
            self._number += 1
            self._lines = self._bytes = 0
        self._file.write(line)
        self._lines += 1
        self._bytes += len(line)

    async def close(self) -> None:
        if self._file is not None:
            self._file.close()


def import_answers(cache: Cache, files: list[Path]) -> dict[str, int]:
    """Puts the answers of batch output files, in any order, into the cache.

    Returns how many were "imported", "failed" (asked again by the next export) and "unknown" (no
    custom_id of ours). Raises InputError for a file that is no JSONL.
    """
    counts = {"imported": 0, "failed": 0, "unknown": 0}
    for path in told(files, "files of answers"):
        for entry in _entries(path):
            stage, _, key = str(entry.get("custom_id", "")).partition("-")
            if len(key) != 32:
                counts["unknown"] += 1
                continue
            result = _result(entry)
            if result.error is not None and not result.permanent:
                counts["failed"] += 1
                continue
            asked = SimpleNamespace(stage=stage, key=key, model=str(entry.get("model", "")))
            cache.put(asked, result)
            counts["imported"] += 1
    cache.flush()
    return counts


def _entries(path: Path) -> Iterator[dict]:
    number = 0  # of the line that an error is about
    try:
        with path.open("rb") as file:
            for line in strict_json.lines(file):
                number += 1
                if line.strip():
                    entry = strict_json.loads(line)
                    if not isinstance(entry, dict):
                        raise ValueError("no object")
                    yield entry
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path} is no batch output: line {number} ({error})") from None


def _result(entry: dict) -> ChatResult:
    response = entry.get("response")
    response = response if isinstance(response, dict) else {}
    status, body = response.get("status_code", 200), response.get("body")
    if status == 200 and isinstance(body, dict) and not entry.get("error"):
        try:
            return replace(messages.result_of(body), host="batch")
        except ValueError as error:
            return ChatResult(error="bad_response", detail=str(error), host="batch")
    detail = json.dumps(entry.get("error") or body)[:500]
    refused = status in (400, 413, 422)
    code = "content_filter" if messages.is_filtered(detail) else "refused"
    return ChatResult(error=code if refused else "batch", detail=detail, permanent=refused)
