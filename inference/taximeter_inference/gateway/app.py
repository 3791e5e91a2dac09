"""The gateway as a plain ASGI application: routes, refusals, and the life of its parts."""

import asyncio
import contextlib
import itertools
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from taximeter_inference.gateway import metrics
from taximeter_inference.gateway.admit import Admission
from taximeter_inference.gateway.asgi import ClientGoneError, Message, Receive, Scope, Send, read_request, send_body
from taximeter_inference.gateway.authenticate import Caller, authenticate
from taximeter_inference.gateway.bodies import ClientBody, read_body
from taximeter_inference.gateway.budget_view import positions_by_budget
from taximeter_inference.gateway.counting import PromptCounter
from taximeter_inference.gateway.errors import (
    GatewayError,
    MethodNotAllowedError,
    ServiceTierError,
    StoppingError,
    UnknownRouteError,
    UpstreamFailedError,
    UpstreamRefusedError,
    UpstreamTimeoutError,
    UpstreamUnreachableError,
)
from taximeter_inference.gateway.events import RequestFacts
from taximeter_inference.gateway.exchange import PATHS, Exchange, Parts
from taximeter_inference.gateway.lease_log import LeaseLog
from taximeter_inference.gateway.leases import LeaseDesk
from taximeter_inference.gateway.output_bound import OutputBounds
from taximeter_inference.gateway.salt import PoolKeys
from taximeter_inference.gateway.settings import GatewaySettings
from taximeter_inference.gateway.sink import EventSink
from taximeter_inference.gateway.tags import ORDINAL_MAX, Tags, read_tags
from taximeter_inference.gateway.upstream import Upstream
from taximeter_inference.gateway.waiting import WaitingRoom
from taximeter_producers import UsageProducer
from taximeter_producers.control import ControlFollower
from taximeter_schemas.budgets import Budget, BudgetPosition, BudgetState, LeaseGrant
from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_schemas.events import Operation

START_SECONDS_MAX = 60.0
DECLARED_SECONDS = 0.05
"""How long after a declaration the budgets are looked at."""
OPERATIONS = {path: operation for operation, path in PATHS.items()}
T = TypeVar("T")
_log = logging.getLogger(__name__)


class Gateway:
    """All parts of a running gateway, and the routes that lead to them."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._boot = secrets.token_hex(4)
        self._numbers = itertools.count(1)
        self._source = f"taximeter-gateway/{settings.gateway_id}"
        self._positions: dict[str, dict[str, BudgetPosition]] = {}
        self._keys = PoolKeys(settings.salt_secret.get_secret_value().encode(), settings.salt_key_id)
        self._control = ControlFollower(settings.kafka_bootstrap_servers, self._on_control)
        self._known: Mapping[str, tuple[Budget, ...]] = {}
        self._declared_anew = False
        self._lives_settled = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: the process's life, or one HTTP request."""
        if scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._start()
        except Exception as error:  # noqa: BLE001 - whatever it was, the server must be told, and ends
            _log.critical("the gateway cannot start: %s", error, exc_info=error)
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self) -> None:
        settings, loop = self._settings, asyncio.get_running_loop()
        await asyncio.to_thread(self._control.start, START_SECONDS_MAX)
        self._known, self._loop = self._control.snapshot().budgets, loop
        producer = UsageProducer(
            bootstrap_servers=settings.kafka_bootstrap_servers,
            producer_id=settings.gateway_id,
            spool_dir=settings.spool_dir,
        )
        self._sink = EventSink(producer, settings.gateway_safe_wait_ms / 1000)
        self._upstream = Upstream(settings)
        counter = PromptCounter(self._upstream)
        self._lease_log = LeaseLog(
            settings.kafka_bootstrap_servers,
            settings.gateway_id,
            lambda grant: _on_loop(loop, self._on_grant, grant),
            lambda state: _on_loop(loop, self._on_state, state),
        )
        self._lease_log.start()
        self._desk = LeaseDesk(
            settings.gateway_id,
            self._boot,
            self._lease_log.send,
            settings.gateway_lease_wait_ms / 1000,
            lambda: self._have_lives_settled(producer),
        )
        self._desk.start()
        self._room = WaitingRoom(settings.gateway_queue_max, settings.gateway_queue_tenant_max)
        bounds = OutputBounds(
            settings.gateway_output_tokens_default,
            settings.gateway_output_tokens_least,
            settings.gateway_output_tokens_most,
        )
        self._admission = Admission(
            settings, self._control.snapshot, self._positions, counter, self._desk, self._room, bounds
        )
        self._parts = Parts(
            self._upstream,
            counter,
            self._desk,
            self._sink,
            self._keys,
            bounds,
            _forwarding_secret(settings),
            settings.gateway_failed_attempts == "billable",
        )
        await asyncio.to_thread(self._lease_log.wait_ready, START_SECONDS_MAX)
        metrics.RESERVED.set_function(lambda: self._desk.reservations)
        self._started = True

    async def _stop(self) -> None:
        """The requests under way have ended: give leases back, make every event safe."""
        self._stopping = True
        await self._desk.stop()
        await self._sink.close()
        await asyncio.to_thread(self._lease_log.stop)
        await asyncio.to_thread(self._control.stop)
        await self._upstream.close()

    def _have_lives_settled(self, producer: UsageProducer) -> bool:
        """Whether every event that an earlier life of this gateway left on disk is in the log."""
        self._lives_settled = self._lives_settled or not producer.state().spool_bytes
        return self._lives_settled

    def _on_grant(self, grant: LeaseGrant) -> None:
        self._desk.on_grant(grant)

    def _on_state(self, state: BudgetState) -> None:
        self._positions[state.tenant] = dict(positions_by_budget(state))
        self._tell(state.tenant)

    def _tell(self, tenant: str) -> None:
        if hasattr(self, "_desk"):
            self._desk.on_news(tenant)
            self._room.tell(tenant)

    def _on_control(self, _snapshot: ControlSnapshot) -> None:
        """In the follower's thread. Many declarations come at once: they are looked at together, a moment later."""
        if self._loop is not None and not self._declared_anew:
            self._declared_anew = True
            _on_loop(self._loop, self._look_soon, self._loop)

    def _look_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(DECLARED_SECONDS, self._look_at_budgets)

    def _look_at_budgets(self) -> None:
        self._declared_anew = False
        before, self._known = self._known, self._control.snapshot().budgets
        for tenant in {**before, **self._known}:
            old, new = before.get(tenant, ()), self._known.get(tenant, ())
            if old is not new and old != new and hasattr(self, "_desk"):
                self._desk.retire(tenant)
                self._tell(tenant)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, path = time.perf_counter(), scope["path"]
        operation = OPERATIONS.get(path)
        name = operation.value if operation is not None else "other"
        code = ""
        metrics.UNDER_WAY.inc()
        try:
            if operation is None:
                status = await self._page(scope, send)
            elif scope["method"] != "POST":
                raise MethodNotAllowedError(f"{path} takes POST")
            else:
                status = await self._serve(operation, scope, receive, send)
        except GatewayError as error:
            status = error.upstream_status if isinstance(error, UpstreamRefusedError) else error.status
            code = error.code
            await send_body(send, status, error.body(), headers=_refusal_headers(error))
        except ClientGoneError:
            status = 499
        finally:
            metrics.UNDER_WAY.dec()
        metrics.REQUESTS.labels(name, str(status), code).inc()
        metrics.SECONDS.labels(name).observe(time.perf_counter() - began)

    async def _serve(self, operation: Operation, scope: Scope, receive: Receive, send: Send) -> int:
        if self._stopping or not self._sink.has_room:
            raise StoppingError("this gateway cannot meter requests now" if not self._stopping else "")
        headers = dict(scope["headers"])
        caller = authenticate(headers.get(b"authorization"), self._control.snapshot())
        tags = read_tags(scope["headers"])
        if tags.service_tier not in caller.tenant.service_tiers:
            raise ServiceTierError
        body = read_body(await read_request(headers, receive, self._settings.gateway_body_bytes_max), operation)
        client = asyncio.ensure_future(receive())
        task = asyncio.current_task()
        assert task is not None
        leave = _leaving(task)
        client.add_done_callback(leave)
        try:
            return await self._attempt(caller, tags, body, operation, client, send)
        except asyncio.CancelledError:
            if not client.done() or client.cancelled():
                raise
            task.uncancel()
            raise ClientGoneError from None
        finally:
            client.remove_done_callback(leave)
            client.cancel()

    async def _attempt(
        self,
        caller: Caller,
        tags: Tags,
        body: ClientBody,
        operation: Operation,
        client: "asyncio.Future[Message]",
        send: Send,
    ) -> int:
        """Dispatch, and dispatch again when the model server fails: each attempt is admitted, counted and settled by itself."""
        root = tags.root_request_id
        for number in range(self._settings.gateway_retries + 1):
            admitted = await self._admission.admit(caller, tags, body, operation)
            step = number + admitted.fell_back
            facts = RequestFacts(
                request_id=f"{self._settings.gateway_id}:{self._boot}:{next(self._numbers)}",
                source=self._source,
                tenant=caller.tenant.id,
                pool=caller.tenant.pool,
                model=admitted.body.model,
                operation=operation,
                tags=tags if not step and root == tags.root_request_id else _of_attempt(tags, root, step),
                lease_id=admitted.lease_id,
                api_key=caller.key.id if admitted.counts_by_key else None,
                asked_model=body.model if admitted.fell_back else None,
            )
            root = root or facts.request_id
            is_last = number == self._settings.gateway_retries
            try:
                return await Exchange(self._parts, facts, admitted, client, is_last).run(send)
            except (UpstreamFailedError, UpstreamUnreachableError, UpstreamTimeoutError):
                if is_last:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _page(self, scope: Scope, send: Send) -> int:
        path, method = scope["path"], scope["method"]
        if path not in ("/healthz", "/readyz", "/metrics", "/v1/models"):
            raise UnknownRouteError(f"there is no route {path}")
        if method not in ("GET", "HEAD"):
            raise MethodNotAllowedError(f"{path} takes GET")
        status, body, content_type = 200, b'{"status":"alive"}', b"application/json"
        if path == "/readyz":
            status, body = self._ready()
        elif path == "/metrics":
            body, content_type = generate_latest(), CONTENT_TYPE_LATEST.encode()
        elif path == "/v1/models":
            authenticate(dict(scope["headers"]).get(b"authorization"), self._control.snapshot())
            status, body = await self._upstream.get("/v1/models")
        await send_body(send, status, body, content_type)
        return status

    def _ready(self) -> tuple[int, bytes]:
        state = {
            "started": self._started,
            "leases": self._started and self._lease_log.ready,
            "room_for_events": self._started and self._sink.has_room,
            "stopping": self._stopping,
        }
        is_ready = state["started"] and state["leases"] and state["room_for_events"] and not self._stopping
        waiting = self._sink.waiting() if self._started else {}
        at = datetime.now(UTC).isoformat()
        return 200 if is_ready else 503, msgspec.json.encode({"ready": is_ready, **state, **waiting, "at": at})


def _on_loop(loop: asyncio.AbstractEventLoop, handle: Callable[[T], None], message: T) -> None:
    # The last messages may come when the loop has ended.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(handle, message)


def _leaving(task: "asyncio.Task[None]") -> Callable[["asyncio.Future[Message]"], None]:
    """A callback that cancels the task when the client has left."""
    return partial(_cancel, task)


def _cancel(task: "asyncio.Task[None]", client: "asyncio.Future[Message]") -> None:
    if not client.cancelled():
        task.cancel()


def _refusal_headers(error: GatewayError) -> list[tuple[bytes, bytes]]:
    if error.retry_after_seconds is None:
        return list(error.headers)
    return [*error.headers, (b"retry-after", str(error.retry_after_seconds).encode())]


def _of_attempt(tags: Tags, root: str | None, step: int) -> Tags:
    """The tags of a later attempt: its number goes up, and it belongs to the root of the first."""
    return replace(tags, root_request_id=root, attempt=min(tags.attempt + step, ORDINAL_MAX))


def _forwarding_secret(settings: GatewaySettings) -> bytes | None:
    secret = settings.forwarding_secret
    is_metered_there = settings.upstream_metered_by == "worker"
    return secret.get_secret_value().encode() if is_metered_there and secret is not None else None
