"""The gateway: routes, refusals, and the life of its parts."""

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
from typing import TYPE_CHECKING, TypeVar

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from taximeter_inference.gateway import metrics
from taximeter_inference.gateway.admit import Admission
from taximeter_inference.gateway.authenticate import Caller, authenticate
from taximeter_inference.gateway.bodies import ClientBody, read_body
from taximeter_inference.gateway.budget_view import positions_by_budget
from taximeter_inference.gateway.counting import PromptCounter
from taximeter_inference.gateway.errors import (
    BodyTooLargeError,
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
from taximeter_inference.gateway.http_server import ClientGoneError, Reply, Request
from taximeter_inference.gateway.lease_log import LeaseLog
from taximeter_inference.gateway.leases import LeaseDesk
from taximeter_inference.gateway.output_bound import OutputBounds
from taximeter_inference.gateway.salt import PoolKeys
from taximeter_inference.gateway.settings import GatewaySettings
from taximeter_inference.gateway.sink import EventSink
from taximeter_inference.gateway.tags import ORDINAL_MAX, Tags, read_tags
from taximeter_inference.gateway.tokenizer_files import TokenizerFiles
from taximeter_inference.gateway.upstream import Upstream
from taximeter_inference.gateway.waiting import WaitingRoom
from taximeter_producers import UsageProducer
from taximeter_producers.control import ControlFollower
from taximeter_producers.tracing import start_tracing
from taximeter_schemas.budgets import Budget, BudgetPosition, BudgetState, LeaseGrant
from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_schemas.events import Operation

if TYPE_CHECKING:
    from taximeter_inference.gateway.tracing import RequestTrace

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
        self._tracing = start_tracing("gateway", settings)
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

    async def start(self) -> None:
        """Build all parts and wait until they work. Raises what keeps one from working."""
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
        files = await asyncio.to_thread(TokenizerFiles, settings.gateway_tokenizers)
        counter = PromptCounter(self._upstream, files)
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
            settings.forwarding_secret.get_secret_value().encode() if settings.forwarding_secret else None,
            settings.upstream_metered_by == "worker",
            settings.gateway_failed_attempts == "billable",
        )
        await asyncio.to_thread(self._lease_log.wait_ready, START_SECONDS_MAX)
        metrics.RESERVED.set_function(lambda: self._desk.reservations)
        metrics.SPOOL_BYTES.set_function(lambda: self._sink.waiting()["spool_bytes"])
        metrics.UNSAFE_EVENTS.set_function(lambda: self._sink.waiting()["unsafe_events"])
        self._started = True

    def begin_to_stop(self) -> None:
        """Take no more requests."""
        self._stopping = True

    async def stop(self) -> None:
        """The requests under way have ended: give leases back, make every event safe."""
        self._stopping = True
        await self._desk.stop()
        await self._sink.close()
        await asyncio.to_thread(self._lease_log.stop)
        await asyncio.to_thread(self._control.stop)
        await self._upstream.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.stop)

    def _have_lives_settled(self, producer: UsageProducer) -> bool:
        """Whether every event that an earlier life of this gateway left on disk is in the log."""
        self._lives_settled = self._lives_settled or not producer.state().spool_bytes
        return self._lives_settled

    def _on_grant(self, grant: LeaseGrant) -> None:
        self._desk.on_grant(grant)

    def _on_state(self, state: BudgetState) -> None:
        self._positions[state.tenant] = dict(positions_by_budget(state))
        if hasattr(self, "_room"):
            self._desk.on_state(state)
            self._room.tell(state.tenant)

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
            if old is not new and old != new and hasattr(self, "_room"):
                self._desk.retire(tenant)
                self._room.tell(tenant)

    async def answer(self, request: Request, reply: Reply) -> None:
        """Answer one HTTP request."""
        began, operation = time.perf_counter(), OPERATIONS.get(request.path)
        code, trace = "", self._begin_trace(operation, request)
        metrics.UNDER_WAY.inc()
        try:
            if operation is None:
                status = await self._page(request, reply)
            elif request.method != "POST":
                raise MethodNotAllowedError(f"{request.path} takes POST")
            else:
                status = await self._serve(operation, request, reply, trace)
        except GatewayError as error:
            status = error.upstream_status if isinstance(error, UpstreamRefusedError) else error.status
            code = error.code
            await reply.whole(status, error.body(), headers=_refusal_headers(error))
        except ClientGoneError:
            status = 499
        finally:
            metrics.UNDER_WAY.dec()
        if trace is not None:
            trace.end(status, code)
        metrics.observe(operation, status, code, time.perf_counter() - began)

    def _begin_trace(self, operation: Operation | None, request: Request) -> "RequestTrace | None":
        if self._tracing is None or operation is None:
            return None
        from taximeter_inference.gateway.tracing import RequestTrace

        return RequestTrace(self._tracing, request)

    async def _serve(self, operation: Operation, request: Request, reply: Reply, trace: "RequestTrace | None") -> int:
        if self._stopping or not self._sink.has_room:
            raise StoppingError("this gateway cannot meter requests now" if not self._stopping else "")
        caller = authenticate(_authorization(request.headers), self._control.snapshot())
        tags = read_tags(request.headers, self._settings.gateway_region)
        if tags.service_tier not in caller.tenant.service_tiers:
            raise ServiceTierError
        if request.is_too_large:
            raise BodyTooLargeError(f"the body is longer than {self._settings.gateway_body_bytes_max} bytes")
        body = read_body(request.body, operation)
        task = asyncio.current_task()
        assert task is not None
        leave = partial(_cancel, task)
        request.gone.add_done_callback(leave)
        try:
            return await self._attempt(caller, tags, body, operation, request, reply, trace)
        except asyncio.CancelledError:
            if not request.gone.done():
                raise
            task.uncancel()
            raise ClientGoneError from None
        finally:
            request.gone.remove_done_callback(leave)

    async def _attempt(
        self,
        caller: Caller,
        tags: Tags,
        body: ClientBody,
        operation: Operation,
        request: Request,
        reply: Reply,
        trace: "RequestTrace | None",
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
                attempt = trace.attempt(facts) if trace is not None else None
                return await Exchange(self._parts, facts, admitted, request, is_last, attempt).run(reply)
            except (UpstreamFailedError, UpstreamUnreachableError, UpstreamTimeoutError):
                if is_last:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _page(self, request: Request, reply: Reply) -> int:
        path, method = request.path, request.method
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
            authenticate(_authorization(request.headers), self._control.snapshot())
            status, body = await self._upstream.get("/v1/models")
        await reply.whole(status, body, content_type)
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


def _cancel(task: "asyncio.Task[None]", _gone: "asyncio.Future[None]") -> None:
    task.cancel()


def _authorization(headers: list[tuple[bytes, bytes]]) -> bytes | None:
    for name, value in headers:
        if name == b"authorization":
            return value
    return None


def _refusal_headers(error: GatewayError) -> list[tuple[bytes, bytes]]:
    if error.retry_after_seconds is None:
        return list(error.headers)
    return [*error.headers, (b"retry-after", str(error.retry_after_seconds).encode())]


def _of_attempt(tags: Tags, root: str | None, step: int) -> Tags:
    """The tags of a later attempt: its number goes up, and it belongs to the root of the first."""
    return replace(tags, root_request_id=root, attempt=min(tags.attempt + step, ORDINAL_MAX))
