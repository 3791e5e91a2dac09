"""Tokens that a KV connector brought into the engine: under the connector's tier, and as the engine's own counters have them."""

import pytest

from taximeter.demo.vllm_worker import BLOCK_SIZE
from taximeter_schemas import wire
from taximeter_schemas.events import Attribution
from tests.vllm.worker_process import VllmWorker, engine_sum

pytestmark = pytest.mark.vllm

PROMPT = "What was computed once and is kept on disk, wherever it is asked for again. " * 4
SHORT = PROMPT[:80]
"""Fills some blocks of the longer one."""


def ask(worker: VllmWorker, tenant: str, prompt: str | list[str], **fields: object) -> None:
    """Ask, as a tenant of one pool."""
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 1, **fields}
    answer = worker.post("/v1/completions", body, worker.headers(tenant, pool="duo"))
    assert answer.status_code == 200, answer.text


def sources(events: list[wire.UsageEvent]) -> dict[str, int]:
    """What the events say that the engine counted, by where it came from."""
    whole = engine_sum(events)
    external = sum(
        int(event.data.attributes.get("engine.external_tokens", event.data.tokens.cache_read.disk)) for event in events
    )
    return {
        "local_compute": whole.prompt - whole.cached,
        "local_cache_hit": whole.cached - external,
        "external_kv_transfer": external,
    }


def test_what_a_connector_brought_counts_under_its_tier(connected: VllmWorker) -> None:
    """From its disk, in one piece with what the engine has, for several prompts and several answers; to the token."""
    other = f"Another one. {PROMPT}"
    ask(connected, "acme", PROMPT)
    ask(connected, "globex", PROMPT)
    connected.reset_prefix_cache()
    ask(connected, "globex", PROMPT)
    connected.reset_prefix_cache()
    ask(connected, "acme", SHORT)
    ask(connected, "globex", PROMPT)
    ask(connected, "acme", other)
    connected.reset_prefix_cache()
    ask(connected, "acme", [other, PROMPT])
    connected.reset_prefix_cache()
    ask(connected, "acme", PROMPT, n=2)
    events = connected.await_events(8)

    read = [event.data.tokens.cache_read for event in events]
    whole = read[1].gpu
    assert whole > 0
    assert (read[0].gpu, read[0].disk, read[1].disk) == (0, 0, 0)
    assert (read[2].gpu, read[2].disk) == (0, whole)
    assert 0 < read[4].gpu < whole
    assert read[4].gpu + read[4].disk == whole
    assert read[6].gpu == 0
    assert read[6].disk > whole
    assert read[7].gpu + read[7].disk == whole
    assert sources(events) == connected.by_source()
    assert sources(events)["external_kv_transfer"] > 0
    assert engine_sum(events) == connected.counters()


def test_blocks_from_a_connector_are_named_and_nobody_is_said_to_have_warmed_them(connected: VllmWorker) -> None:
    """Which blocks were hit is exact, from disk as well; that connector does not tell whose they are."""
    known = len(connected.events())
    prompt = f"Named. {PROMPT}"
    for tenant in ("acme", "globex", "acme"):
        ask(connected, tenant, prompt)
    connected.reset_prefix_cache()
    ask(connected, "globex", prompt)
    events = connected.await_events(known + 4)[known:]
    caches = [event.data.cache for event in events]
    assert {cache.attribution for cache in caches} == {Attribution.ENGINE}
    assert len({tuple(cache.blocks) for cache in caches}) == 1
    hits = caches[1].hit_blocks
    assert [cache.hit_blocks for cache in caches] == [0, hits, hits, hits]
    assert events[3].data.tokens.cache_read.disk == hits * BLOCK_SIZE
    warmed = [event.data.attributes.get("cache.warmed_by") for event in events]
    assert warmed == [None, f"acme*{hits}", f"acme*{hits}", f"?*{hits}"]
