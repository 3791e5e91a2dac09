"""Reads a block in ClickHouse's Native format back into lists, for tests."""

import io
import struct
from datetime import UTC, datetime, timedelta
from typing import Any

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FORMATS = {"UInt8": "B", "UInt16": "H", "UInt32": "I", "UInt64": "Q", "Int64": "q", "Float32": "f", "Float64": "d"}


def read_block(block: bytes) -> dict[str, list[Any]]:
    """The columns by name. Raises AssertionError when something is left over."""
    source = io.BytesIO(block)
    columns, rows = _number(source), _number(source)
    read = {}
    for _ in range(columns):
        name, kind = _text(source), _text(source)
        read[name] = _column(source, kind, rows)
    assert not source.read()
    return read


def _column(source: io.BytesIO, kind: str, rows: int) -> list[Any]:
    if kind in _FORMATS:
        return _fixed(source, _FORMATS[kind], rows)
    if kind == "String":
        return [_text(source) for _ in range(rows)]
    if kind == "FixedString(16)":
        return [source.read(16) for _ in range(rows)]
    if kind == "Nullable(Float32)":
        nulls = source.read(rows)
        return [None if null else value for null, value in zip(nulls, _fixed(source, "f", rows), strict=True)]
    if kind == "LowCardinality(String)":
        version, flags, count = _fixed(source, "Q", 3)
        assert version == 1
        texts = [_text(source) for _ in range(count)]
        assert len(set(texts)) == count
        assert _fixed(source, "Q", 1) == [rows]
        return [texts[code] for code in _fixed(source, "BHI"[flags & 255], rows)]
    if kind.startswith("DateTime64("):
        unit = timedelta(microseconds=10 ** (6 - int(kind[11])))
        return [_EPOCH + number * unit for number in _fixed(source, "q", rows)]
    if kind.startswith("Enum8("):
        pairs = [part.split(" = ") for part in kind[6:-1].split(", ")]
        names = {int(number): name.strip("'") for name, number in pairs}
        return [names[number] for number in source.read(rows)]
    ends = _fixed(source, "Q", rows)
    total = ends[-1] if ends else 0
    bounds = list(zip([0, *ends], ends, strict=False))
    first = [_text(source) for _ in range(total)]
    if kind == "Array(String)":
        return [first[start:end] for start, end in bounds]
    assert kind == "Map(String, String)"
    second = [_text(source) for _ in range(total)]
    return [dict(zip(first[start:end], second[start:end], strict=True)) for start, end in bounds]


def _fixed(source: io.BytesIO, letter: str, count: int) -> list[Any]:
    return list(struct.unpack(f"<{count}{letter}", source.read(count * struct.calcsize(letter))))


def _number(source: io.BytesIO) -> int:
    number, shift = 0, 0
    while True:
        (byte,) = source.read(1)
        number |= (byte & 127) << shift
        if byte < 128:
            return number
        shift += 7


def _text(source: io.BytesIO) -> str:
    return source.read(_number(source)).decode()
