"""Which requests were in the engine when the worker was killed: a small file that outlives the process, not a power cut.

Every request that reaches the engine writes its number into a slot, and the slot is cleared when its event is safe. What
a later start finds there was killed before it could be metered: the numbers that are missing from the log, by name.
"""

import mmap
from pathlib import Path

SLOTS = 16_384
_SLOT_BYTES = 8
_BOOT_BYTES = 256


class Journal:
    """The slots of one worker. Writing costs well under a microsecond; nothing is synced."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        self._file.truncate(_BOOT_BYTES + SLOTS * _SLOT_BYTES)
        self._map = mmap.mmap(self._file.fileno(), 0)
        self._slots = memoryview(self._map)[_BOOT_BYTES:].cast("Q")
        self._next = 0

    def adopt(self, boot: str) -> tuple[str, list[int]]:
        """The name of the start before, and the numbers that it left behind. The file is this start's from now on."""
        before = self._map[:_BOOT_BYTES].rstrip(b"\0").decode("ascii", "replace")
        lost = sorted(value - 1 for value in self._slots if value)
        self._map[:] = boot.encode("ascii")[:_BOOT_BYTES].ljust(len(self._map), b"\0")
        return before, lost

    def begin(self) -> int:
        """The number of the next request, from 0 in each start: it is in the engine now."""
        number = self._next
        self._next = self._slots[number % SLOTS] = number + 1
        return number

    def safe(self, number: int) -> None:
        """Its event is on the broker or on disk."""
        if self._slots[number % SLOTS] == number + 1:
            self._slots[number % SLOTS] = 0

    def close(self) -> None:
        """Let go of the file."""
        self._slots.release()
        self._map.close()
        self._file.close()
