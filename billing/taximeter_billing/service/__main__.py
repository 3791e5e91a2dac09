"""`python -m taximeter_billing.service`: the billing API, until SIGTERM or SIGINT."""

import signal
import sys
from types import FrameType

import uvicorn

from taximeter_billing.book import open_book
from taximeter_billing.service.app import build_app
from taximeter_billing.service.margin_watch import MarginWatch
from taximeter_billing.service.sender import ControlSender
from taximeter_billing.service.stripe_webhooks import StripeInbox
from taximeter_billing.settings import BillingSettings
from taximeter_producers.logs import configure_logging

_STOP_SECONDS_MAX = 20


def main() -> None:
    """Run the service. Exits 0 after a clean stop, 2 when it has no admin token: an API without one is open to all."""
    configure_logging("billing")
    settings = BillingSettings()
    if not settings.admin_token:
        sys.exit("TAXIMETER_ADMIN_TOKEN is not set; the billing API does not start without it")
    # uvicorn raises the signal again once it has stopped; then the process is to end well, not by the signal.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    book = open_book(settings.database_url)
    try:
        with (
            ControlSender(book, settings) as sender,
            StripeInbox(book, settings) as inbox,
            MarginWatch(book, settings),
        ):
            uvicorn.run(
                build_app(settings, book, sender, inbox),
                host=settings.host,
                port=settings.billing_port,
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=_STOP_SECONDS_MAX,
            )
    finally:
        book.dispose()


def _end(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    main()
