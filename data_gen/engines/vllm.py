"""vLLM inside this process: no server, for machines with a GPU of their own."""

import asyncio
import dataclasses
import time
from typing import Any

from data_gen.engines.probe import Capabilities
from negclip_jax.common import extras
from negclip_jax.common.chat import messages
from negclip_jax.common.chat.messages import ChatRequest, ChatResult
from negclip_jax.common.errors import InputError

_GATHER_SECONDS = 0.02  # requests that arrive within it become one batch


class VLLMEngine:
    """Collects requests for a moment and gives them to `vllm.LLM.chat` as one batch."""

    def __init__(self, model: str | None):
        """`model`: hub id or directory. Raises InputError without one, or without vLLM."""
        if not model:
            raise InputError("--llm-url=vllm needs the model: give --llm-model (or --mllm-model)")
        try:
            import vllm
        except ImportError:
            raise InputError(f"--llm-url=vllm needs vLLM: {extras.install('vllm')}") from None
        self._vllm, self._model = vllm, model
        self._llm = vllm.LLM(model=model, enable_prefix_caching=True)
        self._waiting: list[tuple[ChatRequest, asyncio.Future]] = []
        self._task: asyncio.Task | None = None

    def capabilities(self) -> Capabilities:
        """What vLLM can, whatever the model."""
        return Capabilities(
            self._model,
            images=True,
            logprobs=True,
            choice="structured_outputs",
            schema=True,
            many=True,
            several=True,
            prefix_cache=True,
        )

    async def generate(self, request: ChatRequest) -> ChatResult:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._serve())
        return await future

    async def _serve(self) -> None:
        while self._waiting:
            await asyncio.sleep(_GATHER_SECONDS)
            batch, self._waiting = self._waiting, []
            started = time.monotonic()
            try:
                results = await asyncio.to_thread(self._chat, [request for request, _ in batch])
            except Exception as error:  # one over-long prompt fails the whole call
                results = [await self._alone(request, error) for request, _ in batch]
            latency = 1000 * (time.monotonic() - started)
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(dataclasses.replace(result, latency_ms=latency))

    async def _alone(self, request: ChatRequest, error: Exception) -> ChatResult:
        try:
            return (await asyncio.to_thread(self._chat, [request]))[0]
        except Exception as own:
            detail = str(own or error)[:500]
            return ChatResult(error="refused", detail=detail, permanent=True)

    def _chat(self, requests: list[ChatRequest]) -> list[ChatResult]:
        turns, sampling = [], []
        for request in requests:
            turns.append(messages.fields_of(request)["messages"])
            if request.image is not None:
                url = {"url": request.image.data_url.decode()}
                turns[-1][-1]["content"][0]["image_url"] = url
            extra = {}
            if request.choice:
                outputs = self._vllm.sampling_params.StructuredOutputsParams
                extra["structured_outputs"] = outputs(choice=list(request.choice))
            sampling.append(
                self._vllm.SamplingParams(
                    max_tokens=request.max_tokens,
                    temperature=request.temperature,
                    top_p=request.top_p,
                    seed=request.seed,
                    logprobs=request.top_logprobs or None,
                    **extra,
                )
            )
        # What the chat template takes is the same in all requests of a run.
        template = requests[0].extra.get("chat_template_kwargs")
        more = {"chat_template_kwargs": template} if template else {}
        outputs = self._llm.chat(turns, sampling, use_tqdm=False, **more)
        return [_result(output) for output in outputs]

    async def close(self) -> None:
        """The model's memory is freed with the process."""


def _result(output: Any) -> ChatResult:
    answer = output.outputs[0]
    top = None
    if answer.logprobs:
        top = [(entry.decoded_token, entry.logprob) for entry in answer.logprobs[0].values()]
    text, thinks = messages.without_thoughts(answer.text)
    only_thinks = thinks and not text.strip()
    return ChatResult(
        text=text,
        thinks=thinks,
        error="thinking" if only_thinks else None,
        detail=messages.THINKS if only_thinks else None,
        finish_reason=answer.finish_reason,
        prompt_tokens=len(output.prompt_token_ids or ()),
        completion_tokens=len(answer.token_ids),
        cached_tokens=output.num_cached_tokens or 0,
        top=top,
        host="vllm",
    )
