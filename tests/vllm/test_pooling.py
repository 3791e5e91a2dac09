"""Embeddings, scores and reranking are counted as the engine counts them: input only."""

from typing import Any

import pytest

from taximeter_schemas.events import Operation, Outcome
from tests.vllm.worker_process import VllmWorker, engine_sum

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
