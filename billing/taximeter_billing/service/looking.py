"""A thread of the service that looks again and again, from the service's start to its end."""

import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

STOP_SECONDS_MAX = 15.0


class LookingThread(ABC):
    """Runs `_run` between entering and leaving, when it `is_wanted`. `_run` ends soon after `_stopping` is set."""

    def __init__(self, name: str, *, is_wanted: bool = True) -> None:
        self._is_wanted = is_wanted
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        if self._is_wanted:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self.wake()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS_MAX)

    def wake(self) -> None:
        """There is something new: for threads that wait on `_wake`."""
        self._wake.set()

    @abstractmethod
    def _run(self) -> None: ...
