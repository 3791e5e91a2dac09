"""A vLLM that the plugin does not know, metered by its answers alone: what those tell is what the engine counted."""

from typing import Any

import pytest

from taximeter_inference.gateway.salt import PoolKeys
from taximeter_inference.vllm.answers import COUNTED_ATTRIBUTE, COUNTED_BY
from taximeter_schemas.events import Attribution, Outcome
from tests.vllm.worker_process import SALT_SECRET, VllmWorker, engine_sum

pytestmark = pytest.mark.vllm

LONG = "Tell me at length what a taximeter is. " * 4
CHAT = [{"role": "user", "content": LONG}]
ASKED: list[tuple[str, dict[str, Any], Outcome]] = [
    ("/v1/chat/completions", {"messages": CHAT, "max_tokens": 6}, Outcome.LENGTH),
    ("/v1/chat/completions", {"messages": CHAT, "max_tokens": 900, "stop": list("aeio")}, Outcome.COMPLETED),
    ("/v1/completions", {"prompt": LONG, "max_tokens": 5}, Outcome.LENGTH),
    ("/v1/responses", {"input": LONG, "max_output_tokens": 5}, Outcome.LENGTH),
    ("/v1/messages", {"messages": CHAT, "max_tokens": 5}, Outcome.LENGTH),
]


def test_answers_tell_what_the_engine_counted(drifted: VllmWorker) -> None:
    """Whole and as a stream, on every route that has its usage in its answer; each event is marked."""
    assert "metering by answers alone" in drifted.log
    assert "OutputProcessor.propagate_error takes ('error',)" in drifted.log
    before, known = drifted.counters(), len(drifted.events())
    for path, fields, _ in ASKED:
        body = {"model": "tiny", "temperature": 0.7, **fields}
        assert drifted.post(path, body).status_code == 200
        with drifted.stream(path, {**body, "stream": True}) as stream:
            assert stream.status_code == 200, stream.read()
            assert list(stream.iter_bytes())
    events = drifted.await_events(known + 2 * len(ASKED))[known:]
    assert engine_sum(events) == drifted.counters() - before
    assert {event.data.attributes[COUNTED_ATTRIBUTE] for event in events} == {COUNTED_BY}
    assert [event.data.outcome for event in events] == [outcome for _, _, outcome in ASKED for _ in range(2)]
    assert {event.data.cache.attribution for event in events} == {Attribution.INFERRED}


def test_who_leaves_pays_for_what_its_stream_told(drifted: VllmWorker) -> None:
    """That is at most what the engine generated."""
    before, known = drifted.counters(), len(drifted.events())
    body = {"model": "tiny", "messages": CHAT, "max_tokens": 1500, "ignore_eos": True, "stream": True}
    with drifted.stream("/v1/chat/completions", body) as stream:
        lines = stream.iter_lines()
        for _ in range(12):
            next(lines)
    (event,) = drifted.await_events(known + 1)[known:]
    assert event.data.outcome is Outcome.ABORTED
    counted, told = drifted.counters_at_rest() - before, engine_sum([event])
    assert told.prompt == counted.prompt
    assert 0 < told.output <= counted.output


def test_pools_are_apart_and_the_rest_is_refused(drifted: VllmWorker) -> None:
    """Salts are set in bodies; a route whose answers have no usage is not served."""
    body = {"model": "tiny", "prompt": "Something that two pools ask, word for word. " * 8, "max_tokens": 1}

    def cached(tenant: str, **fields: object) -> int:
        answer = drifted.post("/v1/completions", {**body, **fields}, drifted.headers(tenant))
        assert answer.status_code == 200, answer.text
        return int((answer.json()["usage"]["prompt_tokens_details"] or {}).get("cached_tokens") or 0)

    assert cached("acme") == 0
    assert cached("acme") > 0
    assert cached("mallory") == 0
    assert cached("mallory", cache_salt=PoolKeys(SALT_SECRET.encode(), "1").salt("tenant:acme")) == 0
    assert drifted.post("/inference/v1/generate", {"model": "tiny", "token_ids": [1]}).status_code == 501
