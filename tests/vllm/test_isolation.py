"""No tenant sees another's prefix: not by counts, not by time; and where isolation is off, the audit tells by name."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from taximeter.demo.vllm_worker import BLOCK_SIZE
from taximeter_inference.gateway.salt import PoolKeys
from taximeter_producers.control import publish
from taximeter_schemas.control import ControlKind, ControlRecord
from taximeter_schemas.events import Attribution
from taximeter_schemas.tenants import AlertEndpoint
from tests.gateway_stack import PARTITIONS, Service
from tests.vllm.prompt_probe import ROUNDS, SIGNIFICANCE, probe
from tests.vllm.worker_process import SALT_SECRET, VllmWorker
from tests.waiting import await_true

pytestmark = pytest.mark.vllm

WEBHOOK_SECRET = "whsec_" + "c2VjcmV0" * 6
PROMPT = "A prompt that several tenants send, word for word, and that fills some blocks of the cache. " * 4


def ask(worker: VllmWorker, tenant: str, pool: str | None = None, **fields: object) -> int:
    """Ask the same thing for a tenant; the cached tokens that it is told."""
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 1, **fields}
    answer = worker.post("/v1/completions", body, worker.headers(tenant, pool=pool))
    assert answer.status_code == 200, answer.text
    return int((answer.json()["usage"]["prompt_tokens_details"] or {}).get("cached_tokens") or 0)


def test_one_pool_shares_and_pools_do_not(generator: VllmWorker) -> None:
    """Tenants of a pool hit each other's blocks; a tenant outside never does; each event says what was hit."""
    known = len(generator.events())
    assert ask(generator, "acme", "duo") == 0
    shared = ask(generator, "globex", "duo")
    assert shared > 0
    assert ask(generator, "initech") == 0
    assert ask(generator, "initech") == shared
    events = generator.await_events(known + 4)[known:]
    assert [event.data.tokens.cache_read.gpu for event in events] == [0, shared, 0, shared]
    first, second, outside, again = (event.data.cache for event in events)
    assert {cache.attribution for cache in (first, second, outside, again)} == {Attribution.ENGINE}
    assert [cache.hit_blocks * BLOCK_SIZE for cache in (first, second, outside, again)] == [0, shared, 0, shared]
    assert first.blocks == second.blocks
    assert outside.blocks == again.blocks
    assert not set(first.blocks) & set(outside.blocks)
    assert events[1].data.attributes["cache.warmed_by"] == f"acme*{second.hit_blocks}"


def test_a_client_cannot_choose_a_salt(generator: VllmWorker) -> None:
    """Its own salt splits its pool; another's salt, even when it is known, does not lead into the other's pool."""
    assert ask(generator, "umbrella") == 0
    assert ask(generator, "umbrella", cache_salt="mine") == 0
    assert ask(generator, "umbrella", cache_salt="mine") > 0
    stolen = PoolKeys(SALT_SECRET.encode(), "1").salt("tenant:umbrella")
    assert ask(generator, "mallory", cache_salt=stolen) == 0
    assert ask(generator, "mallory", pool="tenant:mallory", cache_salt="tenant:umbrella") == 0


def test_a_cleared_cache_is_told(generator: VllmWorker) -> None:
    """Blocks that had left the cache are warmed again, and the event says when they went."""
    assert ask(generator, "hooli") == 0
    assert ask(generator, "hooli") > 0
    generator.reset_prefix_cache()
    known = len(generator.events())
    assert ask(generator, "hooli") == 0
    (event,) = generator.await_events(known + 1)[known:]
    assert int(event.data.attributes["cache.rewarmed_blocks"]) == len(event.data.cache.blocks)
    assert float(event.data.attributes["cache.evicted_at"]) > 0


def test_no_incident_under_salts(generator: VllmWorker) -> None:
    """The probe fails: no count leads anywhere, and times are alike."""
    result = probe(generator)
    print(f"with salts: {result}")
    assert result.found_by_count == 0
    assert result.chance > SIGNIFICANCE
    assert "cache isolation incident" not in generator.log
    assert all("cache.incident" not in event.data.attributes for event in generator.events())


@pytest.fixture
def told(unsalted: VllmWorker, tmp_path: Path) -> Iterator[list[dict[str, Any]]]:
    """What the operator's endpoint gets from the alerts service."""
    taken: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            Webhook(WEBHOOK_SECRET).verify(body, dict(self.headers))
            taken.append(json.loads(body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = AlertEndpoint(id="ops", url=f"http://127.0.0.1:{server.server_address[1]}/", secret=WEBHOOK_SECRET)
    now = datetime.now(UTC)
    record = ControlRecord(
        kind=ControlKind.ALERT_ENDPOINT, id="ops", body=endpoint.model_dump(mode="json"), recorded_at=now
    )
    publish(unsalted.bootstrap_servers, [record])
    environment = {
        "TAXIMETER_KAFKA_BOOTSTRAP_SERVERS": unsalted.bootstrap_servers,
        "TAXIMETER_KAFKA_PARTITIONS": str(PARTITIONS),
        "TAXIMETER_STATE_DIR": str(tmp_path / "state"),
    }
    service = Service("taximeter_streams.alerts", "TAXIMETER_ALERTS_PORT", environment, tmp_path)
    service.start()
    yield taken
    service.child.stop()
    server.shutdown()
    server.server_close()
    publish(unsalted.bootstrap_servers, [record.model_copy(update={"body": None})])


def test_without_salts_the_probe_finds_everything_and_the_audit_tells(
    unsalted: VllmWorker, told: list[dict[str, Any]]
) -> None:
    """By count and by time; each such hit is an incident, and the operator is told of it by name."""
    result = probe(unsalted)
    print(f"without salts: {result}")
    assert result.found_by_count == ROUNDS
    assert result.chance < SIGNIFICANCE
    hits = [e for e in unsalted.events() if e.data.tenant == "attacker" and e.data.tokens.cache_read.gpu]
    assert len(hits) >= ROUNDS
    assert {event.data.attributes.get("cache.incident") for event in hits} == {"foreign_pool"}
    assert unsalted.own_total("taximeter_isolation_incidents_total") >= ROUNDS
    await_true(lambda: bool(told), lambda: unsalted.log[-2_000:])
    # Once, however often it happened.
    (alert,) = told
    assert alert["type"] == "isolation.incident"
    said = (
        "cache isolation incident: attacker (pool tenant:attacker) hit blocks that victim warmed in pool tenant:victim"
    )
    assert alert["data"]["message"].startswith(said)
    assert said in unsalted.log
