"""The ASGI middleware that vLLM's server loads: `--middleware taximeter_inference.vllm.Middleware`.

It reads a request's tags, marks whatever the request causes in the engine as its own, and says when the answer is over. With
the server's start and stop it starts and stops the meter; a vLLM that the plugin does not know is not served, or metered by
its answers alone, as the settings say.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from taximeter_inference.forwarding import PREFIX, TOLERANCE_SECONDS, Forwarded, is_forwarded
from taximeter_inference.vllm.errors import DriftError, ForeignTagsError, UntaggedError
from taximeter_inference.vllm.exchange import CURRENT, Exchange
from taximeter_inference.vllm.settings import WorkerSettings
from taximeter_inference.vllm.tags import OPERATIONS, is_named, signed_tags, tag_headers, trusted_tags
from taximeter_inference.vllm.worker import WorkerMeter

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_TENANT_HEADER = f"{PREFIX}tenant"
_log = logging.getLogger(__name__)


class Middleware:
    """Meters a vLLM server. Its settings are TAXIMETER_... variables (see WorkerSettings)."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._settings = WorkerSettings()
        self._secrets = self._settings.forwarding_secrets
        self._seen = SeenRequests()
        self._meter: WorkerMeter | None = None

    def use(self, meter: WorkerMeter) -> None:
        """Meter with this one, which the caller closes, where there is no server to start and stop it."""
        self._meter = meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        kind = scope["type"]
        if kind == "lifespan":
            await self._live(scope, receive, send)
        elif kind == "websocket" or scope["method"] == "POST":
            await self._serve(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, path = time.perf_counter(), scope["path"]
        meter = self._meter
        try:
            tags = self._tags(scope, path)
        except UntaggedError as error:
            await _refuse(scope, send, 401, "untagged", str(error))
            return
        except ForeignTagsError as error:
            await _refuse(scope, send, 401, "foreign_tags", str(error))
            return
        if meter is None or (path in OPERATIONS and not meter.has_room):
            await _refuse(scope, send, 503, "cannot_meter", "this worker cannot meter requests now")
            return
        exchange = Exchange(tags, path, began)

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 500:
                exchange.failed = True
            await send(message)

        before = CURRENT.set(exchange)
        try:
            await self._app(scope, receive, send_on)
        except Exception:
            exchange.failed = True
            raise
        finally:
            CURRENT.reset(before)
            meter.end(exchange)

    def _tags(self, scope: Scope, path: str) -> Forwarded | None:
        """The request's tags; None where it has none and may go without until it reaches the engine."""
        headers, settings = tag_headers(scope["headers"]), self._settings
        if is_forwarded(headers) and self._secrets:
            tags = signed_tags(headers, self._secrets, int(time.time()))
        elif settings.worker_tags == "trusted" and _TENANT_HEADER in headers:
            tags = trusted_tags(headers, path)
        elif path in OPERATIONS and settings.worker_untagged == "refuse":
            signed = settings.worker_tags == "signed"
            raise UntaggedError(
                "this worker serves what a gateway has signed: send the request to the gateway"
                if signed
                else f"{PREFIX}tenant and {PREFIX}feature are required"
            )
        else:
            return None
        if is_named(tags) and not self._seen.add(tags.request_id, time.monotonic()):
            raise ForeignTagsError("these forwarded tags were used before")
        return tags

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._meter = await asyncio.to_thread(self._start, scope)
        except Exception as error:  # noqa: BLE001 - whatever it was, the server must be told, and ends
            _log.critical("taximeter: this worker does not serve: %s", error)
            await receive()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return

        async def send_on(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown") and self._meter is not None:
                await asyncio.to_thread(self._meter.close)
            await send(message)

        await self._app(scope, receive, send_on)

    def _start(self, scope: Scope) -> WorkerMeter:
        engine = getattr(scope["app"].state, "engine_client", None)
        if engine is None or not hasattr(engine, "output_processor"):
            raise DriftError("vLLM's server has no engine with an output processor in its own process")
        return WorkerMeter(engine, self._settings)


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


async def _refuse(scope: Scope, send: Send, status: int, code: str, message: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": message[:120]})
        return
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
