"""An engine without a server is metered too, for the tenants that its program names."""

from collections.abc import Mapping
from typing import Any

import pytest

from taximeter_producers.topics import ensure_topics
from taximeter_schemas import wire
from taximeter_schemas.events import Outcome, input_tokens
from taximeter_schemas.topics import USAGE_EVENTS
from tests.gateway_stack import PARTITIONS
from tests.topic_reader import read_topic
from tests.vllm.programs import said_by
from tests.vllm.worker_process import (
    MODELS,
    Counters,
    engine_environment,
    engine_sum,
)

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def said(bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """What the programs were told, once they have ended."""
    ensure_topics(bootstrap_servers, PARTITIONS, 1)
    folder, environment = tmp_path_factory.mktemp("offline"), engine_environment(bootstrap_servers)
    found: Mapping[str, Any] = said_by("offline_program.py", MODELS / "generator", folder, environment=environment)
    return found


def metered(bootstrap_servers: str, worker: str) -> dict[str, wire.UsageEvent]:
    """A program's events, by tenant. Everything is safe when its meter is closed."""
    decoded = [wire.decode(message.value() or b"") for message in read_topic(bootstrap_servers, USAGE_EVENTS.name)]
    events = [event for event in decoded if event.source == f"taximeter-vllm/{worker}"]
    assert all(event.data.worker and event.data.worker.gpu_seconds > 0 for event in events)
    found = {event.data.tenant: event for event in events}
    assert len(found) == len(events)
    return found


def test_a_program_meters_its_engine(bootstrap_servers: str, said: Mapping[str, Any]) -> None:
    """Each block of a program around LLM is one request of its tenant."""
    events, told = metered(bootstrap_servers, "batch"), said["batch"]
    used = {tenant: [input_tokens(event.data.tokens), event.data.tokens.output] for tenant, event in events.items()}
    assert used == told["used"]
    assert {event.data.outcome for event in events.values()} == {Outcome.LENGTH}
    assert engine_sum(list(events.values())) == Counters(*told["counted"])


def test_a_service_meters_its_engine(bootstrap_servers: str, said: Mapping[str, Any]) -> None:
    """Tenants who use AsyncLLM at the same time have an event each; who breaks off pays for what was generated until then."""
    events, told = metered(bootstrap_servers, "service"), said["service"]
    assert {tenant: event.data.outcome for tenant, event in events.items()} == {
        "acme": Outcome.LENGTH,
        "globex": Outcome.LENGTH,
        "hooli": Outcome.ABORTED,
        "initech": Outcome.ABORTED,
    }
    for tenant, (prompt, output) in told["used"].items():
        tokens = events[tenant].data.tokens
        assert input_tokens(tokens) == prompt
        # What a program has heard of a request that it breaks off may be less than what there is.
        assert output <= tokens.output
        assert output == tokens.output or events[tenant].data.outcome is Outcome.ABORTED
    assert engine_sum(list(events.values())) == Counters(*told["counted"])
