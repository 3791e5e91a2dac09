"""The worker's own place in each partition: every record is read once in its turn, whatever faust hands over.

faust's consumer is told where the group has committed when partitions move, but what waits in its streams then is dropped.
So the next offset is kept here, from what is committed; a record behind it is a repeat, one beyond it shows that some are
missing, and where no later one comes to show it, a look at the log's end does.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

from confluent_kafka import KafkaException
from faust.types.tuples import TP, Message

from taximeter_streams.budgets import metrics
from taximeter_streams.budgets.log_reader import LogReader, LogUnreadableError

LOOK_SECONDS = 2.0
"""What faust passed over at the end of a partition is read after two looks."""
CATCH_UP_SECONDS = 0.01
_log = logging.getLogger(__name__)


class PartitionsMovedError(Exception):
    """While a message waited for the log, partitions were given out anew: its owner reads it from what is committed."""


class UnbrokenReading:
    """Places in the partitions of `topics`, valid for one generation: from one hand-out of partitions to the next."""

    def __init__(self, app: Any, reader: LogReader, topics: frozenset[str]) -> None:
        self._app = app
        self._reader = reader
        self._topics = topics
        self._next_offset: dict[TP, int] = {}
        self.recovered = False
        """Whether the tables have what the log has, so that messages may be decided."""
        self.generation = 0

    def begin_again(self) -> None:
        """Partitions moved: nothing may be decided until the tables are recovered, and then from what is committed."""
        self.recovered = False
        self.generation += 1
        self._next_offset.clear()

    def stay_in(self, generation: int) -> None:
        """Raises PartitionsMovedError when partitions moved since that generation."""
        if generation != self.generation:
            raise PartitionsMovedError

    def partitions(self) -> list[TP]:
        """Those of `topics` that this worker owns and may decide on; none while the tables recover."""
        return [tp for tp in self._app.consumer.assignment() if tp.topic in self._topics] if self.recovered else []

    async def place(self, tp: TP) -> int:
        """The offset to read next, once the tables are recovered.

        Raises PartitionsMovedError when the partition is another worker's, KafkaException or LogUnreadableError when the
        broker does not say what is committed.
        """
        while not self.recovered:
            await asyncio.sleep(0.02)
        if tp not in self._app.consumer.assignment():
            raise PartitionsMovedError
        if tp not in self._next_offset:
            generation = self.generation
            start = await asyncio.to_thread(self._reader.start_of, tp)
            self.stay_in(generation)
            self._next_offset.setdefault(tp, start)
        return self._next_offset[tp]

    def passed(self, tp: TP, offset: int) -> None:
        """The record at that offset was decided."""
        self._next_offset[tp] = offset + 1

    async def in_turn(self, message: Message) -> AsyncIterator[Message]:
        """What has to be decided when faust hands over that message: all before it that is missing, then itself.

        Nothing when it is a repeat. The caller says of each that it is `passed`. Raises what `place` raises, and
        LogUnreadableError when the log says nothing.
        """
        place, generation = await self.place(message.tp), self.generation
        while place < message.offset:
            found, place = await asyncio.to_thread(self._reader.between, message.tp, place, message.offset)
            metrics.MESSAGES.labels(message.topic, "missed").inc(len(found))
            for missed in found:
                self.stay_in(generation)
                yield missed
            self.stay_in(generation)
            # The log need not have a record at every offset.
            self._next_offset[message.tp] = place
        if place == message.offset:
            yield message

    async def catch_up(self, tp: TP) -> None:
        """Wait until all that the partition holds now is decided. Raises what `place` raises."""
        place, end = await self.place(tp), await asyncio.to_thread(self._reader.end_of, tp)
        turns = 0
        while place < end:
            await asyncio.sleep(CATCH_UP_SECONDS)
            before, place = place, await self.place(tp)
            turns = turns + 1 if place == before else 0
            if turns * CATCH_UP_SECONDS >= LOOK_SECONDS:
                turns, place = 0, await self._look_at(tp, place)

    async def look_for_ever(self) -> None:
        """Hand over what the log has where nothing was read for a while."""
        stood_at: dict[TP, int] = {}
        while not self._app.should_stop:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                for tp in self.partitions():
                    stood_at[tp] = await self._look_at(tp, stood_at.get(tp))
            except PartitionsMovedError:
                stood_at.clear()
            except (KafkaException, LogUnreadableError) as error:
                # faust has its own patience with a broker that is away.
                _log.warning("cannot look for missing records: %s", error)

    async def _look_at(self, tp: TP, before: int | None) -> int:
        """Show faust's stream a record beyond the place, so that the missing ones are read. Returns the place."""
        generation, place = self.generation, await self.place(tp)
        if place != before:
            return place
        end = await asyncio.to_thread(self._reader.end_of, tp)
        if end <= place:
            return place
        found, _ = await asyncio.to_thread(self._reader.between, tp, place, end)
        self.stay_in(generation)
        if found and self._next_offset.get(tp) == place:
            # Streams take only what was fetched in the running generation.
            found[-1].generation_id = self._app.consumer_generation_id
            await self._app.consumer.callback(found[-1])
        return place
