"""Where Stripe delivers its events, and the thread that handles what was noted."""

import logging
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from taximeter_billing.payments.errors import PaymentError, WebhookRefusedError
from taximeter_billing.payments.webhooks import read_event
from taximeter_billing.pushing import payments_client
from taximeter_billing.service.looking import LookingThread
from taximeter_billing.settings import BillingSettings
from taximeter_billing.stripe_inbox import handle_waiting, take_event

BODY_BYTES_MAX = 1 << 20
LOOK_SECONDS = 1.0
RETRY_SECONDS = 5.0
_log = logging.getLogger(__name__)


class StripeInbox(LookingThread):
    """A thread that handles noted events, woken by each new one. Without a Stripe key it stays asleep, and events wait."""

    def __init__(self, book: Engine, settings: BillingSettings) -> None:
        super().__init__("stripe-inbox", is_wanted=bool(settings.stripe_api_key))
        self._book = book
        self._settings = settings

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            pause = LOOK_SECONDS
            try:
                # The inbox itself tries again, so the client need not.
                client = payments_client(self._settings, retries=0)
                for done in handle_waiting(self._book, client, lambda: datetime.now(UTC)):
                    level = logging.WARNING if done.waits else logging.INFO
                    _log.log(level, "Stripe event %s: %s", done.kind, done.outcome, extra={"event_id": done.event_id})
            except (PaymentError, SQLAlchemyError) as error:
                _log.warning("events of Stripe wait: %s", error)
                pause = RETRY_SECONDS
            self._wake.wait(pause)


def router(settings: BillingSettings, book: Engine, inbox: StripeInbox) -> APIRouter:
    """POST /v1/stripe/webhooks: open to all, because the signature is the password."""
    api = APIRouter(tags=["stripe"])

    @api.post("/stripe/webhooks")
    async def deliver(request: Request, stripe_signature: Annotated[str, Header()] = "") -> dict[str, Any]:
        """Take an event. 200 means that it is noted; what it says of an invoice is asked of Stripe itself after."""
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > BODY_BYTES_MAX:
                raise WebhookRefusedError(f"a body of more than {BODY_BYTES_MAX} bytes")
        event = read_event(body, stripe_signature, settings.stripe_webhook_secret.get_secret_value())
        if event.live != settings.stripe_live:
            raise WebhookRefusedError(
                f"an event of Stripe's {'live' if event.live else 'test'} mode, and we are in the other"
            )
        new = await run_in_threadpool(take_event, book, event, datetime.now(UTC))
        inbox.wake()
        return {"received": True, "new": new}

    return api
