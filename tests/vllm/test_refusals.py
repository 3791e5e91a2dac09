"""What a worker lets in: requests without tags by its settings, privileges by the tenant, and nothing that it cannot meter."""

import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from taximeter.embedded.broker import EmbeddedBroker
from taximeter_producers.topics import ensure_topics
from taximeter_schemas.events import Operation, Outcome
from tests.gateway_stack import PARTITIONS
from tests.vllm.worker_process import SECONDS_MAX, VllmWorker, engine_sum
from tests.waiting import await_true

pytestmark = pytest.mark.vllm

ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"model": "tiny", "prompt": "Who pays for this? " * 4, "max_tokens": 3}),
    # Not a route that the plugin knows by name: it is looked at once it reaches the engine.
    (
        "/v1/chat/completions/batch",
        {"model": "tiny", "messages": [[{"role": "user", "content": "Who pays for this?"}]], "max_tokens": 3},
    ),
]


def without_tags(worker: VllmWorker, path: str, body: dict[str, Any]) -> httpx.Response:
    """Ask as somebody whom no gateway sent."""
    return httpx.post(f"{worker.url}{path}", json=body, timeout=SECONDS_MAX)


def test_without_tags_nothing_is_served(generator: VllmWorker) -> None:
    """The error says what to do, the engine counts nothing, and there is no event."""
    before, known = generator.counters(), len(generator.events())
    at_the_door, in_the_engine = (without_tags(generator, path, body) for path, body in ASKED)
    assert at_the_door.status_code == 401
    error = at_the_door.json()["error"]
    assert (error["code"], error["type"]) == ("untagged", "invalid_request_error")
    assert error["message"] == "this worker serves what a gateway has signed: send the request to the gateway"
    assert in_the_engine.status_code == 400, in_the_engine.text
    assert "this request has no tags" in in_the_engine.json()["error"]["message"]
    assert generator.post(*ASKED[0]).status_code == 200
    (event,) = generator.await_events(known + 1)[known:]
    assert engine_sum([event]) == generator.counters() - before


def test_without_tags_is_metered_as_such(squeezed: VllmWorker) -> None:
    """By the other setting, whatever the route: tenant, feature and pool are `untagged`, and the worker gives the id."""
    before, known = squeezed.counters(), len(squeezed.events())
    for path, body in ASKED:
        answer = without_tags(squeezed, path, body)
        assert answer.status_code == 200, answer.text
    assert squeezed.post(*ASKED[0]).status_code == 200
    *untagged, tagged = squeezed.await_events(known + 3)[known:]
    assert {(e.data.tenant, e.data.feature, e.data.cache.pool) for e in untagged} == {
        ("untagged", "untagged", "tenant:untagged")
    }
    assert {event.source for event in untagged} == {f"taximeter-vllm/{squeezed.worker_id}"}
    assert [event.data.operation for event in untagged] == [Operation.COMPLETION, Operation.OTHER]
    assert (tagged.data.tenant, tagged.source) == ("acme", "taximeter-gateway/gateway-1")
    # The prompt was in the cache for the untagged, not for the tenant.
    assert tagged.data.tokens.cache_read.gpu == 0
    assert engine_sum([*untagged, tagged]) == squeezed.counters() - before


def test_a_priority_counts_for_those_who_were_granted_it(squeezed: VllmWorker) -> None:
    """Behind a full engine, who may go first does; who may not waits where it came, whatever it asked for."""
    known = len(squeezed.events())
    body = {"model": "tiny", "prompt": "Me first. ", "max_tokens": 4, "ignore_eos": True}
    busy = {**body, "prompt": "No room. ", "n": 2, "max_tokens": 200, "stream": True}
    waiting: list[threading.Thread] = []

    def ask(tenant: str, feature: str, priority: int) -> None:
        headers = squeezed.headers(tenant, request_id=f"gateway-1:{feature}:1")
        thread = threading.Thread(
            target=squeezed.post, args=("/v1/completions", {**body, "priority": priority}, headers)
        )
        count = len(squeezed.open_numbers())
        thread.start()
        waiting.append(thread)
        await_true(lambda: len(squeezed.open_numbers()) > count, lambda: f"{feature} does not reach the engine")

    with squeezed.stream("/v1/completions", busy) as stream:
        lines = stream.iter_lines()
        next(lines)
        squeezed.signal_engine(signal.SIGSTOP)
        try:
            for asked in (
                ("acme", "first", 0),
                ("acme", "second", 0),
                ("acme", "pushing", -99),
                ("globex", "entitled", -9),
            ):
                ask(*asked)
        finally:
            squeezed.signal_engine(signal.SIGCONT)
        assert list(lines)
    for thread in waiting:
        thread.join()
    events = squeezed.await_events(known + 5)[known:]
    # The time of an event is when the engine began on it; there are two places.
    began = {event.id.split(":")[1]: event.time for event in events}
    assert max(began["entitled"], began["first"]) < min(began["second"], began["pushing"]), began


def test_transfer_parameters_count_for_those_who_were_granted_them(squeezed: VllmWorker) -> None:
    """The engine, which has nothing to do with them here, says so where they reach it; nobody can say what was cached."""
    path, body = ASKED[0]
    before, known = squeezed.counters(), len(squeezed.events())
    claimed = {"do_remote_prefill": True, "remote_host": "10.0.0.1", "remote_prefill_cached_tokens": 9_999}
    given = {**body, "kv_transfer_params": claimed}
    said = "Got kv_transfer_params"
    assert squeezed.post(path, given).status_code == 200
    assert said not in squeezed.log
    assert squeezed.post(path, given, squeezed.headers("globex")).status_code == 200
    await_true(lambda: said in squeezed.log, lambda: squeezed.log[-2_000:])
    assert engine_sum(squeezed.await_events(known + 2)[known:]) == squeezed.counters() - before


def test_what_cannot_be_metered_is_not_served(squeezed: VllmWorker, tmp_path: Path) -> None:
    """With the broker away and the spool full the worker refuses; when the broker is back it serves, and nothing was lost."""
    path, body = ASKED[0]
    squeezed.await_events(len(squeezed.events()))
    await_true(lambda: squeezed.open_numbers() == [], lambda: "events are not safe yet")
    before, broker = squeezed.counters(), squeezed.broker
    assert broker is not None
    broker.stop()

    answered: list[int] = []

    def is_refused() -> bool:
        answered.append((answer := squeezed.post(path, body)).status_code)
        assert answer.status_code in (200, 503), answer.text
        if answer.status_code == 503:
            assert answer.json()["error"]["code"] == "cannot_meter"
            assert answer.json()["error"]["message"] == "this worker cannot meter requests now"
        return answer.status_code == 503

    await_true(is_refused, lambda: f"{answered}")
    assert "no room for usage events, new requests are refused" in squeezed.log
    counted, served = squeezed.counters() - before, answered.count(200)
    assert counted.output == 3 * served > 0
    assert squeezed.post(path, body).status_code == 503
    in_the_engine = squeezed.post(*ASKED[1])
    assert in_the_engine.status_code == 400, in_the_engine.text
    assert "this worker cannot meter requests now" in in_the_engine.json()["error"]["message"]
    assert squeezed.counters() - before == counted

    squeezed.broker = EmbeddedBroker(tmp_path, int(squeezed.bootstrap_servers.rpartition(":")[2]))
    squeezed.broker.start()
    ensure_topics(squeezed.bootstrap_servers, PARTITIONS, 1)
    await_true(lambda: not is_refused(), lambda: squeezed.log[-2_000:])
    # The new broker began with nothing: what it has came from the spool, from the worker's hands, and from the last answer.
    events = squeezed.await_events(served + 1)
    assert {event.data.outcome for event in events} == {Outcome.LENGTH}
    assert engine_sum(events) == squeezed.counters() - before
