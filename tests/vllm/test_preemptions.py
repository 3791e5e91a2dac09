"""A cache that is too small: the engine puts sequences off and computes them again; they are told, and paid for once."""

import threading

import pytest

from taximeter.demo.vllm_worker import BLOCK_SIZE
from taximeter_schemas.events import Attribution, Outcome, input_tokens
from tests.vllm.worker_process import VllmWorker, engine_sum

pytestmark = pytest.mark.vllm

PROMPT = "What was asked before the cache was full. " * 2
OUTPUT_TOKENS = 360
"""Two prompts with so much behind them need half as many blocks again as there are."""


def test_what_is_computed_again_counts_once(squeezed: VllmWorker) -> None:
    """The events carry the engine's own number of preemptions, and its tokens; each answer is as long as it was to be."""
    before, known = squeezed.counters(), len(squeezed.events())
    preempted_before = squeezed.total("num_preemptions_total")
    prompts: dict[str, int] = {}

    def ask(tenant: str) -> None:
        body = {"model": "tiny", "prompt": f"{tenant}: {PROMPT}", "max_tokens": OUTPUT_TOKENS, "ignore_eos": True}
        answer = squeezed.post("/v1/completions", body, squeezed.headers(tenant))
        assert answer.status_code == 200, answer.text
        prompts[tenant] = answer.json()["usage"]["prompt_tokens"]

    threads = [threading.Thread(target=ask, args=(f"rider-{number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = squeezed.await_events(known + len(threads))[known:]

    preempted = squeezed.total("num_preemptions_total") - preempted_before
    assert preempted > 0
    assert sum(int(event.data.attributes.get("engine.preemptions", 0)) for event in events) == preempted
    assert engine_sum(events) == squeezed.counters() - before
    assert {event.data.tenant: input_tokens(event.data.tokens) for event in events} == prompts
    assert {(event.data.outcome, event.data.tokens.output) for event in events} == {(Outcome.LENGTH, OUTPUT_TOKENS)}
    # A block that a sequence finds again after it was put off is not one that somebody else had warmed for it.
    for event in events:
        assert event.data.cache.attribution is Attribution.ENGINE
        assert event.data.cache.hit_blocks * BLOCK_SIZE == event.data.tokens.cache_read.gpu
        assert len(event.data.cache.blocks) == prompts[event.data.tenant] // BLOCK_SIZE
