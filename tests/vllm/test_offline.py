"""An engine without a server is metered too, for the tenants that its program names."""

import json
import subprocess
from pathlib import Path

import pytest

from taximeter_producers.topics import ensure_topics
from taximeter_schemas import wire
from taximeter_schemas.events import Outcome, input_tokens
from taximeter_schemas.topics import USAGE_EVENTS
from tests.gateway_stack import PARTITIONS
from tests.topic_reader import read_topic
from tests.vllm.worker_process import MODELS, PYTHON, START_SECONDS_MAX, engine_environment

pytestmark = pytest.mark.vllm


def test_a_program_meters_its_engine(bootstrap_servers: str, tmp_path: Path) -> None:
    """Each block of the program is one request of its tenant; everything is safe when the meter is closed."""
    ensure_topics(bootstrap_servers, PARTITIONS, 1)
    program = Path(__file__).with_name("offline_program.py")
    environment = engine_environment(bootstrap_servers)
    ran = subprocess.run(
        [PYTHON, program, MODELS / "generator", tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        timeout=START_SECONDS_MAX,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3_000:]
    used = json.loads(next(line for line in ran.stdout.splitlines() if line.startswith("USED "))[5:])
    decoded = [wire.decode(message.value() or b"") for message in read_topic(bootstrap_servers, USAGE_EVENTS.name)]
    events = [event for event in decoded if event.source == "taximeter-vllm/offline"]
    assert {event.data.tenant: [input_tokens(event.data.tokens), event.data.tokens.output] for event in events} == used
    assert {event.data.outcome for event in events} == {Outcome.LENGTH}
    assert all(event.data.worker and event.data.worker.gpu_seconds > 0 for event in events)
