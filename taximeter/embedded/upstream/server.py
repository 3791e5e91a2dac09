"""The OpenAI-compatible routes of the simulated server, with vLLM's extensions that Taximeter uses."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from taximeter.embedded.upstream.prefix_cache import PrefixCache
from taximeter.embedded.upstream.settings import UpstreamSettings
from taximeter.embedded.upstream.tokenizer import Prompt, chain, read_prompt

OUTPUT_TOKENS_DEFAULT = 64
_ANSWER = "every token of this answer is counted once and only once so that the bill is right"
_WORDS = _ANSWER.split()


@dataclass(frozen=True, slots=True)
class _Job:
    """One request, read: what it asks for and what the cache already holds of it."""

    model: str
    prompt: Prompt
    hashes: list[str]
    hit_blocks: int
    output_tokens: int
    finish_reason: str

    def usage(self, generated: int) -> dict[str, Any]:
        """OpenAI's usage object, and which prefix blocks were used."""
        cached = sum(tokens for _key, tokens in self.prompt.blocks[: self.hit_blocks])
        return {
            "prompt_tokens": self.prompt.tokens,
            "completion_tokens": generated,
            "total_tokens": self.prompt.tokens + generated,
            "prompt_tokens_details": {"cached_tokens": cached},
            "taximeter_cache": {
                "block_size": self.prompt.block_size,
                "hit_blocks": self.hit_blocks,
                "blocks": self.hashes,
            },
        }


class SimulatedServer:
    """State: the cache, and totals that tests compare with what was metered."""

    def __init__(self, settings: UpstreamSettings) -> None:
        self._settings = settings
        self._models = [name.strip() for name in settings.upstream_models.split(",") if name.strip()]
        self._cache = PrefixCache(settings.upstream_cache_blocks)
        self._totals: Counter[str] = Counter()
        self._running = 0

    def app(self) -> Starlette:
        """The routes."""
        return Starlette(
            routes=[
                Route("/v1/models", self._list_models),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._completion, methods=["POST"]),
                Route("/v1/embeddings", self._embedding, methods=["POST"]),
                Route("/tokenize", self._tokenize, methods=["POST"]),
                Route("/stats", self._stats),
                Route("/healthz", self._healthy),
                Route("/readyz", self._healthy),
            ]
        )

    async def _healthy(self, _request: Request) -> Response:
        return JSONResponse({"ready": True})

    async def _stats(self, _request: Request) -> Response:
        return JSONResponse({**self._totals, "running": self._running})

    async def _list_models(self, _request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in self._models]})

    async def _tokenize(self, request: Request) -> Response:
        body = await request.json()
        if (refusal := self._refusal(body)) is not None:
            return refusal
        count = read_prompt(_text(body)).tokens
        return JSONResponse({"count": count, "max_model_len": 1_000_000, "tokens": []})

    async def _embedding(self, request: Request) -> Response:
        body = await request.json()
        if (refusal := self._refusal(body)) is not None:
            return refusal
        texts = body["input"] if isinstance(body.get("input"), list) else [body.get("input", "")]
        count = sum(read_prompt(str(text)).tokens for text in texts)
        self._totals.update(requests=1, prompt_tokens=count)
        data = [{"object": "embedding", "index": index, "embedding": [0.0, 1.0]} for index in range(len(texts))]
        usage = {"prompt_tokens": count, "total_tokens": count}
        return JSONResponse({"object": "list", "model": body["model"], "data": data, "usage": usage})

    async def _chat(self, request: Request) -> Response:
        return await self._generate(request, chat=True)

    async def _completion(self, request: Request) -> Response:
        return await self._generate(request, chat=False)

    async def _generate(self, request: Request, *, chat: bool) -> Response:
        try:
            body = await request.json()
        except ValueError:
            return _refused(400, "invalid_json", "the body is not JSON")
        if (refusal := self._refusal(body)) is not None:
            return refusal
        job = self._job(body)
        if body.get("stream"):
            return StreamingResponse(self._stream(job, body, chat), media_type="text/event-stream")
        await self._think(job.output_tokens)
        self._count(job, job.output_tokens)
        text = " ".join(_WORDS[n % len(_WORDS)] for n in range(job.output_tokens))
        choice: dict[str, Any] = {"index": 0, "finish_reason": job.finish_reason}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        kind = "chat.completion" if chat else "text_completion"
        answer = {
            "id": "sim",
            "object": kind,
            "model": job.model,
            "choices": [choice],
            "usage": job.usage(job.output_tokens),
        }
        return JSONResponse(answer)

    async def _stream(self, job: _Job, body: dict[str, Any], chat: bool) -> AsyncIterator[str]:
        options = body.get("stream_options") or {}
        every = bool(options.get("continuous_usage_stats")) and bool(options.get("include_usage"))
        kind = "chat.completion.chunk" if chat else "text_completion"
        head = {"id": "sim", "object": kind, "model": job.model}
        generated = 0
        self._running += 1
        try:
            for number in range(job.output_tokens):
                await self._think(1)
                word = _WORDS[number % len(_WORDS)] + " "
                last = number == job.output_tokens - 1
                choice: dict[str, Any] = {"index": 0, "finish_reason": job.finish_reason if last else None}
                choice |= {"delta": {"content": word}} if chat else {"text": word}
                generated += 1
                chunk = {**head, "choices": [choice]}
                yield _event({**chunk, "usage": job.usage(generated)} if every else chunk)
            if options.get("include_usage"):
                yield _event({**head, "choices": [], "usage": job.usage(generated)})
            yield "data: [DONE]\n\n"
        finally:
            self._running -= 1
            self._count(job, generated)

    def _count(self, job: _Job, generated: int) -> None:
        cached = job.usage(0)["prompt_tokens_details"]["cached_tokens"]
        self._totals.update(requests=1, prompt_tokens=job.prompt.tokens, cached_tokens=cached, output_tokens=generated)

    async def _think(self, tokens: int) -> None:
        # Also at full speed the loop is given back, so that a client that left is noticed.
        await asyncio.sleep(self._settings.upstream_token_ms * tokens / 1000)

    def _job(self, body: dict[str, Any]) -> _Job:
        prompt = read_prompt(_text(body))
        hashes = chain(prompt, body["model"], str(body.get("cache_salt") or ""))
        hits = self._cache.use(hashes)
        bound = int(body.get("max_tokens") or body.get("max_completion_tokens") or 10**6)
        wanted = (body.get("vllm_xargs") or {}).get("simulated_output_tokens")
        if wanted is None:
            wanted = random.Random(hashes[-1] if hashes else _text(body)).randint(1, 2 * OUTPUT_TOKENS_DEFAULT)
        reason = "length" if int(wanted) > bound else "stop"
        return _Job(body["model"], prompt, hashes, hits, max(0, min(int(wanted), bound)), reason)

    def _refusal(self, body: Any) -> Response | None:
        if not isinstance(body, dict):
            return _refused(400, "invalid_request", "the body is not an object")
        if body.get("model") not in self._models:
            return _refused(404, "model_not_found", f"there is no model {body.get('model')!r}")
        if (body.get("n") or 1) != 1:
            return _refused(400, "invalid_request", "n must be 1")
        return None


def _text(body: dict[str, Any]) -> str:
    if "messages" in body:
        return " ".join(_content(message.get("content")) for message in body["messages"])
    prompt = body.get("prompt") or body.get("input") or ""
    return " ".join(map(str, prompt)) if isinstance(prompt, list) else str(prompt)


def _content(content: Any) -> str:
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content)
    return str(content or "")


def _event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n"


def _refused(status: int, code: str, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error", "code": code}}, status)
