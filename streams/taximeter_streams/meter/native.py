"""ClickHouse's Native format: a block of columns, each its name, its type and its values as they lie in memory. Pure."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_DICTIONARY_VERSION = np.uint64(1).tobytes()
_ADDITIONAL_KEYS, _NEW_DICTIONARY = 1 << 9, 1 << 10
_INDEX_TYPES = tuple(map(np.dtype, ("u1", "u2", "u4")))


def leb128(number: int) -> bytes:
    """A whole number as Native writes lengths."""
    out = bytearray()
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def text(value: str) -> bytes:
    """A text: its length in bytes, and the bytes."""
    encoded = value.encode()
    return leb128(len(encoded)) + encoded


class NativeBlock:
    """A block under construction. Columns are added one by one; `parts` are the bytes to send."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._columns: list[bytes] = []
        self._count = 0

    def encoded_with(self, name: str, kind: str, data: bytes) -> bytes:
        """The whole block, with one column more."""
        header = leb128(self._count + 1), leb128(self.rows)
        return b"".join([*header, *self._columns, text(name), text(kind), data])

    def add(self, name: str, kind: str, *data: bytes) -> None:
        """A column whose data are ready."""
        self._count += 1
        self._columns.extend((text(name), text(kind), *data))

    def numbers(self, name: str, kind: str, values: NDArray[np.generic]) -> None:
        """A column of fixed width."""
        self.add(name, kind, values.tobytes())

    def nullable(self, name: str, kind: str, values: NDArray[np.generic], nulls: NDArray[np.generic]) -> None:
        """A column of fixed width with a mark for what is not there."""
        self.add(name, f"Nullable({kind})", nulls.tobytes(), values.tobytes())

    def dictionary(self, name: str, codes: NDArray[np.generic], texts: Sequence[str]) -> None:
        """A LowCardinality(String) column: the different texts once, and a number for each row."""
        width = next(at for at, kind in enumerate(_INDEX_TYPES) if len(texts) < 1 << 8 * kind.itemsize)
        flags = np.uint64(width | _ADDITIONAL_KEYS | _NEW_DICTIONARY)
        self.add(
            name,
            "LowCardinality(String)",
            _DICTIONARY_VERSION,
            flags.tobytes(),
            np.uint64(len(texts)).tobytes(),
            *map(text, texts),
            np.uint64(self.rows).tobytes(),
            codes.astype(_INDEX_TYPES[width]).tobytes(),
        )

    def constant(self, name: str, value: str) -> None:
        """A LowCardinality(String) column with one text throughout."""
        self.dictionary(name, np.zeros(self.rows, np.uint8), [value])
