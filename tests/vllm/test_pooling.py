"""Embeddings, scores and reranking are counted as the engine counts them: input only, and of what was not broken off."""

import contextlib
import json
import signal
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest

from taximeter_schemas.events import Operation, Outcome
from tests.vllm.worker_process import SECONDS_MAX, Counters, VllmWorker, engine_sum
from tests.waiting import await_true

pytestmark = pytest.mark.vllm

TEXTS = ["What a ride costs. " * 6, "What a token costs. " * 6, "Nothing of the kind."]
ASKED: list[tuple[str, dict[str, Any], Operation]] = [
    ("/v1/embeddings", {"input": TEXTS[0]}, Operation.EMBEDDING),
    ("/v1/embeddings", {"input": TEXTS}, Operation.EMBEDDING),
    ("/score", {"text_1": TEXTS[0], "text_2": TEXTS[1:]}, Operation.SCORE),
    ("/v1/rerank", {"query": TEXTS[0], "documents": TEXTS[1:]}, Operation.RERANK),
]


def test_pooling_is_counted_as_the_engine_does(embedder: VllmWorker) -> None:
    """One text or several, every endpoint: one event each, no output."""
    before, known = embedder.counters(), len(embedder.events())
    for path, fields, _ in ASKED:
        answer = embedder.post(path, {"model": "tiny", **fields})
        assert answer.status_code == 200, answer.text
    events = embedder.await_events(known + len(ASKED))[known:]
    assert [event.data.operation for event in events] == [operation for _, _, operation in ASKED]
    assert {event.data.outcome for event in events} == {Outcome.COMPLETED}
    total, after = engine_sum(events), embedder.counters()
    assert total.prompt == after.prompt - before.prompt > 0
    assert total.cached == after.cached - before.cached
    assert total.output == 0


def begin(worker: VllmWorker, path: str, fields: dict[str, Any]) -> HTTPConnection:
    """Ask without waiting for the answer; the engine has it in hand."""
    asking, known = HTTPConnection("127.0.0.1", worker.port, timeout=SECONDS_MAX), worker.open_numbers()
    headers = {**worker.headers(), "content-type": "application/json"}
    asking.request("POST", path, json.dumps({"model": "tiny", **fields}), headers)
    await_true(lambda: worker.open_numbers() > known, lambda: f"{path} does not reach the engine")
    return asking


@contextlib.contextmanager
def halted(worker: VllmWorker) -> Iterator[None]:
    """Its engine computes nothing within."""
    worker.signal_engine(signal.SIGSTOP)
    try:
        yield
    finally:
        worker.signal_engine(signal.SIGCONT)


def test_who_leaves_before_anything_is_computed_pays_nothing(embedder: VllmWorker) -> None:
    """On every route: the engine counts nothing, and so does the event."""
    before, known = embedder.counters(), len(embedder.events())
    with halted(embedder):
        waiting = [begin(embedder, path, fields) for path, fields, _ in ASKED]
        for asking in waiting:
            asking.close()
        events = embedder.await_events(known + len(ASKED))[known:]
    assert sorted(event.data.operation for event in events) == sorted(operation for _, _, operation in ASKED)
    assert {event.data.outcome for event in events} == {Outcome.ABORTED}
    assert embedder.counters_at_rest() == before
    assert engine_sum(events) == Counters(0, 0, 0)


def test_who_leaves_in_the_middle_pays_for_the_texts_that_were_done(embedder: VllmWorker) -> None:
    """Of a request with many texts some are done: those count."""
    before, known = embedder.counters(), len(embedder.events())
    asking = begin(embedder, "/v1/embeddings", {"input": [f"{number} {TEXTS[0] * 12}" for number in range(400)]})
    await_true(lambda: embedder.counters().prompt > before.prompt, lambda: "nothing is computed")
    with halted(embedder):
        asking.close()
        (event,) = embedder.await_events(known + 1)[known:]
    counted = embedder.counters_at_rest() - before
    assert event.data.outcome is Outcome.ABORTED
    assert engine_sum([event]) == counted
    assert counted.prompt > 0


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/embeddings", {"input": TEXTS[0] * 900}),
    ("/v1/embeddings", {"input": [TEXTS[1], TEXTS[0] * 900]}),
    ("/v1/embeddings", {"input": {"text": TEXTS[0]}}),
    ("/score", {"text_1": TEXTS[0], "text_2": [TEXTS[1], TEXTS[0] * 900]}),
    ("/score", {"text_1": TEXTS[:2], "text_2": TEXTS}),
    ("/v1/rerank", {"query": TEXTS[0]}),
]  # Too long, alone or beside a good one; not a text; not pairs; no documents.


def test_what_the_server_refuses_costs_nothing(embedder: VllmWorker) -> None:
    """An input that is no good has an error that says so; what did not reach the engine has no event."""
    before, known = embedder.counters(), len(embedder.events())
    for path, fields in REFUSED:
        answer = embedder.post(path, {"model": "tiny", **fields})
        assert answer.status_code in (400, 422), (path, answer.text)
    path, fields, _ = ASKED[0]
    assert embedder.post(path, {"model": "tiny", **fields}).status_code == 200
    (event,) = embedder.await_events(known + 1)[known:]
    assert event.data.outcome is Outcome.COMPLETED
    assert engine_sum([event]) == embedder.counters() - before
