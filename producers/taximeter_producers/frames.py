"""How records lie in a spool's segment: a frame is the body's length, its CRC-32, and the body (key length, key, value).

Pure. A crash can leave half a frame at the end of a segment; such a tail was never acknowledged and is left out. A frame
whose checksum differs is damage, and reading stops there: what follows cannot be told from noise.
"""

import struct
from dataclasses import dataclass
from enum import StrEnum
from zlib import crc32

_HEADER = struct.Struct("<II")
_KEY_LENGTH = struct.Struct("<H")
FRAME_BYTES_OVERHEAD = _HEADER.size + _KEY_LENGTH.size


@dataclass(frozen=True, slots=True)
class SpoolRecord:
    """A message on its way to the log. The key is at most 65,535 bytes."""

    key: bytes
    value: bytes

    @property
    def frame_bytes(self) -> int:
        """How many bytes its frame takes on disk."""
        return FRAME_BYTES_OVERHEAD + len(self.key) + len(self.value)


class Ending(StrEnum):
    """How a segment ends: with a whole frame, in the middle of one, or with a frame that does not match its checksum."""

    CLEAN = "clean"
    TORN = "torn"
    DAMAGED = "damaged"


def encode_frame(record: SpoolRecord) -> bytes:
    """The record's frame."""
    body = _KEY_LENGTH.pack(len(record.key)) + record.key + record.value
    return _HEADER.pack(len(body), crc32(body)) + body


def decode_frames(segment: bytes) -> tuple[list[SpoolRecord], int, Ending]:
    """The whole records of a segment, how many bytes they take, and how the segment ends."""
    records: list[SpoolRecord] = []
    position = 0
    while position < len(segment):
        body_start = position + _HEADER.size
        if body_start > len(segment):
            return records, position, Ending.TORN
        length, checksum = _HEADER.unpack_from(segment, position)
        body = segment[body_start : body_start + length]
        if len(body) < length:
            return records, position, Ending.TORN
        if length < _KEY_LENGTH.size or crc32(body) != checksum:
            return records, position, Ending.DAMAGED
        (key_length,) = _KEY_LENGTH.unpack_from(body)
        value_start = _KEY_LENGTH.size + key_length
        records.append(SpoolRecord(body[_KEY_LENGTH.size : value_start], body[value_start:]))
        position = body_start + length
    return records, position, Ending.CLEAN
