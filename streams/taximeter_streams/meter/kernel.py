"""The binding of kernel.c: reads a batch of payloads straight into columns, with no object for an event.

The kernel answers only where it is sure; what it leaves open goes to the reference decoder. It is compiled when a worker
first needs it, or beside its source by `python -m taximeter_streams.meter.kernel` when an image is built. Where there is
neither a compiled one nor a C compiler, the worker does without: slower, with the same rows.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TEXT_BYTES_MAX = 2**32 - 1
"""Where texts stand is told in 32 bits."""

SPAN = np.dtype([("start", np.uint32), ("length", np.uint32)])
_SCRATCH_EXTRA = 2_048
_BLOCK_BYTES_MIN = 18
_ATTRIBUTE_BYTES_MIN = 5
_COMPILE_SECONDS_MAX = 120

_SPANS = (
    *("source", "event_id", "request_id", "root_request_id", "worker_id", "lease_id"),
    *("tenant", "feature", "model", "adapter", "pool"),
)
_LAYOUT: tuple[tuple[str, np.dtype[np.generic]], ...] = (
    ("sure", np.dtype(np.uint8)),
    ("time", np.dtype(np.int64)),
    *((name, SPAN) for name in _SPANS),
    *((name, np.dtype(np.uint8)) for name in ("operation", "outcome", "service_tier", "attribution")),
    *((name, np.dtype(np.uint16)) for name in ("hop", "attempt")),
    *(
        (name, np.dtype(np.uint32))
        for name in (
            *("uncached_input", "cache_read_gpu", "cache_read_cpu", "cache_read_disk", "cache_read_provider"),
            *("cache_write_5m", "cache_write_1h", "output", "reasoning", "block_size", "hit_blocks"),
        )
    ),
    ("worker_sequence", np.dtype(np.uint64)),
    ("gpu_seconds", np.dtype(np.float64)),
    *((name, np.dtype(np.float32)) for name in ("queue_ms", "ttft_ms", "total_ms")),
    *((name, np.dtype(np.uint8)) for name in ("queue_ms_null", "ttft_ms_null", "total_ms_null")),
    *((name, np.dtype(np.uint64)) for name in ("blocks_end", "attributes_end")),
    *((name, SPAN) for name in ("blocks", "attribute_keys", "attribute_values")),
    *((name, np.dtype("V16")) for name in ("identity", "body")),
    ("scratch", np.dtype(np.uint8)),
)
_SOURCE = Path(__file__).with_name("kernel.c")


class KernelError(RuntimeError):
    """The kernel cannot be compiled or loaded here."""


@dataclass(slots=True)
class Scanned:
    """A batch as the kernel read it: `columns` by name, one place for each payload, true where `sure` is set.

    Spans point into `text`. `blocks_end` and `attributes_end` count the list items up to and with each event.
    """

    text: bytes
    columns: dict[str, NDArray[np.generic]]

    @property
    def sure(self) -> NDArray[np.bool_]:
        """Which payloads the kernel answers for."""
        return self.columns["sure"].view(np.bool_)


class Kernel:
    """The compiled kernel. Its calls release the interpreter's lock."""

    def __init__(self, library: Path) -> None:
        try:
            loaded = ctypes.CDLL(str(library))
        except OSError as error:
            raise KernelError(f"{library} cannot be loaded: {error}") from error
        self._scan, self._number, self._pack = loaded.scan, loaded.number_texts, loaded.pack_texts
        self._add, self._ask = loaded.filter_add, loaded.filter_ask
        for function in (self._number, self._pack):
            function.restype = ctypes.c_int64
        for function in (self._scan, self._add, self._ask):
            function.restype = None

    def scan(self, payloads: Sequence[bytes]) -> Scanned:
        """Read the payloads. Together they must be shorter than TEXT_BYTES_MAX."""
        count = len(payloads)
        text = b"\0".join([*payloads, b""])
        starts = np.fromiter(
            accumulate(map(len, payloads), lambda at, size: at + size + 1, initial=0), np.uint64, count + 1
        )
        if len(text) > TEXT_BYTES_MAX:
            raise KernelError(f"a batch of {len(text)} bytes")
        longest = int(np.diff(starts).max(initial=0))
        sizes = {
            "blocks": len(text) // _BLOCK_BYTES_MIN + 2,
            "attribute_keys": len(text) // _ATTRIBUTE_BYTES_MIN + 2,
            "attribute_values": len(text) // _ATTRIBUTE_BYTES_MIN + 2,
            "scratch": longest + _SCRATCH_EXTRA,
        }
        columns: dict[str, NDArray[np.generic]] = {
            name: (np.empty if name in sizes else np.zeros)(sizes.get(name, count), kind) for name, kind in _LAYOUT
        }
        pointers = (ctypes.c_void_p * len(columns))(*(array.ctypes.data for array in columns.values()))
        self._scan(ctypes.c_char_p(text), _at(starts), ctypes.c_int64(count), pointers)
        del columns["scratch"]
        return Scanned(text, columns)

    def number(self, text: bytes, spans: NDArray[np.void]) -> tuple[NDArray[np.uint32], list[str]]:
        """Each text's number, in the order of first appearance, and the texts by number."""
        count = len(spans)
        places = 1 << max(4, (2 * count).bit_length())
        table = np.full(places, 0xFFFFFFFF, np.uint32)
        codes, firsts = np.empty(count, np.uint32), np.empty(count, np.uint32)
        found = self._number(
            ctypes.c_char_p(text), _at(spans), ctypes.c_int64(count), _at(table), ctypes.c_uint64(places - 1), _at(codes),
            _at(firsts),
        )  # fmt: skip
        chosen = spans[firsts[:found]]
        return codes, [text[start : start + length].decode() for start, length in chosen.tolist()]

    def add_to_filter(self, blocks: NDArray[np.uint64], identities: bytes) -> None:
        """Note identities, sixteen bytes each, in a filter whose number of blocks (of eight words) is a power of two."""
        self._add(
            _at(blocks), ctypes.c_uint64(len(blocks) // 8 - 1), ctypes.c_char_p(identities),
            ctypes.c_int64(len(identities) // 16),
        )  # fmt: skip

    def ask_filter(self, blocks: NDArray[np.uint64], identities: bytes) -> NDArray[np.bool_]:
        """For each identity, whether it may have been noted; False is sure."""
        maybe = np.empty(len(identities) // 16, np.uint8)
        self._ask(
            _at(blocks), ctypes.c_uint64(len(blocks) // 8 - 1), ctypes.c_char_p(identities), ctypes.c_int64(len(maybe)),
            _at(maybe),
        )  # fmt: skip
        return maybe.view(np.bool_)

    def pack(self, text: bytes, spans: NDArray[np.void]) -> bytes:
        """The texts as ClickHouse's Native format has a String column: each its length (LEB128) and its bytes."""
        into = np.empty(int(spans["length"].sum(dtype=np.uint64)) + 5 * len(spans), np.uint8)
        size = self._pack(ctypes.c_char_p(text), _at(spans), ctypes.c_int64(len(spans)), _at(into))
        return into[:size].tobytes()


def load_kernel(folder: Path) -> Kernel:
    """The kernel, compiled into `folder` unless it is there. Raises KernelError."""
    if sys.byteorder != "little":
        raise KernelError("the kernel needs a little-endian machine")
    source = _SOURCE.read_bytes()
    name = f"kernel-{hashlib.sha256(source).hexdigest()[:16]}.so"
    built = _SOURCE.with_name(name)
    library = built if built.exists() else folder / name
    if not library.exists():
        _compile(source, library)
    return Kernel(library)


def _compile(source: bytes, library: Path) -> None:
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if compiler is None:
        raise KernelError("there is no C compiler (cc, gcc or clang)")
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        made, text = Path(scratch) / library.name, Path(scratch) / "kernel.c"
        text.write_bytes(source)
        command = [*compiler.split(), "-O3", "-shared", "-fPIC", "-o", str(made), str(text)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_SECONDS_MAX, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise KernelError(f"{compiler}: {error}") from error
        if done.returncode != 0:
            raise KernelError(f"{compiler} failed: {done.stderr[-1000:]}")
        made.rename(library)


def _at(array: NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


if __name__ == "__main__":
    load_kernel(_SOURCE.parent)
