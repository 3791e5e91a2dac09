"""vLLM's KV events from its ZMQ socket: read without waiting, in order, with gaps filled by replay or told.

The token ids that the events carry are skipped while decoding; they are never built, kept or sent. The salts are in the
clear in there too, so the socket belongs on an ipc:// path that only the worker's user can open.
"""

import logging
import time
from collections.abc import Iterator
from typing import Any

import msgspec

REPLAY_SECONDS_MAX = 2.0
_END_OF_REPLAY = (-1).to_bytes(8, "big", signed=True)
_log = logging.getLogger(__name__)


class BlockStored(msgspec.Struct, tag=True, gc=False):
    """Blocks were computed, or found in the cache. Unknown fields, the token ids among them, are skipped.

    `medium` is GPU for the engine's own cache (on CPUs too); a KV connector tells of what it keeps under other names.
    """

    block_hashes: list[bytes | int]
    parent_block_hash: bytes | int | None = None
    block_size: int = 0
    group_idx: int | None = None
    session_id: str | None = None
    medium: str | None = None


class BlockRemoved(msgspec.Struct, tag=True, gc=False):
    """Blocks left the cache."""

    block_hashes: list[bytes | int]
    group_idx: int | None = None
    medium: str | None = None


class AllBlocksCleared(msgspec.Struct, tag=True, gc=False):
    """The whole cache was cleared."""


class KvBatch(msgspec.Struct, array_like=True, gc=False):
    """What one step of the engine did to the cache."""

    ts: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]


class Lost(msgspec.Struct, gc=False):
    """Messages that never came, and could not be had again."""

    first: int
    last: int


_DECODER = msgspec.msgpack.Decoder(KvBatch)


class KvSource:
    """A subscription. All calls come from one thread."""

    def __init__(self, address: str, replay_address: str = "") -> None:
        import zmq  # Comes with vLLM.

        self._zmq = zmq
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, 1_000_000)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._socket.connect(address)
        self._replay_address = replay_address
        self._next = 0

    def poll(self) -> Iterator[KvBatch | Lost]:
        """What has come since the last call, in order. Never waits for more (but for a replay, when something is missing)."""
        while True:
            try:
                frames = self._socket.recv_multipart(self._zmq.NOBLOCK)
            except self._zmq.Again:
                return
            sequence = int.from_bytes(frames[1], "big")
            if sequence < self._next:
                if self._next - sequence < 1_000 and sequence:
                    continue
                # The engine began anew.
                yield Lost(0, sequence)
            elif sequence > self._next:
                yield from self._replay(self._next, sequence)
            self._next = sequence + 1
            yield from _decoded(frames[2])

    def close(self) -> None:
        """Let go of the sockets."""
        self._socket.close(linger=0)
        self._context.term()

    def _replay(self, first: int, end: int) -> Iterator[KvBatch | Lost]:
        """The batches from `first` up to before `end`, asked for again; Lost for those that nobody has."""
        had: dict[int, bytes] = {}
        if self._replay_address:
            socket = self._context.socket(self._zmq.DEALER)
            try:
                socket.connect(self._replay_address)
                socket.send_multipart((b"", first.to_bytes(8, "big")))
                deadline = time.monotonic() + REPLAY_SECONDS_MAX
                while (left := deadline - time.monotonic()) > 0 and socket.poll(int(left * 1_000)):
                    frames: list[Any] = socket.recv_multipart()
                    if frames[-2] == _END_OF_REPLAY:
                        break
                    had[int.from_bytes(frames[-2], "big")] = frames[-1]
            finally:
                socket.close(linger=0)
        for sequence in range(first, end):
            if sequence in had:
                yield from _decoded(had[sequence])
            else:
                _log.warning(
                    "KV events %d to %d were lost: blocks of requests then under way are inferred", sequence, end - 1
                )
                yield Lost(sequence, end - 1)
                return


def source_of(kv_events_config: Any) -> KvSource | None:
    """A subscription to what vLLM was started with (--kv-events-config), if it publishes its KV events."""
    if kv_events_config is None or not kv_events_config.enable_kv_cache_events or kv_events_config.publisher != "zmq":
        return None
    replay = kv_events_config.replay_endpoint
    return KvSource(_reached(kv_events_config.endpoint), _reached(replay) if replay else "")


def _reached(bound: str) -> str:
    return bound.replace("*", "127.0.0.1").replace("0.0.0.0", "127.0.0.1")


def _decoded(payload: bytes) -> Iterator[KvBatch | Lost]:
    try:
        yield _DECODER.decode(payload)
    except msgspec.MsgspecError as error:
        _log.warning("a KV event is not as expected: %s", error)
        yield Lost(0, 0)


def as_bytes(block: bytes | int) -> bytes:
    """A block's hash as bytes."""
    return block if isinstance(block, bytes) else block.to_bytes(8, "big")
