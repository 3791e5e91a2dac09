"""The columns of usage_log, in the order of the table, built from folded rows. Pure."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from taximeter_schemas import wire
from taximeter_streams.meter.folding import BLANK, Examined, Folded

Column = tuple[str, list[Any]]
_EARLIEST, _LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)


def build_columns(folded: Folded, log_id: str, partition: int) -> list[Column]:
    """Name and values of every column. Rows that could not be decoded have empty tags, and the epoch as their time.

    A rejected event may claim any time; one that the column could not hold is brought to the nearest that it can.
    """
    rows = folded.rows
    first, last, size = rows[0].message.offset, rows[-1].message.offset, len(rows)
    placed: list[Column] = [
        ("log_id", [log_id] * size),
        ("partition", [partition] * size),
        ("offset", [row.message.offset for row in rows]),
        ("batch_first", [first] * size),
        ("batch_last", [last] * size),
        ("arrived_at", [row.message.arrived_at_ms for row in rows]),
        ("disposition", [row.disposition for row in rows]),
        ("reason", [row.reason for row in rows]),
    ]
    return [
        *placed,
        *_tag_columns(rows),
        *_token_columns(rows),
        *_cache_columns(rows),
        *_worker_columns(rows),
        *_money(rows),
    ]


def _tag_columns(rows: list[Examined]) -> list[Column]:
    events = [row.event or BLANK for row in rows]
    datas = [event.data for event in events]
    decoded = [row.event is not None for row in rows]

    def tag(values: list[str]) -> list[str]:
        return (
            values if all(decoded) else [value if there else "" for value, there in zip(values, decoded, strict=True)]
        )

    return [
        ("tenant", tag([data.tenant for data in datas])),
        ("feature", tag([data.feature for data in datas])),
        ("model", tag([data.model for data in datas])),
        ("adapter", [data.adapter or "" for data in datas]),
        ("operation", tag([data.operation.value for data in datas])),
        ("outcome", tag([data.outcome.value for data in datas])),
        ("service_tier", tag([data.service_tier.value for data in datas])),
        ("source", tag([event.source for event in events])),
        ("event_id", tag([event.id for event in events])),
        ("time", [min(max(event.time, _EARLIEST), _LATEST) for event in events]),
        ("request_id", [data.request_id or "" for data in datas]),
        ("root_request_id", [data.root_request_id or "" for data in datas]),
        ("hop", [data.hop for data in datas]),
        ("attempt", [data.attempt for data in datas]),
    ]


def _token_columns(rows: list[Examined]) -> list[Column]:
    tokens = [(row.event or BLANK).data.tokens for row in rows]
    pick: list[tuple[str, Callable[[wire.Tokens], int]]] = [
        ("uncached_input", lambda t: t.uncached_input),
        ("cache_read_gpu", lambda t: t.cache_read.gpu),
        ("cache_read_cpu", lambda t: t.cache_read.cpu),
        ("cache_read_disk", lambda t: t.cache_read.disk),
        ("cache_read_provider", lambda t: t.cache_read.provider),
        ("cache_write_5m", lambda t: t.cache_write.five_minutes),
        ("cache_write_1h", lambda t: t.cache_write.one_hour),
        ("output", lambda t: t.output),
        ("reasoning", lambda t: t.reasoning),
    ]
    return [(name, [of(t) for t in tokens]) for name, of in pick]


def _cache_columns(rows: list[Examined]) -> list[Column]:
    caches = [(row.event or BLANK).data.cache for row in rows]
    return [
        ("pool", [cache.pool or "" for cache in caches]),
        ("block_size", [cache.block_size for cache in caches]),
        ("hit_blocks", [cache.hit_blocks for cache in caches]),
        ("blocks", [cache.blocks for cache in caches]),
        ("attribution", [cache.attribution.value for cache in caches]),
    ]


def _worker_columns(rows: list[Examined]) -> list[Column]:
    datas = [(row.event or BLANK).data for row in rows]
    return [
        ("worker_id", [data.worker.id if data.worker else "" for data in datas]),
        ("worker_sequence", [data.worker.sequence if data.worker else 0 for data in datas]),
        ("gpu_seconds", [data.worker.gpu_seconds if data.worker else 0.0 for data in datas]),
        ("queue_ms", [data.timing.queue_ms for data in datas]),
        ("ttft_ms", [data.timing.ttft_ms for data in datas]),
        ("total_ms", [data.timing.total_ms for data in datas]),
        ("lease_id", [data.lease_id or "" for data in datas]),
        ("attributes", [data.attributes for data in datas]),
    ]


def _money(rows: list[Examined]) -> list[Column]:
    return [
        ("currency", [row.currency for row in rows]),
        ("rate_card", [row.rate_card for row in rows]),
        ("list_pico", [row.list_pico for row in rows]),
        ("metered_pico", [row.metered_pico for row in rows]),
        ("identity", [row.identity for row in rows]),
        ("body", [row.body for row in rows]),
    ]
