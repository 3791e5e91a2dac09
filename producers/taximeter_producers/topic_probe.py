"""Asks whether a topic exists, without waiting and without making the broker create it.

librdkafka's producer lets a broker with automatic creation make a missing topic, in whatever shape that broker prefers;
spend, leases and budgets depend on the number of partitions. So nothing is produced before this probe has said yes.
"""

import logging
from concurrent.futures import Future

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, TopicDescription

_ANSWER_SECONDS_MAX = 5.0
_ASK_AGAIN_SECONDS = 0.5
_log = logging.getLogger(__name__)


class TopicProbe:
    """One question after the other until the answer is yes."""

    def __init__(self, bootstrap_servers: str, topic: str) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._topic = topic
        self._admin: AdminClient | None = None
        self._answer: Future[TopicDescription] | None = None
        self._ask_at = 0.0
        self._logged: set[int] = set()

    def topic_exists(self, now: float) -> bool:
        """Whether the broker has said by now that the topic exists. `now` is monotonic seconds."""
        if self._answer is None:
            if now >= self._ask_at:
                self._answer = self._ask()
            return False
        if not self._answer.done():
            return False
        error = self._answer.exception()
        self._answer, self._ask_at = None, now + _ASK_AGAIN_SECONDS
        if error is None:
            return True
        if not isinstance(error, KafkaException):
            raise error
        self._log_once(error)
        return False

    def _ask(self) -> Future[TopicDescription]:
        if self._admin is None:
            # Silent: the producer's own client logs what keeps it from connecting.
            self._admin = AdminClient({"bootstrap.servers": self._bootstrap_servers, "log_level": 0})
        asked = self._admin.describe_topics(TopicCollection([self._topic]), request_timeout=_ANSWER_SECONDS_MAX)
        answer: Future[TopicDescription] = asked[self._topic]
        return answer

    def _log_once(self, error: KafkaException) -> None:
        code = error.args[0].code()
        if code not in self._logged:
            self._logged.add(code)
            _log.warning("topic %s cannot be written yet: %s", self._topic, error)
