"""`python -m taximeter_producers.ingest`: serves POST /v1/events until SIGTERM or SIGINT."""

import logging
import signal
import sys
import threading
from types import FrameType

import uvicorn

from taximeter_producers.errors import TopicsError
from taximeter_producers.ingest.app import build_app
from taximeter_producers.ingest.settings import IngestSettings
from taximeter_producers.logs import configure_logging
from taximeter_producers.producer import UsageProducer
from taximeter_producers.topics import ensure_topics

_TOPICS_RETRY_SECONDS = 5.0
_STOP_SECONDS_MAX = 40
_log = logging.getLogger(__name__)


def main() -> None:
    """Run the service. Exits 0 after a clean stop: requests under way are answered, what is unsent is in the spool."""
    settings = IngestSettings()
    configure_logging("ingest")
    # uvicorn raises the signal again once it has stopped; then the process is to end well, not by the signal.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    stopping = threading.Event()
    threading.Thread(target=_create_topics, args=(settings, stopping), name="topics", daemon=True).start()
    try:
        with UsageProducer(
            bootstrap_servers=settings.kafka_bootstrap_servers,
            producer_id=settings.ingest_producer_id,
            spool_dir=settings.state_dir / "ingest",
            spool_bytes_max=settings.ingest_spool_bytes_max,
        ) as producer:
            uvicorn.run(
                build_app(settings, producer),
                host=settings.host,
                port=settings.ingest_port,
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=_STOP_SECONDS_MAX,
            )
    finally:
        stopping.set()


def _end(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def _create_topics(settings: IngestSettings, stopping: threading.Event) -> None:
    """Until the broker is there, events go to the spool; a topic that a broker makes by itself may have another shape."""
    while not stopping.is_set():
        try:
            ensure_topics(settings.kafka_bootstrap_servers, settings.kafka_partitions, settings.kafka_replication)
            return
        except TopicsError as error:
            _log.warning("%s", error)
            stopping.wait(_TOPICS_RETRY_SECONDS)


if __name__ == "__main__":
    main()
