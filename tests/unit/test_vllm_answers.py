"""Metering by answers alone: what is read from them, what is set in bodies, and how the events are marked."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from taximeter_inference.forwarding import Forwarded
from taximeter_inference.gateway.salt import PoolKeys
from taximeter_inference.vllm.answers import AnswerMeter, AnswerReader, tokens_of
from taximeter_inference.vllm.errors import ForeignAdapterError
from taximeter_inference.vllm.middleware import Middleware
from taximeter_inference.vllm.settings import WorkerSettings
from taximeter_inference.vllm.usage import Origin
from taximeter_producers import UsageProducer
from taximeter_producers.frames import decode_frames
from taximeter_schemas import wire
from taximeter_schemas.events import Outcome

KEYS = PoolKeys(b"a secret of sixteen", "1")
TAGS = Forwarded("acme", "chat", "gateway-1:aa:7", "root-1", "duo")
CHAT = "/v1/chat/completions"


def read(*pieces: bytes) -> tuple[int, int, int, Outcome]:
    """Uncached and cached input, output and outcome of an answer in those pieces."""
    reader = AnswerReader()
    reader.status, reader.ended = 200, True
    for piece in pieces:
        reader.feed(piece)
    usage = reader.usage()
    assert usage is not None
    tokens = tokens_of(usage)
    return tokens.uncached_input, tokens.cache_read.gpu, tokens.output, reader.outcome


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        # one object
        ((b'{"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":3,', b'"completion_tokens":2}}'),
         (3, 0, 2, Outcome.COMPLETED)),
        # a stream that tells its usage with every piece, cut anywhere
        ((b'data: {"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\nda',
          b'ta: {"choices":[{"finish_reason": "length"}],"usage":{"prompt_tokens":3,"completion_tokens":9}}\n\n'),
         (3, 0, 9, Outcome.LENGTH)),
        # messages: the input first, the output last
        ((b'event: message_start\ndata: {"message":{"usage":{"input_tokens":5,"output_tokens":0}}}\n\n',
          b'event: message_delta\ndata: {"usage":{"output_tokens":4}}\n\n'),
         (5, 0, 4, Outcome.COMPLETED)),
        # messages: what came from the cache stands beside the rest
        ((b'event: message_start\ndata: {"message":{"usage":{"input_tokens":70,"output_tokens":0}}}\n\n',
          b'data: {"delta":{"stop_reason":"max_tokens"},"usage":{"input_tokens":4,"output_tokens":9,'
          b'"cache_read_input_tokens":64,"cache_creation_input_tokens":2}}\n\n'),
         (6, 64, 9, Outcome.LENGTH)),
        # responses
        ((b'data: {"type":"response.completed","response":{"usage":{"input_tokens":5,"output_tokens":4}}}\n\n',),
         (5, 0, 4, Outcome.COMPLETED)),
        ((b'{"status":"incomplete","incomplete_details":{"reason":"max_output_tokens"},"usage":{"input_tokens":5,',
          b'"output_tokens":4,"input_tokens_details":{"cached_tokens":3}}}'),
         (2, 3, 4, Outcome.LENGTH)),
    ],
)  # fmt: skip
def test_usage_is_read_from_every_kind_of_answer(
    pieces: tuple[bytes, ...], expected: tuple[int, int, int, Outcome]
) -> None:
    """Whole or as a stream, of every endpoint."""
    assert read(*pieces) == expected


async def ask(meter: AnswerMeter, body: dict[str, Any], answer: list[bytes], tags: Forwarded = TAGS) -> dict[str, Any]:
    """Send a body through the meter to a server that answers so; what the server was sent."""
    sent: dict[str, Any] = {}

    async def server(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        sent.update(json.loads(message["body"]))
        assert dict(scope["headers"])[b"content-length"] == str(len(message["body"])).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for place, piece in enumerate(answer, 1):
            await send({"type": "http.response.body", "body": piece, "more_body": place < len(answer)})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    async def send(message: Any) -> None:
        """To the client."""

    await meter.serve(server, {"path": CHAT, "headers": [(b"content-length", b"1")]}, receive, send, tags)
    return sent


def test_an_event_is_marked_and_the_body_is_salted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The worker's salt goes in, what a client may not say comes out, and the stream is asked for its usage.

    A second event finds the spool full: no more are let in then.
    """
    settings = WorkerSettings(worker_adapters={"lora": ("globex",)})
    producer = UsageProducer(
        bootstrap_servers="127.0.0.1:1", producer_id="w", spool_dir=tmp_path, spool_bytes_max=1_200
    )
    meter = AnswerMeter(producer, settings, KEYS, Origin("w", producer.worker_id, "tiny"))
    usage = (
        b'data: {"usage":{"prompt_tokens":40,"completion_tokens":9,"prompt_tokens_details":{"cached_tokens":32}}}\n\n'
    )
    body = {"model": "tiny", "stream": True, "cache_salt": "x", "priority": 1, "kv_transfer_params": {}}
    sent = asyncio.run(ask(meter, body, [usage, b"data: [DONE]\n\n"]))
    assert sent["cache_salt"] == KEYS.salt("duo", "x")
    assert sent["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert not {"priority", "kv_transfer_params"} & set(sent)
    with pytest.raises(ForeignAdapterError):
        asyncio.run(ask(meter, {"model": "lora"}, [b"{}"]))
    assert meter.has_room()
    asyncio.run(ask(meter, body, [usage, b"data: [DONE]\n\n"]))
    assert not meter.has_room()
    meter.close()
    assert "1 usage events are lost" in caplog.text
    (record,) = [r for path in tmp_path.rglob("*.seg") for r in decode_frames(path.read_bytes())[0]]
    event = wire.decode(record.value)
    tokens = event.data.tokens
    assert (tokens.uncached_input, tokens.cache_read.gpu, tokens.output) == (8, 32, 9)
    assert event.data.attributes["taximeter.counted"] == "middleware"
    assert (event.id, event.source) == ("gateway-1:aa:7", "taximeter-gateway/gateway-1")


def test_a_worker_that_cannot_start_says_so_and_does_not_serve(caplog: pytest.LogCaptureFixture) -> None:
    """One line in the log, and the server is told to end."""
    sent: list[Any] = []

    async def live() -> None:
        class App:
            state = object()

        async def receive() -> dict[str, Any]:
            return {"type": "lifespan.startup"}

        async def send(message: Any) -> None:
            sent.append(message)

        async def app(*_: Any) -> None:
            raise AssertionError("it was served")

        await Middleware(app)({"type": "lifespan", "app": App()}, receive, send)

    asyncio.run(live())
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
    assert caplog.messages == [f"taximeter: this worker does not serve: {sent[0]['message']}"]
    assert "no engine with an output processor" in caplog.text
