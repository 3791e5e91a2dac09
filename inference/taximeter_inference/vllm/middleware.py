"""The ASGI middleware that vLLM's server loads: `--middleware taximeter_inference.vllm.Middleware`.

It reads a request's tags, marks whatever the request causes in the engine as its own, and says when the answer is over. With
the server's start and stop it starts and stops the meter; a vLLM that the plugin does not know is not served, or metered by
its answers alone, as the settings say.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from functools import partial
from typing import Any

from taximeter_inference.forwarding import PREFIX, TOLERANCE_SECONDS, Forwarded, ForwardingError, signing_key, verify
from taximeter_inference.vllm.answers import AnswerMeter
from taximeter_inference.vllm.errors import DriftError, ForeignAdapterError, ForeignTagsError, UntaggedError
from taximeter_inference.vllm.exchange import CURRENT, Exchange
from taximeter_inference.vllm.settings import WorkerSettings
from taximeter_inference.vllm.tags import (
    OPERATIONS,
    SIGNATURE,
    TAGS,
    TENANT,
    trusted_tags,
    untagged,
)
from taximeter_inference.vllm.usage import Origin
from taximeter_inference.vllm.worker import WorkerMeter, open_producer, pool_keys

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

UNMETERED = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/tokenize", "/detokenize")
"""Routes that do not use the engine for anybody."""
_INFERENCE = ("/v1/", "/v2/", "/inference/", "/pooling", "/classify", "/invocations", "/generative_scoring")
_log = logging.getLogger(__name__)


class Middleware:
    """Meters a vLLM server. Its settings are TAXIMETER_... variables (see WorkerSettings)."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._settings = WorkerSettings()
        self._keys = tuple(map(signing_key, self._settings.forwarding_secrets))
        self._seen = SeenRequests()
        self._meter: WorkerMeter | None = None
        self._end: Callable[[Exchange], None] | None = None
        self._held: Collection[object] = ()
        """What every request needs of the meter: how it is told of the end, and the events that there was no room for."""
        self._answers: AnswerMeter | None = None

    def use(self, meter: WorkerMeter) -> None:
        """Meter with this one, which the caller closes, where there is no server to start and stop it."""
        self._meter, self._end, self._held = meter, meter.hooks.end, meter.sink.held

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """ASGI. Not a coroutine of its own: whatever the request waits for passes through each."""
        kind = scope["type"]
        if kind == "http":
            serve = self._serve if scope["method"] == "POST" else self._app
        else:
            serve = self._live if kind == "lifespan" else self._serve
        return serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, path, end = time.perf_counter(), scope["path"], self._end
        try:
            tags = self._tags(scope, path, began)
        except UntaggedError as error:
            await _refuse(scope, send, 401, "untagged", str(error))
            return
        except ForeignTagsError as error:
            await _refuse(scope, send, 401, "foreign_tags", str(error))
            return
        if self._answers is not None:
            await self._serve_by_answers(self._answers, scope, receive, send, tags)
            return
        if end is None or (self._held and path in OPERATIONS and not (tags is not None and tags.is_metered)):
            await _refuse(scope, send, 503, "cannot_meter", "this worker cannot meter requests now")
            return
        exchange = Exchange(tags, path, began)
        before = CURRENT.set(exchange)
        try:
            await self._app(scope, receive, partial(_send_on, exchange, send))
        except Exception:
            exchange.failed = True
            raise
        finally:
            CURRENT.reset(before)
            end(exchange)

    async def _serve_by_answers(
        self, answers: AnswerMeter, scope: Scope, receive: Receive, send: Send, tags: Forwarded | None
    ) -> None:
        path = scope["path"]
        if path in OPERATIONS and scope["type"] == "http":
            if not answers.has_room():
                await _refuse(scope, send, 503, "cannot_meter", "this worker cannot meter requests now")
                return
            try:
                await answers.serve(self._app, scope, receive, send, tags or untagged(path))
            except ForeignAdapterError as error:
                await _refuse(scope, send, 404, "unknown_model", str(error))
        elif path in UNMETERED or not path.startswith(_INFERENCE):
            await self._app(scope, receive, send)
        else:
            # Nothing holds on to the engine, so what cannot be read is not served.
            await _refuse(scope, send, 501, "cannot_meter", f"{path} cannot be metered by its answers")

    def _tags(self, scope: Scope, path: str, now: float) -> Forwarded | None:
        """The request's tags; None where it has none and may go without until it reaches the engine."""
        signature, text = None, b""
        for name, value in scope["headers"]:
            if name == TAGS:
                text = value
            elif name == SIGNATURE:
                signature = value
        if signature is not None and self._keys:
            try:
                tags = verify(text, signature, self._keys, time.time())
            except ForwardingError as error:
                raise ForeignTagsError(f"the forwarded tags cannot be believed: {error}") from None
            if not self._seen.add(tags.request_id, now):
                raise ForeignTagsError("these forwarded tags were used before")
            return tags
        settings = self._settings
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if settings.worker_tags == "trusted" and TENANT in headers:
            return trusted_tags(headers, path)
        if path in OPERATIONS and settings.worker_untagged == "refuse":
            signed = settings.worker_tags == "signed"
            raise UntaggedError(
                "this worker serves what a gateway has signed: send the request to the gateway"
                if signed
                else f"{PREFIX}tenant and {PREFIX}feature are required"
            )
        return None

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.to_thread(self._start, scope)
            if self._meter is not None:
                self._meter.follow_shutdown(scope["app"].state.engine_client, asyncio.get_running_loop())
        except Exception as error:  # noqa: BLE001 - whatever it was, the server must be told, and ends
            _log.critical("taximeter: this worker does not serve: %s", error)
            await receive()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return

        async def send_on(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown"):
                await asyncio.to_thread(self._stop)
            await send(message)

        await self._app(scope, receive, send_on)

    def _start(self, scope: Scope) -> None:
        state, settings = scope["app"].state, self._settings
        engine = getattr(state, "engine_client", None)
        try:
            if engine is None or not hasattr(engine, "output_processor"):
                raise DriftError("vLLM's server has no engine with an output processor in its own process")
            self.use(WorkerMeter(engine, settings))
        except DriftError as error:
            if settings.worker_on_drift == "refuse":
                raise
            _log.error("taximeter: metering by answers alone, marked as such: %s", error)
            producer, name = open_producer(settings)
            keys = pool_keys(settings) if settings.worker_isolation == "pool" else None
            arguments = getattr(state, "args", None)
            model = (getattr(arguments, "served_model_name", None) or [getattr(arguments, "model", "unnamed")])[0]
            self._answers = AnswerMeter(producer, settings, keys, Origin(name, producer.worker_id, str(model)))

    def _stop(self) -> None:
        if self._meter is not None:
            self._meter.close()
        if self._answers is not None:
            self._answers.close()


class SeenRequests:
    """The ids of forwarded requests that were served: tags that somebody sends a second time are not believed.

    It remembers for as long as a signature holds, in two halves, so that forgetting costs nothing.
    """

    def __init__(self) -> None:
        self._new: set[str] = set()
        self._old: set[str] = set()
        self._turned_at = 0.0

    def add(self, request_id: str, now: float) -> bool:
        """Remember an id; False when it was there. `now` is in seconds of a monotonic clock."""
        if now - self._turned_at > 2 * TOLERANCE_SECONDS:
            self._old, self._new, self._turned_at = self._new, set(), now
        if request_id in self._new or request_id in self._old:
            return False
        self._new.add(request_id)
        return True


def _send_on(exchange: Exchange, send: Send, message: Message) -> Awaitable[None]:
    # Not a coroutine of its own: a stream passes here with every piece.
    if message["type"] == "http.response.start" and message["status"] >= 500:
        exchange.failed = True
    return send(message)


async def _refuse(scope: Scope, send: Send, status: int, code: str, message: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": message[:120]})
        return
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
