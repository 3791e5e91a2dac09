"""The Stripe double in a thread of the test, with a judge that compares every exchange with Stripe's published contract."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from taximeter.embedded.ports import free_port
from taximeter_billing.payments.double.forms import parse_form
from taximeter_billing.payments.double.store import Store
from taximeter_billing.payments.double.web import StripeDouble
from tests.stripe_contract import answer_problems, request_problems


@dataclass
class JudgedDouble:
    """A running double: its address, the double itself, how many exchanges were judged, and what was wrong with them."""

    url: str
    double: StripeDouble
    judged: int = 0
    problems: list[str] = field(default_factory=list)


class _Judge:
    """ASGI middleware: lets everything pass and notes what the contract has against it."""

    def __init__(self, app: ASGIApp, found: JudgedDouble) -> None:
        self._app = app
        self._found = found

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        sent, answered = bytearray(), bytearray()
        status = 0

        async def listen() -> Message:
            message = await receive()
            sent.extend(message.get("body", b""))
            return message

        async def tell(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            answered.extend(message.get("body", b""))
            # Judged before the client has it, so a test that ends knows all. What a planned fault cut off is not judged.
            if message["type"] == "http.response.body" and not message.get("more_body"):
                text = bytes(sent).decode() if scope["method"] == "POST" else scope["query_string"].decode()
                self._judge(scope["method"], scope["path"], text, status, bytes(answered))
            await send(message)

        await self._app(scope, listen, tell)

    def _judge(self, method: str, path: str, text: str, status: int, answer: bytes) -> None:
        try:
            problems = answer_problems(method, path, json.loads(answer), status)
            if status == 200:  # what is refused may be wrong on purpose
                problems += request_problems(method, path, parse_form(text))
        except KeyError as error:
            problems = [] if status == 404 else [str(error)]  # an address that Stripe does not have
        self._found.judged += 1
        self._found.problems += [f"{method} {path}: {problem}" for problem in problems]


@contextmanager
def judged_double(data: Path) -> Iterator[JudgedDouble]:
    """Run the double on a free port until the block ends."""
    port = free_port()
    double = StripeDouble(Store(data))
    found = JudgedDouble(f"http://127.0.0.1:{port}", double)
    config = uvicorn.Config(
        _Judge(double.app(), found), host="127.0.0.1", port=port, log_level="critical", lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline, "the double did not start"
        time.sleep(0.01)
    try:
        yield found
    finally:
        server.should_exit = True
        thread.join(30)
        double.close()
