"""The double over HTTP: keys and authentication, idempotency as Stripe has it, planned faults, and the routes."""

import base64
import binascii
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from hashlib import sha256

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from taximeter_billing.payments.double.deliveries import Deliveries
from taximeter_billing.payments.double.faults import Fault, FaultPlan
from taximeter_billing.payments.double.forms import parse_form
from taximeter_billing.payments.double.objects import Body, webhook_endpoint
from taximeter_billing.payments.double.operations import Operations
from taximeter_billing.payments.double.refusals import RefusedError
from taximeter_billing.payments.double.store import Store

KEY_CHARS_MAX = 255
STALL_SECONDS_MAX = 30.0
_FAILURE = json.dumps({"error": {"type": "api_error", "message": "planned fault"}})

Operation = Callable[[str, Body], Body]


class CutOff(Response):
    """Half an answer, and then the connection is gone."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Promise the whole body and send half of it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        half = bytes(self.body[: len(self.body) // 2])
        await send({"type": "http.response.body", "body": half, "more_body": True})


class StripeDouble:
    """The API over a store. `faults` plans what the next calls of a step meet (see Fault), `calls` counts them by step.

    Over HTTP: POST /_double/faults, GET /_double/calls, POST /_double/search {"paused": true}, POST /_double/forget-keys,
    POST /_double/payments {"invoice": ID, "outcome": "failed" or "disputed", "status": "won"}.
    """

    def __init__(self, store: Store, clock: Callable[[], int] = lambda: int(time.time())) -> None:
        self._store = store
        self._operations = Operations(store, clock)
        self._plan = FaultPlan()
        self.calls: Counter[str] = Counter()
        self._lock = threading.Condition(threading.RLock())
        self._in_progress: set[str] = set()
        self._turned_away: set[str] = set()
        self._deliveries = Deliveries(store, self._lock)

    def close(self) -> None:
        """Deliver nothing more, and close the store."""
        self._deliveries.stop()
        self._store.close()

    def plan_faults(self, planned: dict[str, list[str]]) -> None:
        """Replace the planned faults: by step, in order. Raises ValueError for a fault that is none."""
        with self._lock:
            self._plan.set(planned)

    def pause_search(self, paused: bool) -> None:
        """Let search fall behind, or catch up."""
        with self._lock:
            self._operations.pause_search(paused)

    def forget_keys(self) -> None:
        """Forget every idempotency key, as Stripe may after a day."""
        with self._lock:
            self._store.forget_answers()

    def listen_at(self, url: str, secret: str) -> None:
        """Deliver every event to this address, signed with this secret, and to no address named here before."""
        with self._lock, self._store.transaction():
            endpoint = webhook_endpoint(0, int(time.time()), secret, {"url": url})
            self._store.put(endpoint)

    def fail_payment(self, invoice_id: str) -> None:
        """Let an attempt to collect an open invoice fail. Raises RefusedError for one that is not open."""
        with self._lock, self._store.transaction():
            self._operations.fail_payment(invoice_id)
            self._deliveries.wake()

    def dispute(self, invoice_id: str, status: str = "needs_response") -> None:
        """Let the payer's bank dispute a paid invoice, or move the dispute on. Raises RefusedError for one never paid."""
        with self._lock, self._store.transaction():
            self._operations.dispute(invoice_id, status)
            self._deliveries.wake()

    def app(self) -> Starlette:
        """The routes."""
        does = self._operations
        routes: list[tuple[str, str, Operation]] = [
            ("GET", "/v1/customers", does.list_customers),
            ("POST", "/v1/customers", does.create_customer),
            ("GET", "/v1/customers/search", does.search_customers),
            ("GET", "/v1/customers/{id}", does.get_customer),
            ("POST", "/v1/customers/{id}", does.update_customer),
            ("GET", "/v1/invoices", does.list_invoices),
            ("POST", "/v1/invoices", does.create_invoice),
            ("GET", "/v1/invoices/search", does.search_invoices),
            ("GET", "/v1/invoices/{id}", does.get_invoice),
            ("POST", "/v1/invoices/{id}", does.update_invoice),
            ("DELETE", "/v1/invoices/{id}", does.delete_invoice),
            ("GET", "/v1/invoices/{id}/lines", does.list_lines),
            ("POST", "/v1/invoices/{id}/add_lines", does.add_lines),
            ("POST", "/v1/invoices/{id}/finalize", does.finalize),
            ("POST", "/v1/invoices/{id}/send", does.send),
            ("POST", "/v1/invoices/{id}/void", does.void),
            ("POST", "/v1/invoices/{id}/pay", does.pay),
            ("POST", "/v1/invoices/{id}/mark_uncollectible", does.mark_uncollectible),
            ("GET", "/v1/credit_notes", does.list_credit_notes),
            ("POST", "/v1/credit_notes", does.create_credit_note),
            ("GET", "/v1/credit_notes/{id}", does.get_credit_note),
            ("GET", "/v1/invoice_payments", does.list_invoice_payments),
            ("GET", "/v1/disputes", does.list_disputes),
            ("POST", "/v1/billing/meter_events", does.create_meter_event),
            ("POST", "/v1/billing/meter_event_adjustments", does.cancel_meter_event),
            ("POST", "/v1/webhook_endpoints", does.create_webhook_endpoint),
            ("GET", "/v1/events", does.list_events),
            ("GET", "/v1/events/{id}", does.get_event),
        ]
        mine = [
            Route("/healthz", _healthy),
            Route("/readyz", _healthy),
            Route("/_double/faults", self._on_faults, methods=["POST"]),
            Route("/_double/search", self._on_search, methods=["POST"]),
            Route("/_double/forget-keys", self._on_forget_keys, methods=["POST"]),
            Route("/_double/payments", self._on_payments, methods=["POST"]),
            Route("/_double/calls", self._on_calls),
        ]
        unknown = Route("/{path:path}", _unknown, methods=["GET", "POST", "DELETE"])
        return Starlette(routes=[*mine, *(self._route(method, path, does) for method, path, does in routes), unknown])

    async def _on_faults(self, request: Request) -> Response:
        self.plan_faults(await request.json())
        return JSONResponse({})

    async def _on_search(self, request: Request) -> Response:
        self.pause_search(bool((await request.json())["paused"]))
        return JSONResponse({})

    async def _on_forget_keys(self, _request: Request) -> Response:
        self.forget_keys()
        return JSONResponse({})

    async def _on_payments(self, request: Request) -> Response:
        """{"invoice": ID, "outcome": "failed"}, or "disputed" with {"status": a dispute's}."""
        planned = await request.json()
        return await run_in_threadpool(self._payment, planned["invoice"], planned["outcome"], planned.get("status"))

    def _payment(self, invoice_id: str, outcome: str, status: str | None) -> Response:
        try:
            if outcome == "failed":
                self.fail_payment(invoice_id)
            else:
                self.dispute(invoice_id, status or "needs_response")
        except RefusedError as refused:
            return JSONResponse(refused.body, refused.status)
        return JSONResponse({})

    async def _on_calls(self, _request: Request) -> Response:
        return JSONResponse(dict(self.calls))

    def _route(self, method: str, path: str, operation: Operation) -> Route:
        async def endpoint(request: Request) -> Response:
            text = (await request.body()).decode() if method == "POST" else request.url.query
            return await run_in_threadpool(lambda: self._answer(request, f"{method} {path}", text, operation))

        return Route(path, endpoint, methods=[method])

    def _answer(self, request: Request, step: str, text: str, operation: Operation) -> Response:
        with self._lock:
            self.calls[step] += 1
            fault = self._plan.next(step)
            try:
                _authenticate(request)
                key = _idempotency_key(request)
                if key is not None and key in self._in_progress:
                    self._turned_away.add(key)
                    self._lock.notify_all()
                    raise _conflict()
                if fault is Fault.STALL and key is not None:
                    self._stall(key)
                status, body, replayed = self._once(request, key, text, operation, fault)
            except RefusedError as refused:
                status, body, replayed = refused.status, json.dumps(refused.body), False
            self._deliveries.wake()
        headers = {"Request-Id": "req_double"}
        if key_shown := request.headers.get("idempotency-key"):
            headers["Idempotency-Key"] = key_shown
        if replayed:
            headers["Idempotent-Replayed"] = "true"
            if status >= 500:  # trying again would only replay it again
                headers["Stripe-Should-Retry"] = "false"
        answer = CutOff if fault in {Fault.LOST, Fault.CUT} else Response
        return answer(body, status, headers, "application/json")

    def _stall(self, key: str) -> None:
        self._in_progress.add(key)
        try:
            self._lock.wait_for(lambda: key in self._turned_away, STALL_SECONDS_MAX)
        finally:
            self._in_progress.discard(key)
            self._turned_away.discard(key)

    def _once(
        self, request: Request, key: str | None, text: str, operation: Operation, fault: Fault | None
    ) -> tuple[int, str, bool]:
        """The answer's status and body, and whether it was given before under the same key."""
        form = parse_form(text)
        mark = sha256(f"{request.method} {request.url.path}\n{json.dumps(form, sort_keys=True)}".encode()).hexdigest()
        if key is not None and (before := self._store.answer(key)) is not None:
            if before[0] != mark:
                message = (
                    "Keys for idempotent requests can only be used with the same parameters they were first used with."
                )
                raise RefusedError(400, message, kind="idempotency_error")
            return before[1], before[2], True
        if fault is not None:
            _refuse_before(fault)
        if fault is Fault.FAILED:
            status, body = 500, _FAILURE
            if key is not None:
                self._store.keep_answer(key, mark, status, body)
            return status, body, False
        return *self._worked(request, key, mark, form, operation, fault), False

    def _worked(
        self, request: Request, key: str | None, mark: str, form: Body, operation: Operation, fault: Fault | None
    ) -> tuple[int, str]:
        self._operations.key = key
        try:
            with self._store.transaction():
                status, body = 200, json.dumps(operation(request.path_params.get("id", ""), form))
                if fault is Fault.FAILED_AFTER:
                    status, body = 500, _FAILURE
                if key is not None:
                    self._store.keep_answer(key, mark, status, body)
        except RefusedError as refused:
            if refused.kept and key is not None:
                self._store.keep_answer(key, mark, refused.status, json.dumps(refused.body))
            raise
        return status, body


def _refuse_before(fault: Fault) -> None:
    """Faults that strike before any work, and are not kept."""
    if fault is Fault.RATE_LIMITED:
        raise RefusedError(429, "Too many requests", code="rate_limit")
    if fault is Fault.CONFLICT:
        raise _conflict()
    if fault in {Fault.UNAVAILABLE, Fault.CUT}:
        raise RefusedError(503, "planned fault", kind="api_error")


def _conflict() -> RefusedError:
    message = "There is currently another in-progress request using this Idempotent Key"
    return RefusedError(409, message, kind="idempotency_error", code="idempotency_key_in_use")


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key") if request.method == "POST" else None
    if key is not None and not 0 < len(key) <= KEY_CHARS_MAX:
        raise RefusedError(400, f"an idempotency key has 1 to {KEY_CHARS_MAX} characters")
    return key


def _authenticate(request: Request) -> None:
    """A test key as bearer token, or as the user of basic authentication, as `curl -u` sends it."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            key = base64.b64decode(key, validate=True).decode().partition(":")[0]
        except (binascii.Error, UnicodeDecodeError):
            key = ""
    if scheme.lower() not in {"bearer", "basic"} or not key.startswith(("sk_test_", "rk_test_")):
        raise RefusedError(401, "Invalid API Key provided: the double takes sk_test_... only", code="api_key_invalid")


async def _healthy(_request: Request) -> Response:
    return JSONResponse({"ready": True})


async def _unknown(request: Request) -> Response:
    refused = RefusedError(404, f"Unrecognized request URL ({request.method}: {request.url.path})")
    return JSONResponse(refused.body, refused.status)
