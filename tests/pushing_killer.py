"""Pushes a month to Stripe while being killed at one step after another, and says what each run ended with.

`python -m tests.pushing_killer BOOK_FILE STRIPE_URL STRIDE`: a step is a request to Stripe (before it is sent, and after its
effect) or a statement to the book. For every STRIDE-th step, a process pushes from a copy of the book, under tenants of its own,
and is killed (SIGKILL) at that step; another then pushes again. Prints a JSON object a line, first of a run that nobody killed.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import stripe
from sqlalchemy import event, select

from taximeter_billing import pushing
from taximeter_billing.book import InvoiceRow, open_book, writing
from taximeter_billing.payments.errors import PaymentError
from taximeter_billing.payments.push import API_VERSION
from taximeter_billing.settings import BillingSettings
from tests.closing_killer import PERIOD, in_a_process

Step = Callable[[], None]


def counting(deadly: int) -> Step:
    """Called at every step; kills its own process at the given one (0: never)."""
    seen = 0

    def step() -> None:
        nonlocal seen
        seen += 1
        if seen == deadly:
            os.kill(os.getpid(), signal.SIGKILL)

    return step


class _Stepping(stripe.RequestsClient):
    """Takes a step before each request and after it."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self._step = step

    def request(
        self, method: str, url: str, headers: Mapping[str, str] | None, post_data: Any = None, **options: Any
    ) -> Any:
        """Send it between two steps."""
        self._step()
        answer = super().request(method, url, headers, post_data, **options)
        self._step()
        return answer


def push(settings: BillingSettings, step: Step) -> None:
    """Push the month. Raises PaymentError for an invoice that failed."""
    book = open_book(settings.database_url)
    event.listen(book, "before_cursor_execute", lambda *_anything: step())
    event.listen(book, "commit", lambda *_anything: step())
    client = stripe.StripeClient(
        settings.stripe_api_key, base_addresses={"api": settings.stripe_url}, stripe_version=API_VERSION,
        http_client=_Stepping(step),
    )  # fmt: skip
    with patch.object(pushing, "payments_client", lambda _settings: client):
        for _row, result in pushing.push_period(book, settings, PERIOD):
            if isinstance(result, PaymentError):
                raise result
    book.dispose()


def rename(url: str, suffix: str) -> None:
    """Give each run invoices and tenants of its own, since all of them share one Stripe."""
    book = open_book(url)
    with writing(book) as session:
        for row in session.scalars(select(InvoiceRow)):
            document = json.loads(row.document)
            document["tenant"]["id"] = row.tenant = f"{row.tenant}-{suffix}"
            row.number, row.document = f"{row.number}-{suffix}", json.dumps(document)
    book.dispose()


def outcome(settings: BillingSettings) -> dict[str, object]:
    """What the book says of its invoices, what differs from Stripe's, and how many Stripe has of each."""
    book = open_book(settings.database_url)
    client = stripe.StripeClient(settings.stripe_api_key, base_addresses={"api": settings.stripe_url})
    listed = list(client.v1.invoices.list({"limit": 100}).auto_paging_iter())
    numbers = [one.metadata["taximeter_invoice"] for one in listed if one.metadata is not None]
    found = {
        "invoices": [
            [(row.number or "").rpartition("-")[0], row.stripe_status, problems, numbers.count(row.number or "")]
            for row, problems in pushing.compare_pushed(book, settings, PERIOD)
        ]
    }
    book.dispose()
    return dict(found)


def main() -> None:
    """Run until a process lives to its end."""
    template, stripe_url, stride = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

    def run(step: int) -> int:
        copy = template.with_name(f"pushed-{step}.db")
        shutil.copy(template, copy)
        settings = BillingSettings(database_url=f"sqlite:///{copy}", stripe_url=stripe_url, stripe_api_key="sk_test_1")
        rename(settings.database_url, str(step))
        ended = in_a_process(lambda: push(settings, counting(step)))
        assert in_a_process(lambda: push(settings, counting(0))) == 0
        print(json.dumps({"step": step, "ended": ended, **outcome(settings)}), flush=True)
        assert ended in {0, -signal.SIGKILL}
        return ended

    run(0)
    step = 1
    while run(step) != 0:
        step += stride


if __name__ == "__main__":
    main()
