"""The exact comparison: what was acknowledged against raw rows, rollups, spend and budgets. Says what differs, by name."""

from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TypeVar

from clickhouse_connect.driver.client import Client

from taximeter_schemas.budgets import BudgetState
from taximeter_schemas.spend import SpendRecord
from taximeter_schemas.topics import BUDGET_STATE, USAGE_SPEND
from tests.faults.ledger import CLASSES, ROW_HASH, Cell, Owed
from tests.topic_reader import read_topic

SUMS = ", ".join(f"sum({name})" for name in (*CLASSES, "list_pico", "metered_pico"))
Key = TypeVar("Key")
Value = TypeVar("Value")


def differences(name: str, owed: Mapping[Key, Value], found: Mapping[Key, Value]) -> list[str]:
    """One line for each key where the two differ."""
    return [
        f"{name} {key}: owed {owed.get(key)}, found {found.get(key)}"
        for key in sorted(owed.keys() | found.keys(), key=str)
        if owed.get(key) != found.get(key)
    ]


def compare_rows(client: Client, log_id: str, tenants: tuple[str, ...], owed: Owed) -> list[str]:
    """Raw rows by tenant and hour with their hash, and both rollups."""
    found: list[str] = []
    for disposition, expected in (("rated", owed.rated), ("unrated", owed.unrated)):
        rows = client.query(
            f"SELECT tenant, toUnixTimestamp(toStartOfHour(time)), count(), {SUMS}, sum({ROW_HASH}) FROM usage_log "
            "WHERE tenant IN {tenants:Array(String)} AND log_id = {log_id:String} AND disposition = {disposition:String} "
            "GROUP BY 1, 2",
            parameters={"tenants": list(tenants), "log_id": log_id, "disposition": disposition},
        ).result_rows
        stored = {(tenant, _moment(hour)): _cell(*sums) for tenant, hour, *sums in rows}
        found += differences(disposition, expected, stored)
    for table, column, by_name in (
        ("usage_hourly", "hour", owed.hourly),
        ("usage_daily", "toDateTime(day)", owed.daily),
    ):
        rows = client.query(
            f"SELECT tenant, feature, model, toUnixTimestamp({column}), sum(events), {SUMS} FROM {table} "
            "WHERE tenant IN {tenants:Array(String)} GROUP BY 1, 2, 3, 4",
            parameters={"tenants": list(tenants)},
        ).result_rows
        rolled = {
            (tenant, feature, model, _moment(at)): tuple(map(int, sums)) for tenant, feature, model, at, *sums in rows
        }
        found += differences(table, by_name, rolled)
    return found


def compare_laws(client: Client, log_id: str) -> list[str]:
    """Whatever is stored: each offset once and none left out, no identity counted twice, arrivals as they were rolled up."""
    found = []
    for partition, rows, offsets, span in client.query(
        "SELECT partition, count(), uniqExact(offset), max(offset) - min(offset) + 1 FROM usage_log "
        "WHERE log_id = {log_id:String} GROUP BY partition",
        parameters={"log_id": log_id},
    ).result_rows:
        if not rows == offsets == span:
            found.append(f"partition {partition}: {rows} rows of {offsets} offsets, which span {span}")
    found += [
        f"counted {rows} times: {identity}"
        for *identity, rows in client.query(
            "SELECT tenant, source, event_id, count() AS rows FROM usage_log "
            "WHERE disposition IN ('rated', 'unrated') GROUP BY 1, 2, 3 HAVING rows > 1 LIMIT 20"
        ).result_rows
    ]
    by_arrival = "SELECT tenant, toUnixTimestamp(hour), disposition, reason, sum(events) FROM ({}) GROUP BY 1, 2, 3, 4"
    raw = (
        "SELECT *, toStartOfHour(arrived_at) AS hour, toString(disposition) AS disposition, 1 AS events FROM usage_log"
    )
    stored, rolled = (
        {tuple(key): int(events) for *key, events in client.query(by_arrival.format(source)).result_rows}
        for source in (raw.replace("*", "tenant, reason"), "SELECT * FROM usage_counts_hourly")
    )
    return found + differences("usage_counts_hourly", stored, rolled)


def compare_spend(servers: str, log_id: str, tenants: tuple[str, ...], owed: Owed) -> list[str]:
    """Spend records as budgets read them: a range that was seen is ignored, known by its end."""
    told: dict[tuple[str, str, str, int], list[int]] = defaultdict(lambda: [0, 0])
    seen: dict[tuple[str, int], int] = {}
    for message in read_topic(servers, USAGE_SPEND.name):
        record = SpendRecord.model_validate_json(message.value() or b"")
        place = (record.tenant, record.partition)
        if record.log_id != log_id or record.tenant not in tenants or record.last_offset <= seen.get(place, -1):
            continue
        seen[place] = record.last_offset
        for entry in record.entries:
            sums = told[record.tenant, entry.feature, entry.model, entry.slot_start]
            sums[0] += entry.amount_pico
            sums[1] += entry.events
    return differences("spend", owed.spend, {key: (amount, events) for key, (amount, events) in told.items()})


def budgets_owed(state: BudgetState, owed: Owed) -> list[str]:
    """Each budget's position against the spend that falls into its period."""
    found = []
    for position in state.positions:
        begins, ends = position.period_start.timestamp(), position.period_end.timestamp()
        amount = sum(
            amount
            for (tenant, feature, model, slot), (amount, _events) in owed.spend.items()
            if tenant == state.tenant and begins <= slot < ends and position.budget.covers(feature, model)
        )
        if position.spent_pico != amount:
            found.append(f"budget {position.budget.id} of {state.tenant}: owed {amount}, found {position.spent_pico}")
    return found


def budget_states(servers: str, tenants: tuple[str, ...]) -> dict[str, BudgetState]:
    """The last state that the keeper published of each tenant."""
    states: dict[str, BudgetState] = {}
    for message in read_topic(servers, BUDGET_STATE.name):
        if message.value() and (message.key() or b"").decode() in tenants:
            state = BudgetState.model_validate_json(message.value() or b"")
            states[state.tenant] = state
    return states


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _cell(events: int, *rest: int) -> Cell:
    tokens, (listed, metered, row_hash) = rest[: len(CLASSES)], rest[len(CLASSES) :]
    return Cell(int(events), [int(count) for count in tokens], int(listed), int(metered), int(row_hash))
