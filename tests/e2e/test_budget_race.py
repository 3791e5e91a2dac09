"""Eight gateways, five tenants at 99% of their budgets, a thousand requests at once, and a crash in the middle.

One gateway and the keeper of budgets are killed while they serve, and started again. At the end no tenant has spent more
than its limit, at no moment was more promised than there was, nearly all of it could be used, and each alert was raised.
"""

import asyncio
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from signal import SIGKILL

import aiohttp
import pytest

from taximeter.embedded.broker import EmbeddedBroker
from taximeter.embedded.ports import free_port
from taximeter_producers import UsageProducer
from taximeter_schemas.budgets import Budget, BudgetAlert, BudgetState
from taximeter_schemas.events import Tokens, UsageData, UsageEvent
from taximeter_schemas.topics import BUDGET_ALERTS, BUDGET_STATE, USAGE_EVENTS
from tests import gateway_stack
from tests.face_process import FaceProcess
from tests.gateway_stack import PARTITIONS, PRICE, Client, GatewayStack, Service, chat_body, declare
from tests.kafka_broker import ApacheKafka
from tests.topic_reader import read_topic
from tests.waiting import await_true

pytestmark = [pytest.mark.stack, pytest.mark.kafka, pytest.mark.race]

GATEWAYS, TENANTS, REQUESTS, PAYABLE = 8, 5, 1_000, 40
MODEL = "m-race"
COST_PICO = 2 * PRICE.uncached_input + 5 * (PRICE.output or 0)
LEFT_PICO = PAYABLE * COST_PICO
LIMIT_PICO = 100 * LEFT_PICO
SECONDS_MAX = 420.0
LEASES = {
    "TAXIMETER_BUDGETS_LEASE_TIMEOUT_SECONDS": "15",
    "TAXIMETER_BUDGETS_SETTLE_TIMEOUT_SECONDS": "120",
    "TAXIMETER_BUDGETS_ARRIVAL_TIMEOUT_SECONDS": "10",
}


@dataclass
class Race:
    """The processes, and what is in the log of them."""

    stack: GatewayStack
    gateways: list[Service]
    budgets: Service
    keys: dict[str, str] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    served: Counter[str] = field(default_factory=Counter)

    def read(self, topic: str) -> list[bytes]:
        """All values of a topic."""
        return [message.value() or b"" for message in read_topic(self.stack.bootstrap_servers, topic)]

    def states(self) -> list[BudgetState]:
        """Every state that the keeper has published of these tenants."""
        found = (BudgetState.model_validate_json(value) for value in self.read(BUDGET_STATE.name))
        return [state for state in found if state.tenant in self.keys and state.positions]

    def spent(self) -> dict[str, int]:
        """What is posted, by tenant."""
        newest = {state.tenant: state for state in sorted(self.states(), key=lambda state: state.updated_at)}
        return {tenant: state.positions[0].spent_pico for tenant, state in newest.items()}

    def emitted(self) -> dict[str, int]:
        """What the events in the log cost, by tenant: the truth that postings are held to."""
        cost: Counter[str] = Counter()
        for value in set(self.read(USAGE_EVENTS.name)):
            event = UsageEvent.model_validate_json(value)
            tokens = event.data.tokens
            if event.data.tenant in self.keys:
                read = tokens.cache_read.gpu * (PRICE.cache_read_gpu or 0)
                cost[event.data.tenant] += (
                    tokens.uncached_input * PRICE.uncached_input + read + tokens.output * (PRICE.output or 0)
                )
        return dict(cost)

    def alerts(self) -> set[str]:
        """The ids of all alerts."""
        found = (BudgetAlert.model_validate_json(value) for value in self.read(BUDGET_ALERTS.name))
        return {f"{alert.tenant} {alert.kind}" for alert in found if alert.tenant in self.keys}


@contextmanager
def broker_of_its_own(kind: str, folder: Path) -> Iterator[str]:
    """A broker that nobody else uses: its topics' whole content is looked at."""
    if kind == "apache":
        with ApacheKafka(folder) as kafka:
            yield kafka.bootstrap_servers
    else:
        with EmbeddedBroker(folder, free_port()) as broker:
            yield broker.bootstrap_servers


@pytest.fixture
def race(
    request: pytest.FixtureRequest, tmp_path: Path, clickhouse: FaceProcess, unique_database: str
) -> Iterator[Race]:
    with broker_of_its_own(request.config.getoption("--broker"), tmp_path / "broker") as servers:
        stack = GatewayStack(servers, tmp_path, gateway_stack.PRICED)
        common = {
            "TAXIMETER_KAFKA_BOOTSTRAP_SERVERS": servers,
            "TAXIMETER_KAFKA_PARTITIONS": str(PARTITIONS),
            "TAXIMETER_KAFKA_REBALANCE_TIMEOUT_SECONDS": "3",
            "TAXIMETER_CLICKHOUSE_URL": clickhouse.url(unique_database),
            "TAXIMETER_METER_LINGER_MS": "50",
            **LEASES,
        }
        meter, budgets = (
            Service(
                f"taximeter_streams.{name}",
                f"TAXIMETER_{name.upper()}_PORT",
                {**common, "TAXIMETER_STATE_DIR": str(tmp_path / name)},
                tmp_path,
            )
            for name in ("meter", "budgets")
        )
        wait = {"TAXIMETER_GATEWAY_LEASE_WAIT_MS": "3000"}
        gateways = [
            stack.another_gateway(f"{stack.gateway_id}-{number}", stack.upstream.url, **wait)
            for number in range(GATEWAYS)
        ]
        stack.gateway = gateways[0]
        services = [stack.upstream, meter, budgets, *gateways]
        try:
            for service in services:
                service.child.start()
            for service in services:
                await_true(service.is_ready, lambda service=service: service.child.log_tail(50))  # type: ignore[misc]
            yield Race(stack, gateways, budgets)
        finally:
            for service in reversed(services):
                service.child.stop()


def bring_to_99_percent(race: Race, folder: Path) -> None:
    """Declare the tenants, and let each spend 99% of its budget without a lease."""
    for number in range(TENANTS):
        tenant = f"t{number}-{secrets.token_hex(4)}"
        budget = Budget(id=f"b-{tenant}", tenant=tenant, limit_pico=LIMIT_PICO)
        race.keys[tenant] = declare(race.stack, tenant, [budget])
    before = (LIMIT_PICO - LEFT_PICO) // PRICE.uncached_input
    with UsageProducer(
        bootstrap_servers=race.stack.bootstrap_servers, producer_id="past", spool_dir=folder / "past"
    ) as producer:
        for tenant in race.keys:
            data = UsageData(tenant=tenant, feature="chat", model=MODEL, tokens=Tokens(uncached_input=before))
            producer.emit(UsageEvent(id=f"past-{tenant}", source="past", time=datetime.now(UTC), data=data))
    expected = dict.fromkeys(race.keys, LIMIT_PICO - LEFT_PICO)
    await_true(lambda: race.spent() == expected, lambda: f"{race.spent()} of {expected}")
    for gateway in race.gateways:
        for key in race.keys.values():
            await_true(lambda url=gateway.url, key=key: _sees_99_percent(url, key), lambda: "99% at each gateway")  # type: ignore[misc]


def _sees_99_percent(url: str, key: str) -> bool:
    refused = Client(url, key).post("/v1/chat/completions", chat_body(MODEL, "a b", 100_000))
    return refused.status_code == 402 and refused.json()["error"]["code"] == "budget_exhausted"


async def send_all(race: Race, crash: Callable[[], None]) -> None:
    """All requests at once; each comes again, elsewhere if need be, until it is served or its budget is exhausted."""
    crashed = False
    tenants = list(race.keys)

    async def insist(session: aiohttp.ClientSession, number: int) -> None:
        nonlocal crashed
        tenant = tenants[number % TENANTS]
        body = chat_body(MODEL, "a b", 5)
        body["vllm_xargs"] = {"simulated_output_tokens": 5, "simulated_token_ms": 10}
        if number % 2:
            del body["max_tokens"]
        headers = Client("", race.keys[tenant]).headers()
        deadline = time.monotonic() + SECONDS_MAX
        for turn in range(10_000):
            gateway = race.gateways[(number // TENANTS + turn) % GATEWAYS]
            code = await post(session, f"{gateway.url}/v1/chat/completions", body, headers)
            race.answers[code] += 1
            if code == "served":
                race.served[tenant] += 1
                if not crashed and sum(race.served.values()) >= 30:
                    crashed = True
                    await asyncio.to_thread(crash)
            if code in ("served", "budget_exhausted"):
                return
            assert time.monotonic() < deadline, race.answers
            await asyncio.sleep(min(8.0, 1.5**turn))

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(SECONDS_MAX)) as session:
        await asyncio.gather(*(insist(session, number) for number in range(REQUESTS)))


async def post(session: aiohttp.ClientSession, url: str, body: object, headers: dict[str, str]) -> str:
    """What came of a request, in a word."""
    try:
        async with session.post(url, json=body, headers=headers) as response:
            answer = await response.json()
            return "served" if response.status == 200 else str(answer["error"]["code"])
    except aiohttp.ClientError:
        return "broken_off"


def test_no_budget_is_overspent_and_nearly_all_of_it_is_used(race: Race, tmp_path: Path) -> None:
    bring_to_99_percent(race, tmp_path)
    fallible = (race.gateways[0], race.budgets)
    crashes = 0

    def crash() -> None:
        """Kill a gateway and the keeper at once."""
        nonlocal crashes
        for service in fallible:
            service.child.signal(SIGKILL)
            crashes += 1

    async def run() -> None:
        sending = asyncio.create_task(send_all(race, crash))
        while not sending.done():
            for service in fallible:
                if not service.child.running:
                    # As whatever supervises them would; from this thread, since a child ends with the one that started it.
                    service.child.start()
            await asyncio.sleep(0.1)
        await sending

    asyncio.run(run())
    assert crashes == 2, race.answers
    await_true(lambda: race.spent() == race.emitted(), lambda: f"posted {race.spent()}, emitted {race.emitted()}")
    spent = race.spent()
    usable = {tenant: (pico - LIMIT_PICO + LEFT_PICO) * 100 // LEFT_PICO for tenant, pico in spent.items()}
    report = f"served {dict(race.served)}, used {usable} %, answers {dict(race.answers)}"
    print(report, file=sys.stderr)
    assert all(pico <= LIMIT_PICO for pico in spent.values()), report
    assert min(usable.values()) >= 95, report
    for state in race.states():
        position = state.positions[0]
        assert position.spent_pico + position.leased_pico <= LIMIT_PICO, (state, report)
    kinds = ("soft_threshold", "hard_limit")
    expected = {f"{tenant} {kind}" for tenant in race.keys for kind in kinds}
    await_true(lambda: race.alerts() == expected, lambda: f"{race.alerts()} of {expected}")
