"""UsageProducer against a real broker: delivery, the broker away and back, crashes, and what is said about each event."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taximeter.embedded.broker import EmbeddedBroker
from taximeter.embedded.ports import free_port
from taximeter_producers import (
    InvalidEventError,
    ProducerClosedError,
    ProducerIdError,
    Safe,
    SpoolBusyError,
    SpoolFullError,
    UsageProducer,
)
from taximeter_producers.topics import ensure_topics
from taximeter_schemas import wire
from taximeter_schemas.topics import USAGE_EVENTS, Topic
from tests.topic_reader import read_topic
from tests.usage_events import usage, usage_event
from tests.waiting import freeze

SECONDS_MAX = 60.0
NOWHERE = "127.0.0.1:1"


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def make(bootstrap_servers: str, spool_dir: Path, **options: Any) -> UsageProducer:
    return UsageProducer(bootstrap_servers=bootstrap_servers, producer_id="svc-a", spool_dir=spool_dir, **options)


def ids(bootstrap_servers: str, topic: str = USAGE_EVENTS.name) -> list[str]:
    return [(message.key() or b"").decode() for message in read_topic(bootstrap_servers, topic)]


@pytest.fixture
def own_topic(bootstrap_servers: str, topic_suffix: str) -> str:
    topic = Topic("usage" + topic_suffix, "event id", USAGE_EVENTS.retention_ms, (), (), "UsageEvent")
    assert ensure_topics(bootstrap_servers, 2, 1, (topic,)) == [topic.name]
    assert ensure_topics(bootstrap_servers, 2, 1, (topic,)) == []
    return topic.name


def test_events_arrive_numbered_and_keyed(bootstrap_servers: str, own_topic: str, tmp_path: Path) -> None:
    with make(bootstrap_servers, tmp_path, topic=own_topic) as producer:
        for number in range(50):
            producer.emit(usage_event(f"e{number}"))
        assert producer.flush(SECONDS_MAX) == 0
        own = usage("own", worker={"id": "vllm-7", "sequence": 41})
        assert producer.submit(own).result(SECONDS_MAX) is Safe.BROKER
    messages = read_topic(bootstrap_servers, own_topic)
    events = {(message.key() or b"").decode(): wire.decode(message.value() or b"") for message in messages}
    assert len(messages) == len(events) == 51
    assert all(key == event.id for key, event in events.items())
    workers = {key: event.data.worker for key, event in events.items()}
    assert workers.pop("own") == wire.Worker("vllm-7", 41)  # who measured it is left as it is
    assert workers == {f"e{number}": wire.Worker(producer.worker_id, number) for number in range(50)}
    # The record's time is that of its arrival, not the event's own.
    assert all(abs(message.timestamp()[1] / 1000 - time.time()) < 3600 for message in messages)


def test_many_are_taken_at_once_or_none_is(bootstrap_servers: str, own_topic: str, tmp_path: Path) -> None:
    with make(bootstrap_servers, tmp_path, topic=own_topic) as producer:
        with pytest.raises(InvalidEventError, match="tenant"):
            producer.emit_many([usage("never"), usage("bad", tenant=None)])
        producer.emit_many([])
        producer.emit_many(usage_event(f"e{number}") for number in range(3_000))
        with pytest.raises(SpoolFullError):
            producer.emit_many([usage("x", attributes={str(n): "x" * 256 for n in range(32)})] * 60_000)
        assert producer.flush(SECONDS_MAX) == 0
    events = [wire.decode(message.value() or b"") for message in read_topic(bootstrap_servers, own_topic)]
    numbered = {event.id: event.data.worker.sequence for event in events if event.data.worker}
    assert numbered == {f"e{number}": number for number in range(3_000)}
    assert len(events) == 3_000


def test_emit_async_returns_when_the_event_is_safe(bootstrap_servers: str, own_topic: str, tmp_path: Path) -> None:
    async def send() -> list[Safe]:
        async with make(bootstrap_servers, tmp_path, topic=own_topic) as producer:
            return await asyncio.gather(*(producer.emit_async(usage(f"e{number}")) for number in range(20)))

    assert asyncio.run(send()) == [Safe.BROKER] * 20
    assert sorted(ids(bootstrap_servers, own_topic)) == sorted(f"e{number}" for number in range(20))


INVALID = [
    (usage("e", tenant=None), "tenant"),
    (usage("e", tokens={"output": -1}), "tokens.output"),
    (usage("e", tokens={"output": 10**9}), "tokens.output"),
    (usage("e", tokens={"output": 1, "total": 5}), "do not add up"),
    (usage(""), "id"),
    ({}, "source"),
    ({"id": object()}, "not JSON"),
    (usage("e", cache={"blocks": ["0" * 64] * 20_000}), "1000000 is the limit"),
    (usage_event("e").model_copy(update={"id": "not an id"}), "id"),  # a copy is not validated by pydantic
]


@pytest.mark.parametrize(("event", "named"), INVALID)
def test_an_invalid_event_is_refused_by_name_and_leaves_no_gap(event: Any, named: str, tmp_path: Path) -> None:
    with make(NOWHERE, tmp_path) as producer:
        with pytest.raises(InvalidEventError, match=named):
            producer.emit(event)
        assert producer._sequence == 0
        producer.emit(usage("good"))
        assert producer._sequence == 1


def test_a_closed_producer_takes_nothing(tmp_path: Path) -> None:
    producer = make(NOWHERE, tmp_path)
    producer.close()
    producer.close()
    with pytest.raises(ProducerClosedError):
        producer.emit(usage("e"))


@pytest.mark.parametrize("producer_id", ["", "a/b", "..", "x" * 65, "é"])
def test_a_producer_id_names_a_folder(producer_id: str, tmp_path: Path) -> None:
    with pytest.raises(ProducerIdError):
        UsageProducer(bootstrap_servers=NOWHERE, producer_id=producer_id, spool_dir=tmp_path)


_FORKING = """
import os, sys
from taximeter_producers import ProducerClosedError, UsageProducer
producer = UsageProducer(bootstrap_servers="127.0.0.1:1", producer_id="svc-a", spool_dir=sys.argv[1])
child = os.fork()
if child == 0:
    try:
        producer.emit({})
    except ProducerClosedError:
        producer.close()
        os._exit(7)
    finally:
        os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
producer.close()
"""


def test_a_forked_process_takes_nothing_with_its_parents_producer(tmp_path: Path) -> None:
    script = _FORKING.replace("producer.emit({})", f"producer.emit({usage('e1')!r})")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_two_processes_do_not_share_a_spool(tmp_path: Path) -> None:
    with make(NOWHERE, tmp_path), pytest.raises(SpoolBusyError):
        make(NOWHERE, tmp_path)


def test_when_queue_and_spool_are_full_the_caller_is_told(tmp_path: Path) -> None:
    with make(NOWHERE, tmp_path, spool_bytes_max=10_000) as producer:
        taken = 0
        with pytest.raises(SpoolFullError):
            for number in range(1_000):
                producer.emit(usage(f"e{number}"))
                taken += 1
        assert 5 < taken < 100
        assert producer.flush(SECONDS_MAX) == 0  # all that was taken is safe
        with pytest.raises(SpoolFullError):
            asyncio.run(producer.emit_async(usage("late")))


def test_broker_away_then_back_then_gone_again(tmp_path: Path) -> None:
    """A memory-only broker comes back empty on the same port; what was acknowledged before is gone with it."""
    port = free_port()
    with make(f"127.0.0.1:{port}", tmp_path) as producer:
        first = [f"a{number}" for number in range(100)]
        for name in first:
            producer.emit(usage(name))
        assert producer.flush(SECONDS_MAX) == 0
        assert producer.state().broker_away and producer.state().spool_bytes
        assert asyncio.run(producer.emit_async(usage("a100"))) is Safe.SPOOL
        with EmbeddedBroker(tmp_path, port) as broker:
            ensure_topics(broker.bootstrap_servers, 1, 1)
            eventually(lambda: not producer.state().spool_bytes)
            assert ids(broker.bootstrap_servers) == [*first, "a100"]  # in order
            assert producer.submit(usage("b")).result(SECONDS_MAX) is Safe.BROKER
        eventually(lambda: producer.submit(usage("c")).result(SECONDS_MAX) is Safe.SPOOL)
        with EmbeddedBroker(tmp_path, port) as broker:
            ensure_topics(broker.bootstrap_servers, 1, 1)
            eventually(lambda: not producer.state().spool_bytes)
            assert "c" in ids(broker.bootstrap_servers)
            assert producer.submit(usage("d")).result(SECONDS_MAX) is Safe.BROKER


def test_a_broker_that_hangs_is_as_good_as_away(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path, free_port()) as broker:
        ensure_topics(broker.bootstrap_servers, 1, 1)
        with make(broker.bootstrap_servers, tmp_path, delivery_seconds_max=2) as producer:
            assert producer.submit(usage("a")).result(SECONDS_MAX) is Safe.BROKER
            assert broker.pid is not None
            freeze(broker.pid)
            try:
                assert producer.submit(usage("b")).result(SECONDS_MAX) is Safe.SPOOL
                assert producer.state().broker_away
            finally:
                os.kill(broker.pid, signal.SIGCONT)
            eventually(lambda: not producer.state().spool_bytes)
        assert set(ids(broker.bootstrap_servers)) == {"a", "b"}


def test_close_moves_what_is_under_way_into_the_spool(bootstrap_servers: str, own_topic: str, tmp_path: Path) -> None:
    producer = make(NOWHERE, tmp_path)
    for number in range(10):
        producer.emit(usage(f"e{number}"))
    producer.close(0)
    with make(bootstrap_servers, tmp_path, topic=own_topic) as successor:
        eventually(lambda: not successor.state().spool_bytes)
    assert sorted(ids(bootstrap_servers, own_topic)) == [f"e{number}" for number in range(10)]


CRASHING = """
import json, sys
from taximeter import UsageProducer
producer = UsageProducer(bootstrap_servers="127.0.0.1:1", producer_id="svc-a", spool_dir=sys.argv[1])
for number in range(1_000_000):
    event = json.loads(sys.argv[2]) | {"id": f"e{number}"}
    producer.submit(event).result()
    print(event["id"], flush=True)
"""


def test_the_next_process_delivers_what_a_killed_one_left(
    bootstrap_servers: str, own_topic: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", CRASHING, str(tmp_path), json.dumps(usage("e"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        promised = [child.stdout.readline().strip() for _ in range(20)]
        child.send_signal(signal.SIGKILL)
        promised += [line.strip() for line in child.stdout if line.endswith("\n")]
    assert child.returncode == -signal.SIGKILL
    with make(bootstrap_servers, tmp_path, topic=own_topic) as successor:
        eventually(lambda: not successor.state().spool_bytes)
    arrived = ids(bootstrap_servers, own_topic)
    assert set(promised) <= set(arrived)
    assert len(set(arrived)) <= len(promised) + 1  # at most the one whose answer was cut off


FORGETFUL = """
import json, sys
from taximeter import UsageProducer
producer = UsageProducer(bootstrap_servers="127.0.0.1:1", producer_id="svc-a", spool_dir=sys.argv[1])
producer.emit(json.loads(sys.argv[2]))
"""


def test_a_program_that_forgets_to_close_loses_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORGETFUL, str(tmp_path), json.dumps(usage("e"))]
    subprocess.run(command, check=True, timeout=SECONDS_MAX, stderr=subprocess.DEVNULL)
    with make(NOWHERE, tmp_path) as successor:
        assert successor.state().spool_bytes
