"""For every endpoint and ending, the sum of the events is what the engine counted, token for token."""

import contextlib
import json
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection
from typing import Any

import httpx
import pytest

from taximeter_schemas import wire
from taximeter_schemas.events import Operation, Outcome
from tests.vllm.worker_process import SECONDS_MAX, VllmWorker, engine_sum

pytestmark = pytest.mark.vllm

LONG = "Tell me at length what a taximeter is. " * 4
CHAT = [{"role": "user", "content": LONG}]
Ask = tuple[str, dict[str, Any], Operation, Outcome]

GENERATING: list[Ask] = [
    ("/v1/chat/completions", {"messages": CHAT, "max_tokens": 6}, Operation.CHAT, Outcome.LENGTH),
    ("/v1/chat/completions", {"messages": CHAT, "max_tokens": 4, "n": 3}, Operation.CHAT, Outcome.LENGTH),
    # The bytes of any answer hold one of these soon.
    ("/v1/chat/completions", {"messages": CHAT, "max_tokens": 900, "stop": list("aeio")}, Operation.CHAT, Outcome.COMPLETED),
    ("/v1/completions", {"prompt": LONG, "max_tokens": 5}, Operation.COMPLETION, Outcome.LENGTH),
    ("/v1/completions", {"prompt": [LONG, "A", "B" * 70], "max_tokens": 5}, Operation.COMPLETION, Outcome.LENGTH),
    ("/v1/completions", {"prompt": [LONG, "C"], "max_tokens": 3, "n": 2}, Operation.COMPLETION, Outcome.LENGTH),
    ("/v1/completions", {"prompt": LONG, "max_tokens": 1, "echo": True, "logprobs": 1}, Operation.COMPLETION, Outcome.LENGTH),
    ("/v1/responses", {"input": LONG, "max_output_tokens": 5}, Operation.RESPONSE, Outcome.LENGTH),
    ("/v1/messages", {"messages": CHAT, "max_tokens": 5}, Operation.CHAT, Outcome.LENGTH),
]  # fmt: skip


def test_generation_is_counted_as_the_engine_does(generator: VllmWorker) -> None:
    """Finished by length or by a stop, one answer or several, one prompt or several, whole or as a stream."""
    before, known = generator.counters(), len(generator.events())
    expected: list[Ask] = []
    for path, fields, operation, outcome in GENERATING:
        body = {"model": "tiny", "temperature": 0.7, **fields}
        answer = generator.post(path, body)
        assert answer.status_code == 200, answer.text
        expected.append((path, body, operation, outcome))
        if "echo" in body:
            continue
        # A stream that does not ask for its usage is counted as well.
        with generator.stream(path, {**body, "stream": True}) as stream:
            assert stream.status_code == 200, stream.read()
            assert list(stream.iter_bytes())
        expected.append((path, body, operation, outcome))
    events = generator.await_events(known + len(expected))[known:]
    for event, (path, body, operation, outcome) in zip(events, expected, strict=True):
        assert (event.data.operation, event.data.outcome) == (operation, outcome), (path, body)
        assert event.data.tenant == "acme"
        assert event.data.model == "tiny"
        assert event.data.timing.ttft_ms is not None
        assert event.data.timing.queue_ms is not None
    total, after = engine_sum(events), generator.counters()
    assert total.prompt == after.prompt - before.prompt
    assert total.cached == after.cached - before.cached
    assert total.output == after.output - before.output


def test_several_answers_bill_their_prompt_once(generator: VllmWorker) -> None:
    """The engine counts it once an answer; its sums stand beside."""
    known = len(generator.events())
    answer = generator.post("/v1/chat/completions", {"model": "tiny", "messages": CHAT, "max_tokens": 2, "n": 4}).json()
    (event,) = generator.await_events(known + 1)[known:]
    tokens = event.data.tokens
    prompt = tokens.uncached_input + tokens.cache_read.gpu
    assert prompt == answer["usage"]["prompt_tokens"]
    assert tokens.output == answer["usage"]["completion_tokens"] == 8
    assert event.data.attributes["engine.prompt_tokens"] == str(4 * prompt)


def gone_in_mid_stream(worker: VllmWorker) -> None:
    """The client leaves after some pieces of its stream."""
    body = {"model": "tiny", "messages": CHAT, "max_tokens": 1500, "ignore_eos": True, "stream": True}
    with worker.stream("/v1/chat/completions", body) as stream:
        pieces = stream.iter_lines()
        for _ in range(12):
            next(pieces)


def timed_out(worker: VllmWorker) -> None:
    """The client's patience ends before a whole answer is there."""
    with contextlib.suppress(httpx.TimeoutException):
        httpx.post(
            f"{worker.url}/v1/completions",
            json={"model": "tiny", "prompt": LONG, "max_tokens": 1900, "ignore_eos": True},
            headers=worker.headers(),
            timeout=httpx.Timeout(SECONDS_MAX, read=0.5),
        )


@pytest.mark.parametrize("leave", [gone_in_mid_stream, timed_out])
def test_who_leaves_pays_for_what_was_generated(generator: VllmWorker, leave: Callable[[VllmWorker], None]) -> None:
    """An aborted request has an event, and its tokens are those that the engine counted until then."""
    before, known = generator.counters(), len(generator.events())
    leave(generator)
    (event,) = generator.await_events(known + 1)[known:]
    assert event.data.outcome is Outcome.ABORTED
    total, after = engine_sum([event]), generator.counters()
    assert (total.prompt, total.output) == (after.prompt - before.prompt, after.output - before.output)
    assert total.cached == after.cached - before.cached
    assert total.output > 0


def test_who_leaves_before_the_first_token_pays_nothing(generator: VllmWorker) -> None:
    """While other answers fill the batch, a client waits and leaves: the engine counted nothing, and so does its event."""
    before, known = generator.counters(), len(generator.events())
    busy = {"model": "tiny", "prompt": LONG, "n": 64, "max_tokens": 1900, "ignore_eos": True, "stream": True}
    waiting = HTTPConnection("127.0.0.1", generator.port, timeout=SECONDS_MAX)
    with generator.stream("/v1/completions", busy) as stream:
        lines = stream.iter_lines()
        next(lines)
        body = json.dumps({"model": "tiny", "prompt": "first come first served", "max_tokens": 5})
        headers = {**generator.headers("globex"), "content-type": "application/json"}
        waiting.request("POST", "/v1/completions", body, headers)
        generator.await_gauge("num_requests_waiting", 1)
        waiting.close()
        generator.await_gauge("num_requests_waiting", 0)
    events = generator.await_events(known + 2)[known:]
    gone = next(event for event in events if event.data.tenant == "globex")
    assert gone.data.outcome is Outcome.ABORTED
    assert gone.data.tokens == wire.Tokens()
    assert gone.data.timing.ttft_ms is None
    total, after = engine_sum(events), generator.counters()
    assert (total.prompt, total.output) == (after.prompt - before.prompt, after.output - before.output)


def test_an_adapter_is_named_and_belongs_to_its_tenants(generator: VllmWorker) -> None:
    """Usage goes to tenant and adapter; a foreign tenant cannot use it, and no event says that it did."""
    known = len(generator.events())
    fields = {"messages": CHAT, "max_tokens": 2}
    assert generator.post("/v1/chat/completions", {"model": "adapter-a", **fields}).status_code == 200
    refused = generator.post("/v1/chat/completions", {"model": "adapter-b", **fields})
    assert refused.status_code in (400, 404), refused.text
    granted = generator.post("/v1/chat/completions", {"model": "adapter-b", **fields}, generator.headers("globex"))
    assert granted.status_code == 200, granted.text
    events = generator.await_events(known + 2)[known:]
    assert [(event.data.tenant, event.data.adapter) for event in events] == [
        ("acme", "adapter-a"),
        ("globex", "adapter-b"),
    ]
    assert {event.data.model for event in events} == {"tiny"}


def test_tags_are_believed_under_a_signature_only(generator: VllmWorker) -> None:
    """Without one, with a forged one, or with one that was used before, nothing is served."""
    body = {"model": "tiny", "messages": CHAT, "max_tokens": 1}
    url, known = f"{generator.url}/v1/chat/completions", len(generator.events())
    assert httpx.post(url, json=body, timeout=SECONDS_MAX).status_code == 401
    headers = generator.headers()
    forged = {**headers, "x-taximeter-tags": headers["x-taximeter-tags"].replace('"acme"', '"globex"')}
    assert forged != headers
    assert httpx.post(url, json=body, headers=forged, timeout=SECONDS_MAX).status_code == 401
    assert httpx.post(url, json=body, headers=headers, timeout=SECONDS_MAX).status_code == 200
    assert httpx.post(url, json=body, headers=headers, timeout=SECONDS_MAX).status_code == 401
    (event,) = generator.await_events(known + 1)[known:]
    assert f'"{event.id}"' in headers["x-taximeter-tags"]
    assert event.source == "taximeter-gateway/gateway-1"


def test_shares_of_the_gpu_add_up_to_its_busy_time(generator: VllmWorker) -> None:
    """Requests that ran side by side share the time: together no more than passed, and more than the longest alone."""
    known, began = len(generator.events()), time.monotonic()
    busy = generator.own_value("taximeter_worker_busy_seconds")
    body = {"model": "tiny", "prompt": LONG, "max_tokens": 200, "ignore_eos": True}
    threads = [threading.Thread(target=generator.post, args=("/v1/completions", body)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    passed = time.monotonic() - began
    events = generator.await_events(known + 6)[known:]
    shares = [event.data.worker.gpu_seconds for event in events if event.data.worker]
    assert all(share > 0 for share in shares)
    assert sum(shares) <= passed
    # The gauge's time is the whole worker's, and each share is rounded to a nanosecond.
    assert abs(generator.own_value("taximeter_worker_busy_seconds") - busy - sum(shares)) < 1e-6
    assert sum(shares) > max(float(event.data.attributes["engine.decode_ms"]) for event in events) / 1_000
