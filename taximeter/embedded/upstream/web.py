"""The simulated server as a plain ASGI application."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from taximeter.embedded.upstream import answers
from taximeter.embedded.upstream.answers import AnswerShape, Reporting
from taximeter.embedded.upstream.engine import Engine, Generation
from taximeter.embedded.upstream.prompts import token_ids
from taximeter.embedded.upstream.refusals import RefusedError
from taximeter.embedded.upstream.requests import GenerationRequest, read_embedding, read_generation

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class SimulatedFailureError(Exception):
    """The answer breaks off, as if the server had died: the connection ends in mid-stream."""


CHUNKS_BETWEEN_YIELDS = 8
"""A stream without latency lets other requests run after this many chunks."""


class Upstream:
    """Routes requests to the engine and shapes its answers."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._settings = engine.settings
        self._created = int(time.time())

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """ASGI: one HTTP request."""
        if scope["type"] != "http":
            return
        body = await _read_body(receive)
        if body is None:
            return
        try:
            await self._answer(scope["method"], scope["path"], body, receive, send)
        except RefusedError as error:
            await _send_json(send, error.status, msgspec.json.encode(error.body()))
        except SimulatedFailureError:
            # Ending without the last part makes uvicorn cut the connection.
            return

    async def _answer(self, method: str, path: str, body: bytes, receive: Receive, send: Send) -> None:
        match method, path:
            case "POST", "/v1/chat/completions" | "/v1/completions":
                await self._generate(path == "/v1/chat/completions", body, receive, send)
            case "POST", "/v1/embeddings":
                embedding = read_embedding(body)
                tokens = self._engine.embed(embedding)
                await _send_json(send, 200, answers.embeddings(embedding.model, len(embedding.texts), tokens))
            case "POST", "/tokenize":
                await _send_json(send, 200, self._tokenize(read_generation(body)))
            case "GET", "/v1/models":
                await _send_json(send, 200, answers.models(self._settings.models, self._created))
            case "GET", "/stats":
                await _send_json(send, 200, msgspec.json.encode(self._engine.stats()))
            case "GET", "/health" | "/healthz" | "/readyz":
                await _send_json(send, 200, b'{"ready": true}')
            case _:
                raise RefusedError(404, "Not Found", "NotFoundError")

    def _tokenize(self, request: GenerationRequest) -> bytes:
        """vLLM's answer to /tokenize."""
        self._engine.check_model(request.model)
        ids = list(token_ids(request.texts()))
        longest = self._settings.upstream_context_tokens
        return msgspec.json.encode({"count": len(ids), "max_model_len": longest, "tokens": ids, "token_strs": None})

    async def _generate(self, chat: bool, body: bytes, receive: Receive, send: Send) -> None:
        request = read_generation(body)
        if chat and request.messages is None:
            raise RefusedError(400, "messages is required", "BadRequestError")
        generation = self._engine.begin(request)
        shape = AnswerShape(chat, request.model, int(time.time()))
        client = asyncio.ensure_future(receive())
        try:
            if request.stream:
                await self._stream(request, generation, shape, client, send)
            else:
                await self._whole(generation, shape, client, send)
        finally:
            client.cancel()

    async def _whole(self, generation: Generation, shape: AnswerShape, client: asyncio.Future[Any], send: Send) -> None:
        if not await self._pass_time(self._settings.upstream_prefill_ms, client):
            return self._engine.abort(generation)
        # Without latency all of it is there at once.
        step = 1 if generation.token_ms or generation.failure_after is not None else max(1, generation.length)
        while generation.emitted < generation.length:
            if generation.fails_now:
                raise RefusedError(500, "a failure was asked for", "InternalServerError")
            if not await self._pass_time(generation.token_ms, client):
                return self._engine.abort(generation)
            self._engine.emit(generation, step)
        await _send_json(send, 200, shape.whole(generation))

    async def _stream(
        self,
        request: GenerationRequest,
        generation: Generation,
        shape: AnswerShape,
        client: asyncio.Future[Any],
        send: Send,
    ) -> None:
        options = request.stream_options
        at_end = options is not None and options.include_usage
        reporting = Reporting(at_end, at_end and options is not None and options.continuous_usage_stats)
        if not await self._pass_time(self._settings.upstream_prefill_ms, client):
            return self._engine.abort(generation)
        await send(_head(200, b"text/event-stream; charset=utf-8"))
        await _send_part(send, shape.opening(generation, reporting))
        chunks = 0
        while generation.emitted < generation.length:
            tokens = min(self._settings.upstream_chunk_tokens, generation.length - generation.emitted)
            chunks += 1
            if chunks % CHUNKS_BETWEEN_YIELDS == 0:
                await asyncio.sleep(0)
            if generation.fails_now:
                raise SimulatedFailureError
            if not await self._pass_time(generation.token_ms * tokens, client):
                return self._engine.abort(generation)
            self._engine.emit(generation, tokens)
            await _send_part(send, shape.part(generation, tokens, reporting))
        if not generation.length:
            await _send_part(send, shape.part(generation, 0, reporting))
        await send({"type": "http.response.body", "body": shape.closing(generation, reporting)})

    @staticmethod
    async def _pass_time(milliseconds: float, client: asyncio.Future[Any]) -> bool:
        """Let time pass; False as soon as the client has left."""
        if milliseconds and not client.done():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(milliseconds / 1000):
                    await asyncio.shield(client)
        return not client.done()


async def _read_body(receive: Receive) -> bytes | None:
    """The request's body; None when the client left before its end."""
    parts = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _head(status: int, content_type: bytes, length: int | None = None) -> Message:
    headers = [(b"content-type", content_type)]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    return {"type": "http.response.start", "status": status, "headers": headers}


async def _send_json(send: Send, status: int, body: bytes) -> None:
    await send(_head(status, b"application/json", len(body)))
    await send({"type": "http.response.body", "body": body})


async def _send_part(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
