"""The whole pipeline as real processes: traffic through the gateway, crashes in its middle, invoices, Stripe, and every law."""

import asyncio
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from taximeter.demo.receiver import Receiver
from taximeter.demo.run import EXAMPLE
from taximeter.demo.scene import HABITS, RUNAWAY, TENANTS
from taximeter.embedded.billing_desk import BillingDesk
from taximeter.embedded.ports import free_port
from taximeter.embedded.settling import wait_until_metered
from taximeter.embedded.stack import Stack
from taximeter.reconcile.run import reconcile_all
from taximeter.workload.client import Outcome, gateway_client
from taximeter.workload.demo_plan import plan_day, plan_night
from taximeter.workload.requests import PlannedRequest
from taximeter_sql import connect
from tests.kafka_broker import ApacheKafka

pytestmark = pytest.mark.stack
SEED = 7


@pytest.fixture
def stack(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stack]:
    """A running stack: on the embedded broker, or on an Apache Kafka of its own that keeps its data."""
    if request.config.getoption("--broker") == "apache":
        with (
            ApacheKafka(tmp_path / "kafka") as kafka,
            Stack(tmp_path / "data", random_ports=True, kafka=kafka.bootstrap_servers) as running,
        ):
            yield running
    else:
        with Stack(tmp_path / "data", random_ports=True) as running:
            yield running


def period() -> str:
    return f"{datetime.now(UTC):%Y-%m}"


async def send(
    stack: Stack, keys: dict[str, str], requests: list[PlannedRequest], kill: tuple[str, ...] = ()
) -> Outcome:
    """Send requests through the gateway; kill -9 each named service somewhere in the middle, and start it again."""
    async with gateway_client(stack.addresses.urls["gateway"], keys) as client:
        sending = asyncio.create_task(client.send_all(requests, 8))
        for number, name in enumerate(kill, 1):
            while not sending.done() and client.outcome.sent < len(requests) * number // (len(kill) + 1):
                await asyncio.sleep(0.02)
            stack.children[name].signal(signal.SIGKILL)
            await asyncio.to_thread(stack.children[name].wait)
            stack.supervise()
        await sending
        return client.outcome


def rated(stack: Stack) -> dict[str, int]:
    """Rated events by tenant, as the warehouse has them."""
    with connect(stack.addresses.clickhouse_url) as client:
        rows = client.query("SELECT tenant, count() FROM usage_events GROUP BY tenant").result_rows
        return {str(tenant): int(count) for tenant, count in rows}


def bill(desk: BillingDesk) -> None:
    desk.close(period())
    desk.finalize(period())
    desk.push(period())


def test_from_a_request_to_a_proven_invoice_and_a_second_run_that_changes_nothing(stack: Stack) -> None:
    desk = BillingDesk(stack)
    assert not desk.apply(EXAMPLE).empty
    assert desk.apply(EXAMPLE).empty
    keys = desk.make_keys(list(TENANTS))
    outcome = asyncio.run(send(stack, keys, list(plan_day(HABITS, 120, SEED))))
    assert outcome.served == 120
    wait_until_metered(stack)
    assert sum(rated(stack).values()) == 120
    assert outcome.cached_tokens > 0
    bill(desk)
    before = [(row.number, row.document_sha256, row.stripe_invoice_id) for row in desk.invoices(period())]
    assert len(before) == len(rated(stack))
    assert all(row.savings_pico > 0 for row in desk.invoices(period()) if row.tenant in {"acme", "globex"})
    again = desk.close(period())
    assert not again.drafted and not again.parked
    assert desk.finalize(period()) == []
    assert desk.push(period()) == 0
    assert [(row.number, row.document_sha256, row.stripe_invoice_id) for row in desk.invoices(period())] == before
    report = reconcile_all(desk.settings)
    assert report.clean, report.to_json()


def test_kill_minus_nine_of_meter_budgets_and_gateway_leaves_exact_counts(stack: Stack) -> None:
    desk = BillingDesk(stack)
    desk.apply(EXAMPLE)
    keys = desk.make_keys(list(TENANTS))
    requests = [request for request in plan_day(HABITS, 400, SEED) if request.tenant != RUNAWAY.tenant]
    outcome = asyncio.run(send(stack, keys, requests, kill=("meter", "budgets", "gateway", "meter")))
    wait_until_metered(stack)
    counted = rated(stack)
    for tenant in TENANTS:
        # Whatever was answered was counted, once. A request that the dying gateway had in hand may have been counted too.
        hung_up = outcome.of(tenant, 0)
        assert outcome.of(tenant, 200) <= counted.get(tenant, 0) <= outcome.of(tenant, 200) + hung_up
    bill(desk)
    for check in reconcile_all(desk.settings).checks:
        if check.law != "nothing lost":
            assert check.holds, check
        # What the gateway had numbered and not yet answered when it was killed shows as a gap of that very gateway.
        assert all(found.subject.startswith("producer gateway-1:") for found in check.findings), check


def thresholds(receiver: Receiver) -> list[str]:
    """The kinds of what was told, without forecasts: whether there is one depends on the time of day."""
    return sorted(str(alert["type"]) for alert in receiver.alerts.values() if alert["type"] != "budget.forecast")


def test_a_runaway_is_stopped_at_its_hard_limit_and_somebody_is_told(stack: Stack, tmp_path: Path) -> None:
    desk = BillingDesk(stack)
    receiver = Receiver(free_port(), "whsec_ZXhhbXBsZS1zZWNyZXQtbm90LWZvci1wcm9kdWN0aW9uLXVzZQ==")
    file = tmp_path / "declarations.yaml"
    text = EXAMPLE.read_text().replace("http://127.0.0.1:8095/alerts", receiver.url)
    file.write_text(text.replace('limit: "0.05"', 'limit: "0.01"'))
    desk.apply(file)
    keys = desk.make_keys(["initech"])

    async def night() -> Outcome:
        await receiver.start()
        try:
            outcome = await send(stack, keys, list(plan_night(RUNAWAY, 400, SEED)))
            await asyncio.to_thread(wait_until_metered, stack)
            deadline = asyncio.get_running_loop().time() + 60
            while len(thresholds(receiver)) < 3 and asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(0.1)
            return outcome
        finally:
            await receiver.stop()

    outcome = asyncio.run(night())
    assert outcome.served > 0
    assert outcome.of("initech", 402) > 0
    assert outcome.served + outcome.of("initech", 402) == 400
    with connect(stack.addresses.clickhouse_url) as client:
        spent = client.query("SELECT sum(metered_pico) FROM usage_events WHERE tenant = 'initech'").result_rows[0][0]
    assert spent <= 10**10, "a hard limit was overspent"
    assert receiver.forged == 0
    assert thresholds(receiver) == ["budget.hard_limit", "budget.soft_threshold", "budget.soft_threshold"]
