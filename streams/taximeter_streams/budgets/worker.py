"""The faust worker that keeps budgets: one owner for each tenant, one document of state in one table.

A message is acknowledged only after everything that it led to is safe in the log: first its alerts, then the changelog of
the new state, then its grant. So a crash at any point repeats messages, which the ledger recognises, and loses none.

Each partition is read without a gap, from what is committed: the worker keeps its own place and reads by itself what faust
passes over (see `reading`). Whatever partitions do, everything starts again from what is committed.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import faust
from aiokafka.partitioner import murmur2  # type: ignore[import-untyped]
from faust.types.tuples import TP, Message

from taximeter_schemas.budgets import BudgetAlert
from taximeter_schemas.topics import BUDGET_ALERTS, BUDGET_LEASES, BUDGET_STATE, USAGE_SPEND, Topic
from taximeter_streams.budgets import metrics
from taximeter_streams.budgets.deciding import Decider, Decision
from taximeter_streams.budgets.ending import Vigil, die, dying
from taximeter_streams.budgets.log_reader import LogReader
from taximeter_streams.budgets.publishing import StatePublisher
from taximeter_streams.budgets.reading import PartitionsMovedError, UnbrokenReading
from taximeter_streams.budgets.settings import BudgetsSettings
from taximeter_streams.budgets.state import TenantLedger
from taximeter_streams.budgets.transport import PromptTransport

ALERTS_REMEMBERED_MAX = 10_000
IN_FLIGHT_MAX = 1_000
"""Messages that may wait for the log's acknowledgement before another is read."""
HAND_OVER_SECONDS_MAX = 5.0
"""How long a partition that moves waits for what is on its way to the log."""
SESSION_SECONDS, HEARTBEAT_SECONDS = 10.0, 2.0
_log = logging.getLogger(__name__)

Rule = Callable[[TenantLedger, bytes, datetime], Decision]


class LedgerTable(faust.Table[bytes, bytes]):
    """A table that keeps the future of its last changelog message: done once the log has the new state."""

    last_sent: Any = None

    def send_changelog(self, *args: Any, **kwargs: Any) -> Any:
        """Send as faust does, and keep the future."""
        self.last_sent = super().send_changelog(*args, **kwargs)
        return self.last_sent


class BudgetsWorker:
    """The agents on spend and leases, and the publishing of state. `app` is the faust app to run."""

    def __init__(self, settings: BudgetsSettings, decider: Decider) -> None:
        self._settings = settings
        self._decider = decider
        self.app = _faust_app(settings)
        partitions = settings.kafka_partitions
        self._topics = {
            topic.name: self._topic(topic) for topic in (USAGE_SPEND, BUDGET_LEASES, BUDGET_STATE, BUDGET_ALERTS)
        }
        self._table = self.app.Table("ledgers", partitions=partitions, key_type=bytes, value_type=bytes)
        self._publisher = StatePublisher()
        self._sent_alerts: OrderedDict[str, None] = OrderedDict()
        self._turn = asyncio.Lock()
        self._in_flight = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._last_ack: dict[TP, asyncio.Task[None]] = {}
        reader = LogReader(settings.kafka_bootstrap_servers, settings.budgets_group)
        self._reading = UnbrokenReading(self.app, reader, frozenset((USAGE_SPEND.name, BUDGET_LEASES.name)))
        self._vigil = Vigil(time.monotonic, SESSION_SECONDS - 2 * HEARTBEAT_SECONDS)
        self._connect()

    def ready(self) -> tuple[bool, dict[str, object]]:
        """Whether partitions are assigned and their state is recovered, for /readyz."""
        owned = len(self._owned()) if self._reading.recovered else 0
        return self._reading.recovered, {"recovered": self._reading.recovered, "partitions": owned}

    def _connect(self) -> None:
        """Hang this object's parts into the faust app."""
        self.app.agent(self._topics[USAGE_SPEND.name], name="budgets-spend")(self._spend)
        self.app.agent(self._topics[BUDGET_LEASES.name], name="budgets-leases")(self._leases)
        self.app.task(self._publish_for_ever)
        self.app.task(self._look_for_ever)
        self.app.task(self._stay_awake)
        self.app.on_partitions_revoked.connect(self._on_revoked, weak=False)
        self.app.on_partitions_assigned.connect(self._on_assigned, weak=False)
        self._table.on_recover(self._on_recovered)

    async def _on_revoked(self, *_args: object, **_kwargs: object) -> None:
        """What is on its way to the log should be there before another owner looks."""
        self._forget()
        if under_way := [task for task in self._last_ack.values() if not task.done()]:
            await asyncio.wait(under_way, timeout=HAND_OVER_SECONDS_MAX)

    async def _on_assigned(self, *_args: object, **_kwargs: object) -> None:
        self._forget()

    def _forget(self) -> None:
        self._reading.begin_again()
        self._publisher.forget()

    async def _on_recovered(self, *_args: object) -> None:
        self._reading.recovered = True
        metrics.ASSIGNED.set(len(self._owned()))

    async def _spend(self, stream: Any) -> None:
        async for event in stream.noack().events():
            await self._handle(event, USAGE_SPEND, self._decider.on_spend)

    async def _leases(self, stream: Any) -> None:
        async for event in stream.noack().events():
            await self._handle(event, BUDGET_LEASES, self._on_lease)

    def _on_lease(self, state: TenantLedger, payload: bytes, now: datetime) -> Decision:
        return self._decider.on_lease(state, payload, now, self._table.get)

    async def _handle(self, event: Any, topic: Topic, rule: Rule) -> None:
        """Decide a message in its turn, and before it all that faust did not hand over."""
        message: Message = event.message
        is_repeat = True
        try:
            async for one in self._reading.in_turn(message):
                is_repeat = False
                of_one = event if one is message else faust.Event(self.app, one.key, one.value, {}, one)
                await self._take(of_one, topic, rule)
            if is_repeat:
                await self._in_flight.acquire()
                self._finish_later(event, None, None)
        except PartitionsMovedError:
            return
        except BaseException as error:  # noqa: BLE001 - see die
            die(error)

    async def _take(self, event: Any, topic: Topic, rule: Rule) -> None:
        """Decide one message, and leave the waiting for the log to a task of its own."""
        message: Message = event.message
        generation = self._reading.generation
        if topic is BUDGET_LEASES:
            await self._await_spend(message)
        await self._in_flight.acquire()
        started = self.app.loop.time()
        try:
            key: bytes = message.key or b""
            if key and partition_of(key, self._settings.kafka_partitions) != message.partition:
                # A producer with another partitioner: the tenant's owner is elsewhere, and must get it.
                metrics.MESSAGES.labels(topic.name, "misrouted").inc()
                sent = await self._topics[topic.name].send(key=key, value=message.value)
                decision, stored = None, sent
                self._reading.stay_in(generation)
            else:
                async with self._turn:
                    decision, stored = await self._decide(key, message, topic, rule, generation)
        except BaseException:
            self._in_flight.release()
            raise
        self._reading.passed(message.tp, message.offset)
        self._finish_later(event, decision, stored, started)

    async def _await_spend(self, message: Message) -> None:
        """Before time frees what a lease held: all spend that is in the log must be posted, for the topics are read apart."""
        state = self._load(message.key or b"")
        if state.frees_by_time(_arrived_at(message)):
            await self._reading.catch_up(TP(USAGE_SPEND.name, message.partition))

    def _finish_later(self, event: Any, decision: Decision | None, stored: Any, started: float = 0.0) -> None:
        tp: TP = event.message.tp
        task = asyncio.ensure_future(self._finish(event, decision, stored, self._last_ack.get(tp), started))
        self._last_ack[tp] = task

    async def _decide(
        self, key: bytes, message: Message, topic: Topic, rule: Rule, generation: int
    ) -> tuple[Decision, Any]:
        self._reading.stay_in(generation)
        state = self._load(key)
        decision = rule(state, message.value or b"", _arrived_at(message))
        await self._send_alerts(decision.alerts)
        self._reading.stay_in(generation)
        self._vigil.check()
        metrics.MESSAGES.labels(topic.name, decision.outcome).inc()
        if decision.problem:
            where = {"topic": topic.name, "partition": message.partition, "offset": message.offset}
            _log.warning("%s", decision.problem, extra=where)
        if decision.state is state and decision.bucket is None:
            return decision, None
        if decision.bucket is not None:
            self._table[decision.bucket_key] = decision.bucket.model_dump_json(exclude_defaults=True).encode()
            return decision, self._table.last_sent
        self._table[key] = decision.state.model_dump_json(exclude_defaults=True).encode()
        self._publisher.changed(decision.state)
        return decision, self._table.last_sent

    async def _finish(
        self, event: Any, decision: Decision | None, stored: Any, before: asyncio.Task[None] | None, started: float
    ) -> None:
        """Wait until the log has the state, send the grant, and acknowledge in the order of reading.

        The order matters: faust may commit past a message that is not acknowledged when a later one is.
        """
        try:
            if stored is not None:
                await stored
            if decision is not None and decision.grant is not None:
                grant = decision.grant
                self._vigil.check()
                payload = grant.model_dump_json().encode()
                sent = await self._topics[BUDGET_LEASES.name].send(key=grant.tenant.encode(), value=payload)
                await sent
                metrics.GRANTS.labels(decision.outcome).inc()
                metrics.GRANT_SECONDS.observe(self.app.loop.time() - started)
            if before is not None:
                await before
            event.ack()
            self.app.consumer.handled(event.message)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - see die
            die(error)
        finally:
            self._in_flight.release()

    def _load(self, key: bytes) -> TenantLedger:
        tenant = key.decode(errors="replace")
        known = self._publisher.known(tenant)
        if known is not None:
            return known
        stored: bytes | None = self._table.get(key)
        if stored is None:
            return TenantLedger(tenant=tenant)
        return TenantLedger.model_validate_json(stored)

    async def _send_alerts(self, alerts: tuple[BudgetAlert, ...] | list[BudgetAlert]) -> None:
        """Send those that this process has not sent, and wait until the log has them."""
        for alert in alerts:
            if alert.id in self._sent_alerts:
                continue
            sent = await self._topics[BUDGET_ALERTS.name].send(
                key=alert.tenant.encode(), value=alert.model_dump_json().encode()
            )
            await sent
            self._sent_alerts[alert.id] = None
            metrics.ALERTS.labels(alert.kind).inc()
        while len(self._sent_alerts) > ALERTS_REMEMBERED_MAX:
            self._sent_alerts.popitem(last=False)

    async def _look_for_ever(self) -> None:
        with dying():
            await self._reading.look_for_ever()

    async def _stay_awake(self) -> None:
        with dying():
            await self._vigil.keep()

    async def _publish_for_ever(self) -> None:
        """Publish what changed soon, and everything now and then: leases run out and periods roll over without a message."""
        while not self.app.should_stop:
            await asyncio.sleep(self._settings.budgets_publish_ms / 1_000)
            if not self._reading.recovered:
                continue
            with dying():
                await self._publish_due()

    async def _publish_due(self) -> None:
        loop_time = self.app.loop.time()
        owned = self._owned()
        snapshot = self._decider.snapshot()
        due = self._publisher.due(snapshot, loop_time, self._settings.budgets_refresh_seconds)
        for number, tenant in enumerate(due):
            if number % 50 == 49:
                # A survey of many tenants must not keep a grant waiting.
                await asyncio.sleep(0)
            key = tenant.encode()
            if partition_of(key, self._settings.kafka_partitions) not in owned or not self._reading.recovered:
                continue
            state = self._load(key)
            now, rules = datetime.now(UTC), self._decider.rules(tenant)
            position = self._publisher.to_publish(state, rules, now, loop_time)
            if position is not None:
                await self._topics[BUDGET_STATE.name].send(key=key, value=position.model_dump_json().encode())
                metrics.STATES.inc()
            async with self._turn:
                # A limit was lowered: no message will come to say so. The next post marks the alert as raised.
                await self._send_alerts(self._publisher.earned(state, rules, now))

    def _owned(self) -> set[int]:
        return {tp.partition for tp in self.app.consumer.assignment() if tp.topic == USAGE_SPEND.name}

    def _topic(self, topic: Topic) -> Any:
        return self.app.topic(
            topic.name,
            partitions=self._settings.kafka_partitions,
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
        )


@lru_cache(maxsize=100_000)
def partition_of(key: bytes, partitions: int) -> int:
    """Where Kafka's own partitioner (murmur2) puts that key."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


def _faust_app(settings: BudgetsSettings) -> Any:
    rebalance = settings.kafka_rebalance_timeout_seconds
    app = faust.App(
        settings.budgets_group,
        broker=[f"kafka://{address}" for address in settings.kafka_bootstrap_servers.split(",")],
        store=f"{settings.budgets_store}://",
        datadir=str(settings.folder),
        Table=LedgerTable,
        topic_partitions=settings.kafka_partitions,
        topic_replication_factor=settings.kafka_replication,
        topic_allow_declare=True,
        topic_disable_leader=True,
        broker_rebalance_timeout=float(rebalance),
        broker_session_timeout=SESSION_SECONDS,
        broker_heartbeat_interval=HEARTBEAT_SECONDS,
        broker_commit_interval=0.5,
        broker_commit_every=1_000,
        consumer_auto_offset_reset="earliest",
        producer_acks=-1,
        producer_linger=0.0,
        stream_wait_empty=False,
        # The embedded broker names a lower end of a partition than the true one, which is not an inconsistency.
        recovery_consistency_check=False,
        web_enabled=False,
        autodiscover=False,
    )
    app.transport = PromptTransport(app.conf.broker_consumer, app)
    return app


def _arrived_at(message: Any) -> datetime:
    """When the log got the message. Leases live by this clock, so that a backlog does not make them look abandoned.

    A broker that keeps the sender's time instead is not believed.
    """
    if message.timestamp_type == 1 and message.timestamp:
        return datetime.fromtimestamp(message.timestamp, UTC)
    return datetime.now(UTC)
