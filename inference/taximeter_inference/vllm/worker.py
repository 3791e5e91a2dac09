"""A worker that meters itself: the plugin's parts put together, for a server and for programs that use the engine directly."""

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from secrets import token_bytes
from typing import Any, Self

from taximeter_inference.gateway.salt import PoolKeys
from taximeter_inference.vllm.block_join import BlockJoin
from taximeter_inference.vllm.connector import DEFAULT, Tier, has_connector, tier_of
from taximeter_inference.vllm.drift import TESTED_VERSIONS, check_vllm
from taximeter_inference.vllm.errors import WorkerError
from taximeter_inference.vllm.exchange import CURRENT, Exchange
from taximeter_inference.vllm.hooks import EngineHooks
from taximeter_inference.vllm.incidents import IncidentAlerts
from taximeter_inference.vllm.isolation import Guard
from taximeter_inference.vllm.journal import Journal
from taximeter_inference.vllm.kv_source import source_of
from taximeter_inference.vllm.metrics import LOST
from taximeter_inference.vllm.settings import WorkerSettings
from taximeter_inference.vllm.sink import EventSink, counts_only
from taximeter_inference.vllm.tags import explicit_tags
from taximeter_inference.vllm.usage import Origin
from taximeter_producers import SpoolBusyError, UsageProducer
from taximeter_schemas.events import Operation

ABANDON_SECONDS_MAX = 5.0
PROCESSES_MAX = 64
"""API server processes of one worker: each has a spool of its own."""
_log = logging.getLogger(__name__)


class WorkerMeter:
    """Meters every request of one running engine. Raises DriftError, WorkerError and the producer's errors.

    `engine` is vLLM's AsyncLLM, LLMEngine or LLM. A server sets CURRENT and calls `hooks.end` around each request; a program uses
    `request`, and `close` (or `with`) at its end.
    """

    def __init__(self, engine: Any, settings: WorkerSettings) -> None:
        if (problem := settings.problem()) is not None:
            raise WorkerError(problem)
        self.version = check_vllm()
        if not self.version.startswith(TESTED_VERSIONS):
            _log.warning("vLLM %s has all that the metering plugin holds on to, but was not tested", self.version)
        owner = getattr(engine, "llm_engine", engine)
        config = owner.vllm_config
        self.settings = settings
        self._producer, name = open_producer(settings)
        self._journal = Journal(settings.spool_dir / f"{name}.open")
        self._report_lost()
        keys = pool_keys(settings)
        self._source = source_of(getattr(config, "kv_events_config", None))
        self._incidents = IncidentAlerts(settings.kafka_bootstrap_servers, self._producer.worker_id)
        self._join = (
            BlockJoin(self._source.poll, keys, settings.worker_audit, self._incidents.report) if self._source else None
        )
        self.sink = EventSink(
            self._producer,
            self._journal,
            Origin(
                name,
                self._producer.worker_id,
                served_name(config.model_config),
                connector_tier(config.kv_transfer_config, settings),
            ),
            gpus=settings.worker_gpus or int(getattr(config.parallel_config, "world_size", 1)),
            blocks=self._join.report if self._join is not None else counts_only,
        )
        guard = Guard(
            keys if settings.worker_isolation == "pool" else None,
            meter_untagged=settings.worker_untagged == "meter",
            adapters=settings.worker_adapters,
            privileges=settings.worker_privileges,
            expect=self._join.expect if self._join is not None else None,
            refuse=_client_error,
            waiting=self.sink.held,
        )
        # Without a connector a client's transfer parameters still reach the state that the engine keeps of its sequence.
        connected = has_connector(config.kv_transfer_config) or any(
            "kv_transfer_params" in granted for granted in settings.worker_privileges.values()
        )
        self.hooks = EngineHooks(guard.prepare, self._journal.begin, self.sink.take, connected)
        self.hooks.attach(owner.output_processor)
        self.sink.start(self.hooks.running)
        _log.info("metering vLLM %s as %s", self.version, self._producer.worker_id)

    @contextmanager
    def request(
        self,
        tenant: str,
        feature: str,
        *,
        operation: Operation = Operation.OTHER,
        root_request_id: str | None = None,
        pool: str | None = None,
    ) -> Iterator[None]:
        """Whatever the engine is asked for within is one request of that tenant. Raises ForeignTagsError for bad names."""
        tags = explicit_tags(tenant, feature, operation, root_request_id, pool)
        exchange = Exchange(tags, "", time.perf_counter())
        before = CURRENT.set(exchange)
        try:
            yield
        except Exception:
            exchange.failed = True
            raise
        finally:
            CURRENT.reset(before)
            self.hooks.end(exchange)

    def follow_shutdown(self, engine: Any, loop: asyncio.AbstractEventLoop) -> None:
        """Meter what is in the engine when the server stops it.

        A server that was told to stop ends its engine first and then waits, for as long as it takes, for clients that are
        still connected; by the time that somebody loses patience and kills it, the events must be safe.
        """
        stop, loop_thread = engine.shutdown, threading.get_ident()

        def shutdown(*arguments: Any, **named: Any) -> None:
            stop(*arguments, **named)
            if self._producer is None or loop.is_closed():
                return
            if threading.get_ident() == loop_thread:
                self.hooks.abandon()
                return
            abandoned = threading.Event()
            loop.call_soon_threadsafe(self.hooks.abandon)
            loop.call_soon_threadsafe(abandoned.set)
            if abandoned.wait(ABANDON_SECONDS_MAX):
                self.sink.flush()

        engine.shutdown = shutdown

    def close(self) -> None:
        """Let go of the engine; all events are on the broker or on disk when it returns. Closing twice does nothing."""
        if self._producer is not None:
            self.hooks.detach()
            self.sink.close()
            self._incidents.close()
            if self._source is not None:
                self._source.close()
            self._producer = None  # type: ignore[assignment]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _report_lost(self) -> None:
        before, lost = self._journal.adopt(self._producer.worker_id)
        LOST.set(len(lost))
        if lost:
            _log.error(
                "%d requests were in the engine of %s when it was killed, and are not metered: numbers %s",
                len(lost),
                before,
                ", ".join(map(str, lost[:100])),
            )


def served_name(model_config: Any) -> str:
    """The name that the base model is served under."""
    names = getattr(model_config, "served_model_name", None) or model_config.model
    return str(names[0] if isinstance(names, list | tuple) else names)


def connector_tier(kv_transfer_config: Any, settings: WorkerSettings) -> Tier:
    """The tier that tokens from the KV connector count under; said at start-up, where there is a connector."""
    if not has_connector(kv_transfer_config):
        return DEFAULT
    stated = settings.worker_connector_tier
    tier = tier_of(kv_transfer_config) if stated == "auto" else stated
    _log.log(
        logging.INFO if tier else logging.WARNING,
        "tokens from %s count as cache_read.%s%s",
        kv_transfer_config.kv_connector,
        tier or DEFAULT,
        "" if tier else ": it may be another tier (TAXIMETER_WORKER_CONNECTOR_TIER)",
    )
    return tier or DEFAULT


def open_producer(settings: WorkerSettings) -> tuple[UsageProducer, str]:
    """A producer with a spool of its own: several API server processes may share a worker's name."""
    for number in range(PROCESSES_MAX):
        name = f"{settings.worker_id}-{number}" if number else settings.worker_id
        try:
            producer = UsageProducer(
                bootstrap_servers=settings.kafka_bootstrap_servers,
                producer_id=name,
                spool_dir=settings.spool_dir,
                spool_bytes_max=settings.worker_spool_bytes_max,
            )
        except SpoolBusyError:
            continue
        return producer, name
    raise WorkerError(f"{PROCESSES_MAX} processes already use the worker id {settings.worker_id}")


def pool_keys(settings: WorkerSettings) -> PoolKeys:
    """The keys of salts and block names; without a secret, names that hold for this start only."""
    secret = settings.salt_secret
    return PoolKeys(secret.get_secret_value().encode() if secret else token_bytes(32), settings.salt_key_id)


def _client_error(message: str) -> Exception:
    """An error that vLLM's server answers with status 400, and an engine used directly raises."""
    from vllm.exceptions import VLLMValidationError

    error: Exception = VLLMValidationError(message)
    return error
