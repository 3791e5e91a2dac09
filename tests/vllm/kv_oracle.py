"""A plain second opinion on who shared what: uses of the cache as the engine's own KV events tell them, and nothing else."""

import json
import random
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taximeter.demo.vllm_worker import BLOCK_SIZE
from taximeter_schemas import wire
from taximeter_schemas.cache_uses import CacheUse
from taximeter_schemas.events import input_tokens
from tests.property.cache_savings_oracle import Records
from tests.vllm.worker_process import PYTHON, VllmWorker
from tests.waiting import await_true


class KvRecording:
    """What a worker's engine says about its cache, as written down by `kv_recorder.py`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def lines(self) -> list[dict[str, Any]]:
        """What was recorded so far."""
        return [json.loads(line) for line in self._path.read_text().splitlines() if line.endswith("}")]

    def uses(self, events: Mapping[str, wire.UsageEvent], pool: str, sku: str) -> Records:
        """The uses of these requests (by the engine's ids), once all are told, in order.

        A block is hit by a request when it was stored for another before. Tenants and lengths of prompts are the events'.
        """
        await_true(
            lambda: set(events) <= {line["session_id"] for line in self.lines()}, lambda: "KV events are missing"
        )
        chains: dict[str, list[str]] = {}
        stored_for: dict[str, str] = {}
        for line in self.lines():
            session = line["session_id"]
            if session not in events or line["type"] != "BlockStored":
                continue
            chain = chains.setdefault(session, [])
            place = chain.index(line["parent_block_hash"]) + 1 if line["parent_block_hash"] else 0
            chain[place : place + len(line["block_hashes"])] = line["block_hashes"]
            for block in line["block_hashes"]:
                stored_for.setdefault(block, session)
        records: Records = []
        for second, (session, told) in enumerate(chains.items()):
            event = events[session]
            prompt = input_tokens(event.data.tokens)
            chain = told[: prompt // BLOCK_SIZE]
            # The engine always computes the last token, and with it the last block of a prompt that ends with a whole one.
            known = chain[: (prompt - 1) // BLOCK_SIZE]
            hit = next((at for at, block in enumerate(known) if stored_for[block] == session), len(known))
            records.append(
                CacheUse(
                    event_id=session,
                    tenant=event.data.tenant,
                    ts=second,
                    sku=sku,
                    pool=pool,
                    blocks=tuple((block, BLOCK_SIZE) for block in chain),
                    hit_blocks=hit,
                    tail_tokens=prompt - BLOCK_SIZE * len(chain),
                )
            )
        return records


@contextmanager
def recording(worker: VllmWorker, path: Path) -> Iterator[KvRecording]:
    """Write down what the worker's engine says, from now on."""
    recorder = subprocess.Popen([PYTHON, Path(__file__).with_name("kv_recorder.py"), worker.kv_events, path])

    def is_heard() -> bool:
        prompt = f"{random.random()} " * 20
        worker.post("/v1/completions", {"model": "tiny", "prompt": prompt, "max_tokens": 1}, worker.headers("nobody"))
        return path.exists() and path.stat().st_size > 0

    try:
        await_true(is_heard, lambda: "the recorder hears nothing")
        yield KvRecording(path)
    finally:
        recorder.kill()
        recorder.wait()
