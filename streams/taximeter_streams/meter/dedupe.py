"""The dedupe index: which identities have been counted, with which body, at which offset.

The warehouse is the truth and the index a copy beside the worker: it is marked only after the insert has succeeded, and what
it lacks is read from the warehouse when a partition arrives. Entries live a little longer than an event is accepted, so memory
and disk stay bounded.
"""

import contextlib
import os
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Cache,
    DBCompactionStyle,
    DBCompressionType,
    Options,
    Rdict,
    RdictIter,
    ReadOptions,
    WriteBatch,
)

from taximeter_schemas.rejections import EVENT_AGE_SECONDS_MAX, EVENT_FUTURE_SECONDS_MAX
from taximeter_streams.meter.front import FrontFilter
from taximeter_streams.meter.kernel import Kernel

KEPT_SECONDS = EVENT_AGE_SECONDS_MAX + EVENT_FUTURE_SECONDS_MAX
"""An event can first arrive a day ahead of its time and be sent again until it is 35 days old."""

MEMTABLE_BYTES = 64 << 20
CACHE_BYTES = 128 << 20
FILTER_BITS = 10
"""Of each identity: one in a hundred new ones is looked for on disk in vain."""

_MERGES_DUE = ("compaction-pending", "num-running-compactions")
_MERGES_POLL_SECONDS = 0.05

_ENTRY = struct.Struct(">16s8sq")


class UnreadableIndexError(RuntimeError):
    """The index on disk is damaged. It is a copy: without its folder it is made anew from the warehouse."""


class Counted(NamedTuple):
    """An identity that was counted: its body's hash, and where its message stands (`log` names log and partition)."""

    body: bytes
    log: bytes
    offset: int


def log_mark(log_id: str, partition: int) -> bytes:
    """Eight bytes that name a partition of a log: an offset means something only within one."""
    return blake2b(f"{log_id}/{partition}".encode(), digest_size=8).digest()


def packed_entry(counted: Counted) -> bytes:
    """An entry as the index holds it: body (16 bytes), log (8), offset (8, big-endian)."""
    return _ENTRY.pack(*counted)


def unpacked(entry: bytes) -> Counted:
    """What `packed_entry` has packed."""
    return Counted(*_ENTRY.unpack(entry))


class KnownIdentities(Protocol):
    """What a batch is folded against."""

    def find(self, identities: Sequence[bytes]) -> list[Counted | None]:
        """What is known of each identity, in order."""
        ...


class DedupeIndex(KnownIdentities, Protocol):
    """Where the counted identities are kept. A port with two implementations, which one contract suite drives."""

    def mark(self, partition_key: str, last_offset: int, counted: Iterable[tuple[bytes, Counted]]) -> None:
        """Remember identities, and that the partition is known up to that offset; all or nothing."""
        ...

    def mark_packed(
        self, partition_key: str, last_offset: int, identities: Sequence[bytes], entries: Sequence[bytes]
    ) -> None:
        """The same, with each entry packed already, as `unpacked` reads it."""
        ...

    def known_to(self, partition_key: str) -> int | None:
        """The offset up to which the partition is known, or None when nothing is."""
        ...

    def close(self) -> None:
        """Release it."""
        ...


class MemoryIndex:
    """The in-memory twin, for tests and short runs."""

    def __init__(self) -> None:
        self._counted: dict[bytes, Counted] = {}
        self._known: dict[str, int] = {}

    def find(self, identities: Sequence[bytes]) -> list[Counted | None]:
        """See DedupeIndex."""
        return [self._counted.get(identity) for identity in identities]

    def mark(self, partition_key: str, last_offset: int, counted: Iterable[tuple[bytes, Counted]]) -> None:
        """See DedupeIndex."""
        self._counted.update(counted)
        self._known[partition_key] = last_offset

    def mark_packed(
        self, partition_key: str, last_offset: int, identities: Sequence[bytes], entries: Sequence[bytes]
    ) -> None:
        """See DedupeIndex."""
        self.mark(partition_key, last_offset, zip(identities, map(unpacked, entries), strict=True))

    def known_to(self, partition_key: str) -> int | None:
        """See DedupeIndex."""
        return self._known.get(partition_key)

    def close(self) -> None:
        """Nothing to release."""


def _identities(walk: RdictIter) -> Iterator[bytes]:
    while walk.valid():
        key: bytes = walk.key()
        if key[:1] != b"i":
            return
        yield key[1:]
        walk.next()
    walk.status()  # raises where it ended because something could not be read


def _filtered_tables() -> BlockBasedOptions:
    tables = BlockBasedOptions()
    tables.set_bloom_filter(FILTER_BITS, False)
    # Filters live in the cache, so that memory is bounded however large the index grows.
    tables.set_block_cache(Cache(CACHE_BYTES))
    tables.set_cache_index_and_filter_blocks(True)
    return tables


class RocksIndex:
    """The index on disk (RocksDB), in one folder that one process holds at a time."""

    def __init__(self, folder: Path, kernel: Kernel | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_block_based_table_factory(_filtered_tables())
        # Nearly every identity that is asked for is new, and a filter in memory says so; what is written stays in memory for a
        # while. Few levels: entries are never changed, so merging them again and again only costs.
        options.set_write_buffer_size(MEMTABLE_BYTES)
        options.set_memtable_prefix_bloom_ratio(0.1)
        options.set_memtable_whole_key_filtering(True)
        options.set_compaction_style(DBCompactionStyle.universal())
        # Hashes cannot be compressed.
        options.set_compression_type(DBCompressionType.none())
        # Expired entries fall out when files are compacted, so some are found for longer. A day is added for clocks that differ.
        self._db = Rdict(str(folder), options, access_type=AccessType.with_ttl(KEPT_SECONDS + 86_400))
        self._saved_filter = folder / "front.filter"
        self._front = (
            FrontFilter(kernel, self.entries_estimated(), self._walk, self._taken_filter()) if kernel else None
        )

    def find(self, identities: Sequence[bytes]) -> list[Counted | None]:
        """See DedupeIndex."""
        maybe = self._front.maybe_known(identities) if self._front and identities else None
        if maybe is None:
            return self._find(identities)
        found: list[Counted | None] = [None] * len(identities)
        places = maybe.nonzero()[0].tolist()
        for place, counted in zip(places, self._find([identities[place] for place in places]), strict=True):
            found[place] = counted
        return found

    def mark(self, partition_key: str, last_offset: int, counted: Iterable[tuple[bytes, Counted]]) -> None:
        """See DedupeIndex."""
        marked = list(counted)
        entries = [packed_entry(entry) for _, entry in marked]
        self.mark_packed(partition_key, last_offset, [identity for identity, _ in marked], entries)

    def mark_packed(
        self, partition_key: str, last_offset: int, identities: Sequence[bytes], entries: Sequence[bytes]
    ) -> None:
        """See DedupeIndex."""
        batch = WriteBatch(raw_mode=True)
        put = batch.put
        if self._front:
            self._front.note(identities)
        # In the order of the keys: next to the last one the memtable finds the next one's place in a third of the time.
        words = np.frombuffer(b"".join(identities), ">u8")[::2]
        for at in words.astype(np.uint64).argsort().tolist():
            put(b"i" + identities[at], entries[at])
        put(b"p" + partition_key.encode(), last_offset.to_bytes(8, "big"))
        self._db.write(batch)

    def known_to(self, partition_key: str) -> int | None:
        """See DedupeIndex."""
        value = self._db.get(b"p" + partition_key.encode())
        return None if value is None else int.from_bytes(value, "big")

    def wait_until_filtered(self) -> None:
        """Wait until the filter before it, if it has one, answers."""
        if self._front:
            self._front.wait_until_filled()

    def wait_until_merged(self) -> None:
        """Write what is in memory to disk, and wait until RocksDB has nothing to merge: closing breaks a merge off."""
        self._db.flush()
        while any(self._db.property_int_value(f"rocksdb.{due}") for due in _MERGES_DUE):
            time.sleep(_MERGES_POLL_SECONDS)

    def entries_estimated(self) -> int:
        """About how many identities it holds, as RocksDB estimates."""
        return self._db.property_int_value("rocksdb.estimate-num-keys") or 0

    def _find(self, identities: Sequence[bytes]) -> list[Counted | None]:
        try:
            values: list[bytes | None] = (
                self._db.get([b"i" + identity for identity in identities]) if identities else []  # type: ignore[assignment]
            )
        except Exception as error:  # RocksDB's errors have no class of their own
            raise UnreadableIndexError(
                f"{error}; the dedupe index is a copy: delete {self._saved_filter.parent}, and it is made anew at the next start"
            ) from error
        return [None if value is None else unpacked(value) for value in values]

    def _walk(self) -> Iterator[bytes]:
        once = ReadOptions()
        once.fill_cache(False)  # type: ignore[call-arg]  # each block is read once: the cache is for what is looked for
        walk = self._db.iter(once)
        walk.seek(b"i")
        return _identities(walk)

    def close(self) -> None:
        """Flush and release the folder."""
        if self._front:
            self._front.close()
            self._save_filter(self._front.saved())
        self._db.close()

    def _save_filter(self, blocks: bytes | None) -> None:
        """Keep the filter for the next start, with the number of the last write that it knows of."""
        if blocks is not None:
            with contextlib.suppress(OSError):  # a full disk, say: then it is made anew
                part = self._saved_filter.with_suffix(".part")
                with part.open("wb") as file:
                    file.write(self._db.latest_sequence_number().to_bytes(8, "big"))
                    file.write(blocks)
                    file.flush()
                    os.fsync(file.fileno())  # after a loss of power half a filter would call known identities new
                part.rename(self._saved_filter)

    def _taken_filter(self) -> bytes | None:
        """The filter of the last clean end, unless something was written since. It is taken away: a crash must not leave it."""
        try:
            saved = self._saved_filter.read_bytes()
            self._saved_filter.unlink()
        except OSError:
            return None
        return saved[8:] if int.from_bytes(saved[:8], "big") == self._db.latest_sequence_number() else None
