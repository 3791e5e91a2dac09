"""The keeper's place in the log: each record is decided in its turn and none left out, whatever faust drops, repeats or skips."""

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from faust.types.tuples import TP, Message
from hypothesis import given
from hypothesis import strategies as st

from taximeter_streams.budgets.log_reader import LogReader
from taximeter_streams.budgets.reading import PartitionsMovedError, UnbrokenReading

PARTITION = TP("budget.leases.v1", 0)
RECORDS = 30


def message(offset: int) -> Message:
    return Message(PARTITION.topic, PARTITION.partition, offset, 0.0, 1, [], b"k", b"v", None, tp=PARTITION)


@dataclass
class Log:
    """Records at some of the offsets, and what the group has committed. It is read in chunks of three."""

    offsets: frozenset[int]
    committed: int = 0

    def start_of(self, _tp: TP) -> int:
        return self.committed

    def end_of(self, _tp: TP) -> int:
        return RECORDS

    def between(self, _tp: TP, first: int, end: int) -> tuple[list[Message], int]:
        found = sorted(offset for offset in self.offsets if first <= offset < end)[:3]
        place = found[-1] + 1 if len(found) == 3 else end
        return [message(offset) for offset in found], place


@dataclass
class Keeper:
    """Decides what it is handed, commits some of it, and loses partitions at times. `decided` is in order."""

    log: Log
    owns: bool = True
    decided: list[int] = field(default_factory=list)
    handed: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        async def callback(handed: Message) -> None:
            self.handed.append(handed)

        consumer = SimpleNamespace(assignment=lambda: {PARTITION} if self.owns else set(), callback=callback)
        app: Any = SimpleNamespace(consumer=consumer, consumer_generation_id=0)
        self.reading = UnbrokenReading(app, cast(LogReader, self.log), frozenset((PARTITION.topic,)))
        self.reading.recovered = True

    async def hand_over(self, offset: int, moves_after: int | None) -> None:
        """faust hands over that record; partitions move after so many decisions, and come back at once."""
        try:
            async for one in self.reading.in_turn(message(offset)):
                self.decided.append(one.offset)
                self.reading.passed(PARTITION, one.offset)
                if moves_after is not None:
                    moves_after -= 1
                    if moves_after < 0:
                        self.move(one.offset)
        except PartitionsMovedError:
            pass

    def move(self, committed: int) -> None:
        """Partitions move; what is committed is at most what was decided."""
        self.log.committed = max(self.log.committed, committed)
        self.reading.begin_again()
        self.reading.recovered = True


@given(
    holes=st.frozensets(st.integers(0, RECORDS - 2)),
    steps=st.lists(st.tuples(st.integers(0, RECORDS - 1), st.none() | st.integers(0, 5)), max_size=12),
)
def test_all_is_decided_in_order_whatever_is_handed_over(
    holes: frozenset[int], steps: list[tuple[int, int | None]]
) -> None:
    log = Log(frozenset(range(RECORDS)) - holes)
    keeper = Keeper(log)

    async def run() -> None:
        for offset, moves_after in steps:
            if offset in log.offsets:
                await keeper.hand_over(offset, moves_after)
        # Nothing comes any more: a look or two at the log's end must show what is left.
        place = await keeper.reading._look_at(PARTITION, None)
        await keeper.reading._look_at(PARTITION, place)
        for handed in keeper.handed:
            await keeper.hand_over(handed.offset, None)
        await keeper.hand_over(RECORDS - 1, None)

    asyncio.run(run())
    assert set(keeper.decided) == log.offsets
    # A record may be decided again after partitions moved, but never one before those that it follows.
    seen: set[int] = set()
    for offset in keeper.decided:
        assert {before for before in log.offsets if before < offset} <= seen
        seen.add(offset)


def test_a_record_of_another_owner_is_left_to_it() -> None:
    keeper = Keeper(Log(frozenset(range(RECORDS))), owns=False)
    asyncio.run(keeper.hand_over(3, None))
    assert keeper.decided == []


def test_a_repeat_is_not_decided_again() -> None:
    keeper = Keeper(Log(frozenset(range(RECORDS)), committed=5))

    async def run() -> None:
        await keeper.hand_over(6, None)
        await keeper.hand_over(4, None)
        await keeper.hand_over(6, None)

    asyncio.run(run())
    assert keeper.decided == [5, 6]


def test_catching_up_waits_for_all_that_the_log_holds_now() -> None:
    keeper = Keeper(Log(frozenset(range(RECORDS))))

    async def run() -> list[int]:
        waiting = asyncio.create_task(keeper.reading.catch_up(PARTITION))
        for offset in range(RECORDS):
            await keeper.hand_over(offset, None)
            await asyncio.sleep(0.001)
            if waiting.done():
                break
        await waiting
        return list(keeper.decided)

    assert asyncio.run(run()) == list(range(RECORDS))


def test_catching_up_ends_when_partitions_move_away() -> None:
    keeper = Keeper(Log(frozenset(range(RECORDS))))

    async def run() -> None:
        waiting = asyncio.create_task(keeper.reading.catch_up(PARTITION))
        await asyncio.sleep(0.05)
        keeper.owns = False
        with pytest.raises(PartitionsMovedError):
            await waiting

    asyncio.run(run())
