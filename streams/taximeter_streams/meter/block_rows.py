"""The rows of a batch as whole columns: as the kernel read them, completed, and written out as one block of usage_log."""

from collections.abc import Container, Hashable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from taximeter_schemas import events
from taximeter_streams.meter.batch import Arrivals, Place
from taximeter_streams.meter.columns import build_columns
from taximeter_streams.meter.folding import Folded
from taximeter_streams.meter.kernel import SPAN, Kernel, Scanned
from taximeter_streams.meter.native import NativeBlock
from taximeter_streams.meter.rating import Codes, RatedBlock

DISPOSITIONS = ("", "rated", "unrated", "duplicate", "rejected")
"""By their number in the table's enumeration."""

_ENUMERATIONS = {
    "operation": (*events.Operation, ""),
    "outcome": (*events.Outcome, ""),
    "service_tier": (*events.ServiceTier, ""),
    "attribution": (*events.Attribution, ""),
}
_DICTIONARIES = ("tenant", "feature", "model", "adapter", "pool")
_TEXTS = ("source", "event_id", "request_id", "root_request_id", "worker_id", "lease_id")
_FLOATS = ("queue_ms", "ttft_ms", "total_ms")
TOKENS = (
    *("uncached_input", "cache_read_gpu", "cache_read_cpu", "cache_read_disk", "cache_read_provider"),
    *("cache_write_5m", "cache_write_1h", "output", "reasoning"),
)
_NUMBERS = {
    "hop": "UInt16",
    "attempt": "UInt16",
    **dict.fromkeys((*TOKENS, "block_size", "hit_blocks"), "UInt32"),
    "worker_sequence": "UInt64",
    "gpu_seconds": "Float64",
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_Array = NDArray[Any]
_T = TypeVar("_T", bound=Hashable)


@dataclass(slots=True)
class Rows:
    """The columns. First as scanned; `set_plain` and `set_careful` decide every row between them."""

    kernel: Kernel
    scanned: Scanned
    disposition: NDArray[np.int8] = field(init=False)
    list_pico: NDArray[np.int64] = field(init=False)
    metered_pico: NDArray[np.int64] = field(init=False)
    outcomes: list[tuple[str, str, str]] = field(init=False, default_factory=list)
    """Reason, currency and rate card, of which `outcome` holds the numbers."""
    outcome_of: NDArray[np.int64] = field(init=False)
    _codes: dict[str, Codes] = field(init=False, default_factory=dict)

    @property
    def size(self) -> int:
        """How many rows."""
        return len(self.scanned.columns["sure"])

    @property
    def time_us(self) -> NDArray[np.int64]:
        """The events' own times, in microseconds since the epoch."""
        return self.column("time")

    @property
    def identities(self) -> _Array:
        """Sixteen bytes each."""
        return self.column("identity")

    @property
    def attributed(self) -> NDArray[np.bool_]:
        """Which events have attributes."""
        counts: NDArray[np.uint64] = np.diff(self.column("attributes_end"), prepend=np.uint64(0))
        return counts > 0

    def column(self, name: str) -> _Array:
        """A column of fixed width."""
        return self.scanned.columns[name]

    def codes(self, name: str) -> Codes:
        """A column of texts by number."""
        if name in _ENUMERATIONS:
            return self.column(name), [str(value) for value in _ENUMERATIONS[name]]
        if name not in self._codes:
            self._codes[name] = self.kernel.number(self.scanned.text, self.column(name))
        return self._codes[name]

    def among(self, name: str, known: Container[str]) -> NDArray[np.bool_]:
        """Which rows have a text that is among those."""
        numbers, texts = self.codes(name)
        answers: NDArray[np.bool_] = np.array([text in known for text in texts], np.bool_)[numbers]
        return answers

    def set_plain(self, rated: RatedBlock, plain: NDArray[np.bool_]) -> None:
        """Rate the plain rows; the others have no disposition yet."""
        self.outcomes = rated.outcomes
        unrated = np.array([bool(reason) for reason, _, _ in rated.outcomes], np.int8)[rated.outcome]
        self.disposition = np.where(plain, 1 + unrated, 0).astype(np.int8)
        self.list_pico, self.metered_pico = np.where(plain, rated.list_pico, 0), np.where(plain, rated.metered_pico, 0)
        self.outcome_of = rated.outcome

    def set_careful(self, places: Sequence[int], folded: Folded) -> None:
        """Put the rows that were folded one by one at their places."""
        if not places:
            return
        columns: dict[str, list[Any]] = dict(build_columns(folded, "", 0))
        at = np.array(places, np.int64)
        for name, kind in (("disposition", DISPOSITIONS), *_ENUMERATIONS.items()):
            target = self.disposition if name == "disposition" else self.column(name)
            target[at] = [kind.index(value) for value in columns[name]]
        self.list_pico[at], self.metered_pico[at] = columns["list_pico"], columns["metered_pico"]
        triples = zip(columns["reason"], columns["currency"], columns["rate_card"], strict=True)
        self.outcomes, numbers = _numbered(self.outcomes, list(triples))
        self.outcome_of[at] = numbers
        self.column("time")[at] = [(moment - _EPOCH) // _MICROSECOND for moment in columns["time"]]
        for name in ("identity", "body"):
            self.column(name)[at] = np.frombuffer(b"".join(columns[name]), "V16")
        for name in _NUMBERS:
            self.column(name)[at] = columns[name]
        for name in _FLOATS:
            self.column(name)[at] = [value or 0 for value in columns[name]]
            self.column(f"{name}_null")[at] = [value is None for value in columns[name]]
        for name in (*_DICTIONARIES, *_TEXTS):
            self.column(name)[at] = self._appended(columns[name])
        self._set_lists(at, "blocks_end", {"blocks": columns["blocks"]})
        attributes = columns["attributes"]
        keys, values = [list(one) for one in attributes], [list(one.values()) for one in attributes]
        self._set_lists(at, "attributes_end", {"attribute_keys": keys, "attribute_values": values})
        self._codes.clear()

    def _appended(self, texts: Sequence[str]) -> _Array:
        """Spans of texts that are put behind all others."""
        encoded = [text.encode() for text in texts]
        spans = np.empty(len(encoded), SPAN)
        spans["length"] = [len(text) for text in encoded]
        spans["start"] = list(accumulate(map(len, encoded), initial=len(self.scanned.text)))[:-1]
        self.scanned.text = b"".join([self.scanned.text, *encoded])
        return spans

    def _set_lists(self, at: _Array, ends_name: str, lists: dict[str, list[list[str]]]) -> None:
        """Replace the lists of some rows. `lists` holds parallel ones, by column."""
        counts = np.diff(self.column(ends_name), prepend=np.uint64(0)).astype(np.int64)
        kept = np.ones(self.size, np.bool_)
        kept[at] = False
        in_kept = np.repeat(kept, counts)
        counts[at] = 0
        where = np.cumsum(counts)[at]
        for name, given in lists.items():
            sizes = [len(one) for one in given]
            added = self._appended([text for one in given for text in one])
            self.scanned.columns[name] = np.insert(
                self.column(name)[: len(in_kept)][in_kept], np.repeat(where, sizes), added
            )
            counts[at] = sizes
        self.scanned.columns[ends_name] = np.cumsum(counts).astype(np.uint64)

    def outcome_column(self, part: int) -> Codes:
        """Reasons (0), currencies (1) or rate cards (2) by number."""
        texts, numbers = _numbered([], [outcome[part] for outcome in self.outcomes])
        return np.array(numbers, np.uint32)[self.outcome_of], texts

    def block(self, arrivals: Arrivals, place: Place) -> NativeBlock:
        """The block of usage_log in Native format, but for `inserted_at`."""
        block, size = NativeBlock(self.size), self.size
        block.constant("log_id", place.log_id)
        block.numbers("partition", "UInt32", np.full(size, place.partition, np.uint32))
        block.numbers("offset", "UInt64", np.array(arrivals.offsets, np.uint64))
        block.numbers("batch_first", "UInt64", np.full(size, arrivals.first, np.uint64))
        block.numbers("batch_last", "UInt64", np.full(size, arrivals.last, np.uint64))
        block.numbers("arrived_at", "DateTime64(3, 'UTC')", np.array(arrivals.arrived_at_ms, np.int64))
        kinds = ", ".join(f"'{name}' = {number}" for number, name in enumerate(DISPOSITIONS) if name)
        block.numbers("disposition", f"Enum8({kinds})", self.disposition)
        for part, name in enumerate(("reason", "currency", "rate_card")):
            block.dictionary(name, *self.outcome_column(part))
        for name in (*_DICTIONARIES, *_ENUMERATIONS):
            block.dictionary(name, *self.codes(name))
        for name in _TEXTS:
            block.add(name, "String", self.kernel.pack(self.scanned.text, self.column(name)))
        block.numbers("time", "DateTime64(6, 'UTC')", self.time_us)
        for name, kind in _NUMBERS.items():
            block.numbers(name, kind, self.column(name))
        for name in _FLOATS:
            block.nullable(name, "Float32", self.column(name), self.column(f"{name}_null"))
        for name, kind, ends, lists in (
            ("blocks", "Array(String)", "blocks_end", ("blocks",)),
            ("attributes", "Map(String, String)", "attributes_end", ("attribute_keys", "attribute_values")),
        ):
            until = self.column(ends)
            packed = (self.kernel.pack(self.scanned.text, self.column(one)[: int(until[-1])]) for one in lists)
            block.add(name, kind, until.tobytes(), *packed)
        block.numbers("list_pico", "Int64", self.list_pico)
        block.numbers("metered_pico", "Int64", self.metered_pico)
        for name in ("identity", "body"):
            block.numbers(name, "FixedString(16)", self.column(name))
        return block


def inserted_at(rows: int, at_ms: int) -> tuple[str, str, bytes]:
    """The column that says when a block was inserted: its name, its type and its data."""
    return "inserted_at", "DateTime64(3, 'UTC')", np.full(rows, at_ms, np.int64).tobytes()


def _numbered(texts: list[_T], more: Sequence[_T]) -> tuple[list[_T], list[int]]:
    """The list with what it lacks of `more`, and the number of each of those in it."""
    numbers = {text: number for number, text in enumerate(texts)}
    found = [numbers.setdefault(text, len(numbers)) for text in more]
    return list(numbers), found
