"""Request bodies: kept aside whole before the engine sees them, then read piece by piece, decompressed.

Whole, because a client that goes away in the middle of an INSERT must leave nothing behind; piece by piece, because an
INSERT of hundreds of megabytes must not stand in memory several times.
"""

import gzip
import sys
import tempfile
import zlib
from collections.abc import AsyncIterator, Iterator
from email.message import Message
from email.parser import BytesParser
from typing import IO, Protocol

import lz4.frame  # type: ignore[import-untyped]

from taximeter.embedded.clickhouse_face.failures import (
    CANNOT_DECOMPRESS,
    NOT_IMPLEMENTED,
    UNKNOWN_COMPRESSION_METHOD,
    refusal,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MEMORY_BYTES_MAX = 16 << 20
"""A larger body goes to a temporary file."""

PIECE_BYTES = 1 << 20


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


async def spooled(pieces: AsyncIterator[bytes]) -> IO[bytes]:
    """The whole body, in memory or in a temporary file, ready to be read from its beginning. The caller closes it."""
    spool: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES_MAX)  # noqa: SIM115 (the caller closes it)
    try:
        async for piece in pieces:
            spool.write(piece)
    except BaseException:
        spool.close()
        raise
    spool.seek(0)
    return spool


def read_pieces(body: IO[bytes], encoding: str) -> Iterator[bytes]:
    """The body's pieces as its Content-Encoding says. Raises FaceError for a damaged or unknown encoding."""
    try:
        match encoding:
            case "" | "identity":
                yield from _pieces_of(body)
            case "lz4":
                with lz4.frame.LZ4FrameFile(body) as file:
                    yield from _pieces_of(file)
            case "zstd":
                with zstd.ZstdFile(body) as file:
                    yield from _pieces_of(file)
            case "gzip":
                with gzip.GzipFile(fileobj=body, mode="rb") as file:
                    yield from _pieces_of(file)
            case "deflate":
                yield from _inflated(body)
            case _:
                raise refusal(
                    UNKNOWN_COMPRESSION_METHOD,
                    f"Unknown compression method: {encoding}",
                    "UNKNOWN_COMPRESSION_METHOD",
                )
    except (EOFError, OSError, RuntimeError, zlib.error, zstd.ZstdError) as error:
        text = f"Cannot decompress the body ({encoding}): {error}"
        raise refusal(CANNOT_DECOMPRESS, text, "CANNOT_DECOMPRESS") from error


def read_form(body: bytes, content_type: str) -> dict[str, str]:
    """The text fields of a multipart form. Raises FaceError for a form that carries files (external tables)."""
    header = f"Content-Type: {content_type}\r\n\r\n".encode()
    message: Message = BytesParser().parsebytes(header + body)
    fields = {}
    for part in message.walk():
        if part.is_multipart():
            continue
        name = part.get_param("name", header="content-disposition")
        if part.get_filename() is not None or not isinstance(name, str):
            raise refusal(NOT_IMPLEMENTED, "External tables are not supported here", "NOT_IMPLEMENTED")
        content = part.get_payload(decode=True)
        fields[name] = content.decode() if isinstance(content, bytes) else ""
    return fields


def _pieces_of(file: _Readable) -> Iterator[bytes]:
    while piece := file.read(PIECE_BYTES):
        yield bytes(piece)


def _inflated(body: IO[bytes]) -> Iterator[bytes]:
    inflate = zlib.decompressobj()
    for piece in _pieces_of(body):
        yield inflate.decompress(piece)
    if not inflate.eof:
        raise EOFError("the body ends too early")
    yield inflate.flush()
