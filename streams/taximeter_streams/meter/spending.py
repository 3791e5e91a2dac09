"""Folds stored rows into spend records, one for each tenant of a batch. Pure.

They are built from the columns that were inserted, so that what budgets hear is what the warehouse holds, also when a batch
is sent again after a crash.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from taximeter_schemas.spend import SPEND_SLOT_SECONDS, SpendEntry, SpendRecord


def spend_records(columns: Mapping[str, Sequence[Any]], rated_at: datetime) -> list[SpendRecord]:
    """The spend records of one batch (one log, one partition, one offset range), in order of the tenants."""
    folded: dict[str, dict[tuple[str, str, str, int], list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    currencies: dict[str, str] = {}
    names = ("disposition", "tenant", "currency", "feature", "model", "lease_id", "time", "metered_pico")
    for disposition, tenant, currency, feature, model, lease, time, metered in zip(
        *(columns[name] for name in names), strict=True
    ):
        if disposition != "rated":
            continue
        seconds = int(time.timestamp())
        cell = folded[tenant][(feature, model, lease, seconds - seconds % SPEND_SLOT_SECONDS)]
        cell[0] += metered
        cell[1] += 1
        currencies[tenant] = currency
    if not folded:
        return []
    log_id, partition = columns["log_id"][0], columns["partition"][0]
    first, last = columns["batch_first"][0], columns["batch_last"][0]
    return [
        SpendRecord(
            tenant=tenant,
            currency=currencies[tenant],
            log_id=log_id,
            partition=partition,
            first_offset=first,
            last_offset=last,
            entries=tuple(_entry(key, amount, events) for key, (amount, events) in sorted(folded[tenant].items())),
            rated_at=rated_at,
        )
        for tenant in sorted(folded)
    ]


def _entry(key: tuple[str, str, str, int], amount_pico: int, events: int) -> SpendEntry:
    feature, model, lease_id, slot = key
    return SpendEntry(
        feature=feature, model=model, lease_id=lease_id or None, slot_start=slot, amount_pico=amount_pico, events=events
    )
