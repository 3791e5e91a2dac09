"""The same deaths and pauses on the embedded broker. It keeps its log in memory, so faults of the broker itself do not apply."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from taximeter.embedded.broker import EmbeddedBroker
from taximeter.embedded.ports import free_port
from taximeter_producers.topics import ensure_topics
from tests.face_process import FaceProcess
from tests.faults.clickhouse_proxy import Place
from tests.faults.conftest import SEED
from tests.faults.yard import PARTITIONS, Yard, opened


@pytest.fixture
def embedded(face: FaceProcess, tmp_path: Path) -> Iterator[Yard]:
    """A yard on a broker of its own. The least session that it knows is 6 s."""
    with EmbeddedBroker(tmp_path / "broker", free_port()) as broker:
        ensure_topics(broker.bootstrap_servers, PARTITIONS, 1)
        with opened(broker.bootstrap_servers, face, tmp_path, SEED) as yard:
            yard.environment["TAXIMETER_METER_SESSION_TIMEOUT_MS"] = "6000"
            yield yard


def test_killed_and_paused_within_inserts(embedded: Yard) -> None:
    yard, meter = embedded, embedded.meter()
    with yard.load() as load:
        for place in (Place.MID_BODY, Place.AFTER):
            trap = yard.proxy.trap(place)
            load.send_all([yard.events.event() for _ in range(200)])
            trap.await_caught()
            meter.kill()
            trap.release()
            meter.start()
        trap = yard.proxy.trap(Place.BEFORE, goes_on=True)
        load.send_all([yard.events.event() for _ in range(200)])
        trap.await_caught()
        before = yard.rows()
        meter.pause()
        yard.meter()
        load.send_all([yard.events.event() for _ in range(200)])
        yard.await_rows(before + 1)
        trap.release()
        meter.resume()
        load.send_all([yard.events.event() for _ in range(200)])
    yard.check()
