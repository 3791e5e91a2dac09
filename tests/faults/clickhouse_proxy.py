"""A proxy in front of ClickHouse that stalls, cuts or delays a chosen request, or is gone altogether.

It forwards each HTTP request whole. A trap waits for an insert of the meter at one place: before anything has reached the
server, with half of the body sent, or after the insert has taken effect and before its answer. What is caught there stands
still until the test lets it go; meanwhile the meter can be killed or stopped at exactly that step.
"""

import http.client
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase

SECONDS_MAX = 120.0
_INSERT = "insert_deduplication_token"


class Place(Enum):
    """Where in an insert the fault strikes."""

    BEFORE = "before the server hears of it"
    MID_BODY = "with half of it sent"
    AFTER = "after it took effect"


@dataclass
class Trap:
    """Catches one insert at a place. Once `released`, the insert goes on, or is cut off where it stands."""

    place: Place
    goes_on: bool = False
    caught: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)

    def await_caught(self) -> None:
        """Wait until an insert stands in it."""
        assert self.caught.wait(SECONDS_MAX), f"no insert came: {self.place}"

    def release(self) -> None:
        """Let it go, and wait until its fate is sealed."""
        self.released.set()
        assert self.done.wait(SECONDS_MAX), f"the insert did not end: {self.place}"


class CutError(ConnectionError):
    """The connection ends here."""


class ClickHouseProxy:
    """Listens on 127.0.0.1:`port`, in threads of this process, for the server on `server_port`."""

    def __init__(self, server_port: int) -> None:
        self.server_port = server_port
        self.delay_seconds = 0.0
        """How much longer every insert takes."""
        self.inserts = 0
        self._away = threading.Event()
        self._changed = threading.Lock()
        self._traps: list[Trap] = []
        self._open: set[socket.socket] = set()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="clickhouse-proxy", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stop(self) -> None:
        """End, and cut what is under way."""
        with self._changed:
            for trap in self._traps:
                trap.released.set()
        self.go_away()
        self._server.shutdown()
        self._server.server_close()

    def url(self, database: str) -> str:
        """The address, as `taximeter_sql.connect` takes it."""
        return f"http://default:@127.0.0.1:{self.port}/{database}"

    def trap(self, place: Place, *, goes_on: bool = False) -> Trap:
        """Catch the next insert at that place."""
        trap = Trap(place, goes_on)
        with self._changed:
            self._traps.append(trap)
        return trap

    def cut(self, place: Place) -> None:
        """Cut the next insert off at that place, without waiting."""
        self.trap(place).released.set()

    def go_away(self) -> None:
        """From now on nobody answers, and open connections are gone."""
        self._away.set()
        with self._changed:
            connections = list(self._open)
        for connection in connections:
            # The handler's thread closes it.
            _shut(connection)

    def come_back(self) -> None:
        """Answer again."""
        self._away.clear()

    def disarm(self) -> None:
        """Take the traps away that nothing has fallen into."""
        with self._changed:
            self._traps.clear()

    @property
    def traps(self) -> int:
        """How many traps nothing has fallen into yet."""
        with self._changed:
            return len(self._traps)

    @property
    def away(self) -> bool:
        """Whether it refuses to answer."""
        return self._away.is_set()

    def next_trap(self, path: str) -> Trap | None:
        """The trap that this request falls into. For the handler."""
        if _INSERT not in path:
            return None
        with self._changed:
            self.inserts += 1
            return self._traps.pop(0) if self._traps else None

    def note(self, connection: socket.socket, is_open: bool) -> None:
        """Keep track of a connection. For the handler."""
        with self._changed:
            (self._open.add if is_open else self._open.discard)(connection)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections break off here all the time: that is what it is for."""


def _handler(proxy: ClickHouseProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server_connection: http.client.HTTPConnection

        def setup(self) -> None:
            super().setup()
            proxy.note(self.connection, True)
            self.server_connection = http.client.HTTPConnection("127.0.0.1", proxy.server_port, timeout=300)

        def finish(self) -> None:
            proxy.note(self.connection, False)
            self.server_connection.close()
            super().finish()

        def do_GET(self) -> None:
            self._forward()

        def do_POST(self) -> None:
            self._forward()

        def _forward(self) -> None:
            body = _read_body(self.headers.get("Transfer-Encoding", ""), self.headers.get("Content-Length"), self.rfile)
            trap = proxy.next_trap(self.path)
            try:
                self._ask(body, trap)
            except (OSError, http.client.HTTPException):
                self.close_connection = True
                _shut(self.connection)
            finally:
                if trap is not None:
                    trap.done.set()

        def _ask(self, body: bytes, trap: Trap | None) -> None:
            self._stop_at(Place.BEFORE, trap)
            if _INSERT in self.path and proxy.delay_seconds:
                time.sleep(proxy.delay_seconds)
            if proxy.away:
                raise CutError
            server = self.server_connection
            server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in {"transfer-encoding", "content-length", "connection"}:
                    server.putheader(name, value)
            server.putheader("Content-Length", str(len(body)))
            server.endheaders()
            half = len(body) // 2
            server.send(body[:half])
            if trap is not None and trap.place is Place.MID_BODY:
                try:
                    self._stop_at(Place.MID_BODY, trap)
                except CutError:
                    server.close()
                    raise
            server.send(body[half:])
            answer = server.getresponse()
            content = answer.read()
            self._stop_at(Place.AFTER, trap)
            if proxy.away:
                raise CutError
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in {"transfer-encoding", "content-length", "connection"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _stop_at(self, place: Place, trap: Trap | None) -> None:
            if trap is None or trap.place is not place:
                return
            trap.caught.set()
            trap.released.wait()
            if not trap.goes_on:
                raise CutError

        def handle(self) -> None:
            if not proxy.away:
                super().handle()

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads them."""

    return Handler


def _read_body(encoding: str, length: str | None, source: BufferedIOBase) -> bytes:
    if encoding.lower() != "chunked":
        return source.read(int(length or 0))
    pieces = []
    while size := int(source.readline().split(b";")[0], 16):
        pieces.append(source.read(size))
        source.readline()
    while source.readline().strip():
        pass
    return b"".join(pieces)


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):  # it may be gone already
        connection.shutdown(socket.SHUT_RDWR)
