"""Billing on a running stack, as an operator would do it: apply, keys, close, finalize, push."""

import tempfile
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import yaml

from taximeter.embedded.stack import Stack, StackError
from taximeter_billing import operations
from taximeter_billing.book import InvoiceRow
from taximeter_billing.closing import Closed, close_period, finalize_period, list_invoices
from taximeter_billing.declarations import Plan
from taximeter_billing.payments.errors import PaymentError
from taximeter_billing.pushing import push_period
from taximeter_billing.settings import BillingSettings
from taximeter_billing.warehouse import UsageReader
from taximeter_sql import connect

ACTOR = "launcher"
KEY_SECONDS_MAX = 30.0


class BillingDesk:
    """The billing operations against the stack's own book, log, warehouse and payments."""

    def __init__(self, stack: Stack) -> None:
        given = {name.removeprefix("TAXIMETER_").lower(): value for name, value in stack.service_environment.items()}
        self.settings = BillingSettings.model_validate(given)
        self._gateway = stack.addresses.urls["gateway"]

    def apply(self, file: Path) -> Plan:
        """Apply a declarations file."""
        return operations.apply_file(self.settings, file, ACTOR)

    def apply_content(self, content: dict[str, object]) -> Plan:
        """Apply declarations that are in memory."""
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False) as file:
            yaml.safe_dump(content, file)
        try:
            return self.apply(Path(file.name))
        finally:
            Path(file.name).unlink()

    def make_keys(self, tenants: list[str]) -> dict[str, str]:
        """A new API key for each tenant, each of them known to the gateway. Raises StackError when one is not in time."""
        keys = {tenant: operations.create_key(self.settings, tenant, ACTOR).secret for tenant in tenants}
        deadline = time.monotonic() + KEY_SECONDS_MAX
        for tenant, key in keys.items():
            while not self._gateway_knows(key):
                if time.monotonic() > deadline:
                    raise StackError(f"the gateway has not heard of {tenant}'s key after {KEY_SECONDS_MAX:.0f} s")
                time.sleep(0.05)
        return keys

    def _gateway_knows(self, key: str) -> bool:
        asked = urllib.request.Request(f"{self._gateway}/v1/models", headers={"Authorization": f"Bearer {key}"})
        try:
            with urllib.request.urlopen(asked, timeout=5):
                return True
        except urllib.error.HTTPError as refused:
            return refused.code != 401
        except OSError:
            return False

    def close(self, period: str) -> Closed:
        """Close the period now, over or not."""
        client = connect(self.settings.clickhouse_url)
        try:
            with operations.opened(self.settings) as book:
                return close_period(book, UsageReader(client), period, datetime.now(UTC), early=True)
        finally:
            client.close()

    def finalize(self, period: str) -> list[InvoiceRow]:
        """Finalize the period's drafts."""
        with operations.opened(self.settings) as book:
            return finalize_period(book, period, self.settings.invoice_series, datetime.now(UTC))

    def push(self, period: str) -> int:
        """Push the period's invoices to Stripe; how many were created by this call. Raises PaymentError."""
        created = 0
        with operations.opened(self.settings) as book:
            for _row, result in push_period(book, self.settings, period):
                if isinstance(result, PaymentError):
                    raise result
                created += result.created
        return created

    def invoices(self, period: str) -> list[InvoiceRow]:
        """The period's invoices."""
        with operations.opened(self.settings) as book:
            return list_invoices(book, period)
