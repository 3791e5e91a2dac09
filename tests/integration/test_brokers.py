"""What Taximeter asks of a broker, asked of the embedded one and of Apache Kafka."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from taximeter.embedded.broker import BrokerError, EmbeddedBroker
from taximeter.embedded.ports import free_port
from tests.kafka_broker import ApacheKafka

WAIT_SECONDS_MAX = 60.0
RECORDS = 3000
PARTITIONS = 2


@pytest.fixture(
    scope="module", params=["embedded", pytest.param("apache", marks=pytest.mark.kafka)], ids=["embedded", "apache"]
)
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    data_dir = tmp_path_factory.mktemp("contract")
    broker = EmbeddedBroker(data_dir, free_port()) if request.param == "embedded" else ApacheKafka(data_dir)
    with broker:
        yield broker.bootstrap_servers


def create_topic(servers: str, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": servers})
    for future in admin.create_topics([NewTopic(topic, PARTITIONS, 1)]).values():
        future.result(WAIT_SECONDS_MAX)


def produce(servers: str, topic: str, numbers: range, compression: str = "none") -> None:
    refused: list[KafkaError] = []

    def delivered(error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            refused.append(error)

    producer = Producer({"bootstrap.servers": servers, "enable.idempotence": True, "compression.type": compression})
    for number in numbers:
        producer.produce(
            topic,
            key=f"key-{number}",
            value=f"value-{number}",
            partition=number % PARTITIONS,
            headers={"number": str(number).encode()},
            on_delivery=delivered,
        )
    assert producer.flush(WAIT_SECONDS_MAX) == 0
    assert refused == []


def new_consumer(servers: str, group: str) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
            # The embedded broker's groups wait half of this before they start.
            "session.timeout.ms": 6000,
        }
    )


def read(consumer: Consumer, count: int) -> list[Message]:
    """The next `count` records."""
    found: list[Message] = []
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while len(found) < count and time.monotonic() < deadline:
        found += [message for message in consumer.consume(count - len(found), 0.5) if message.error() is None]
    return found


def true_end(consumer: Consumer, topic: str, partition: int, start: int) -> int:
    """The offset behind a partition's last record, by reading on from `start`."""
    consumer.assign([TopicPartition(topic, partition, start)])
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while time.monotonic() < deadline:
        message = consumer.poll(0.5)
        error = message.error() if message is not None else None
        if message is not None and error is not None and error.code() == KafkaError._PARTITION_EOF:
            end = message.offset()
            assert end is not None
            return end
    raise AssertionError(f"no end of {topic}/{partition} within {WAIT_SECONDS_MAX} s")


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd", "gzip", "snappy"])
def test_records_come_back_whole_and_in_order(servers: str, compression: str) -> None:
    topic = f"whole-{compression}"
    create_topic(servers, topic)
    produce(servers, topic, range(RECORDS), compression)
    consumer = new_consumer(servers, topic)
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
    found = read(consumer, RECORDS)
    consumer.close()
    for partition in range(PARTITIONS):
        mine = [message for message in found if message.partition() == partition]
        numbers = range(partition, RECORDS, PARTITIONS)
        assert [message.offset() for message in mine] == list(range(len(numbers)))
        assert [message.key() for message in mine] == [f"key-{number}".encode() for number in numbers]
        assert [message.value() for message in mine] == [f"value-{number}".encode() for number in numbers]
        assert [message.headers() for message in mine] == [[("number", str(number).encode())] for number in numbers]


def test_a_group_goes_on_behind_its_commit(servers: str) -> None:
    topic = "committed"
    create_topic(servers, topic)
    produce(servers, topic, range(10))
    first = new_consumer(servers, "committed-group")
    first.subscribe([topic])
    seen = read(first, 10)
    assert len(seen) == 10
    first.commit(offsets=[TopicPartition(topic, 0, 3), TopicPartition(topic, 1, 5)], asynchronous=False)
    first.close()

    second = new_consumer(servers, "committed-group")
    committed = second.committed([TopicPartition(topic, 0), TopicPartition(topic, 1)], WAIT_SECONDS_MAX)
    assert [partition.offset for partition in committed] == [3, 5]
    second.subscribe([topic])
    assert [(message.partition(), message.offset()) for message in read(second, 2)] == [(0, 3), (0, 4)]
    second.close()


def test_the_true_end_is_found_by_reading(servers: str) -> None:
    topic = "ends"
    create_topic(servers, topic)
    produce(servers, topic, range(101))
    consumer = new_consumer(servers, "ends")
    for partition, end in ((0, 51), (1, 50)):
        _, reported = consumer.get_watermark_offsets(TopicPartition(topic, partition), WAIT_SECONDS_MAX)
        # The embedded broker reports too low an end, but never one behind the records.
        assert 0 < reported <= end
        assert true_end(consumer, topic, partition, reported) == end
        assert consumer.get_watermark_offsets(TopicPartition(topic, partition), cached=True)[1] == end
    consumer.close()


def test_the_embedded_broker_ends_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, signal\n"
        "from taximeter.embedded.broker import EmbeddedBroker\n"
        "broker = EmbeddedBroker(pathlib.Path(sys.argv[1]), int(sys.argv[2]))\n"
        "broker.start()\n"
        "print(broker.pid, flush=True)\n"
        "signal.pause()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        broker_pid = int(parent.stdout.readline())
        os.kill(broker_pid, 0)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while is_running(broker_pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(broker_pid)


def is_running(pid: int) -> bool:
    """Whether a process is there and has not ended; one that nobody has waited for has ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_a_taken_port_is_an_error(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path / "first", free_port()) as first:
        second = EmbeddedBroker(tmp_path / "second", int(first.bootstrap_servers.rpartition(":")[2]))
        with pytest.raises(BrokerError):
            second.start()
        assert first.running
        assert not second.running


@pytest.mark.kafka
def test_apache_kafka_keeps_its_log_over_a_kill(tmp_path: Path) -> None:
    with ApacheKafka(tmp_path) as kafka:
        create_topic(kafka.bootstrap_servers, "kept")
        produce(kafka.bootstrap_servers, "kept", range(RECORDS))
        kafka.kill()
        kafka.start()
        consumer = new_consumer(kafka.bootstrap_servers, "kept")
        consumer.assign([TopicPartition("kept", partition, 0) for partition in range(PARTITIONS)])
        assert len(read(consumer, RECORDS)) == RECORDS
        consumer.close()
