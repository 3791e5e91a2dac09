"""A model server that answers at once: the upstream of both gateways in a comparison, one process, as fast as can be.

It speaks as much of OpenAI's protocol as the comparison needs. Prompts and answers are made of whole words, a token each;
`GET /set?...` changes how it answers, `GET /stats` says what it truly served: the tokens that left it, and no others.
"""

import argparse
import asyncio
import json
import os
import re
from dataclasses import dataclass, fields
from typing import cast
from urllib.parse import parse_qsl, urlsplit

import uvloop

WORD = "token "
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_MAX_TOKENS = re.compile(rb'"max_(?:completion_)?tokens": *(\d+)')


@dataclass
class Manner:
    """How it answers. A prompt counts its words times `prompt_factor`; times are in ms; `tokenizer` 0 takes /tokenize away."""

    output_tokens: int = 16
    prompt_factor: int = 1
    delay_ms: int = 0
    chunk_ms: int = 0
    tokenizer: int = 1


@dataclass
class Served:
    """What left it since the start."""

    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0


MANNER, SERVED = Manner(), Served()


class Connection(asyncio.Protocol):
    """One kept-alive connection; a request at a time, as HTTP/1.1 clients do without pipelining."""

    def __init__(self) -> None:
        self._pending = b""
        self._answering: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # uvloop's transports are none of asyncio's classes, and have their methods.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left: nothing more is made."""
        if self._answering is not None:
            self._answering.cancel()

    def data_received(self, data: bytes) -> None:
        """Answer as soon as a request is whole."""
        self._pending += data
        while (end := self._pending.find(b"\r\n\r\n")) >= 0:
            head = self._pending[:end]
            length = _LENGTH.search(head)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self._pending) < whole:
                return
            body, self._pending = self._pending[end + 4 : whole], self._pending[whole:]
            self._answer(head.split(b" ", 2)[1].decode(), body)

    def _answer(self, target: str, body: bytes) -> None:
        path = target.partition("?")[0]
        if path.endswith("/chat/completions"):
            self._chat(body)
        elif path == "/tokenize" and MANNER.tokenizer:
            self._send({"count": prompt_tokens(body), "max_model_len": 1_000_000, "tokens": []})
        elif path == "/set":
            for name, value in parse_qsl(urlsplit(target).query):
                setattr(MANNER, name, int(value))
            self._send({})
        elif path == "/stats":
            self._send({held.name: getattr(SERVED, held.name) for held in fields(SERVED)})
        elif path in ("/health", "/v1/models"):
            self._send({"object": "list", "data": []})
        else:
            self._send({"error": "no such route"}, b"404 Not Found")

    def _chat(self, body: bytes) -> None:
        asked = _MAX_TOKENS.search(body)
        prompt = prompt_tokens(body)
        output = min(MANNER.output_tokens, int(asked[1])) if asked else MANNER.output_tokens
        finish = "length" if output < MANNER.output_tokens else "stop"
        SERVED.requests += 1
        if b'"stream":true' in body.replace(b" ", b"")[-4_000:]:
            self._answering = asyncio.ensure_future(self._stream(prompt, output, finish))
        elif MANNER.delay_ms:
            self._answering = asyncio.ensure_future(self._later(prompt, output, finish))
        else:
            self._whole(prompt, output, finish)

    async def _later(self, prompt: int, output: int, finish: str) -> None:
        await asyncio.sleep(MANNER.delay_ms / 1_000)
        self._whole(prompt, output, finish)

    def _whole(self, prompt: int, output: int, finish: str) -> None:
        SERVED.prompt_tokens += prompt
        SERVED.output_tokens += output
        message = {"role": "assistant", "content": WORD * output}
        choice = {"index": 0, "message": message, "finish_reason": finish}
        self._send({**_envelope("chat.completion"), "choices": [choice], "usage": _usage(prompt, output)})

    async def _stream(self, prompt: int, output: int, finish: str) -> None:
        await asyncio.sleep(MANNER.delay_ms / 1_000)
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        self._transport.write(head)
        SERVED.prompt_tokens += prompt
        for number in range(output):
            delta = {"role": "assistant", "content": WORD} if number == 0 else {"content": WORD}
            self._event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
            SERVED.output_tokens += 1
            # A turn of the loop for each token, as a real server takes.
            await asyncio.sleep(MANNER.chunk_ms / 1_000)
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        self._event({"choices": [], "usage": _usage(prompt, output)})
        self._transport.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    def _event(self, fields_: dict[str, object]) -> None:
        event = b"data: " + json.dumps({**_envelope("chat.completion.chunk"), **fields_}).encode() + b"\n\n"
        self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))

    def _send(self, content: dict[str, object], status: bytes = b"200 OK") -> None:
        body = json.dumps(content).encode()
        self._transport.write(
            b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)
        )


def prompt_tokens(body: bytes) -> int:
    """The words of all messages (or of the prompt), times the factor."""
    request = json.loads(body)
    texts = [message["content"] for message in request.get("messages", [])] or [request.get("prompt", "")]
    return MANNER.prompt_factor * sum(len(text.split()) for text in texts if isinstance(text, str))


def _envelope(kind: str) -> dict[str, object]:
    return {"id": "chatcmpl-0", "object": kind, "created": 1, "model": "fake"}


def _usage(prompt: int, output: int) -> dict[str, object]:
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port, backlog=4_096)
    await server.serve_forever()


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--cpu", type=int, default=None)
    arguments = parser.parse_args()
    if arguments.cpu is not None:
        os.sched_setaffinity(0, {arguments.cpu})
    uvloop.run(_serve(arguments.port))


if __name__ == "__main__":
    main()
