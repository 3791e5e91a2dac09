"""The kernel keeps to its memory, whatever bytes it reads: damaged events under two sanitizers.

`python -m tests.unit.test_kernel_memory SEED BATCHES` goes on for longer (700,000 batches take some minutes).
"""

import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks import traffic
from tests.usage_events import usage

ROOT = Path(__file__).parents[2]
SOURCE, KERNEL_FOLDER = ROOT / "tests" / "kernel_fuzz.c", ROOT / "streams" / "taximeter_streams" / "meter"
SANITIZERS = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def corpus() -> bytes:
    """Plain events, and two that use every field."""
    full = {
        "adapter": "a", "operation": "chat", "request_id": "r", "root_request_id": "q", "hop": 1, "attempt": 2, "lease_id": "l",
        "cache": {"pool": "p", "block_size": 16, "hit_blocks": 3, "attribution": "engine",
                  "blocks": ["0123456789abcdef", "f" * 64] * 9},
        "timing": {"queue_ms": 1, "ttft_ms": 0.25, "total_ms": 9}, "worker": {"id": "w", "sequence": 1, "gpu_seconds": 0.5},
        "tokens": {"uncached_input": 1, "cache_read": {"gpu": 2, "cpu": 3, "disk": 4, "provider": 5},
                   "cache_write": {"5m": 6, "1h": 7}, "output": 8, "reasoning": 1, "total": 36},
        "attributes": {f"key {number}": "v" * number for number in range(32)},
    }  # fmt: skip
    plain = [payload for _, payload in traffic.events(200, 1, traffic.utc_now())]
    return b"\n".join(
        [*plain, json.dumps(usage("e", **full)).encode(), json.dumps(usage("f", **full), indent=None).encode()]
    )


def fuzz(folder: Path, seed: int, batches: int) -> tuple[int, int]:
    """How many events were read, and of how many the kernel was sure. Raises CalledProcessError when a sanitizer complains."""
    compiler = next(filter(shutil.which, ("cc", "gcc", "clang")), "cc")
    program, events = folder / "kernel_fuzz", folder / "events"
    events.write_bytes(corpus())
    subprocess.run([compiler, *SANITIZERS, "-I", KERNEL_FOLDER, SOURCE, "-o", program], check=True)
    done = subprocess.run([program, events, str(seed), str(batches)], check=True, stdout=subprocess.PIPE, text=True)
    read, sure = map(int, done.stdout.split())
    return read, sure


def test_damaged_events_stay_within_their_memory(tmp_path: Path) -> None:
    read, sure = fuzz(tmp_path, seed=20_261_124, batches=8_000)
    assert read > 20_000
    assert sure > read // 10  # most of it went deep


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        chosen = int(sys.argv[1]) if len(sys.argv) > 1 else random.SystemRandom().getrandbits(32)
        print(chosen, fuzz(Path(scratch), chosen, int(sys.argv[2]) if len(sys.argv) > 2 else 700_000))
