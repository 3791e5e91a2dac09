"""An HTTP request to a ClickHouse server, read: which statement, on which database, with which settings and parameters."""

import base64
import binascii
import hmac
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import IO

from taximeter.embedded.clickhouse_face.bodies import read_form, read_pieces
from taximeter.embedded.clickhouse_face.engine import Session
from taximeter.embedded.clickhouse_face.failures import AUTHENTICATION_FAILED, NOT_IMPLEMENTED, refusal
from taximeter.embedded.clickhouse_face.statements import HEAD_BYTES_MAX, Insert, is_insert, read_insert

# What a server reads from the address itself; the engine has no such settings.
_TRANSPORT = frozenset(
    {
        *("query", "database", "default_format", "user", "password", "query_id", "quota_key", "role", "buffer_size"),
        *("session_id", "session_timeout", "session_check", "close_session", "stacktrace", "compress", "decompress"),
        *("wait_end_of_query", "client_protocol_version", "send_progress_in_http_headers"),
        *("http_headers_progress_interval_ms", "enable_http_compression", "http_zlib_compression_level"),
        *("cancel_http_readonly_queries_on_client_close", "add_http_cors_header"),
    }
)
_PARAMETER = "param_"


@dataclass(frozen=True, slots=True)
class Credentials:
    """The user and password that every request must bring. Without a password everybody is let in."""

    user: str = "default"
    password: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """What the interface needs of an HTTP request. Header names are in lower case."""

    method: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: IO[bytes]

    @property
    def default_format(self) -> str | None:
        """The format that the request names beside its statement."""
        return self.query.get("default_format") or self.headers.get("x-clickhouse-format")

    @property
    def waits(self) -> bool:
        """Whether the client wants the status to tell the outcome, so that nothing is sent before the end."""
        return self.query.get("wait_end_of_query") == "1"


@dataclass(frozen=True, slots=True)
class InsertRequest:
    """An INSERT and the data it brings."""

    insert: Insert
    pieces: Iterator[bytes]
    session: Session


@dataclass(frozen=True, slots=True)
class QueryRequest:
    """Any other statement, whole."""

    sql: bytes
    session: Session


def authorize(request: Request, wanted: Credentials) -> None:
    """Compare the credentials in headers or address. Raises FaceError (516) when they differ."""
    if not wanted.password:
        return
    user, password = _credentials(request)
    same_user = hmac.compare_digest(user.encode(), wanted.user.encode())
    if not (hmac.compare_digest(password.encode(), wanted.password.encode()) and same_user):
        text = f"{user}: Authentication failed: password is incorrect, or there is no user with such name."
        raise refusal(AUTHENTICATION_FAILED, text, "AUTHENTICATION_FAILED")


def read_statement(request: Request) -> InsertRequest | QueryRequest:
    """The request's statement. Raises FaceError for a damaged body and for what the face does not do."""
    query = dict(request.query)
    if "1" in (query.get("compress"), query.get("decompress")):
        raise refusal(NOT_IMPLEMENTED, "Use Content-Encoding instead of compress and decompress", "NOT_IMPLEMENTED")
    pieces = read_pieces(request.body, request.headers.get("content-encoding", "").lower())
    content_type = request.headers.get("content-type", "")
    if content_type.startswith("multipart/form-data"):
        query |= read_form(b"".join(pieces), content_type)
        pieces = iter(())
    session = _session(request, query)
    text = query.get("query", "").encode()
    head, rest = _head(text, pieces)
    if is_insert(head):
        insert = read_insert(head, request.default_format)
        if insert is not None:
            return InsertRequest(insert, chain((head[insert.data_offset :],), rest), session)
    return QueryRequest(b"".join((head, *rest)), session)


def _head(text: bytes, pieces: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """Enough of the statement to see what it is, and what follows. A server puts a line end between address and body."""
    first = next(pieces, b"")
    head = b"\n".join(part for part in (text, first) if part)
    while len(head) < HEAD_BYTES_MAX and (piece := next(pieces, b"")):
        head += piece
    return head, pieces


def _session(request: Request, query: Mapping[str, str]) -> Session:
    settings = {
        name: value for name, value in query.items() if name not in _TRANSPORT and not name.startswith(_PARAMETER)
    }
    if request.method != "POST":
        # As on a server: a GET changes nothing.
        settings["readonly"] = "2"
    return Session(
        database=query.get("database") or request.headers.get("x-clickhouse-database") or "default",
        settings=settings,
        parameters={name[len(_PARAMETER) :]: value for name, value in query.items() if name.startswith(_PARAMETER)},
    )


def _credentials(request: Request) -> tuple[str, str]:
    headers = request.headers
    if "x-clickhouse-user" in headers or "x-clickhouse-key" in headers:
        return headers.get("x-clickhouse-user", "default"), headers.get("x-clickhouse-key", "")
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            user, _, password = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return "", ""
        return user, password
    return request.query.get("user", "default"), request.query.get("password", "")
