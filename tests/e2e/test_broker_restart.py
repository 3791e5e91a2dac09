"""A broker that is killed in the middle of traffic and comes back with its data: nothing is lost, nothing counts twice."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from taximeter.demo.run import EXAMPLE
from taximeter.demo.scene import HABITS
from taximeter.embedded.billing_desk import BillingDesk
from taximeter.embedded.settling import wait_until_metered
from taximeter.embedded.stack import Stack
from taximeter.reconcile.run import reconcile_all
from taximeter.workload.client import Outcome, gateway_client
from taximeter.workload.demo_plan import plan_day
from taximeter.workload.requests import PlannedRequest
from taximeter_sql import connect
from tests.kafka_broker import ApacheKafka

pytestmark = [pytest.mark.stack, pytest.mark.kafka]

# Without hard budgets: no lease has to be asked for while the broker is away.
TENANTS = ("globex", "wonka")
SECONDS_MAX = 120.0


def traffic_over_a_restart(
    stack: Stack, keys: dict[str, str], requests: list[PlannedRequest], kafka: ApacheKafka
) -> Outcome:
    """Send the requests; kill -9 the broker after a third of them, and start it again on its data.

    The broker is started from this thread: a child ends with the thread that started it.
    """
    answered = 0

    def count(_request: PlannedRequest, _status: int) -> None:
        nonlocal answered
        answered += 1

    async def send() -> Outcome:
        async with gateway_client(stack.addresses.urls["gateway"], keys) as client:
            await client.send_all(requests, 4, count)
            return client.outcome

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(lambda: asyncio.run(send()))
        _await(lambda: sending.done() or answered >= len(requests) // 3)
        kafka.kill()
        before = answered
        _await(lambda: sending.done() or answered >= before + 8)
        kafka.start()
        return sending.result(SECONDS_MAX)


def _await(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_broker_killed_and_started_again_leaves_exact_counts(tmp_path: Path) -> None:
    with (
        ApacheKafka(tmp_path / "kafka") as kafka,
        Stack(tmp_path / "data", random_ports=True, kafka=kafka.bootstrap_servers) as stack,
    ):
        desk = BillingDesk(stack)
        desk.apply(EXAMPLE)
        keys = desk.make_keys(list(TENANTS))
        requests = [request for request in plan_day(HABITS, 300, 11) if request.tenant in TENANTS]
        outcome = traffic_over_a_restart(stack, keys, requests, kafka)
        assert outcome.served == len(requests)
        wait_until_metered(stack)
        with connect(stack.addresses.clickhouse_url) as client:
            counted = client.query("SELECT tenant, count() FROM usage_events GROUP BY tenant").result_rows
        assert {tenant: int(count) for tenant, count in counted} == {name: outcome.of(name, 200) for name in TENANTS}
        report = reconcile_all(desk.settings)
        assert report.clean, report.to_json()
