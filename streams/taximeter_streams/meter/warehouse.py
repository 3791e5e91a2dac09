"""The meter's side of ClickHouse: inserts a batch under its token, and says what is stored of a partition."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from clickhouse_connect.driver.client import Client

from taximeter_schemas.topics import USAGE_EVENTS
from taximeter_sql import query
from taximeter_streams.meter.dedupe import KEPT_SECONDS, Counted, log_mark

TABLE = "usage_log"
TOKENS_REMEMBERED = 10_000
"""How many blocks ClickHouse recognizes again (the tables' deduplication window)."""

TOKEN_SECONDS_MAX = 86_400
"""Tokens older than this are not relied on, though the tables keep them for a week."""


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """The last batch that the warehouse holds of a partition: its offsets, and when it was inserted (Unix milliseconds)."""

    first: int
    last: int
    inserted_at_ms: int


class Warehouse:
    """usage_log as the meter sees it. Every method may raise ClickHouseError or OSError; each is safe to repeat."""

    def __init__(self, client: Client, log_id: str) -> None:
        self._client = client
        self._log_id = log_id

    def insert(self, columns: Sequence[tuple[str, Sequence[Any]]]) -> None:
        """Insert one batch as one block. Its token makes a repetition a no-op, in the table and in its rollups.

        The token names only where the batch begins. Of two workers that begin at the same offset, one of them stale, the first to
        insert wins and the server drops the other's block, however long each was: ask `last_batch` who won.
        A column `inserted_at` is added where there is none.
        """
        named = dict(columns)
        rows = len(named["offset"])
        named.setdefault("inserted_at", [datetime.now(UTC)] * rows)
        settings = self._settings(named["partition"][0], named["batch_first"][0], rows)
        context = self._client.create_insert_context(
            TABLE, list(named), data=list(named.values()), column_oriented=True, settings=settings
        )
        # One block on the wire too: the server makes a token of each block's own, so a batch that is cut in another way than
        # it was the first time would be stored twice in part.
        context.block_row_count = rows
        self._client.data_insert(context)

    def insert_native(self, block: bytes, partition: int, first: int, rows: int) -> None:
        """The same for a batch that is a block in Native format already, `inserted_at` included."""
        self._client.raw_insert(
            TABLE, insert_block=block, settings=self._settings(partition, first, rows), fmt="Native"
        )

    def _settings(self, partition: int, first: int, rows: int) -> dict[str, Any]:
        return {
            "insert_deduplication_token": f"{self._log_id}/{USAGE_EVENTS.name}/{partition}/{first}",
            "deduplicate_blocks_in_dependent_materialized_views": 1,
            "insert_deduplicate": 1,
            "max_insert_block_size": max(1_048_576, rows),
            "async_insert": 0,
        }

    def last_batch(self, partition: int) -> StoredBatch | None:
        """The last batch stored of the partition, or None when there is none."""
        parameters = {"log_id": self._log_id, "partition": partition}
        rows = self._client.query(query("meter_last_batch"), parameters=parameters).result_rows
        return StoredBatch(*map(int, rows[0])) if rows else None

    def remembers(self, batch: StoredBatch, now: datetime) -> bool:
        """Whether ClickHouse surely still knows the batch's token, so that inserting it again is safe.

        After many blocks of other partitions, or a long time, it may not; a repetition would then count twice.
        """
        if now.timestamp() * 1000 - batch.inserted_at_ms > TOKEN_SECONDS_MAX * 1000:
            return False
        limit = TOKENS_REMEMBERED // 2
        parameters = {"since_ms": batch.inserted_at_ms, "limit": limit}
        return int(self._client.query(query("meter_batches_since"), parameters=parameters).result_rows[0][0]) < limit

    def batch_columns(self, partition: int, first: int) -> list[tuple[str, Sequence[Any]]]:
        """The stored rows of the batch that begins at `first`, column by column."""
        parameters = {"log_id": self._log_id, "partition": partition, "first": first}
        # Aware, because a naive time would be taken for this machine's local time when it is inserted again.
        result = self._client.query(query("meter_batch_rows"), parameters=parameters, tz_mode="aware")
        return list(zip(result.column_names, result.result_columns, strict=True))

    def identities(self, partition: int, known_to: int | None, now: datetime) -> Iterator[list[tuple[bytes, Counted]]]:
        """What the partition has counted and an index that knows it up to `known_to` lacks, in chunks."""
        parameters = {
            "partition": partition,
            "log_id": "" if known_to is None else self._log_id,
            "after": -1 if known_to is None else known_to,
            "since_ms": int((now.timestamp() - KEPT_SECONDS) * 1000),
        }
        formats: dict[str, str | dict[str, str]] = {"identity": "bytes", "body": "bytes"}
        with self._client.query_row_block_stream(
            query("meter_identities"), parameters=parameters, column_formats=formats
        ) as blocks:
            for block in blocks:
                yield [
                    (identity, Counted(body, log_mark(log_id, partition), offset))
                    for identity, body, log_id, offset in block
                ]
