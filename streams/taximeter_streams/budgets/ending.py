"""When the keeper must not go on: after an error half-way, after a sleep in which others may have taken over, and when it is told
to end and Kafka does not let it."""

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

CHECK_SECONDS = 0.25
END_SECONDS_MAX = 30.0
_log = logging.getLogger(__name__)


class PausedError(Exception):
    """The process was stopped, or its loop blocked, for nearly as long as a session lasts."""


class Vigil:
    """Notices by a monotonic clock, in seconds, that the loop did not run for longer than `seconds_max`."""

    def __init__(self, clock: Callable[[], float], seconds_max: float) -> None:
        self._clock = clock
        self._seconds_max = seconds_max
        self._awake_at = float("inf")

    def check(self) -> None:
        """Before anything that only an owner may do. Raises PausedError."""
        asleep = self._clock() - self._awake_at
        if asleep > self._seconds_max:
            raise PausedError(f"asleep for {asleep:.1f} s: the partitions may be another worker's by now")

    def note(self) -> None:
        """The loop runs. Raises PausedError when it had not for too long."""
        self.check()
        self._awake_at = self._clock()

    async def keep(self) -> None:
        """Note it for ever. Raises PausedError."""
        while True:
            self.note()
            await asyncio.sleep(CHECK_SECONDS)


def die(error: BaseException) -> NoReturn:
    """End the process at once. A message failed half-way: nothing behind it may be committed, so that it is read again."""
    if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
        raise error
    _log.critical("the budgets worker ends: %s", error, exc_info=error)
    logging.shutdown()
    os._exit(1)


@contextmanager
def dying() -> Iterator[None]:
    """Whatever is raised inside ends the process."""
    try:
        yield
    except BaseException as error:  # noqa: BLE001 - see die
        die(error)


def end_in_time() -> None:
    """An orderly end begins: one that takes longer than `END_SECONDS_MAX` becomes a sudden one, which loses nothing."""
    late = TimeoutError(f"told to end, and not done after {END_SECONDS_MAX:.0f} s: Kafka may be away")
    timer = threading.Timer(END_SECONDS_MAX, die, [late])
    timer.daemon = True
    timer.start()
