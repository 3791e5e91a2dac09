"""A filter in memory before the dedupe index: it says of nearly every new identity that it is surely new, without a search.

It holds whatever the index holds, or it is not asked: until it has been filled from the index, and after it has become too
full, every identity is looked for. A false alarm costs a search; a false "new" cannot be.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from taximeter_streams.meter.kernel import Kernel

BITS_MIN, BITS_MAX = 1 << 28, 1 << 30
"""Of 32 MB, which is in memory only as far as it is used, and of 128 MB. The least one serves 33 million identities."""

BITS_EACH = 32
"""Room for each identity when the filter is made; at a quarter of that it is made again, twice as large."""

_CHUNK = 50_000
_log = logging.getLogger(__name__)


class FrontFilter:
    """The filter of one index. `identities` begins a walk over all that the index holds at that moment."""

    def __init__(
        self, kernel: Kernel, held: int, identities: Callable[[], Iterator[bytes]], saved: bytes | None = None
    ) -> None:
        self._kernel = kernel
        self._identities = identities
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._filled = False
        self._noted = 0
        if saved is None:
            self._begin(held)
        else:
            self._blocks, self._noted = np.frombuffer(saved, np.uint64).copy(), held
            self._filling, self._filled = threading.Thread(), True

    def saved(self) -> bytes | None:
        """What a later one on the same index can begin with, if that has not changed; None where it is not filled."""
        return self._blocks.tobytes() if self._filled else None

    def maybe_known(self, identities: Sequence[bytes]) -> NDArray[np.bool_] | None:
        """For each identity, whether it must be looked for; None when all must."""
        return self._kernel.ask_filter(self._blocks, b"".join(identities)) if self._filled else None

    def note(self, identities: Sequence[bytes]) -> None:
        """Note what the index is about to hold."""
        with self._lock:
            self._kernel.add_to_filter(self._blocks, b"".join(identities))
            self._noted += len(identities)
            if self._noted * BITS_EACH // 4 <= len(self._blocks) * 64:
                return
            if len(self._blocks) * 64 >= BITS_MAX:
                self._filled = False
                return
        self.close()
        self._begin(self._noted)
        # The walk may have begun before these were written.
        with self._lock:
            self._kernel.add_to_filter(self._blocks, b"".join(identities))

    def wait_until_filled(self) -> None:
        """Wait until the walk has ended."""
        if self._filling.is_alive():
            self._filling.join()

    def close(self) -> None:
        """Stop filling it."""
        self._closing.set()
        self.wait_until_filled()

    def _begin(self, held: int) -> None:
        bits = min(BITS_MAX, max(BITS_MIN, 1 << (BITS_EACH * held).bit_length()))
        blocks = np.zeros(bits // 64, np.uint64)
        self._filled, self._noted, self._closing = False, 0, threading.Event()
        # The walk sees what the index holds now; what comes after is noted as it comes.
        walk = self._identities()
        work = (blocks, walk, self._closing)
        self._filling = threading.Thread(target=self._fill, args=work, name="front-filter", daemon=True)
        self._blocks = blocks
        self._filling.start()

    def _fill(self, blocks: NDArray[np.uint64], walk: Iterator[bytes], closing: threading.Event) -> None:
        try:
            count = self._fill_from(blocks, walk, closing)
        except Exception as error:  # noqa: BLE001 - whatever could not be read, a filter that lacks it is not asked
            _log.critical("the front filter stays off, the dedupe index cannot be read: %s", error)
            return
        if count is not None:
            self._filled = True
            _log.info("the front filter is filled", extra={"identities": count})

    def _fill_from(self, blocks: NDArray[np.uint64], walk: Iterator[bytes], closing: threading.Event) -> int | None:
        """How many there were; None when it was stopped."""
        chunk: list[bytes] = []
        count = 0
        for identity in walk:
            chunk.append(identity)
            if len(chunk) == _CHUNK:
                self._add(blocks, chunk)
                count += len(chunk)
                chunk = []
                if closing.is_set():
                    return None
        self._add(blocks, chunk)
        return count + len(chunk)

    def _add(self, blocks: NDArray[np.uint64], chunk: list[bytes]) -> None:
        with self._lock:
            self._kernel.add_to_filter(blocks, b"".join(chunk))
            self._noted += len(chunk)
