"""Raw rows against the rollups that ClickHouse keeps of them, cell by cell: a cell is one bucket of time of one tenant."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import groupby

from clickhouse_connect.driver.client import Client

from taximeter.reconcile.findings import Check, Finding
from taximeter.reconcile.scope import BEGINNING, Interval, Pace, Progress, Scope
from taximeter_sql import query

_TOKENS = (
    "uncached_input", "cache_read_gpu", "cache_read_cpu", "cache_read_disk", "cache_read_provider", "cache_write_5m",
    "cache_write_1h", "output", "reasoning",
)  # fmt: skip
_MONEY = ("list_pico", "metered_pico", "saving_pico")
_TAGS = ("tenant", "feature", "model", "operation", "service_tier", "currency")
_CHUNK_DAYS = 7


@dataclass(frozen=True, slots=True)
class Rollup:
    """A rollup table: how its rows are keyed, and what it sums."""

    name: str
    table: str
    keys: tuple[str, ...]
    sums: tuple[str, ...]
    bucket: timedelta

    @property
    def columns(self) -> tuple[str, ...]:
        """Keys, the bucket first, then sums."""
        return (*self.keys, *self.sums)


HOURLY = Rollup("hourly", "usage_hourly", ("hour", *_TAGS), ("events", *_TOKENS, *_MONEY), timedelta(hours=1))
DAILY = Rollup("daily", "usage_daily", ("day", *_TAGS), ("events", *_TOKENS, *_MONEY), timedelta(days=1))
COUNTS = Rollup(
    "counts", "usage_counts_hourly", ("hour", "tenant", "disposition", "reason"), ("events",), timedelta(hours=1)
)
ROLLUPS = (HOURLY, DAILY, COUNTS)


@dataclass(frozen=True, slots=True)
class Row:
    """One key that differs: raw less rollup for each sum. `raw_state` changes when a raw row comes to the key."""

    keys: tuple[str, ...]
    sums: tuple[int, ...]
    raw_state: int


@dataclass(frozen=True, slots=True)
class Drift:
    """A cell in which a rollup differs from the raw rows."""

    rollup: Rollup
    bucket: datetime
    tenant: str
    rows: tuple[Row, ...]

    @property
    def place(self) -> tuple[datetime, str]:
        """The cell."""
        return self.bucket, self.tenant

    @property
    def label(self) -> str:
        """The cell, for people: "acme, 2026-11-24 08:00"."""
        form = "%Y-%m-%d" if self.rollup is DAILY else "%Y-%m-%d %H:%M"
        return f"{self.tenant or '(unknown)'}, {self.bucket.strftime(form)}"

    def total(self, name: str) -> int:
        """The sum of one column's differences over the cell."""
        place = self.rollup.sums.index(name)
        return sum(row.sums[place] for row in self.rows)


def check_rollups(client: Client, scope: Scope, pace: Pace, progress: Progress) -> tuple[list[Check], list[Drift]]:
    """Compare each rollup with the raw rows, to the last pico-unit and in every key, and say which cells differ."""
    checks, drifts = [], []
    for rollup in ROLLUPS:
        found = find_drifts(client, rollup, scope, pace, progress)
        drifts += found
        # FINAL: what is not merged yet counts as one cell.
        total, cells = client.query(f"SELECT sum(events), count() FROM {rollup.table} FINAL").result_rows[0]
        what = "events" if rollup is not COUNTS else "messages"
        compared = f"{total:,} {what} in the {rollup.name} rollup ({cells:,} cells) against the raw rows"
        checks.append(
            Check("raw = rollup", compared, tuple(_finding(drift, line) for drift in found for line in _lines(drift)))
        )
    return checks, drifts


def find_drifts(client: Client, rollup: Rollup, scope: Scope, pace: Pace, progress: Progress) -> list[Drift]:
    """The cells that differ at every look, and by the same several times. A cell that is being written differs for a moment."""
    found = {drift.place: drift for drift in _look(client, rollup, scope, _intervals(client, rollup, scope), progress)}
    seen = Counter(_sight(drift) for drift in found.values())
    for look in range(2, pace.looks_max + 1):
        if all(seen[_sight(drift)] >= pace.looks for drift in found.values()):
            break
        progress(f"{rollup.name} rollup: {len(found)} cells differ, looking again (look {look})")
        time.sleep(pace.pause_seconds)
        again = look_again(client, found.values(), scope)
        found = {place: again[place] for place in found if place in again}
        seen.update(_sight(drift) for drift in found.values())
    return list(found.values())


def _sight(drift: Drift) -> tuple[object, ...]:
    return drift.place, tuple((row.keys, row.sums) for row in drift.rows)


def look_again(client: Client, drifts: Iterable[Drift], scope: Scope) -> dict[tuple[datetime, str], Drift]:
    """What now differs on the days of these cells of one rollup, by cell."""
    known = list(drifts)
    if not known:
        return {}
    days = sorted({_day(drift.bucket) for drift in known})
    fresh = _look(client, known[0].rollup, scope, list(_chunks(days)), lambda _line: None)
    return {drift.place: drift for drift in fresh}


def _look(client: Client, rollup: Rollup, scope: Scope, intervals: list[Interval], progress: Progress) -> list[Drift]:
    cells: dict[tuple[datetime, str], list[Row]] = defaultdict(list)
    width = len(rollup.keys)
    for number, interval in enumerate(intervals, 1):
        progress(f"{rollup.name} rollup: {interval.start:%Y-%m-%d} ({number} of {len(intervals)} spans)")
        parameters = {**scope.parameters, "since": max(interval.start, _floor(scope, rollup)), "until": interval.end}
        rows = client.query(query(f"reconcile_{rollup.name}"), parameters=parameters, tz_mode="aware").result_rows
        for values in rows:
            bucket, *keys = values[:width]
            row = Row(tuple(map(str, keys)), tuple(map(int, values[width:-1])), int(values[-1]))
            cells[_moment(bucket), row.keys[0]].append(row)
    return [Drift(rollup, bucket, tenant, tuple(rows)) for (bucket, tenant), rows in sorted(cells.items())]


def _floor(scope: Scope, rollup: Rollup) -> datetime:
    """A bucket is compared whole, so the first one is that which `since` falls into."""
    since = scope.since or BEGINNING
    return _day(since) if rollup is DAILY else since.replace(minute=0, second=0, microsecond=0)


def _intervals(client: Client, rollup: Rollup, scope: Scope) -> list[Interval]:
    if rollup is COUNTS:
        name, day = "reconcile_arrival_days", scope.parameters
    else:
        name, day = "reconcile_days", {**scope.parameters, "since": _day(scope.since or BEGINNING)}
    rows = client.query(query(name), parameters=day).result_rows
    return list(_chunks([_moment(row[0]) for row in rows]))


def _chunks(days: list[datetime]) -> Iterator[Interval]:
    """Neighbouring days together, a week at most: a step of progress each, and no query too large."""
    numbered = ((day - timedelta(days=place), day) for place, day in enumerate(days))
    for _run, group in groupby(numbered, key=lambda pair: pair[0]):
        run = [day for _key, day in group]
        for start in range(0, len(run), _CHUNK_DAYS):
            part = run[start : start + _CHUNK_DAYS]
            yield Interval(part[0], part[-1] + timedelta(days=1))


def _day(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


def _moment(bucket: datetime | date) -> datetime:
    if isinstance(bucket, datetime):
        return bucket.astimezone(UTC)
    return datetime(bucket.year, bucket.month, bucket.day, tzinfo=UTC)


def _lines(drift: Drift) -> Iterator[tuple[str, str]]:
    """What differs in a cell: by currency, or by what became of the messages."""
    if drift.rollup is COUNTS:
        for row in drift.rows:
            _tenant, disposition, reason = row.keys
            yield f"{disposition} {reason}".strip(), f"{row.sums[0]:+} messages"
        return
    by_currency: dict[str, list[Row]] = defaultdict(list)
    for row in drift.rows:
        by_currency[row.keys[-1]].append(row)
    for currency, rows in sorted(by_currency.items()):
        sums = dict(zip(drift.rollup.sums, map(sum, zip(*(row.sums for row in rows), strict=True)), strict=True))
        tokens = sum(abs(sums[name]) for name in _TOKENS)
        keys = f" in {len(rows)} keys" if len(rows) > 1 else ""
        yield currency, f"{sums['events']:+} events, {sums['metered_pico']:+} pico metered, {tokens} tokens off{keys}"


def _finding(drift: Drift, line: tuple[str, str]) -> Finding:
    what, off = line
    return Finding(f"{drift.label} ({what})", f"{off} (raw less rollup)", drift.tenant or None)
