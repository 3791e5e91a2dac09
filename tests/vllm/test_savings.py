"""Five tenants of one pool share a system prompt: what they are charged from their events is what a plain oracle makes of the
engine's own KV events."""

import json
import random
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from taximeter_billing.domain.savings import SavingsResult, savings_for_period
from taximeter_billing.domain.usage import Prices, Skus, UsageRow
from taximeter_schemas import wire
from taximeter_schemas.cache_policies import ShapleyUse
from taximeter_schemas.cache_uses import CacheUse, SkuRates
from taximeter_schemas.events import Attribution, input_tokens
from taximeter_schemas.rate_cards import Price, RateCard
from tests.gateway_stack import await_true
from tests.property.cache_savings_oracle import Records, charges
from tests.vllm.worker_process import BLOCK_SIZE, PYTHON, VllmWorker

pytestmark = pytest.mark.vllm

TENANTS = ("acme", "globex", "hooli", "initech", "umbrella")
SYSTEM = "You are the clerk of a taxi company. Answer briefly, and name the fare with its currency. " * 6
LIST_PICO, READ_PICO = 1_000_003, 100_001
POLICY = ShapleyUse(kind="shapley_use")


@pytest.fixture
def recorded(generator: VllmWorker, tmp_path: Path) -> Iterator[Path]:
    """What the generator's engine says about its cache, from now on."""
    path = tmp_path / "kv.jsonl"
    recorder = subprocess.Popen([PYTHON, Path(__file__).with_name("kv_recorder.py"), generator.kv_events, path])
    try:
        await_true(lambda: path.exists() and _heard(generator, path), lambda: "the recorder hears nothing")
        yield path
    finally:
        recorder.kill()
        recorder.wait()


def _heard(generator: VllmWorker, path: Path) -> bool:
    prompt = f"{random.random()} " * 20
    generator.post("/v1/completions", {"model": "tiny", "prompt": prompt, "max_tokens": 1}, generator.headers("nobody"))
    return path.stat().st_size > 0


def test_five_tenants_in_a_pool_pay_what_the_oracle_says(generator: VllmWorker, recorded: Path) -> None:
    """Requests one after the other, by chance; each tenant's charge by shapley_use, to the pico-unit."""
    events = ask_by_chance(generator, "clerks")
    assert {event.data.cache.attribution for event in events} == {Attribution.ENGINE}
    sessions = {event.data.attributes["engine.requests"]: event for event in events}
    await_true(
        lambda: set(sessions) <= {line["session_id"] for line in lines(recorded)}, lambda: "KV events are missing"
    )

    settled = settle(events)
    exact, retained = charges(*oracle_records(recorded, sessions, "clerks"), POLICY.rule)

    assert retained == 0
    assert set(settled.charges_pico) == set(exact) == set(TENANTS)
    assert sum(settled.charges_pico.values()) == sum(exact.values())
    for tenant, charge in settled.charges_pico.items():
        assert abs(charge - exact[tenant]) < 1
    # Something was shared, and the whole is what the requests cost.
    hits = sum(event.data.cache.hit_blocks for event in events)
    assert hits > len(events) * (len(SYSTEM) // 8 // BLOCK_SIZE)
    metered = sum(map(cost, events))
    assert sum(settled.charges_pico.values()) == metered
    spread = {tenant: f"{float(Fraction(charge, metered)):.1%}" for tenant, charge in settled.charges_pico.items()}
    print(f"{hits} blocks hit by {len(events)} requests; shares of the cost: {spread}")


def test_what_is_inferred_stays_with_its_tenant(generator: VllmWorker, recorded: Path) -> None:
    """Requests whose blocks are not told pay what their counts say; the others what the oracle says, as if they were alone."""
    events = ask_by_chance(generator, "drivers")
    known = len(generator.events())
    for tenant in TENANTS[:3]:
        body = {"model": "tiny", "prompt": [f"{SYSTEM}{tenant}", f"{SYSTEM}{tenant} again"], "max_tokens": 1}
        for _ in range(2):
            answer = generator.post("/v1/completions", body, generator.headers(tenant, pool="drivers"))
            assert answer.status_code == 200, answer.text
    inferred = generator.await_events(known + 6)[known:]
    assert {event.data.cache.attribution for event in inferred} == {Attribution.INFERRED}
    sessions = {event.data.attributes["engine.requests"]: event for event in events}
    await_true(
        lambda: set(sessions) <= {line["session_id"] for line in lines(recorded)}, lambda: "KV events are missing"
    )
    settled = settle([*events, *inferred])
    exact, _ = charges(*oracle_records(recorded, sessions, "drivers"), POLICY.rule)
    for tenant in TENANTS:
        alone = sum(cost(event) for event in inferred if event.data.tenant == tenant)
        assert abs(settled.charges_pico[tenant] - exact[tenant] - alone) < 1
    cached = sum(event.data.tokens.cache_read.gpu for event in inferred)
    assert cached > 0
    assert settled.known["inferred"] == (LIST_PICO - READ_PICO) * cached


def ask_by_chance(generator: VllmWorker, pool: str) -> list[wire.UsageEvent]:
    """Requests of all tenants over one system prompt, one after the other; their events."""
    known, chance = len(generator.events()), random.Random(5)
    asked = [chance.choice(TENANTS) for _ in range(14)] + list(TENANTS)
    for number, tenant in enumerate(asked):
        question = f"{tenant} asks for the {number % 3}th time, at some length, what it was. " * 2
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        body = {"model": "tiny", "messages": messages, "max_tokens": 2}
        answer = generator.post("/v1/chat/completions", body, generator.headers(tenant, pool=pool))
        assert answer.status_code == 200, answer.text
    return generator.await_events(known + len(asked))[known:]


def settle(events: list[wire.UsageEvent]) -> SavingsResult:
    """What billing makes of them."""
    skus = Skus(Prices([card()]))
    uses = [use for event in events for use in skus.uses(as_row(event))]
    return savings_for_period(uses, skus.rates, POLICY, "salt")


def cost(event: wire.UsageEvent) -> int:
    """What it costs with cache prices and no sharing, in pico-units."""
    return LIST_PICO * event.data.tokens.uncached_input + READ_PICO * event.data.tokens.cache_read.gpu


def lines(recorded: Path) -> list[dict[str, Any]]:
    """What was recorded so far."""
    return [json.loads(line) for line in recorded.read_text().splitlines() if line.endswith("}")]


def oracle_records(
    recorded: Path, sessions: dict[str, wire.UsageEvent], pool: str
) -> tuple[Records, dict[str, SkuRates]]:
    """Uses told by KV events alone: a block is hit by a request when it was stored for another before."""
    chains: dict[str, list[str]] = {}
    stored_for: dict[str, str] = {}
    order: list[str] = []
    for line in lines(recorded):
        session = line["session_id"]
        if session not in sessions or line["type"] != "BlockStored":
            continue
        chain = chains.setdefault(session, [])
        if session not in order:
            order.append(session)
        place = chain.index(line["parent_block_hash"]) + 1 if line["parent_block_hash"] else 0
        chain[place : place + len(line["block_hashes"])] = line["block_hashes"]
        for block in line["block_hashes"]:
            stored_for.setdefault(block, session)
    records: Records = []
    for second, session in enumerate(order):
        event = sessions[session]
        prompt = input_tokens(event.data.tokens)
        chain = chains[session][: prompt // BLOCK_SIZE]
        # The engine always computes the last token, and with it the last block of a prompt that ends with a whole one.
        known = chain[: (prompt - 1) // BLOCK_SIZE]
        hit = next((at for at, block in enumerate(known) if stored_for[block] == session), len(known))
        records.append(
            CacheUse(
                event_id=session,
                tenant=event.data.tenant,
                ts=second,
                sku="tiny",
                pool=pool,
                blocks=tuple((block, BLOCK_SIZE) for block in chain),
                hit_blocks=hit,
                tail_tokens=prompt - BLOCK_SIZE * len(chain),
            )
        )
    return records, {"tiny": SkuRates(p=LIST_PICO, r=READ_PICO, w=LIST_PICO)}


def card() -> RateCard:
    """One price for everything."""
    began = datetime(2026, 1, 1, tzinfo=UTC)
    price = Price(model="tiny", uncached_input=LIST_PICO, cache_read_gpu=READ_PICO, output=0)
    return RateCard(id="default", version=1, effective_from=began, recorded_at=began, prices=(price,))


def as_row(event: wire.UsageEvent) -> UsageRow:
    """An event as billing reads it from the warehouse."""
    tokens, cache = event.data.tokens, event.data.cache
    return UsageRow(
        tenant=event.data.tenant,
        feature=event.data.feature,
        model=event.data.model,
        adapter="",
        operation=event.data.operation.value,
        service_tier=event.data.service_tier.value,
        rate_card="default@1",
        source=event.source,
        event_id=event.id,
        time_us=int(event.time.timestamp() * 1_000_000),
        uncached_input=tokens.uncached_input,
        cache_read_gpu=tokens.cache_read.gpu,
        cache_read_cpu=0,
        cache_read_disk=0,
        cache_read_provider=0,
        cache_write_5m=0,
        cache_write_1h=0,
        output=tokens.output,
        pool=cache.pool or "",
        block_size=cache.block_size,
        hit_blocks=cache.hit_blocks,
        blocks=tuple(cache.blocks),
        list_pico=0,
        metered_pico=0,
    )
