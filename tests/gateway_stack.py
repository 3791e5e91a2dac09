"""A real gateway before a real simulated model server, for tests; a thread of the test keeps the budgets."""

import hashlib
import secrets
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from confluent_kafka import OFFSET_END, Consumer, KafkaError, Producer, TopicPartition

from taximeter.embedded.ports import free_port
from taximeter.embedded.processes import ChildProcess
from taximeter_producers.control import ControlFollower, publish
from taximeter_producers.topics import ensure_topics
from taximeter_schemas import wire
from taximeter_schemas.budgets import Budget
from taximeter_schemas.control import ControlKind, ControlRecord
from taximeter_schemas.rate_cards import Price, RateCard
from taximeter_schemas.tenants import ApiKey, Tenant
from taximeter_schemas.topics import BUDGET_LEASES, BUDGET_STATE, USAGE_EVENTS
from taximeter_streams.budgets import ledger
from taximeter_streams.budgets.deciding import Decider
from taximeter_streams.budgets.ledger import LeaseTerms
from taximeter_streams.budgets.state import TenantLedger
from tests.topic_reader import read_topic
from tests.waiting import await_true

SECONDS_MAX = 60.0
PARTITIONS = 4


@dataclass
class Keeper:
    """Keeps budgets by the ledger's own rules: answers leases, publishes state. `deaf` tenants get no answer."""

    bootstrap_servers: str
    deaf: set[str] = field(default_factory=set)
    ledgers: dict[str, TenantLedger] = field(default_factory=dict)
    buckets: dict[bytes, bytes] = field(default_factory=dict)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _ready: threading.Event = field(default_factory=threading.Event)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        self._control = ControlFollower(self.bootstrap_servers)
        self._control.start(SECONDS_MAX)
        self._decider = Decider(self._control.snapshot, LeaseTerms())
        self._producer = Producer(
            {"bootstrap.servers": self.bootstrap_servers, "partitioner": "murmur2_random", "linger.ms": 0}
        )
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()
        assert self._ready.wait(SECONDS_MAX)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()
        self._control.stop()

    def leased_pico(self, tenant: str, budget: str) -> int:
        """What is granted and neither posted nor given back."""
        with self._turn:
            return self._ledger(tenant).leased_pico(budget, datetime.now(UTC))

    def settled_pico(self, tenant: str) -> int:
        """What closed leases cost, by the gateway's account (budgets of one scope cost the same)."""
        with self._turn:
            leases = self._ledger(tenant).leases.values()
            return sum(max(lease.settled_pico.values(), default=0) for lease in leases if lease.settled_pico)

    def post(self, tenant: str, budget: str, spent_pico: int) -> None:
        """Post spend that came without a lease, and publish where the tenant's budgets stand."""
        with self._turn:
            state, now = self._ledger(tenant), datetime.now(UTC)
            rules = self._decider.rules(tenant)
            declared = next(item for item in rules.budgets if item.id == budget)
            period = rules.period(declared, now)
            posting = ledger._opened(period, declared.period).model_copy(update={"spent_pico": spent_pico})
            self.ledgers[tenant] = state.model_copy(update={"postings": {budget: {period.label: posting}}})
            self._publish(tenant)

    def _ledger(self, tenant: str) -> TenantLedger:
        return self.ledgers.get(tenant) or TenantLedger(tenant=tenant)

    def _publish(self, tenant: str) -> None:
        state = ledger.positions(self._ledger(tenant), self._decider.rules(tenant), datetime.now(UTC))
        self._producer.produce(BUDGET_STATE.name, state.model_dump_json().encode(), key=tenant)
        assert self._producer.flush(SECONDS_MAX) == 0

    def _keep(self) -> None:
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "group.id": "test-keeper-unused",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 10,
            }
        )
        consumer.assign([TopicPartition(BUDGET_LEASES.name, number, OFFSET_END) for number in range(PARTITIONS)])
        unread = set(range(PARTITIONS))
        try:
            while not self._stopping.is_set():
                message = consumer.poll(0.1)
                if message is None:
                    continue
                error = message.error()
                if error is not None:
                    assert error.code() == KafkaError._PARTITION_EOF
                    unread.discard(message.partition())
                    if not unread:
                        self._ready.set()
                    continue
                tenant = (message.key() or b"").decode()
                if tenant not in self.deaf:
                    self._hear(tenant, message.value() or b"")
        finally:
            consumer.close()

    def _hear(self, tenant: str, payload: bytes) -> None:
        with self._turn:
            decision = self._decider.on_lease(self._ledger(tenant), payload, datetime.now(UTC), self.buckets.get)
            self.ledgers[tenant] = decision.state
            if decision.bucket is not None:
                self.buckets[decision.bucket_key] = decision.bucket.model_dump_json().encode()
        if decision.grant is not None:
            self._producer.produce(BUDGET_LEASES.name, decision.grant.model_dump_json().encode(), key=tenant)
            assert self._producer.flush(SECONDS_MAX) == 0


class Service:
    """A service as a child process on a port of its own."""

    def __init__(self, module: str, port_variable: str, environment: Mapping[str, str], folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        name = module.rpartition(".")[2]
        self.child = ChildProcess(
            name, [sys.executable, "-m", module], {**environment, port_variable: str(self.port)}, folder / f"{name}.log"
        )

    def start(self) -> None:
        """Start it and wait until it is ready."""
        self.child.start()
        await_true(self.is_ready, lambda: self.child.log_tail(50))

    def is_ready(self) -> bool:
        """Whether it says so. Raises AssertionError when it has ended."""
        assert self.child.running, self.child.log_tail(50)
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False


class GatewayStack:
    """A gateway and its model server, with names of their own on a broker that others may use too."""

    def __init__(self, bootstrap_servers: str, folder: Path, models: Iterable[str]) -> None:
        self.bootstrap_servers = bootstrap_servers
        self.folder = folder
        self.gateway_id = f"gateway-{secrets.token_hex(4)}"
        ensure_topics(bootstrap_servers, PARTITIONS, 1)
        self.upstream = Service(
            "taximeter.embedded.upstream",
            "TAXIMETER_UPSTREAM_PORT",
            {"TAXIMETER_UPSTREAM_MODELS": ",".join(models)},
            folder,
        )
        self.gateway = self.another_gateway(self.gateway_id, self.upstream.url)

    def another_gateway(self, gateway_id: str, upstream_url: str, **environment: str) -> Service:
        """A gateway that is not started yet."""
        return Service(
            "taximeter_inference.gateway",
            "TAXIMETER_GATEWAY_PORT",
            {
                "TAXIMETER_KAFKA_BOOTSTRAP_SERVERS": self.bootstrap_servers,
                "TAXIMETER_KAFKA_PARTITIONS": str(PARTITIONS),
                "TAXIMETER_GATEWAY_ID": gateway_id,
                "TAXIMETER_SALT_SECRET": "0123456789abcdef0123456789abcdef",
                "TAXIMETER_UPSTREAM_URL": upstream_url,
                "TAXIMETER_STATE_DIR": str(self.folder / gateway_id),
                "TAXIMETER_GATEWAY_LEASE_WAIT_MS": "1500",
                **environment,
            },
            self.folder / gateway_id,
        )

    def stats(self, model: str) -> dict[str, int]:
        """The model server's own counters."""
        counts: dict[str, int] = httpx.get(f"{self.upstream.url}/stats", timeout=SECONDS_MAX).json()["by_model"][model]
        return counts

    def events(self, tenant: str, count: int) -> list[wire.UsageEvent]:
        """The tenant's usage events, once there are that many, in the order of their ids."""
        found: list[wire.UsageEvent] = []

        def there() -> bool:
            payloads = (message.value() or b"" for message in read_topic(self.bootstrap_servers, USAGE_EVENTS.name))
            mark = f'"tenant":"{tenant}"'.encode()
            found[:] = [wire.decode(payload) for payload in payloads if mark in payload]
            return len(found) >= count

        await_true(there, lambda: f"{count} events of {tenant}: {found}")
        assert len(found) == count, found
        return sorted(found, key=lambda event: int(event.id.rpartition(":")[2]))


@dataclass
class Client:
    """A tenant's client of one gateway."""

    url: str
    key: str
    feature: str | None = "chat"

    def headers(self, **more: str) -> dict[str, str]:
        """What it sends with each request."""
        named = {} if self.feature is None else {"x-taximeter-feature": self.feature}
        return {"authorization": f"Bearer {self.key}", **named, **more}

    def post(self, path: str, body: object, **headers: str) -> httpx.Response:
        """POST a JSON body."""
        return httpx.post(f"{self.url}{path}", json=body, headers=self.headers(**headers), timeout=SECONDS_MAX)

    def chat(self, model: str, prompt: str, output_tokens: int = 3, **fields: object) -> httpx.Response:
        """A chat whose answer has that many tokens."""
        return self.post("/v1/chat/completions", chat_body(model, prompt, output_tokens, **fields))


def chat_body(model: str, prompt: str, output_tokens: int = 3, **fields: object) -> dict[str, object]:
    """The body of a chat whose answer has that many tokens."""
    xargs = {"simulated_output_tokens": output_tokens}
    messages = [{"role": "user", "content": prompt}]
    return {"model": model, "messages": messages, "max_tokens": output_tokens, "vllm_xargs": xargs, **fields}


def declare(stack: GatewayStack, tenant: str, budgets: Sequence[Budget] = (), **fields: object) -> str:
    """Declare a tenant with a key, prices for every model, and budgets; returns the key once the gateway knows all."""
    now = datetime.now(UTC)
    card = RateCard(
        id=f"card-{tenant}",
        version=1,
        effective_from=now - timedelta(days=40),
        recorded_at=now,
        prices=tuple(PRICE.model_copy(update={"model": model}) for model in PRICED),
    )
    secret = f"sk-{secrets.token_hex(12)}"
    declared = Tenant.model_validate({"id": tenant, "rate_card": card.id, **fields})
    records = [_record(ControlKind.TENANT, tenant, declared), _record(ControlKind.RATE_CARD, card.name, card)]
    records += [_record(ControlKind.BUDGET, budget.id, budget) for budget in budgets]
    if not budgets:
        records.append(key_record(tenant, secret))
    publish(stack.bootstrap_servers, records)
    # A key of a later message shows that every earlier one was fetched; one more, that all of them were applied.
    for key in (f"sk-{secrets.token_hex(12)}", secret) if budgets else (secret,):
        if budgets:
            publish(stack.bootstrap_servers, [key_record(tenant, key)])
        await_true(lambda key=key: _knows(stack.gateway, key), lambda: f"the gateway knows {tenant}")  # type: ignore[misc]
    return secret


def key_record(tenant: str, key: str, disabled: bool = False) -> ControlRecord:
    """The record of an API key."""
    digest = hashlib.sha256(key.encode()).hexdigest()
    return _record(
        ControlKind.API_KEY, digest, ApiKey(id=digest[:8], tenant=tenant, key_sha256=digest, disabled=disabled)
    )


PRICED: tuple[str, ...] = ("m-json", "m-stream", "m-abort", "m-salt", "m-budget", "m-race", "embed")
PRICE = Price(model="any", uncached_input=1_000_000, cache_read_gpu=100_000, output=4_000_000)


def _record(kind: ControlKind, name: str, body: Tenant | RateCard | Budget | ApiKey) -> ControlRecord:
    return ControlRecord(kind=kind, id=name, body=body.model_dump(mode="json"), recorded_at=datetime.now(UTC))


def _knows(gateway: Service, key: str) -> bool:
    headers = {"authorization": f"Bearer {key}"}
    return (
        httpx.get(f"{gateway.url}/v1/models", headers=headers, timeout=SECONDS_MAX).status_code != 401
    )  # 403: suspended
