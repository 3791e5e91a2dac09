"""Liveness, readiness and metrics over HTTP, in a thread beside a service that is not itself a web service."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

Ready = Callable[[], tuple[bool, dict[str, object]]]
Answer = Callable[[str], dict[str, Any] | None]


class HealthServer:
    """Serves /healthz and /readyz (200 when `alive` and `ready` say so, else 503 with the state) and /metrics.

    `answer` may add pages of JSON: it gets the path with its query and returns a body, or None when it knows no such page.
    """

    def __init__(
        self,
        host: str,
        port: int,
        ready: Ready,
        answer: Answer = lambda _path: None,
        alive: Ready = lambda: (True, {}),
    ) -> None:
        self._server = ThreadingHTTPServer((host, port), _handler(ready, answer, alive))
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(ready: Ready, answer: Answer, alive: Ready) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/healthz":
                is_alive, state = alive()
                self._send(200 if is_alive else 503, {"status": "alive" if is_alive else "stuck", **state})
            elif self.path == "/readyz":
                is_ready, state = ready()
                self._send(200 if is_ready else 503, {"ready": is_ready, **state})
            elif self.path == "/metrics":
                self._write(200, CONTENT_TYPE_LATEST, generate_latest())
            elif (page := answer(self.path)) is not None:
                self._send(200, page)
            else:
                self._send(404, {"error": "no such page"})

        def _send(self, status: int, body: dict[str, Any]) -> None:
            self._write(status, "application/json", json.dumps(body).encode())

        def _write(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Probes every few seconds are not worth a line each."""

    return Handler
