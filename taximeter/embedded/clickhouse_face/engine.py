"""The one owner of a chDB directory. Every statement runs on a connection of its own, as it would on a server.

A connection to the running engine costs 0.3 ms, and settings, parameters and the database of one statement cannot leak
into the next one when the connection ends with it. Several statements run side by side; chDB releases the
interpreter's lock while it works.
"""

import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import chdb

from taximeter.embedded.clickhouse_face.failures import UNKNOWN_SETTING, FaceError, from_engine, refusal

_LAST_ERROR = """SELECT concat('Code: ', toString(code), '. DB::Exception: ', last_error_message, ' (', name, ')')
FROM system.errors WHERE query_id = queryID() AND NOT remote LIMIT 1"""
_SETTING_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")


class _Result(Protocol):
    def bytes(self) -> bytes: ...
    def rows_read(self) -> int: ...
    def rows_written(self) -> int: ...
    def bytes_written(self) -> int: ...
    def storage_rows_read(self) -> int: ...
    def storage_bytes_read(self) -> int: ...
    def elapsed(self) -> float: ...


class _ResultStream(Protocol):
    def fetch(self) -> _Result | None: ...
    def cancel(self) -> None: ...


class _InsertCounts(Protocol):
    rows_written: int
    bytes_written: int
    elapsed: float


class _Inserter(Protocol):
    def append(self, data: bytes) -> None: ...
    def finish(self) -> _InsertCounts: ...
    def cancel(self) -> None: ...


class _Connection(Protocol):
    def query(self, query: bytes | str, format: str, params: Mapping[str, str]) -> _Result: ...
    def send_query(self, query: bytes | str, format: str, params: Mapping[str, str]) -> _ResultStream: ...
    def send_insert(self, query: str, format: str) -> _Inserter: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Session:
    """What surrounds a statement: its database, its settings and its bound parameters (escaped as in TabSeparated)."""

    database: str = "default"
    settings: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Summary:
    """What a statement read and wrote; a written row counts again for each materialized view that it reaches."""

    read_rows: int = 0
    read_bytes: int = 0
    written_rows: int = 0
    written_bytes: int = 0
    result_rows: int = 0
    elapsed_ns: int = 0


class ResultPieces:
    """A result that the engine still works on. Read it to its end or close it; both are safe from any thread."""

    def __init__(self, connection: _Connection, stream: _ResultStream) -> None:
        self._connection = connection
        self._stream = stream
        self._lock = threading.Lock()
        self._closed = False
        self._first: bytes | None = None

    def prefetch(self) -> None:
        """Wait for the first piece, so that an error that comes before it can still be told by the status."""
        self._first = self.next_piece()

    def next_piece(self) -> bytes:
        """The next piece, empty at the end. Raises FaceError."""
        with self._lock:
            if self._closed:
                return b""
            if self._first is not None:
                first, self._first = self._first, None
                return first
            try:
                result = self._stream.fetch()
            except Exception as error:
                raise from_engine(error) from error
            return result.bytes() if result is not None else b""

    def close(self) -> None:
        """Give up what has not been read."""
        with self._lock:
            if not self._closed:
                self._closed = True
                try:
                    self._stream.cancel()
                finally:
                    self._connection.close()


class Engine:
    """A running engine on a directory. Thread-safe. Raises FaceError at start when another process has the directory."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._path = str(path.resolve())
        # What one insert met with at its end is read before the next one can take its place in the engine's record.
        self._one_ends = threading.Lock()
        # The engine lives as long as one connection is open.
        self._anchor = self._connect()

    def close(self) -> None:
        """Let the directory go. Statements must have ended."""
        self._anchor.close()

    def version(self) -> str:
        """ClickHouse's version."""
        return self._anchor.query("SELECT version()", "TabSeparatedRaw", {}).bytes().decode().strip()

    def query(self, sql: bytes, output_format: str, session: Session) -> tuple[bytes, Summary]:
        """Run a statement and return its whole result. A FORMAT in the text wins over `output_format`."""
        with self._session(session) as connection:
            result = connection.query(sql, output_format, dict(session.parameters))
            return result.bytes() or b"", _summary(result)

    def stream(self, sql: bytes, output_format: str, session: Session) -> ResultPieces:
        """Start a SELECT whose result is read piece by piece. Only for formats without a head or foot of their own."""
        connection = self._connect()
        try:
            _prepare(connection, session)
            pieces = ResultPieces(connection, connection.send_query(sql, output_format, dict(session.parameters)))
            pieces.prefetch()
            return pieces
        except Exception as error:
            connection.close()
            raise error if isinstance(error, FaceError) else from_engine(error) from error

    def insert(self, sql: bytes, data_format: str, pieces: Iterable[bytes], session: Session) -> Summary:
        """Run an INSERT on the data in `pieces`. Nothing is written when they break off or do not parse."""
        with self._session(session) as connection:
            for name, value in session.parameters.items():
                connection.query(f"SET param_{_checked(name)} = {_literal(value)}", "Null", {})
            inserter = connection.send_insert(sql.decode(), data_format)
            try:
                for piece in pieces:
                    inserter.append(piece)
                with self._one_ends:
                    counts = inserter.finish()
                    unsaid = _unsaid(connection)
            except BaseException:
                inserter.cancel()
                raise
            if unsaid:
                raise from_engine(RuntimeError(unsaid))
            return Summary(
                written_rows=counts.rows_written,
                written_bytes=counts.bytes_written,
                elapsed_ns=int(counts.elapsed * 1e9),
            )

    @contextmanager
    def _session(self, session: Session) -> Iterator[_Connection]:
        connection = self._connect()
        try:
            _prepare(connection, session)
            yield connection
        except FaceError:
            raise
        except Exception as error:  # chDB raises RuntimeError and its own type alike
            raise from_engine(error) from error
        finally:
            connection.close()

    def _connect(self) -> _Connection:
        connect: Any = chdb.connect  # typed in some of its releases only
        try:
            return cast(_Connection, connect(self._path))
        except RuntimeError as error:
            raise from_engine(error) from error


def _prepare(connection: _Connection, session: Session) -> None:
    connection.query(f"USE {_identifier(session.database)}", "Null", {})
    if session.settings:
        pairs = ", ".join(f"{_checked(name)} = {_literal(value)}" for name, value in session.settings.items())
        connection.query(f"SET {pairs}", "Null", {})


def _unsaid(connection: _Connection) -> str:
    """What the insert before met with at its very end, or nothing: chDB's `finish` returns as if all were well.

    A full disk and a view that throws are such errors. The engine's own record of errors names the statement by its id, which
    all statements of a connection share. It keeps the last error of each kind alone.
    """
    return connection.query(_LAST_ERROR, "TabSeparatedRaw", {}).bytes().decode().strip()


def _checked(name: str) -> str:
    if not _SETTING_NAME.fullmatch(name):
        raise refusal(UNKNOWN_SETTING, f"Unknown setting '{name}'.", "UNKNOWN_SETTING")
    return name


def _literal(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _identifier(name: str) -> str:
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def _summary(result: _Result) -> Summary:
    return Summary(
        read_rows=result.storage_rows_read(),
        read_bytes=result.storage_bytes_read(),
        written_rows=result.rows_written(),
        written_bytes=result.bytes_written(),
        result_rows=result.rows_read(),
        elapsed_ns=int(result.elapsed() * 1e9),
    )
