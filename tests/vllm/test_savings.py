"""Five tenants of one pool share a system prompt, through a gateway and a worker to their invoices: what each is charged is what
a plain oracle makes of the engine's own KV events."""

import json
import random
import secrets
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from taximeter.cli.main import app
from taximeter.demo.vllm_worker import BLOCK_SIZE
from taximeter.embedded.billing_desk import BillingDesk
from taximeter.embedded.settling import wait_until_metered
from taximeter.embedded.stack import Stack
from taximeter_schemas import wire
from taximeter_schemas.cache_policies import ShapleyUse
from taximeter_schemas.cache_uses import SkuRates
from taximeter_schemas.events import Attribution, input_tokens
from tests.property.cache_savings_oracle import charges
from tests.vllm.kv_oracle import KvRecording, recording
from tests.vllm.worker_process import SALT_SECRET, SECONDS_MAX, SECRET, VllmWorker

pytestmark = pytest.mark.vllm

SYSTEM = "You are the clerk of a taxi company. Answer briefly, and name the fare with its currency. " * 6
LIST_PICO, READ_PICO, OUTPUT_PICO = 1_000_003, 100_001, 2_000_000
MARK = secrets.token_hex(3)
"""So that nobody else on the broker has these names."""
TENANTS = tuple(f"{name}-{MARK}" for name in ("acme", "globex", "hooli", "initech", "umbrella"))
RULE = ShapleyUse(kind="shapley_use").rule
DECLARED: dict[str, object] = {
    "rate_cards": [
        {
            "id": f"card-{MARK}",
            "version": 1,
            "currency": "USD",
            "effective_from": "2026-01-01T00:00:00Z",
            "prices": [{"model": "tiny", "uncached_input": "1.000003", "cache_read_gpu": "0.100001", "output": "2"}],
        }
    ],
    "cache_policies": [{"id": f"fair-{MARK}", "kind": "shapley_use"}],
    "cache_pools": [{"id": f"clerks-{MARK}", "tenants": list(TENANTS)}],
    "tenants": [{"id": name, "rate_card": f"card-{MARK}", "cache_policy": f"fair-{MARK}"} for name in TENANTS],
}


@pytest.fixture
def stack(generator: VllmWorker, tmp_path: Path) -> Iterator[Stack]:
    """All of Taximeter, with the generator behind its gateway."""
    environment = {
        "TAXIMETER_UPSTREAM_URL": generator.url,
        "TAXIMETER_UPSTREAM_METERED_BY": "worker",
        "TAXIMETER_FORWARDING_SECRET": SECRET,
        "TAXIMETER_SALT_SECRET": SALT_SECRET,
        "TAXIMETER_KAFKA_REBALANCE_TIMEOUT_SECONDS": "3",
    }
    servers = generator.bootstrap_servers
    with Stack(tmp_path / "stack", random_ports=True, kafka=servers, environment=environment) as running:
        yield running


def test_invoices_of_a_pool_say_what_the_oracle_says(generator: VllmWorker, stack: Stack, tmp_path: Path) -> None:
    """By shapley_use, to the pico-unit. Requests whose blocks are not told stay with their tenants, as their counts say."""
    desk = BillingDesk(stack)
    desk.apply_content(DECLARED)
    keys = desk.make_keys(list(TENANTS))
    with recording(generator, tmp_path / "kv.jsonl") as recorded:
        exact = ask_by_chance(stack, generator, keys)
        oracle, hit_blocks = told_by_kv_events(recorded, exact)
    inferred = ask_two_things_at_once(stack, generator, keys)
    wait_until_metered(stack)

    period = f"{exact[0].time:%Y-%m}"
    closed = desk.close(period)
    assert (sorted(closed.drafted), closed.parked) == (sorted(TENANTS), {})
    for row in desk.finalize(period):
        own = [event for event in (*exact, *inferred) if event.data.tenant == row.tenant]
        (line,) = json.loads(row.document)["lines"]
        alone = sum(metered(event) for event in inferred if event.data.tenant == row.tenant)
        output = sum(OUTPUT_PICO * event.data.tokens.output for event in own)
        # Whole pico-units: an odd one of a sum that is shared goes to somebody.
        assert abs(int(line["net_pico"]) - (oracle[row.tenant] + alone + output)) < 1
        assert (line["events"], row.net_pico) == (len(own), int(line["net_pico"]))
        assert int(line["list_pico"]) == sum(LIST_PICO * input_tokens(event.data.tokens) for event in own) + output
        verify(desk, str(row.number), len(own))
    rows = desk.invoices(period)
    assert {row.tenant for row in rows} == set(TENANTS)
    # The whole is what the requests cost, and what was shared was worth sharing.
    assert sum(row.net_pico for row in rows) == sum(
        metered(event) + OUTPUT_PICO * event.data.tokens.output for event in (*exact, *inferred)
    )
    assert hit_blocks > len(exact) * (len(SYSTEM) // 8 // BLOCK_SIZE)
    whole = sum(oracle.values())
    shares = {tenant: f"{float(charge / whole):.1%}" for tenant, charge in oracle.items()}
    print(f"{hit_blocks} blocks hit by {len(exact)} requests; shares of the cost of input: {shares}")


def ask(stack: Stack, key: str, path: str, **fields: Any) -> None:
    """One answer, through the gateway."""
    headers = {"authorization": f"Bearer {key}", "x-taximeter-feature": "desk"}
    url = stack.addresses.urls["gateway"] + path
    answer = httpx.post(url, json={"model": "tiny", **fields}, headers=headers, timeout=SECONDS_MAX)
    assert answer.status_code == 200, answer.text


def ask_by_chance(stack: Stack, worker: VllmWorker, keys: dict[str, str]) -> list[wire.UsageEvent]:
    """Requests of all tenants over one system prompt, one after the other; their events, which know every block."""
    known, chance = len(worker.events()), random.Random(5)
    asked = [chance.choice(TENANTS) for _ in range(14)] + list(TENANTS)
    for number, tenant in enumerate(asked):
        question = f"{tenant} asks for the {number % 3}th time, at some length, what it was. " * 2
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        ask(stack, keys[tenant], "/v1/chat/completions", messages=messages, max_tokens=2)
    events = worker.await_events(known + len(asked))[known:]
    assert {event.data.cache.attribution for event in events} == {Attribution.ENGINE}
    return events


def ask_two_things_at_once(stack: Stack, worker: VllmWorker, keys: dict[str, str]) -> list[wire.UsageEvent]:
    """Requests with two prompts, each twice; their events, which know how many tokens were cached, but not which."""
    known = len(worker.events())
    for tenant in TENANTS[:3]:
        for _ in range(2):
            prompts = [f"{SYSTEM}{tenant}", f"{SYSTEM}{tenant} again"]
            ask(stack, keys[tenant], "/v1/completions", prompt=prompts, max_tokens=1)
    events = worker.await_events(known + 6)[known:]
    assert {event.data.cache.attribution for event in events} == {Attribution.INFERRED}
    assert sum(event.data.tokens.cache_read.gpu for event in events) > 0
    return events


def told_by_kv_events(recorded: KvRecording, events: list[wire.UsageEvent]) -> tuple[dict[str, Fraction], int]:
    """What each tenant's input costs by the oracle, and how many blocks were hit in all."""
    by_session = {event.data.attributes["engine.requests"]: event for event in events}
    uses = recorded.uses(by_session, "clerks", "tiny")
    rates = {"tiny": SkuRates(p=LIST_PICO, r=READ_PICO, w=LIST_PICO)}
    exact, retained = charges(uses, rates, RULE)
    assert retained == 0
    assert set(exact) == set(TENANTS)
    return exact, sum(event.data.cache.hit_blocks for event in events)


def metered(event: wire.UsageEvent) -> int:
    """What its input costs with cache prices and no sharing, in pico-units."""
    return LIST_PICO * event.data.tokens.uncached_input + READ_PICO * event.data.tokens.cache_read.gpu


def verify(desk: BillingDesk, number: str, events: int) -> None:
    """`taximeter verify` derives the invoice again from the raw events, to the byte."""
    settings = desk.settings
    environment = {"TAXIMETER_DATABASE_URL": settings.database_url, "TAXIMETER_CLICKHOUSE_URL": settings.clickhouse_url}
    shown = CliRunner().invoke(app, ["verify", number], env={**environment, "COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert f"proven {number}: {events} events give the very bytes" in shown.output
