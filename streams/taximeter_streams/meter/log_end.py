"""Where the log ends, for the lag: asked of the broker when somebody looks, by a client of its own.

The worker's consumer must not be asked from another thread while it waits for messages: it would never answer, nor wait on.
"""

import threading
import time

from confluent_kafka import Consumer, KafkaException, TopicPartition

from taximeter_schemas.topics import USAGE_EVENTS

ASK_SECONDS_MAX = 1.0
PAUSE_SECONDS = 10.0
"""How long the broker is not asked again after it has not answered: a look at many partitions must not take minutes."""


class LogEnd:
    """The end offset of each partition. Some brokers' answer is a little short, so what a fetch has seen counts too."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._config: dict[str, str | int | bool] = {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "taximeter-meter-lag-unused",
            "enable.auto.commit": False,
        }
        self._client: Consumer | None = None
        self._asking = threading.Lock()
        self._known: dict[int, int] = {}
        self._ask_again_at = 0.0

    def seen(self, partition: int, end: int) -> None:
        """Note an end that was seen."""
        self._known[partition] = max(end, self._known.get(partition, 0))

    def end_of(self, partition: int) -> int | None:
        """The partition's end as it is now, or as it was last known; None when it never was."""
        with self._asking:
            if time.monotonic() >= self._ask_again_at:
                self._ask(partition)
        return self._known.get(partition)

    def _ask(self, partition: int) -> None:
        if self._client is None:
            self._client = Consumer(self._config)
        try:
            answer = self._client.get_watermark_offsets(
                TopicPartition(USAGE_EVENTS.name, partition), timeout=ASK_SECONDS_MAX, cached=False
            )
        except KafkaException:
            self._ask_again_at = time.monotonic() + PAUSE_SECONDS
            return
        if answer is not None:
            self.seen(partition, int(answer[1]))
