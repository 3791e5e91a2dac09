"""A round of chaos: load all the while, and one fault after the other, drawn by a seed; at its end the verdict."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from taximeter_producers import SpoolFullError
from taximeter_sql import migrate
from tests.faults.clickhouse_proxy import Place
from tests.faults.ledger import Usage
from tests.faults.load import Load
from tests.faults.processes import SESSION_TIMEOUT_MS, Worker
from tests.faults.test_disk_full import full_table
from tests.faults.yard import PARTITIONS, Yard
from tests.kafka_broker import ApacheKafka
from tests.waiting import await_true

EVENTS_A_STEP = 150


@dataclass
class Chaos:
    """Draws faults and does them. Every fault is over when its function returns, except for what it did to the workers."""

    yard: Yard
    kafka: ApacheKafka
    load: Load
    broker_seconds_max: float
    workers: list[Worker] = field(default_factory=list)
    paused: list[Worker] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    first: dict[tuple[str, str, str], Usage] = field(default_factory=dict)

    def step(self) -> None:
        """Some load, and one fault in its midst."""
        before = self.yard.rows()
        self.send(EVENTS_A_STEP)
        if self.yard.random.random() < 0.6:
            self.await_more(before)
        fault = self.yard.random.choice(self.faults())
        self.told.append(fault.__name__)
        fault()

    def faults(self) -> list[Callable[[], None]]:
        """What can happen now."""
        always: list[Callable[[], None]] = [
            self.kill, self.kill, self.kill_within_an_insert, self.kill_within_an_insert, self.lose_index, self.join, self.pause,
            self.pause_within_an_insert, self.cut, self.cut, self.clickhouse_away, self.clickhouse_killed, self.clickhouse_slow,
            self.clickhouse_full, self.broker_killed, self.broker_stopped,
        ]  # fmt: skip
        return [*always, self.leave] if len(self.workers) > 1 else always

    def send(self, count: int) -> None:
        """New events, and some of the old ones again, with another time."""
        for _ in range(count):
            usage = self.yard.events.event()
            self.hand_over(usage)
            if self.first and self.yard.random.random() < 0.05:
                again = self.yard.random.choice(list(self.first.values()))
                self.hand_over(again)
            self.first[usage.identity] = usage

    def hand_over(self, usage: Usage) -> None:
        """The spool is large; were it full, the round would be wrong."""
        if not self.load.send(usage):
            raise SpoolFullError("the spool is full")

    def await_more(self, before: int) -> None:
        """Wait until something of it is stored."""
        await_true(lambda: self.yard.rows() > before, lambda: f"rows come after {self.told}\n{self.yard.logs()}")

    def any(self) -> Worker:
        return self.yard.random.choice(self.workers)

    def kill(self) -> None:
        worker = self.any()
        worker.kill()
        worker.start()

    def lose_index(self) -> None:
        worker = self.any()
        worker.kill()
        worker.lose_index()
        worker.start()

    def join(self) -> None:
        if len(self.workers) < PARTITIONS - 1:
            self.workers.append(self.yard.meter())
        else:
            self.leave()

    def leave(self) -> None:
        worker = self.workers.pop(self.yard.random.randrange(len(self.workers)))
        worker.child.stop()

    def kill_within_an_insert(self) -> None:
        trap = self.yard.proxy.trap(self.yard.random.choice(list(Place)))
        self.send(EVENTS_A_STEP)
        trap.await_caught()
        for worker in self.workers:  # one of them stands in it
            worker.kill()
        trap.release()
        for worker in self.workers:
            worker.start()

    def pause(self) -> None:
        worker = self.any()
        worker.pause()
        self.send(EVENTS_A_STEP)
        self.wait(SESSION_TIMEOUT_MS / 1000 * self.yard.random.uniform(0.5, 2.0))
        worker.resume()

    def pause_within_an_insert(self) -> None:
        """All workers stand still, one of them within an insert; another takes over, and then the late insert arrives."""
        trap = self.yard.proxy.trap(self.yard.random.choice(list(Place)), goes_on=True)
        self.send(EVENTS_A_STEP)
        trap.await_caught()
        before = self.yard.rows()
        for worker in self.workers:
            worker.pause()
        other = self.yard.meter()
        self.send(EVENTS_A_STEP)
        if self.yard.random.random() < 0.7:
            self.await_more(before)
        trap.release()
        for worker in self.workers:
            worker.resume()
        self.workers.append(other)
        while len(self.workers) >= PARTITIONS:
            self.leave()

    def cut(self) -> None:
        for _ in range(3):
            self.yard.proxy.cut(self.yard.random.choice(list(Place)))

    def clickhouse_away(self) -> None:
        self.yard.proxy.go_away()
        self.send(EVENTS_A_STEP)
        self.wait(self.yard.random.uniform(0, 5))
        self.yard.proxy.come_back()

    def clickhouse_killed(self) -> None:
        self.yard.face.kill()
        self.send(EVENTS_A_STEP)
        self.yard.face.start()

    def clickhouse_slow(self) -> None:
        self.yard.proxy.delay_seconds = self.yard.random.choice([0.0, 0.1, 1.0])

    def clickhouse_full(self) -> None:
        with full_table(self.yard.client, self.yard.random.choice(["usage_log", "usage_hourly", "usage_daily"])):
            self.send(EVENTS_A_STEP)
            self.wait(2)

    def broker_killed(self) -> None:
        self.kafka.kill()
        self._without_broker()

    def broker_stopped(self) -> None:
        self.kafka.stop()
        self._without_broker()

    def _without_broker(self) -> None:
        self.send(EVENTS_A_STEP)
        self.wait(self.yard.random.uniform(0, self.broker_seconds_max))
        self.send(EVENTS_A_STEP)
        self.kafka.start()

    def wait(self, seconds: float) -> None:
        """How long a fault lasts is part of the fault."""
        threading.Event().wait(seconds)

    def calm(self) -> None:
        """No more faults."""
        self.yard.proxy.delay_seconds = 0.0
        self.yard.proxy.disarm()
        self.send(EVENTS_A_STEP)


def run_round(yard: Yard, kafka: ApacheKafka, steps: int, broker_seconds_max: float) -> tuple[list[str], list[str]]:
    """So many faults in a row. Returns what differs at the end (nothing, when all is exact) and the faults that were drawn."""
    migrate(yard.client)  # the first fault may want a table
    with yard.load() as load:
        chaos = Chaos(yard, kafka, load, broker_seconds_max)
        chaos.workers.append(yard.meter())
        for _ in range(steps):
            chaos.step()
        chaos.calm()
        await_true(lambda: load.producer.state().spool_bytes == 0, lambda: f"it drains: {load.producer.state()}")
        load.flush()
    if yard.acknowledged.failed:
        return [f"not acknowledged: {failed}" for failed in yard.acknowledged.failed[:5]], chaos.told
    return yard.verdict(list(chaos.first.values())), chaos.told
