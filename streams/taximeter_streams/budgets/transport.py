"""faust's Kafka transport with a fetch that waits less, and a start that reads spend again.

faust asks the broker to hold an empty fetch for 1.5 s. Apache Kafka answers as soon as a record arrives; the embedded broker
looks again only after half of that time, which would be the latency of every grant.

After partitions moved, faust may have committed past a message that was never handled: it takes a hole in what was
acknowledged for one in the log. Posting knows a spend record that it has seen, so reading some again costs nothing, and what
was never posted is.
"""

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


class _PromptConsumer(driver.Consumer):
    def _new_consumer_thread(self) -> driver.AIOKafkaConsumerThread:
        return _PromptThread(self, loop=self.loop, beacon=self.beacon)

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
