"""Reads budget.alerts.v1 into the delivery log.

Every partition is read by this one service, without a consumer group: the position lies in the log beside the deliveries.
"""

import logging

from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, TopicPartition
from pydantic import ValidationError

from taximeter_schemas.budgets import BudgetAlert
from taximeter_schemas.topics import BUDGET_ALERTS

_log = logging.getLogger(__name__)


class AlertIntake:
    """A consumer of all partitions from the given next offsets; partitions without one are read from their beginning."""

    def __init__(self, bootstrap_servers: str, partitions: int, positions: dict[int, int]) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap_servers,
                "group.id": "taximeter-alerts-unused",
                "enable.auto.commit": False,
                # A position that the log no longer has: what it still holds is read, and repeats are recognised.
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 100,
            }
        )
        starts = (positions.get(partition, OFFSET_BEGINNING) for partition in range(partitions))
        self._consumer.assign(
            [TopicPartition(BUDGET_ALERTS.name, number, start) for number, start in enumerate(starts)]
        )

    def read(self, timeout_seconds: float) -> tuple[list[BudgetAlert], dict[int, int], int]:
        """The next alerts, the next offset of each partition read, and how many messages were no alerts. May be empty."""
        alerts: list[BudgetAlert] = []
        positions: dict[int, int] = {}
        invalid = 0
        for message in self._consumer.consume(500, timeout_seconds):
            error, partition, offset = message.error(), message.partition(), message.offset()
            if error is not None or partition is None or offset is None:
                _log.warning("alerts topic: %s", error)
                continue
            positions[partition] = offset + 1
            alert = _decoded(message)
            if alert is None:
                invalid += 1
            else:
                alerts.append(alert)
        return alerts, positions, invalid

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()


def _decoded(message: Message) -> BudgetAlert | None:
    try:
        return BudgetAlert.model_validate_json(message.value() or b"")
    except ValidationError as error:
        where = {"partition": message.partition(), "offset": message.offset()}
        _log.warning("not an alert, skipped: %s", error, extra=where)
        return None
