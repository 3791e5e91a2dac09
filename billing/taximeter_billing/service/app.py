"""The HTTP face of billing. JSON under /v1 for programs, /invoices for a browser; health, readiness and metrics are open."""

from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException

from taximeter_billing.book import InvoiceRow, OutboxRow, ParkedRow, StripeEventRow
from taximeter_billing.errors import BillingError
from taximeter_billing.service import declared, exports, invoicing, pages, proving, stripe_webhooks, top_ups
from taximeter_billing.service.access import authorize
from taximeter_billing.service.sender import ControlSender
from taximeter_billing.service.stripe_webhooks import StripeInbox
from taximeter_billing.settings import BillingSettings
from taximeter_producers.errors import ControlError
from taximeter_schemas.errors import AmountError, PeriodError
from taximeter_sql import WarehouseError


def build_app(settings: BillingSettings, book: Engine, sender: ControlSender, inbox: StripeInbox) -> FastAPI:
    """The service over an open book, which the caller closes."""
    # No page that shows the API: its script comes from elsewhere, and a browser sends the admin's password along to this address.
    app = FastAPI(title="Taximeter billing", version="1", docs_url=None, redoc_url=None)

    def caller(request: Request) -> str:
        return authorize(request, settings.admin_token)

    known = [Depends(caller)]
    app.include_router(declared.router(settings, book, caller), prefix="/v1", dependencies=known)
    app.include_router(top_ups.router(settings, book, caller), prefix="/v1", dependencies=known)
    app.include_router(proving.router(settings, book, caller), prefix="/v1", dependencies=known)
    app.include_router(invoicing.router(settings, book), prefix="/v1", dependencies=known)
    app.include_router(exports.router(settings, book), prefix="/v1", dependencies=known)
    app.include_router(pages.router(settings, book), dependencies=known)
    app.include_router(stripe_webhooks.router(settings, book, inbox), prefix="/v1")

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz")
    def readyz() -> Response:
        state = {"book": _answers(book), "control_published": sender.ready}
        ready = all(state.values())
        return JSONResponse({"ready": ready, **state}, 200 if ready else 503)

    registry = _metrics(book)

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    _name_errors(app)
    return app


def _answers(book: Engine) -> bool:
    try:
        with book.connect() as connection:
            connection.execute(text("SELECT 1"))
    except SQLAlchemyError:
        return False
    return True


def _metrics(book: Engine) -> CollectorRegistry:
    registry = CollectorRegistry()

    def gauge(name: str, describes: str, counted: Any) -> None:
        def count() -> float:
            with Session(book) as session:
                return float(session.scalar(counted) or 0)

        Gauge(name, describes, registry=registry).set_function(count)

    gauge(
        "taximeter_billing_outbox_records",
        "Control records that the log has not taken yet",
        select(func.count()).select_from(OutboxRow),
    )
    gauge(
        "taximeter_billing_parked_tenants",
        "Tenants and periods that cannot be invoiced",
        select(func.count()).select_from(ParkedRow),
    )
    gauge(
        "taximeter_billing_stripe_events_waiting",
        "Events of Stripe that are noted and not handled yet",
        select(func.count()).select_from(StripeEventRow).where(StripeEventRow.handled_at.is_(None)),
    )
    drafts = select(func.count()).select_from(InvoiceRow).where(InvoiceRow.status == "draft")
    gauge("taximeter_billing_draft_invoices", "Invoices that are not final", drafts)
    return registry


def _name_errors(app: FastAPI) -> None:
    """Every refusal has one shape: {"error": {"code": ..., "message": ...}}."""

    def refuse(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"error": {"code": code, "message": message}}, status, headers)

    @app.exception_handler(BillingError)
    def billing(_request: Request, error: BillingError) -> Response:
        return refuse(error.status, error.code, str(error))

    @app.exception_handler(PeriodError)
    def period(_request: Request, error: PeriodError) -> Response:
        return refuse(422, "invalid_period", str(error))

    @app.exception_handler(AmountError)
    def amount(_request: Request, error: AmountError) -> Response:
        return refuse(422, "invalid_amount", str(error))

    @app.exception_handler(ControlError)
    def control(_request: Request, error: ControlError) -> Response:
        return refuse(503, "not_published", f"recorded, and published as soon as the log answers: {error}")

    @app.exception_handler(WarehouseError)
    def warehouse(_request: Request, error: WarehouseError) -> Response:
        return refuse(503, "warehouse_unreachable", str(error))

    @app.exception_handler(HTTPException)
    def http(_request: Request, error: HTTPException) -> Response:
        code = {401: "unauthorized", 404: "not_found"}.get(error.status_code, "refused")
        return refuse(error.status_code, code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    def invalid(_request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return refuse(422, "invalid_request", f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
