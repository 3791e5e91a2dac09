"""The control topic on a real broker: published, read to its end, followed, deleted from."""

import threading
from datetime import UTC, datetime
from typing import Any

import pytest
from confluent_kafka import Producer

from taximeter_producers.control import ControlFollower, publish
from taximeter_producers.errors import ControlError, TopicsError
from taximeter_producers.topics import ensure_topics
from taximeter_schemas import TOPICS
from taximeter_schemas.control import ControlKind, ControlRecord
from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_schemas.topics import CONTROL

SECONDS_MAX = 60.0
NOW = datetime(2026, 11, 24, 8, tzinfo=UTC)


def tenant(name: str, body: dict[str, Any] | None) -> ControlRecord:
    return ControlRecord(kind=ControlKind.TENANT, id=name, body=body, recorded_at=NOW)


@pytest.fixture
def all_topics(bootstrap_servers: str) -> str:
    ensure_topics(bootstrap_servers, 4, 1)
    return bootstrap_servers


def test_all_topics_are_created_once(all_topics: str) -> None:
    assert ensure_topics(all_topics, 4, 1) == []
    with pytest.raises(TopicsError, match="4 partitions"):
        ensure_topics(all_topics, 5, 1, TOPICS)


def test_a_follower_reads_to_the_end_and_then_follows(all_topics: str, topic_suffix: str) -> None:
    names = [f"tenant{number}{topic_suffix}" for number in range(30)]
    assert publish(all_topics, [tenant(name, {"id": name}) for name in names]) == len(names)
    changed = threading.Condition()

    def on_change(_snapshot: ControlSnapshot) -> None:
        with changed:
            changed.notify_all()

    follower = ControlFollower(all_topics, on_change)
    follower.start(SECONDS_MAX)
    try:
        assert follower.following
        assert set(names) <= set(follower.snapshot().tenants)
        publish(all_topics, [tenant(names[0], {"id": names[0], "name": "new"}), tenant(names[1], None)])
        # A message without a value deletes as well, and what cannot be read is left out.
        producer = Producer({"bootstrap.servers": all_topics})
        producer.produce(CONTROL.name, None, f"tenant/{names[2]}".encode())
        producer.produce(CONTROL.name, b"{", b"tenant/broken")
        producer.produce(CONTROL.name, None, b"nonsense")
        assert producer.flush(SECONDS_MAX) == 0

        def settled() -> bool:
            tenants = follower.snapshot().tenants
            return tenants[names[0]].name == "new" and not {names[1], names[2]} & set(tenants)

        with changed:
            assert changed.wait_for(settled, SECONDS_MAX)
    finally:
        follower.stop()
    assert not follower.following


def test_no_broker_is_said_in_time() -> None:
    with pytest.raises(ControlError, match="could not be read"):
        ControlFollower("127.0.0.1:1").start(0.5)
