"""The double's routes. A key answers the same again, as at Stripe, and with another request it is an error."""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from taximeter_billing.payments.double import objects
from taximeter_billing.payments.double.forms import parse_form
from taximeter_billing.payments.double.store import Store

LINES_AT_ONCE_MAX = 250
_QUERY = re.compile(r"metadata\['([^']+)'\]:'([^']*)'")

Form = dict[str, Any]
Handler = Callable[[Request, Form], dict[str, Any]]


class RefusedError(Exception):
    """A request that Stripe would refuse, in Stripe's own shape."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error", code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"type": kind, "message": message, **({"code": code} if code else {})}}


class StripeDouble:
    """The API over a store. `faults` maps a step ("POST /v1/invoices") to what the next calls of it meet, for tests:

    "lost" does the work and hangs up, "500", "429" and "409" refuse before it. POST /_double/faults sets them over HTTP.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.faults: dict[str, list[str]] = {}
        self.calls: Counter[str] = Counter()
        self._lock = threading.RLock()

    def app(self) -> Starlette:
        """The routes."""
        routes = [
            ("POST", "/v1/customers", self._create_customer),
            ("GET", "/v1/customers/search", self._search_customers),
            ("GET", "/v1/customers/{id}", self._get_customer),
            ("POST", "/v1/invoices", self._create_invoice),
            ("GET", "/v1/invoices", self._list_invoices),
            ("GET", "/v1/invoices/search", self._search_invoices),
            ("GET", "/v1/invoices/{id}", self._get_invoice),
            ("GET", "/v1/invoices/{id}/lines", self._list_lines),
            ("POST", "/v1/invoices/{id}/add_lines", self._add_lines),
            ("POST", "/v1/invoices/{id}/finalize", self._finalize),
            ("POST", "/v1/invoices/{id}/void", self._void),
            ("POST", "/v1/invoices/{id}/pay", self._pay),
        ]
        mine = [
            Route("/healthz", self._healthy),
            Route("/readyz", self._healthy),
            Route("/_double/faults", self._plan_faults, methods=["POST"]),
            Route("/_double/calls", self._count_calls),
        ]
        return Starlette(routes=[*mine, *(self._route(method, path, handler) for method, path, handler in routes)])

    async def _healthy(self, _request: Request) -> Response:
        return JSONResponse({"ready": True})

    async def _plan_faults(self, request: Request) -> Response:
        self.faults = await request.json()
        return JSONResponse({})

    async def _count_calls(self, _request: Request) -> Response:
        return JSONResponse(dict(self.calls))

    def _route(self, method: str, path: str, handler: Handler) -> Route:
        async def endpoint(request: Request) -> Response:
            text = (await request.body()).decode() if method == "POST" else request.url.query
            return await run_in_threadpool(lambda: self._answer(request, f"{method} {path}", text, handler))

        return Route(path, endpoint, methods=[method])

    def _answer(self, request: Request, step: str, text: str, handler: Handler) -> Response:
        with self._lock:
            self.calls[step] += 1
            planned = self.faults.get(step) or []
            fault = planned.pop(0) if planned else ""
            if fault in {"500", "429", "409"}:
                kind = "idempotency_error" if fault == "409" else "api_error"
                return JSONResponse({"error": {"type": kind, "message": f"planned fault {fault}"}}, int(fault))
            try:
                _authenticate(request)
                status, body, replayed = self._once(request, step, text, handler)
            except RefusedError as refused:
                status, body, replayed = refused.status, json.dumps(refused.body), False
        if fault == "lost":
            # The work is done and the answer never arrives: the client sees a broken body.
            return Response(body[: len(body) // 2], 200, {"content-length": str(len(body))}, "application/json")
        headers = {"Request-Id": "req_double"} | ({"Idempotent-Replayed": "true"} if replayed else {})
        return Response(body, status, headers, "application/json")

    def _once(self, request: Request, step: str, text: str, handler: Handler) -> tuple[int, str, bool]:
        key = request.headers.get("idempotency-key") if step.startswith("POST") else None
        mark = sha256(f"{request.url.path}\n{text}".encode()).hexdigest()
        before = self._store.answer(key) if key else None
        if before is not None:
            if before[0] != mark:
                message = (
                    "Keys for idempotent requests can only be used with the same parameters they were first used with."
                )
                raise RefusedError(400, message, "idempotency_error")
            return before[1], before[2], True
        status, body = 200, json.dumps(handler(request, parse_form(text)))
        if key:
            self._store.keep_answer(key, mark, status, body)
        return status, body, False

    def _create_customer(self, _request: Request, form: Form) -> dict[str, Any]:
        return self._kept(objects.customer(self._store.next_number(), int(time.time()), form))

    def _get_customer(self, request: Request, _form: Form) -> dict[str, Any]:
        return self._find(request.path_params["id"], "customer")

    def _search_customers(self, _request: Request, form: Form) -> dict[str, Any]:
        return objects.search_page("/v1/customers/search", self._search("customer", form))

    def _create_invoice(self, _request: Request, form: Form) -> dict[str, Any]:
        self._find(form.get("customer", ""), "customer")
        return self._kept(objects.invoice(self._store.next_number(), int(time.time()), form))

    def _get_invoice(self, request: Request, _form: Form) -> dict[str, Any]:
        return objects.shown(self._find(request.path_params["id"], "invoice"))

    def _list_invoices(self, _request: Request, form: Form) -> dict[str, Any]:
        every = [objects.shown(body) for body in self._store.all("invoice")]
        return _paged("/v1/invoices", every, form)

    def _search_invoices(self, _request: Request, form: Form) -> dict[str, Any]:
        return objects.search_page(
            "/v1/invoices/search", [objects.shown(body) for body in self._search("invoice", form)]
        )

    def _list_lines(self, request: Request, form: Form) -> dict[str, Any]:
        found = self._find(request.path_params["id"], "invoice")
        return _paged(f"/v1/invoices/{found['id']}/lines", found["line_data"], form)

    def _add_lines(self, request: Request, form: Form) -> dict[str, Any]:
        found = self._draft(request)
        added = form.get("lines") or []
        if len(found["line_data"]) + len(added) > LINES_AT_ONCE_MAX:
            raise RefusedError(400, f"an invoice has at most {LINES_AT_ONCE_MAX} lines")
        try:
            number = len(found["line_data"]) + int(found["id"][-8:]) * 1000
            lines = [objects.line(number + index, found, entry) for index, entry in enumerate(added)]
        except ValueError:
            raise RefusedError(400, "Invalid integer", code="parameter_invalid_integer") from None
        return self._kept(objects.with_sums({**found, "line_data": [*found["line_data"], *lines]}))

    def _finalize(self, request: Request, _form: Form) -> dict[str, Any]:
        found = self._draft(request)
        if found["total"] < 0:
            raise RefusedError(400, "an invoice's total cannot be negative")
        status = "paid" if found["total"] == 0 else "open"
        moments = {**found["status_transitions"], "finalized_at": int(time.time())}
        number = f"DOUBLE-{int(found['id'][-8:]):04d}"
        return self._kept(
            objects.with_sums({**found, "status": status, "status_transitions": moments, "number": number})
        )

    def _void(self, request: Request, _form: Form) -> dict[str, Any]:
        return self._moved(request, "void", "voided_at")

    def _pay(self, request: Request, _form: Form) -> dict[str, Any]:
        return self._moved(request, "paid", "paid_at")

    def _moved(self, request: Request, status: str, moment: str) -> dict[str, Any]:
        found = self._find(request.path_params["id"], "invoice")
        if found["status"] != "open":
            raise RefusedError(400, f"an invoice that is {found['status']} cannot become {status}")
        moments = {**found["status_transitions"], moment: int(time.time())}
        return self._kept(objects.with_sums({**found, "status": status, "status_transitions": moments}))

    def _draft(self, request: Request) -> dict[str, Any]:
        found = self._find(request.path_params["id"], "invoice")
        if found["status"] != "draft":
            raise RefusedError(400, "this invoice is finalized and cannot be changed", code="invoice_not_editable")
        return found

    def _find(self, object_id: str, kind: str) -> dict[str, Any]:
        found = self._store.get(object_id)
        if found is None or found["object"] != kind:
            raise RefusedError(404, f"No such {kind}: '{object_id}'", code="resource_missing")
        return found

    def _search(self, kind: str, form: Form) -> list[dict[str, Any]]:
        match = _QUERY.fullmatch(str(form.get("query", "")).strip())
        if match is None:
            raise RefusedError(400, "the double searches by one metadata key only: metadata['key']:'value'")
        key, value = match.groups()
        return [body for body in self._store.all(kind) if body["metadata"].get(key) == value][
            : int(form.get("limit", 10))
        ]

    def _kept(self, body: dict[str, Any]) -> dict[str, Any]:
        self._store.put(body)
        return objects.shown(body)


def _authenticate(request: Request) -> None:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.startswith(("sk_test_", "rk_test_")):
        raise RefusedError(401, "Invalid API Key provided", "invalid_request_error", "api_key_invalid")


def _paged(url: str, data: list[dict[str, Any]], form: Form) -> dict[str, Any]:
    limit = min(100, int(form.get("limit", 10)))
    start = 0
    if (after := form.get("starting_after")) is not None:
        start = next((index + 1 for index, body in enumerate(data) if body["id"] == after), len(data))
    return objects.page(url, data[start : start + limit], start + limit < len(data))
