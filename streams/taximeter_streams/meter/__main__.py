"""`python -m taximeter_streams.meter`: one meter worker, until SIGTERM."""

import gc
import logging
import signal
import sys

from prometheus_client import REGISTRY

from taximeter_producers.health import HealthServer
from taximeter_producers.logs import configure_logging
from taximeter_producers.tracing import Tracing, start_tracing
from taximeter_streams.meter import metrics
from taximeter_streams.meter.batch import Folding, RowFolding
from taximeter_streams.meter.column_batch import ColumnFolding
from taximeter_streams.meter.dedupe import RocksIndex
from taximeter_streams.meter.kernel import Kernel, KernelError, load_kernel
from taximeter_streams.meter.publishing import Publisher
from taximeter_streams.meter.service import Meter
from taximeter_streams.meter.settings import MeterSettings
from taximeter_streams.meter.warehouse import Warehouse
from taximeter_streams.starting import Starting

_log = logging.getLogger(__name__)


def main() -> None:
    """Build the worker from the environment and run it."""
    configure_logging("meter")
    # Decoded events hold no cycles; looking through them for some took a fifth of the time.
    gc.set_threshold(200_000, 20, 100)
    settings = MeterSettings()
    starting = Starting()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    with HealthServer(settings.host, settings.meter_port, starting.ready, alive=starting.alive):
        _work(settings, starting)


def _work(settings: MeterSettings, starting: Starting) -> None:
    starting.topics(settings)
    client = starting.warehouse(settings.clickhouse_url)
    kernel = _kernel(settings)
    index = RocksIndex(settings.state_dir / "meter" / "index", kernel)
    metrics.INDEX_ENTRIES.set_function(index.entries_estimated)
    metrics.INDEX_BYTES.set_function(lambda: metrics.folder_bytes(settings.state_dir / "meter" / "index"))
    control = starting.control(settings.kafka_bootstrap_servers)
    tracing = start_tracing("meter", settings)
    folding: Folding = ColumnFolding(kernel) if kernel else RowFolding()
    meter = Meter(
        settings,
        Warehouse(client, settings.log_id),
        index,
        Publisher(settings.kafka_bootstrap_servers),
        control,
        _traced(folding, tracing) if tracing else folding,
    )
    REGISTRY.register(meter.lag)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: meter.stop())
    starting.hand_over(meter.alive, meter.ready)
    try:
        meter.run()
    finally:
        control.stop()
        index.close()
        client.close()
        if tracing:
            tracing.stop()


def _traced(folding: Folding, tracing: Tracing) -> Folding:
    from taximeter_streams.meter.tracing import TracedFolding

    return TracedFolding(folding, tracing)


def _kernel(settings: MeterSettings) -> Kernel | None:
    """The kernel where it can be had and is wanted; without it everything is folded row by row."""
    if settings.meter_kernel == "off":
        return None
    try:
        return load_kernel(settings.state_dir / "meter")
    except KernelError as error:
        if settings.meter_kernel == "required":
            raise
        _log.warning("folding row by row, at a third of the speed: %s", error)
        return None


if __name__ == "__main__":
    main()
