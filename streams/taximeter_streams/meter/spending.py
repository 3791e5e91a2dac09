"""Folds stored rows into spend records, as a rule one for each tenant of a batch. Pure.

They are built from the columns that were inserted, so that what budgets hear is what the warehouse holds, also when a batch
is sent again after a crash. A tenant with very many features and leases in one batch, or with two currencies, gets several
records over consecutive parts of the range: a record must fit into a message, and a reader knows ranges by their end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from taximeter_schemas.spend import SPEND_SLOT_SECONDS, SpendEntry, SpendRecord

ENTRIES_MAX = 1_000
"""Most entries of one record: with the longest tags allowed they take some 700 kB."""

_Key = tuple[str, str, str, int]


@dataclass(slots=True)
class _Open:
    """A record being folded, from offset `first` on."""

    currency: str
    first: int
    cells: dict[_Key, list[int]] = field(default_factory=dict)


def spend_records(columns: Mapping[str, Sequence[Any]], rated_at: datetime) -> list[SpendRecord]:
    """The spend records of one batch (one log, one partition, one offset range): by tenant, each tenant's in offset order.

    The same columns make the same records, but for `rated_at`.
    """
    log_id, partition = columns["log_id"][0], columns["partition"][0]
    first, last = columns["batch_first"][0], columns["batch_last"][0]
    opened: dict[str, _Open] = {}
    closed: list[SpendRecord] = []

    def close(tenant: str, record: _Open, last_offset: int) -> None:
        entries = tuple(_entry(key, amount, events) for key, (amount, events) in sorted(record.cells.items()))
        closed.append(
            SpendRecord(
                tenant=tenant, currency=record.currency, log_id=log_id, partition=partition, first_offset=record.first,
                last_offset=last_offset, entries=entries, rated_at=rated_at,
            )
        )  # fmt: skip

    names = ("disposition", "offset", "tenant", "currency", "feature", "model", "lease_id", "time", "metered_pico")
    for disposition, offset, tenant, currency, feature, model, lease, time, metered in zip(
        *(columns[name] for name in names), strict=True
    ):
        if disposition != "rated":
            continue
        seconds = int(time.timestamp())
        key = (feature, model, lease, seconds - seconds % SPEND_SLOT_SECONDS)
        record = opened.get(tenant)
        if record is None:
            record = opened[tenant] = _Open(currency, first)
        elif record.currency != currency or (len(record.cells) >= ENTRIES_MAX and key not in record.cells):
            close(tenant, record, offset - 1)
            record = opened[tenant] = _Open(currency, offset)
        cell = record.cells.setdefault(key, [0, 0])
        cell[0] += metered
        cell[1] += 1
    for tenant, record in opened.items():
        close(tenant, record, last)
    return sorted(closed, key=lambda record: (record.tenant, record.first_offset))


def _entry(key: _Key, amount_pico: int, events: int) -> SpendEntry:
    feature, model, lease_id, slot = key
    return SpendEntry(
        feature=feature, model=model, lease_id=lease_id or None, slot_start=slot, amount_pico=amount_pico, events=events
    )
