"""What stopping a worker loses: nothing when it is asked to stop; when it is killed, what was in the engine, by name.

These tests end the workers that the others share, so they come last.
"""

import contextlib
import signal
import threading

import httpx
import pytest

from taximeter_inference.vllm.journal import Journal
from taximeter_schemas.events import Outcome
from tests.vllm.worker_process import SECONDS_MAX, VllmWorker

pytestmark = pytest.mark.vllm

BODY = {"model": "tiny", "prompt": "Do not stop. " * 9, "max_tokens": 1900, "ignore_eos": True, "stream": True}


def test_kill_leaves_a_gap_that_is_named(unsalted: VllmWorker) -> None:
    """What was in the engine at kill -9 has no event: its number is missing, and the journal names it."""
    done = len(unsalted.events())
    with unsalted.stream("/v1/completions", BODY, unsalted.headers("victim")) as stream:
        lines = stream.iter_lines()
        next(lines)
        short = {"model": "tiny", "prompt": "A", "max_tokens": 1}
        assert unsalted.post("/v1/completions", short).status_code == 200
        events = unsalted.await_events(done + 1)
        unsalted.stop(signal.SIGKILL)
    numbers = [event.data.worker.sequence for event in events if event.data.worker]
    missing = sorted(set(range(max(numbers) + 1)) - set(numbers))
    assert len(missing) == 1
    journal = Journal(unsalted.state_dir / "vllm" / f"{unsalted.worker_id}.open")
    assert journal.adopt("the next start")[1] == missing
    journal.close()


def test_sigterm_loses_nothing(generator: VllmWorker) -> None:
    """Requests that run when the worker is told to stop have events too, and its numbers have no hole."""
    known = len(generator.events())
    started, told = threading.Barrier(4), threading.Event()

    def ask() -> None:
        with contextlib.suppress(httpx.TransportError), generator.stream("/v1/completions", BODY) as stream:
            lines = stream.iter_lines()
            next(lines)
            started.wait(SECONDS_MAX)
            # A client that does not leave: the server waits for it, its events do not.
            told.wait(SECONDS_MAX)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    started.wait(SECONDS_MAX)
    generator.signal(signal.SIGTERM)
    events = generator.await_events(known + 3)
    told.set()
    for thread in threads:
        thread.join()
    generator.await_end()
    assert all(event.data.outcome in (Outcome.ABORTED, Outcome.ERROR) for event in events[known:])
    assert all(event.data.tokens.output > 0 for event in events[known:])
    assert [event.data.worker.sequence for event in events if event.data.worker] == list(range(len(events)))
