"""faust's Kafka transport with a fetch that waits less, and a start that reads spend again.

faust asks the broker to hold an empty fetch for 1.5 s. Apache Kafka answers as soon as a record arrives; the embedded broker
looks again only after half of that time, which would be the latency of every grant.

Two ways in which faust loses messages are closed here. It drops the rest of a fetched batch when partitions move or the flow
stops, and reads on behind it: the consumer goes back to what it has not handed over. And it may commit past a message that was
never handled, as it takes a hole in what was acknowledged for one in the log: so some spend is read again when a partition
comes. Posting knows a record that it has seen, so that costs nothing.
"""

from collections.abc import AsyncIterator
from typing import Any

from faust.transport.drivers import aiokafka as driver

from taximeter_schemas.topics import USAGE_SPEND

FETCH_WAIT_MS = 40
"""How long the broker may hold an empty fetch: 25 small requests a second when idle, 20 ms at most on the embedded broker."""

SPEND_READ_AGAIN = 2_000
"""How many spend records of each partition are read again when it is assigned. More than may be in flight at once."""


class _PromptThread(driver.AIOKafkaConsumerThread):
    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Read once, when the consumer starts; faust passes a fixed number to its constructor.
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer

    async def go_back(self, tp: Any, offset: int) -> None:
        """Read that partition again from there, unless it is read from before that anyway."""
        await self.call_thread(self._go_back, self._ensure_consumer(), tp, offset)

    async def _go_back(self, consumer: Any, tp: Any, offset: int) -> None:
        if tp in consumer.assignment() and await consumer.position(tp) > offset:
            consumer.seek(tp, offset)


class _PromptConsumer(driver.Consumer):
    _thread: _PromptThread

    def _new_consumer_thread(self) -> driver.AIOKafkaConsumerThread:
        return _PromptThread(self, loop=self.loop, beacon=self.beacon)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[Any, Any]]:  # noqa: ASYNC109 - faust's own signature
        """Hand over a fetched batch, as faust does; and when it ends before its end, go back to where it ended."""
        records, active = await self._wait_next_records(timeout)
        if records is None or self.should_stop:
            return
        generation = self.app.consumer_generation_id
        behind = {tp: batch[0].offset for tp, batch in records.items() if batch}
        held: set[Any] = set()
        for tp, record in self.scheduler.iterate(records):
            if not self.flow_active or self.app.consumer_generation_id != generation:
                break
            if active is not None and tp not in active and tp not in self._buffered_partitions:
                held.add(tp)
            if tp in held:
                continue
            self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
            yield tp, self._to_message(tp, record)
            if self.flow_active:
                behind[tp] = record.offset + 1
            else:  # what is handed over while the flow stops is dropped
                held.add(tp)
        for tp, offset in behind.items():
            if offset <= records[tp][-1].offset:
                await self._thread.go_back(tp, offset)

    async def perform_seek(self) -> None:
        """Go to what was committed, and of spend to some records before it."""
        await super().perform_seek()
        for tp in self.assignment():
            committed = self._committed_offset.get(tp)
            if tp.topic == USAGE_SPEND.name and committed:
                await self.seek(tp, max(0, committed - SPEND_READ_AGAIN))


class PromptTransport(driver.Transport):
    """The transport to give to a faust app before it starts."""

    Consumer = _PromptConsumer
