"""Writes down what vLLM says about its cache, as it says it: `python kv_recorder.py ADDRESS FILE`, in vLLM's environment.

One JSON object a line: a batch's time and its events, hashes as text, token ids left out.
"""

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import zmq


def plain(value: Any) -> Any:
    """A hash as text."""
    return value.hex() if isinstance(value, bytes) else value if value is None else str(value)


def main(address: str, path: Path) -> None:
    """Write until killed."""
    socket = zmq.Context().socket(zmq.SUB)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.connect(address)
    with path.open("w") as file:
        while True:
            _, _, payload = socket.recv_multipart()
            _, events, *_ = msgspec.msgpack.decode(payload)
            for event in events:
                kept = {name: event.get(name) for name in ("type", "parent_block_hash", "session_id")}
                kept["parent_block_hash"] = plain(kept["parent_block_hash"])
                kept["block_hashes"] = [plain(block) for block in event.get("block_hashes", [])]
                file.write(json.dumps(kept) + "\n")
            file.flush()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
