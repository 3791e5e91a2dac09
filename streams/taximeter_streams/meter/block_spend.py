"""Folds the rated rows of a block into spend records, whole columns at a time: the same records as `spending` makes. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec
import numpy as np
from numpy.typing import NDArray

from taximeter_schemas.spend import SPEND_SLOT_SECONDS
from taximeter_streams.meter.rating import Codes
from taximeter_streams.meter.spending import ENTRIES_MAX

_SLOT_US = SPEND_SLOT_SECONDS * 1_000_000
_SUM_SURE_BELOW = 2.0**62
_KEY_SPACE_MAX = 2**62


@dataclass(frozen=True, slots=True)
class Spent:
    """The rated rows: by whom and for what, when (microseconds), and how much."""

    tags: tuple[Codes, ...]
    """Tenant, feature, model, lease."""
    currency: Codes
    time_us: NDArray[np.int64]
    metered_pico: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Range:
    """The batch that the rows are from."""

    log_id: str
    partition: int
    first: int
    last: int


class _Entry(msgspec.Struct, gc=False):
    """SpendEntry, as it travels."""

    feature: str
    model: str
    lease_id: str | None
    slot_start: int
    amount_pico: int
    events: int


class _Record(msgspec.Struct, gc=False):
    """SpendRecord, as it travels. Its parts have been validated as events; doing that again would cost more than all the rest."""

    tenant: str
    currency: str
    log_id: str
    partition: int
    first_offset: int
    last_offset: int
    entries: list[_Entry]
    rated_at: datetime


def block_spend(spent: Spent, batch: Range, rated_at: datetime) -> list[tuple[str, bytes]] | None:
    """Each tenant with its record as JSON; None where one is not enough, or may not be right.

    That is: two currencies, too many entries, a sum beyond 64 bits.
    """
    if not len(spent.time_us):
        return []
    if float(spent.metered_pico.astype(float).sum()) > _SUM_SURE_BELOW or spent.time_us.min() < 0:
        return None
    columns = [_ranked(codes) for codes in spent.tags]
    slots, slot = np.unique(spent.time_us // _SLOT_US, return_inverse=True)
    space = len(slots)
    key = np.zeros(len(slot), np.int64)
    for ranks, texts in columns:
        key = key * len(texts) + ranks
        space *= len(texts)
    if space > _KEY_SPACE_MAX:
        return None
    key = key * len(slots) + slot.reshape(-1)
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    amounts = np.add.reduceat(spent.metered_pico[order], starts)
    counts = np.diff(np.append(starts, len(order)))
    chosen = order[starts]
    tenants = columns[0][0][chosen]
    ends = [*(np.flatnonzero(np.diff(tenants)) + 1).tolist(), len(tenants)]
    if max(np.diff([0, *ends])) > ENTRIES_MAX or _mixed(columns[0][0], spent.currency[0]):
        return None
    names = [[texts[rank] for rank in ranks[chosen].tolist()] for ranks, texts in columns]
    begins = (slots[slot.reshape(-1)[chosen]] * SPEND_SLOT_SECONDS).tolist()
    leases = [lease or None for lease in names[3]]
    entries = list(map(_Entry, names[1], names[2], leases, begins, amounts.tolist(), counts.tolist()))
    currency = [spent.currency[1][code] for code in spent.currency[0][chosen].tolist()]
    encode = msgspec.json.Encoder().encode
    return [
        (
            names[0][start],
            encode(
                _Record(
                    names[0][start], currency[start], batch.log_id, batch.partition, batch.first, batch.last,
                    entries[start:end], rated_at,
                )
            ),
        )
        for start, end in zip([0, *ends], ends, strict=False)
    ]  # fmt: skip


def _ranked(codes: Codes) -> tuple[NDArray[np.int64], Sequence[str]]:
    """The column with numbers that are in the order of the texts, so that sorting by number sorts by text."""
    numbers, texts = codes
    ordered = sorted(range(len(texts)), key=texts.__getitem__)
    ranks = np.empty(len(texts), np.int64)
    ranks[ordered] = np.arange(len(texts))
    return ranks[numbers], [texts[at] for at in ordered]


def _mixed(tenants: NDArray[np.int64], currencies: NDArray[np.generic]) -> bool:
    """Whether some tenant was rated in two currencies."""
    lowest = np.full(int(tenants.max()) + 1, np.iinfo(np.int64).max, np.int64)
    highest = np.full(len(lowest), -1, np.int64)
    numbers = currencies.astype(np.int64)
    np.minimum.at(lowest, tenants, numbers)
    np.maximum.at(highest, tenants, numbers)
    return bool(((highest >= 0) & (lowest != highest)).any())
