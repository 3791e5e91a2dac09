"""`import taximeter` is light, and offers what it says."""

import json
import subprocess
import sys

HEAVY = {"faust", "fastapi", "chdb", "uvicorn", "sqlalchemy", "aiohttp", "clickhouse_connect", "prometheus_client"}


def test_the_front_door_needs_the_base_install_alone() -> None:
    script = "import json, sys, taximeter; print(json.dumps([sorted(taximeter.__all__), sorted(sys.modules)]))"
    shown = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    public, modules = json.loads(shown.stdout)
    assert public == ["UsageEvent", "UsageProducer"]
    assert not HEAVY & {name.partition(".")[0] for name in modules}


def test_the_producers_public_face() -> None:
    import taximeter_producers

    assert sorted(taximeter_producers.__all__) == [
        "CourierState",
        "InvalidEventError",
        "ProducerClosedError",
        "ProducerError",
        "ProducerIdError",
        "Safe",
        "SpoolBusyError",
        "SpoolError",
        "SpoolFullError",
        "UndeliverableError",
        "UsageEvent",
        "UsageProducer",
    ]
