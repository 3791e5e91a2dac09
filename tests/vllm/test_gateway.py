"""A real gateway before a real worker: one event a request, whoever of the two meters, and one charge even if both do."""

import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from taximeter_inference.gateway.events import Ending, RequestFacts, build_event
from taximeter_inference.gateway.salt import PoolKeys
from taximeter_inference.gateway.tags import Tags
from taximeter_inference.gateway.usage import UpstreamUsage
from taximeter_producers import UsageProducer
from taximeter_producers.tracing import traceparent_within
from taximeter_schemas import wire
from taximeter_schemas.events import Operation, Outcome
from taximeter_schemas.topics import USAGE_EVENTS
from taximeter_sql import connect
from tests import gateway_stack
from tests.face_process import FaceProcess
from tests.faults.processes import make_worker
from tests.gateway_stack import PARTITIONS, Client, GatewayStack, declare
from tests.topic_reader import read_topic
from tests.vllm.worker_process import SECONDS_MAX, SECRET, VllmWorker, engine_sum
from tests.waiting import await_true

pytestmark = pytest.mark.vllm

BODY = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "How much was it, and how far? " * 5}],
    "max_tokens": 4,
}


TRACE = secrets.token_hex(16)


@pytest.fixture(params=["worker", "gateway"])
def metered_by(request: pytest.FixtureRequest) -> str:
    """Which of the two meters."""
    chosen: str = request.param
    return chosen


@pytest.fixture
def stack(
    metered_by: str, generator: VllmWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[GatewayStack]:
    """A gateway before the generator."""
    monkeypatch.setattr(gateway_stack, "PRICED", ("tiny",))
    made = GatewayStack(generator.bootstrap_servers, tmp_path, ("tiny",))
    settings = {"TAXIMETER_UPSTREAM_METERED_BY": metered_by, "TAXIMETER_FORWARDING_SECRET": SECRET}
    # Traces are followed, not sent: the client's own is not sampled.
    settings |= {"TAXIMETER_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"}
    made.gateway = made.another_gateway(made.gateway_id, generator.url, **settings)
    made.gateway.start()
    try:
        yield made
    finally:
        made.gateway.child.stop()
    assert made.gateway.child.exit_status == 0, made.gateway.child.log_tail(50)


def ask(client: Client, **fields: object) -> str:
    """One answer, whole; the id that the gateway gave it."""
    answer = client.post("/v1/chat/completions", {**BODY, **fields}, traceparent=f"00-{TRACE}-{'1' * 16}-00")
    assert answer.status_code == 200, answer.text
    return answer.headers["x-taximeter-request-id"]


def stream(client: Client, pieces: int, **fields: object) -> str:
    """An answer in pieces, of which the client reads so many (0: all) before it leaves."""
    url, body = f"{client.url}/v1/chat/completions", {**BODY, "stream": True, **fields}
    with httpx.stream("POST", url, json=body, headers=client.headers(), timeout=SECONDS_MAX) as answer:
        assert answer.status_code == 200, answer.read()
        lines = answer.iter_lines()
        read = list(lines) if not pieces else [next(lines) for _ in range(pieces)]
        assert read
        return answer.headers["x-taximeter-request-id"]


def test_one_event_a_request_whoever_meters(
    stack: GatewayStack,
    metered_by: str,
    generator: VllmWorker,
    clickhouse: FaceProcess,
    unique_database: str,
    tmp_path: Path,
) -> None:
    """With the same id and source from either, and the engine's tokens."""
    tenant = f"t-{secrets.token_hex(4)}"
    client = Client(stack.gateway.url, declare(stack, tenant))
    before, known = generator.counters(), len(generator.events())
    names = [ask(client), stream(client, 0)]
    answered = generator.counters() - before
    names.append(stream(client, 12, max_tokens=1_500, ignore_eos=True))
    events = stack.events(tenant, 3)
    counted = generator.counters_at_rest() - before

    assert [event.id for event in events] == names
    # The first has its place in its client's trace, below the gateway's attempt.
    payloads = (message.value() or b"" for message in read_topic(generator.bootstrap_servers, USAGE_EVENTS.name))
    (place,) = (traceparent_within(payload) for payload in payloads if f'"id":"{names[0]}"'.encode() in payload)
    assert place.split("-")[1] == TRACE
    assert place.split("-")[2] != "1" * 16
    assert not [name for name in events[0].data.attributes if name.startswith("taximeter.")]
    assert {event.source for event in events} == {f"taximeter-gateway/{stack.gateway_id}"}
    assert {event.data.cache.pool for event in events} == {f"tenant:{tenant}"}
    assert [event.data.outcome for event in events] == [Outcome.LENGTH, Outcome.LENGTH, Outcome.ABORTED]
    assert engine_sum(events[:2]) == answered
    by_worker = {event.identity for event in generator.events()[known:]}
    if metered_by == "worker":
        assert by_worker == {event.identity for event in events}
        assert engine_sum(events) == counted
        twice_is_once(stack, generator, events[0], clickhouse.url(unique_database), tmp_path)
    else:
        assert not by_worker
        # Of a stream that broke off, the gateway knows what it saw.
        generator.metered_elsewhere += counted
        assert 0 < events[2].data.tokens.output <= (counted - answered).output


def twice_is_once(
    stack: GatewayStack, worker: VllmWorker, event: wire.UsageEvent, clickhouse_url: str, folder: Path
) -> None:
    """The gateway's own event of a request that the worker metered: the meter counts the first, and says why not the second."""
    facts = RequestFacts(
        event.id, event.source, event.data.tenant, event.data.tenant, "tiny", Operation.CHAT, Tags(feature="chat")
    )
    usage = UpstreamUsage(prompt_tokens=5, completion_tokens=4)
    twin = build_event(facts, Ending(Outcome.LENGTH, usage, 1.0), PoolKeys(b"0123456789abcdef", "1"), datetime.now(UTC))
    assert twin.identity == event.identity
    with UsageProducer(
        bootstrap_servers=worker.bootstrap_servers, producer_id=stack.gateway_id, spool_dir=folder / "twin"
    ) as producer:
        producer.emit(twin)
    environment = {
        "TAXIMETER_KAFKA_BOOTSTRAP_SERVERS": worker.bootstrap_servers,
        "TAXIMETER_KAFKA_PARTITIONS": str(PARTITIONS),
        "TAXIMETER_CLICKHOUSE_URL": clickhouse_url,
        "TAXIMETER_METER_LINGER_MS": "20",
    }
    meter = make_worker("meter", "taximeter_streams.meter", "TAXIMETER_METER_PORT", folder, environment, 0)
    meter.start()
    client = connect(clickhouse_url)
    try:
        query = f"SELECT disposition, reason FROM usage_log WHERE event_id = '{event.id}' ORDER BY offset"
        rows: list[tuple[str, str]] = []

        def there() -> bool:
            if client.query("EXISTS usage_log").result_rows[0][0]:
                rows[:] = [tuple(row) for row in client.query(query).result_rows]
            return len(rows) == 2

        await_true(there, lambda: f"{rows}; {meter.child.log_tail(20)}")
    finally:
        meter.child.stop()
        client.close()
    assert [disposition for disposition, _ in rows] == ["rated", "rejected"]
    assert "conflict" in rows[1][1]
