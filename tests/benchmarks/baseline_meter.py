"""What both baselines do beside their framework's part: decode, hash, rate, insert, tell spend; all by the reference code."""

from datetime import UTC, datetime

from taximeter_producers.control import ControlFollower
from taximeter_schemas.rating import Unrated
from taximeter_sql import connect
from taximeter_streams.meter.columns import build_columns
from taximeter_streams.meter.folding import Examined, Folded, Received, examine_all
from taximeter_streams.meter.pricing import Pricing
from taximeter_streams.meter.publishing import Publisher
from taximeter_streams.meter.spending import spend_records
from taximeter_streams.meter.warehouse import Warehouse

BATCH_EVENTS = 2_000


class BaselineMeter:
    """Rows are gathered until the framework says to store them."""

    def __init__(self, clickhouse_url: str, bootstrap_servers: str, log_id: str) -> None:
        self._log_id = log_id
        self._warehouse = Warehouse(connect(clickhouse_url), log_id)
        self._publisher = Publisher(bootstrap_servers)
        control = ControlFollower(bootstrap_servers)
        control.start()
        self._pricing = Pricing(control.snapshot())
        control.stop()
        self._rows: list[Examined] = []
        self._examined = 0

    @property
    def waiting(self) -> int:
        """How many rows are not stored yet."""
        return len(self._rows)

    @property
    def next_offset(self) -> int:
        """An offset for a framework that does not tell the message's own: rows are numbered as they come."""
        return self._examined

    def examine(self, offset: int, arrived_at_ms: int, payload: bytes) -> Examined:
        """Decode, validate and hash one event; it waits to be stored."""
        (row,) = examine_all([Received(offset, arrived_at_ms, payload)], self._pricing.snapshot.tenants)
        self._rows.append(row)
        self._examined += 1
        return row

    def decide(self, row: Examined, counted_body: bytes | None) -> None:
        """Rate it when it is new; else it is a duplicate or a conflict."""
        if counted_body is not None or row.event is None:
            row.disposition = "duplicate" if counted_body == row.body else "rejected"
            return
        result = self._pricing.rate(row.event)
        if isinstance(result, Unrated):
            row.disposition, row.reason = "unrated", result.reason
            return
        row.disposition, row.currency, row.rate_card = "rated", result.currency, result.rate_card
        row.list_pico, row.metered_pico = result.list_pico, result.metered_pico

    def store(self, partition: int, now: datetime | None = None) -> None:
        """Insert the waiting rows as one block, and send what each tenant spent."""
        columns = build_columns(Folded(self._rows), self._log_id, partition)
        self._warehouse.insert(columns)
        self._publisher.send_spend(spend_records(dict(columns), now or datetime.now(UTC)))
        self._rows = []
