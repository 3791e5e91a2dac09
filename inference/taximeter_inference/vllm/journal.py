"""Which requests were in the engine when the worker was killed: a small file that outlives the process, not a power cut.

Every request that reaches the engine writes its number into a slot, and the slot is cleared when its event is safe. What
a later start finds there was killed before it could be metered: the numbers that are missing from the log, by name.
"""

import mmap
import struct
from pathlib import Path

SLOTS = 16_384
_SLOT = struct.Struct("<Q")
_BOOT_BYTES = 256


class Journal:
    """The slots of one worker. Writing costs well under a microsecond; nothing is synced."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        self._file.truncate(_BOOT_BYTES + SLOTS * _SLOT.size)
        self._map = mmap.mmap(self._file.fileno(), 0)

    def adopt(self, boot: str) -> tuple[str, list[int]]:
        """The name of the start before, and the numbers that it left behind. The file is this start's from now on."""
        before = self._map[:_BOOT_BYTES].rstrip(b"\0").decode("ascii", "replace")
        values = (_SLOT.unpack_from(self._map, _BOOT_BYTES + slot * _SLOT.size)[0] for slot in range(SLOTS))
        lost = sorted(value - 1 for value in values if value)
        self._map[:] = boot.encode("ascii")[:_BOOT_BYTES].ljust(len(self._map), b"\0")
        return before, lost

    def begin(self, number: int) -> None:
        """The request of that number is in the engine."""
        _SLOT.pack_into(self._map, _BOOT_BYTES + number % SLOTS * _SLOT.size, number + 1)

    def safe(self, number: int) -> None:
        """Its event is on the broker or on disk."""
        offset = _BOOT_BYTES + number % SLOTS * _SLOT.size
        if _SLOT.unpack_from(self._map, offset)[0] == number + 1:
            _SLOT.pack_into(self._map, offset, 0)

    def close(self) -> None:
        """Let go of the file."""
        self._map.close()
        self._file.close()
