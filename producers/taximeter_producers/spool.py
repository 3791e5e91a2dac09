"""A disk spool: records that could not be delivered yet, in segment files that are fsync'd before anybody says so.

Appends go to the newest segment; the oldest one is read whole, delivered and dropped whole, so a crash in between sends
its records again (the same ids: they count once downstream) and never loses one. A lock file keeps a second process
out; the lock ends with its holder, so the next process takes over what a crashed one left. Used by one thread at a time.
"""

import fcntl
import json
import logging
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from taximeter_producers.errors import SpoolBusyError, SpoolError, SpoolFullError
from taximeter_producers.frames import Ending, SpoolRecord, decode_frames, encode_frame

SEGMENT_BYTES_MAX = 1_048_576
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment that is not written to any more, and how much of it is whole records."""

    path: Path
    size_bytes: int
    records: int
    damaged: bool = False

    def read(self) -> list[SpoolRecord]:
        """Its records, in the order in which they were appended. Raises SpoolError when the file cannot be read."""
        try:
            records, _, _ = decode_frames(self.path.read_bytes()[: self.size_bytes])
        except OSError as error:
            raise SpoolError(f"{self.path} cannot be read: {error}") from error
        if len(records) != self.records:
            raise SpoolError(f"{self.path} held {self.records} records, and now {len(records)} can be read")
        return records


class Spool:
    """The spool in `folder`, of at most `bytes_max` bytes. Raises SpoolBusyError when another process holds it."""

    def __init__(self, folder: Path, bytes_max: int, segment_bytes_max: int = SEGMENT_BYTES_MAX) -> None:
        self._folder = folder
        self._bytes_max = bytes_max
        self._segment_bytes_max = max(1, min(segment_bytes_max, bytes_max // 4))
        self._sealed: deque[Segment] = deque()
        self._sealed_bytes = 0
        self._active: BinaryIO | None = None
        self._active_bytes = 0
        self._active_records = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(folder / "lock")
        except OSError as error:
            if isinstance(error, SpoolBusyError):
                raise
            raise SpoolError(f"the spool {folder} cannot be opened: {error}") from error
        try:
            self._recover()
        except OSError as error:
            os.close(self._lock)
            raise SpoolError(f"the spool {folder} cannot be read: {error}") from error

    @property
    def size_bytes(self) -> int:
        """What waits in the spool, in bytes on disk. Other threads may ask for it."""
        return self._sealed_bytes + self._active_bytes

    def append(self, records: Sequence[SpoolRecord]) -> None:
        """Write the records and fsync once; after the return they survive a crash.

        Raises SpoolFullError when they do not fit, SpoolError when the disk refuses; then none of them counts as taken.
        """
        block = b"".join(encode_frame(record) for record in records)
        if self.size_bytes + len(block) > self._bytes_max:
            raise SpoolFullError(f"the spool {self._folder} has reached its limit of {self._bytes_max} bytes")
        try:
            self._write(block)
        except OSError as error:
            # After a failed write or fsync nobody knows what the file holds: it is left as it is, and a new one begun.
            self._seal()
            raise SpoolError(f"the spool {self._folder} cannot be written: {error}") from error
        self._active_bytes += len(block)
        self._active_records += len(records)
        if self._active_bytes >= self._segment_bytes_max:
            self._seal()

    def oldest(self) -> Segment | None:
        """The segment to deliver next, or None when the spool is empty."""
        if not self._sealed:
            self._seal()
        return self._sealed[0] if self._sealed else None

    def drop(self, segment: Segment) -> None:
        """Forget a delivered segment. A damaged one is kept as .damaged, for people to look at. Raises SpoolError."""
        try:
            if segment.damaged:
                segment.path.rename(segment.path.with_suffix(".damaged"))
            else:
                segment.path.unlink(missing_ok=True)
        except OSError as error:
            raise SpoolError(f"{segment.path} cannot be removed: {error}") from error
        self._sealed.remove(segment)
        self._sealed_bytes -= segment.size_bytes

    def set_aside(self, record: SpoolRecord, reason: str) -> None:
        """Keep a record that can never be delivered in set-aside.jsonl, with the reason. Raises SpoolError."""
        entry = {"key": record.key.decode(), "value": record.value.decode(), "reason": reason}
        try:
            with (self._folder / "set-aside.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
                file.flush()
                os.fsync(file.fileno())
            _fsync_folder(self._folder)
        except OSError as error:
            raise SpoolError(f"the spool {self._folder} cannot be written: {error}") from error

    def close(self) -> None:
        """Let go of the spool; what it holds stays for the next process."""
        self._seal()
        os.close(self._lock)

    def _write(self, block: bytes) -> None:
        if self._active is None:
            path = self._folder / f"{self._next_number():020d}.seg"
            self._active = path.open("xb", buffering=0)
            _fsync_folder(self._folder)
        unwritten = memoryview(block)
        while unwritten:
            unwritten = unwritten[self._active.write(unwritten) :]
        os.fsync(self._active.fileno())

    def _next_number(self) -> int:
        numbers = (int(path.stem) for path in self._folder.glob("*.*") if path.stem.isdigit())
        return max(numbers, default=-1) + 1

    def _seal(self) -> None:
        """End the active segment, so that it can be delivered."""
        if self._active is None:
            return
        path = Path(self._active.name)
        self._active.close()
        if self._active_records:
            self._sealed.append(Segment(path, self._active_bytes, self._active_records))
            self._sealed_bytes += self._active_bytes
        else:
            path.unlink(missing_ok=True)
        self._active, self._active_bytes, self._active_records = None, 0, 0

    def _recover(self) -> None:
        for path in sorted(self._folder.glob("*.seg")):
            records, size_bytes, ending = decode_frames(path.read_bytes())
            if ending is Ending.TORN:
                _log.warning("%s ends in the middle of a record that was never acknowledged", path)
            elif ending is Ending.DAMAGED:
                _log.error("%s is damaged after byte %d; it will be kept as .damaged", path, size_bytes)
            if records or ending is Ending.DAMAGED:
                self._sealed.append(Segment(path, size_bytes, len(records), ending is Ending.DAMAGED))
                self._sealed_bytes += size_bytes
            else:
                path.unlink()


def _locked(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise SpoolBusyError(f"another process holds the spool {path.parent}; give each its own producer id") from None
    return descriptor


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
