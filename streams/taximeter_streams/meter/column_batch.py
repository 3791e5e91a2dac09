"""Folds a batch column by column: the plain majority of events never become objects.

Plain is an event that the kernel is sure of, whose tenant is known and whose time is in range, that is surely new (nothing like
it in the index or in the batch), and whose price is plain. All others, the careful ones, go row by row through the reference
(`folding`), and their rows are put among the plain ones. So the reference alone decides whatever can be decided in two ways.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from taximeter_schemas.rejections import EVENT_AGE_SECONDS_MAX, EVENT_BYTES_MAX, EVENT_FUTURE_SECONDS_MAX
from taximeter_streams.meter.batch import Arrivals, Batch, Place, known_of, packed
from taximeter_streams.meter.block_rows import DISPOSITIONS, TOKENS, Rows, inserted_at
from taximeter_streams.meter.block_spend import Range, Spent, block_spend
from taximeter_streams.meter.dedupe import DedupeIndex, KnownIdentities
from taximeter_streams.meter.folding import Examined, Folded, examine_all, fold
from taximeter_streams.meter.kernel import Kernel
from taximeter_streams.meter.pricing import Pricing
from taximeter_streams.meter.rating import BlockRating, Codes, RatedBlock, Scope
from taximeter_streams.meter.spending import spend_records
from taximeter_streams.meter.warehouse import Warehouse

_MARGIN_US = 1_000_000


class ColumnFolding:
    """Folds with the kernel. Keeps what it knows of one snapshot's prices from batch to batch."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._rating: tuple[Pricing, BlockRating] | None = None

    def fold(self, arrivals: Arrivals, place: Place, index: KnownIdentities, pricing: Pricing) -> Batch:
        """See Folding."""
        rows = Rows(self._kernel, self._kernel.scan(arrivals.payloads))
        plain = rows.scanned.sure & _in_time(arrivals, rows.time_us) & _short(arrivals)
        plain &= rows.among("tenant", pricing.snapshot.tenants)
        careful = _examined(arrivals, ~plain, pricing)
        plain &= ~_repeated(rows.identities, plain, [row.identity for row in careful.values()])
        plain &= ~_counted(rows.identities, plain, index)
        rated = self._rated(rows, pricing)
        plain &= ~rated.open
        left = ~plain
        left[list(careful)] = False
        careful |= _examined(arrivals, left, pricing)
        places = sorted(careful)
        examined = [careful[at] for at in places]
        folded = fold(examined, known_of(examined, index), place.mark, pricing)
        rows.set_plain(rated, plain)
        rows.set_careful(places, folded)
        return ColumnBatch(rows, folded, arrivals, place)

    def _rated(self, rows: Rows, pricing: Pricing) -> RatedBlock:
        if self._rating is None or self._rating[0] is not pricing:
            self._rating = pricing, BlockRating(pricing)
        tags = tuple(
            rows.codes(name) for name in ("tenant", "model", "adapter", "feature", "operation", "service_tier")
        )
        tokens = {name: rows.column(name) for name in TOKENS}
        return self._rating[1].rate(Scope(tags, rows.time_us, rows.attributed), tokens)


class ColumnBatch:
    """A batch folded column by column."""

    def __init__(self, rows: Rows, careful: Folded, arrivals: Arrivals, place: Place) -> None:
        self._rows = rows
        self._careful = careful
        self._arrivals = arrivals
        self._place = place
        self._block = rows.block(arrivals, place)
        self._counted: tuple[list[bytes], list[bytes]] | None = None

    @property
    def rejected(self) -> list[Examined]:
        """See Batch. A plain row is never rejected."""
        return self._careful.rejected

    def counts(self) -> dict[tuple[str, str], int]:
        """See Batch."""
        reasons, texts = self._rows.outcome_column(0)
        key = self._rows.disposition.astype(np.int64) * len(texts) + reasons.astype(np.int64)
        kinds, counts = np.unique(key, return_counts=True)
        return {
            (DISPOSITIONS[kind // len(texts)], texts[kind % len(texts)]): count
            for kind, count in zip(kinds.tolist(), counts.tolist(), strict=True)
        }

    def insert(self, warehouse: Warehouse) -> None:
        """See Batch."""
        arrivals = self._arrivals
        now_ms = int(datetime.now(UTC).timestamp() * 1000)
        warehouse.insert_native(self.encoded(now_ms), self._place.partition, arrivals.first, len(arrivals))

    def encoded(self, inserted_at_ms: int) -> bytes:
        """The block in Native format, with the moment of its insert."""
        return self._block.encoded_with(*inserted_at(len(self._arrivals), inserted_at_ms))

    def mark(self, index: DedupeIndex) -> None:
        """See Batch."""
        index.mark_packed(self._place.key, self._arrivals.last, *self.counted())

    def counted(self) -> tuple[list[bytes], list[bytes]]:
        """See Batch."""
        if self._counted is None:
            self._counted = self._counted_lists()
        return self._counted

    def _counted_lists(self) -> tuple[list[bytes], list[bytes]]:
        rows = self._rows
        counted = (rows.disposition == 1) | (rows.disposition == 2)
        entries = np.empty(int(counted.sum()), _ENTRY)
        entries["body"], entries["log"] = rows.column("body")[counted], np.frombuffer(self._place.mark, "V8")
        entries["offset"] = np.array(self._arrivals.offsets, np.int64)[counted]
        return rows.identities[counted].tolist(), entries.view("V32").tolist()

    def spend(self, rated_at: datetime) -> list[tuple[str, bytes]]:
        """See Batch."""
        rows, arrivals, place = self._rows, self._arrivals, self._place
        rated = rows.disposition == 1

        def chosen(codes: Codes) -> Codes:
            return codes[0][rated], codes[1]

        tags = tuple(chosen(rows.codes(name)) for name in ("tenant", "feature", "model", "lease_id"))
        spent = Spent(tags, chosen(rows.outcome_column(1)), rows.time_us[rated], rows.metered_pico[rated])
        batch = Range(place.log_id, place.partition, arrivals.first, arrivals.last)
        records = block_spend(spent, batch, rated_at)
        return packed(spend_records(self._listed(), rated_at)) if records is None else records

    def _listed(self) -> dict[str, Sequence[object]]:
        """The columns that spend is folded from, as lists."""
        rows, arrivals = self._rows, self._arrivals
        lists: dict[str, Sequence[object]] = {
            "log_id": [self._place.log_id],
            "partition": [self._place.partition],
            "batch_first": [arrivals.first],
            "batch_last": [arrivals.last],
            "disposition": [DISPOSITIONS[number] for number in rows.disposition.tolist()],
            "offset": arrivals.offsets,
            "time": [_EPOCH + timedelta(microseconds=at) for at in rows.time_us.tolist()],
            "metered_pico": rows.metered_pico.tolist(),
        }
        for name in ("tenant", "feature", "model", "lease_id", "currency"):
            numbers, texts = rows.outcome_column(1) if name == "currency" else rows.codes(name)
            lists[name] = [texts[number] for number in numbers.tolist()]
        return lists


_ENTRY = np.dtype([("body", "V16"), ("log", "V8"), ("offset", ">i8")])
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _examined(arrivals: Arrivals, chosen: NDArray[np.bool_], pricing: Pricing) -> dict[int, Examined]:
    places = np.flatnonzero(chosen).tolist()
    received = [arrivals.received(at) for at in places]
    return dict(zip(places, examine_all(received, pricing.snapshot.tenants), strict=True))


def _short(arrivals: Arrivals) -> NDArray[np.bool_]:
    sizes = np.fromiter(map(len, arrivals.payloads), np.int64, len(arrivals))
    return sizes <= EVENT_BYTES_MAX


def _in_time(arrivals: Arrivals, time_us: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Surely: what is near a bound is left to the reference, which reckons in seconds with fractions."""
    age_us = np.array(arrivals.arrived_at_ms, np.int64) * 1000 - time_us
    old = EVENT_AGE_SECONDS_MAX * 1_000_000 - _MARGIN_US
    ahead = EVENT_FUTURE_SECONDS_MAX * 1_000_000 - _MARGIN_US
    return (age_us < old) & (age_us > -ahead)


def _repeated(identities: NDArray[np.void], plain: NDArray[np.bool_], others: Sequence[bytes]) -> NDArray[np.bool_]:
    """Which identities may occur twice in the batch: half of their bytes do."""
    words = identities.view("<u8")[::2]
    more = np.frombuffer(b"".join(others), "<u8")[::2]
    found, counts = np.unique(np.concatenate([words[plain], more]), return_counts=True)
    twice = found[counts > 1]
    return np.isin(words, twice) if len(twice) else np.zeros(len(words), np.bool_)


def _counted(identities: NDArray[np.void], plain: NDArray[np.bool_], index: KnownIdentities) -> NDArray[np.bool_]:
    """Which of the plain ones the index knows."""
    places = np.flatnonzero(plain)
    found = index.find(identities[plain].tolist())
    known = np.zeros(len(identities), np.bool_)
    known[places[[at for at, one in enumerate(found) if one is not None]]] = True
    return known
