"""vLLM's own publisher of KV events, and a worker's end of it that comes late: `python kv_losses.py`, in vLLM's environment.

Prints, as JSON, the attribution of a request whose blocks were told in messages that had to be asked for again: first with
vLLM keeping enough of them, then with too few, then of a request after the loss.
"""

import json
import time
from tempfile import mkdtemp

from vllm.distributed.kv_events import MEDIUM_GPU, BlockStored, KVEventBatch, ZmqEventPublisher
from vllm.v1.metrics.stats import RequestStateStats

from taximeter_inference.forwarding import Forwarded
from taximeter_inference.gateway.salt import PoolKeys
from taximeter_inference.vllm.block_join import BlockJoin
from taximeter_inference.vllm.exchange import ClosedSequence, Part
from taximeter_inference.vllm.kv_source import KvSource

BLOCK_SIZE, BLOCKS, LATER = 16, 6, 3
SECONDS_MAX = 60.0


def stored(session: str, number: int) -> KVEventBatch:
    """A block of a prompt, stored for a sequence."""
    parent = bytes([number - 1]) * 32 if number else None
    block = BlockStored(
        [bytes([number]) * 32], parent, [1] * BLOCK_SIZE, BLOCK_SIZE, None, MEDIUM_GPU, None, session_id=session
    )
    return KVEventBatch(time.time(), [block])


def part_of(session: str) -> Part:
    """The request that they were stored for."""
    tags = Forwarded("acme", "chat", session, session, "duo")
    closed = ClosedSequence(session, session, 0, None, "stop", BLOCKS * BLOCK_SIZE, 0, 1, RequestStateStats())
    return Part(tags, "/v1/completions", False, 0, 0, [closed], 0.0)


def attributions(kept: int) -> list[str]:
    """Of a request, half of whose messages came before the worker listened, and of one after it."""
    address = f"ipc://{mkdtemp()}/kv"
    publisher = ZmqEventPublisher(0, address, f"{address}-replay", buffer_steps=kept)
    keys = PoolKeys(b"a secret of sixteen", "1")
    found = []
    try:
        for number in range(BLOCKS - LATER):
            publisher.publish(stored("one", number))
        time.sleep(0.5)
        source = KvSource(address, f"{address}-replay")
        join = BlockJoin(source.poll, keys)
        join.expect("one", "acme", "duo")
        # Until the subscription stands, what is published is lost as well.
        time.sleep(1.0)
        for number in range(BLOCKS - LATER, BLOCKS):
            publisher.publish(stored("one", number))
        for session in ("one", "two"):
            if session == "two":
                join.expect(session, "acme", "duo")
                for number in range(BLOCKS):
                    publisher.publish(stored(session, number))
            deadline = time.monotonic() + SECONDS_MAX
            while (report := join.report(part_of(session), False)) is None and time.monotonic() < deadline:
                time.sleep(0.02)
            found.append(str(report.attribution) if report else "none in time")
        source.close()
    finally:
        publisher.shutdown()
    return found


if __name__ == "__main__":
    print("SAID " + json.dumps({"enough": attributions(100), "too few": attributions(1)}))
