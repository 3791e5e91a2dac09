"""A model server that does not do what it is told: streams beyond max_tokens, keeps silent, fails a few times, counts more."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

ANSWER_TOKENS = 500


class StubbornUpstream:
    """Serves on a port of its own. `headers` are those of the last request, `failures` how many more requests fail,
    `tokenizes` whether it has /tokenize.

    It answers the model "beyond" with ANSWER_TOKENS whatever the bound, "silent" never, "more" with 7 prompt tokens more
    than its tokenizer counts.
    """

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.failures = 0
        self.tokenizes = True
        self.prompts = 0
        self.left = threading.Event()
        self.stopping = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if self.path == "/tokenize":
                    known = outer.tokenizes
                    self._send(200 if known else 404, {"count": 5} if known else {"detail": "Not Found"})
                    return
                outer.headers = {name.lower(): value for name, value in self.headers.items()}
                outer.prompts += 1
                if outer.failures:
                    outer.failures -= 1
                    self._send(500, {"error": {"message": "out of memory"}})
                elif body["model"] == "silent":
                    outer.stopping.wait(60)
                elif body.get("stream"):
                    self._stream()
                else:
                    more = 7 if body["model"] == "more" else 0
                    usage = {"prompt_tokens": 5 + more, "completion_tokens": 2}
                    choice = {"index": 0, "message": {"content": "a b"}, "finish_reason": "stop"}
                    self._send(200, {"choices": [choice], "usage": usage})

            def _send(self, status: int, content: object) -> None:
                payload = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def _stream(self) -> None:
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("connection", "close")
                self.end_headers()
                try:
                    for number in range(1, ANSWER_TOKENS + 1):
                        usage = {"prompt_tokens": 5, "completion_tokens": number}
                        choice = {"index": 0, "delta": {"content": f"w{number} "}, "finish_reason": None}
                        chunk = json.dumps({"id": "c", "choices": [choice], "usage": usage})
                        self.wfile.write(f"data: {chunk}\n\n".encode())
                        time.sleep(0.001)
                    self.wfile.write(b"data: [DONE]\n\n")
                except OSError:
                    outer.left.set()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
