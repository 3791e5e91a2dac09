"""The faust worker that keeps budgets: one owner for each tenant, one document of state in one table.

A message is acknowledged only after everything that it led to is safe in the log: first its alerts, then the changelog of
the new state, then its grant. So a crash at any point repeats messages, which the ledger recognises, and loses none.

Each partition is read without a gap, from what is committed: the worker keeps its own place and reads by itself what faust
passes over (see `log_reader`). Whatever partitions do, everything starts again from what is committed.
"""

import asyncio
import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NoReturn

import faust
from aiokafka.partitioner import murmur2  # type: ignore[import-untyped]
from confluent_kafka import KafkaException
from faust.types.tuples import TP, Message

from taximeter_schemas.budgets import BudgetAlert
from taximeter_schemas.topics import BUDGET_ALERTS, BUDGET_LEASES, BUDGET_STATE, USAGE_SPEND, Topic
from taximeter_streams.budgets import metrics
from taximeter_streams.budgets.deciding import Decider, Decision
from taximeter_streams.budgets.log_reader import LogReader
from taximeter_streams.budgets.publishing import StatePublisher
from taximeter_streams.budgets.settings import BudgetsSettings
from taximeter_streams.budgets.state import TenantLedger
from taximeter_streams.budgets.transport import PromptTransport

ALERTS_REMEMBERED_MAX = 10_000
IN_FLIGHT_MAX = 1_000
"""Messages that may wait for the log's acknowledgement before another is read."""
HAND_OVER_SECONDS_MAX = 5.0
"""How long a partition that moves waits for what is on its way to the log."""
LOOK_SECONDS = 1.0
SESSION_SECONDS, HEARTBEAT_SECONDS = 10.0, 2.0
ASLEEP_SECONDS_MAX = SESSION_SECONDS - 2 * HEARTBEAT_SECONDS
_log = logging.getLogger(__name__)

Rule = Callable[[TenantLedger, bytes, datetime], Decision]


class PartitionsMovedError(Exception):
    """While a message waited for the log, its partition was given to another worker."""


class PausedError(Exception):
    """The process was stopped, or its loop blocked, for longer than a session lasts."""


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
        self._last_ack: dict[Any, asyncio.Task[None]] = {}
        self._recovered = False
        self._generation = 0
        self._reader = LogReader(settings.kafka_bootstrap_servers, settings.budgets_group)
        self._next_offset: dict[TP, int] = {}
        """By partition, what must be read next. faust's own place in the log is not relied on, see `log_reader`."""
        self._awake_at = float("inf")
        self._connect()

    def ready(self) -> tuple[bool, dict[str, object]]:
        """Whether partitions are assigned and their state is recovered, for /readyz."""
        owned = len(self._owned()) if self._recovered else 0
        return self._recovered, {"recovered": self._recovered, "partitions": owned}

    def _connect(self) -> None:
        """Hang this object's parts into the faust app."""
        self.app.agent(self._topics[USAGE_SPEND.name], name="budgets-spend")(self._spend)
        self.app.agent(self._topics[BUDGET_LEASES.name], name="budgets-leases")(self._leases)
        self.app.task(self._publish_for_ever)
        self.app.task(self._look_for_what_is_missing)
        self.app.task(self._notice_pauses)
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
        """Partitions moved: read on from what is committed, on the state that the log has."""
        self._recovered = False
        self._generation += 1
        self._next_offset.clear()
        self._publisher.forget()

    async def _on_recovered(self, *_args: object) -> None:
        self._recovered = True
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
        tp: TP = message.tp
        try:
            place = await self._place(tp)
            if message.offset < place:
                await self._in_flight.acquire()
                self._finish_later(event, None, None)
            while place < message.offset:
                missed, place = await asyncio.to_thread(self._reader.between, tp, place, message.offset)
                metrics.MESSAGES.labels(tp.topic, "missed").inc(len(missed))
                for one in missed:
                    await self._take(faust.Event(self.app, one.key, one.value, {}, one), topic, rule)
                self._next_offset[tp] = place
            if message.offset == place:
                await self._take(event, topic, rule)
        except PartitionsMovedError:
            # Whoever owns it now reads it again, from what is committed; it must not be acknowledged here.
            return
        except BaseException as error:  # noqa: BLE001 - see _die
            _die(error)

    async def _place(self, tp: TP) -> int:
        """The offset to read next. Raises PartitionsMovedError when the partition is another worker's now."""
        while not self._recovered:
            await asyncio.sleep(0.02)
        if tp not in self.app.consumer.assignment():
            raise PartitionsMovedError
        if tp not in self._next_offset:
            generation = self._generation
            start = await asyncio.to_thread(self._reader.start_of, tp)
            self._stay_in(generation)
            self._next_offset.setdefault(tp, start)
        return self._next_offset[tp]

    def _stay_in(self, generation: int) -> None:
        """Raises PartitionsMovedError when partitions moved since that generation."""
        if generation != self._generation:
            raise PartitionsMovedError

    async def _take(self, event: Any, topic: Topic, rule: Rule) -> None:
        """Decide one message, and leave the waiting for the log to a task of its own."""
        message: Message = event.message
        generation = self._generation
        await self._in_flight.acquire()
        started = self.app.loop.time()
        try:
            key: bytes = message.key or b""
            if key and partition_of(key, self._settings.kafka_partitions) != message.partition:
                # A producer with another partitioner: the tenant's owner is elsewhere, and must get it.
                metrics.MESSAGES.labels(topic.name, "misrouted").inc()
                sent = await self._topics[topic.name].send(key=key, value=message.value)
                decision, stored = None, sent
                self._stay_in(generation)
            else:
                async with self._turn:
                    decision, stored = await self._decide(key, message, topic, rule, generation)
        except BaseException:
            self._in_flight.release()
            raise
        self._next_offset[message.tp] = message.offset + 1
        self._finish_later(event, decision, stored, started)

    def _finish_later(self, event: Any, decision: Decision | None, stored: Any, started: float = 0.0) -> None:
        tp: TP = event.message.tp
        task = asyncio.ensure_future(self._finish(event, decision, stored, self._last_ack.get(tp), started))
        self._last_ack[tp] = task

    async def _decide(
        self, key: bytes, message: Message, topic: Topic, rule: Rule, generation: int
    ) -> tuple[Decision, Any]:
        self._stay_in(generation)
        state = self._load(key)
        decision = rule(state, message.value or b"", _arrived_at(message))
        await self._send_alerts(decision.alerts)
        self._stay_in(generation)
        self._check_awake()
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
        except BaseException as error:  # noqa: BLE001 - see _die
            _die(error)
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

    async def _look_for_what_is_missing(self) -> None:
        """A record that faust passed over shows when a later one comes; where none comes, it is handed over from here."""
        stood_at: dict[TP, int] = {}
        while not self.app.should_stop:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                for tp in self._read_partitions():
                    stood_at[tp] = await self._look_at(tp, stood_at.get(tp))
            except PartitionsMovedError:
                stood_at.clear()
            except KafkaException as error:
                # faust has its own patience with a broker that is away.
                _log.warning("cannot look for missing records: %s", error)
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # noqa: BLE001 - see _die
                _die(error)

    async def _look_at(self, tp: TP, before: int | None) -> int:
        """Hand over what the log has when nothing was read since the last look. Returns where reading stands."""
        place = await self._place(tp)
        generation = self._generation
        if place != before:
            return place
        end = await asyncio.to_thread(self._reader.end_of, tp)
        if end <= place:
            return place
        found, _ = await asyncio.to_thread(self._reader.between, tp, place, end)
        self._stay_in(generation)
        if found and self._next_offset.get(tp) == place:
            found[-1].generation_id = self.app.consumer_generation_id
            await self.app.consumer.callback(found[-1])
        return place

    async def _notice_pauses(self) -> None:
        """Keep the clock that `_check_awake` looks at."""
        while not self.app.should_stop:
            self._check_awake()
            self._awake_at = self.app.loop.time()
            await asyncio.sleep(0.25)

    def _check_awake(self) -> None:
        """End a process that slept so long that its partitions may be another's: what it knows of them may be old."""
        asleep = self.app.loop.time() - self._awake_at
        if asleep > ASLEEP_SECONDS_MAX:
            _die(PausedError(f"paused for {asleep:.1f} s, another worker may own the partitions"))

    async def _publish_for_ever(self) -> None:
        """Publish what changed soon, and everything now and then: leases run out and periods roll over without a message."""
        while not self.app.should_stop:
            await asyncio.sleep(self._settings.budgets_publish_ms / 1_000)
            if not self._recovered:
                continue
            try:
                await self._publish_due()
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - see _die
                _die(error)

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
            if partition_of(key, self._settings.kafka_partitions) not in owned or not self._recovered:
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

    def _read_partitions(self) -> list[TP]:
        read = (USAGE_SPEND.name, BUDGET_LEASES.name)
        return [tp for tp in self.app.consumer.assignment() if tp.topic in read] if self._recovered else []

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


def _die(error: BaseException) -> NoReturn:
    """End the process at once. A message failed half-way: nothing behind it may be committed, so that it is read again."""
    if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
        raise error
    _log.critical("the budgets worker ends: %s", error, exc_info=error)
    logging.shutdown()
    os._exit(1)
