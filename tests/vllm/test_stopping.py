"""What an end by force costs: nothing when a worker is told to stop or its engine dies; when it is killed, what was in the
engine, by name. The engine is halted first, so that its own counters can be read and stay what they are.

These tests end the workers that the others share, so they come last.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator

import httpx
import pytest

from taximeter_inference.vllm.journal import Journal
from taximeter_schemas.events import Outcome
from tests.vllm.worker_process import SECONDS_MAX, VllmWorker, engine_sum
from tests.waiting import await_true

pytestmark = pytest.mark.vllm

BODY = {"model": "tiny", "prompt": "Do not stop. " * 9, "max_tokens": 1900, "ignore_eos": True, "stream": True}


@contextlib.contextmanager
def streaming(worker: VllmWorker, count: int, *, until_the_end: bool) -> Iterator[list[str]]:
    """Clients in the middle of their streams, who do not leave within: a server that stops waits for them, its events do not.

    Then they read `until_the_end`, or leave. The error that each was told, once they are done.
    """
    started, told, errors = threading.Barrier(count + 1), threading.Event(), [""] * count

    def ask(number: int) -> None:
        with contextlib.suppress(httpx.TransportError), worker.stream("/v1/completions", BODY) as stream:
            lines = stream.iter_lines()
            next(lines)
            started.wait(SECONDS_MAX)
            told.wait(SECONDS_MAX)
            if until_the_end:
                errors[number] = "".join(line for line in lines if '"error"' in line)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    started.wait(SECONDS_MAX)
    try:
        yield errors
    finally:
        told.set()
        for thread in threads:
            thread.join()


def test_kill_leaves_a_gap_that_is_named(embedder: VllmWorker) -> None:
    """What was in the engine at kill -9 has no event: its number is missing, and the journal names it."""
    done = len(embedder.events())
    text = {"model": "tiny", "input": "A"}
    assert embedder.post("/v1/embeddings", text).status_code == 200
    embedder.await_events(done + 1)
    embedder.signal_engine(signal.SIGSTOP)

    def ask() -> None:
        with contextlib.suppress(httpx.TransportError):
            embedder.post("/v1/embeddings", text)

    waiting = threading.Thread(target=ask)
    waiting.start()
    journal = embedder.state_dir / "vllm" / f"{embedder.worker_id}.open"
    await_true(lambda: embedder.open_numbers() != [], lambda: "the request does not reach the engine")
    embedder.stop(signal.SIGKILL)
    waiting.join()
    events = embedder.events()
    numbers = [event.data.worker.sequence for event in events if event.data.worker]
    assert numbers == list(range(done + 1))
    successor = Journal(journal)
    assert successor.adopt("the next start")[1] == [done + 1]
    successor.close()


def test_an_engine_that_dies_is_a_server_error(unsalted: VllmWorker) -> None:
    """Streams and whole answers under way end as errors; what the engine had counted until then is in their events."""
    known = len(unsalted.events())
    statuses: list[int] = []

    def ask_for_the_whole() -> None:
        body = {**BODY, "stream": False, "prompt": "As a whole. " * 9}
        # The server ends with its engine, and may do so before it has answered.
        with contextlib.suppress(httpx.TransportError):
            statuses.append(unsalted.post("/v1/completions", body).status_code)

    waiting = threading.Thread(target=ask_for_the_whole)
    with streaming(unsalted, 2, until_the_end=True) as errors:
        waiting.start()
        unsalted.await_gauge("num_requests_running", 3)
        unsalted.signal_engine(signal.SIGSTOP)
        counted = unsalted.counters_at_rest()
        unsalted.signal_engine(signal.SIGKILL)
        events = unsalted.await_events(known + 3)
    waiting.join(SECONDS_MAX)
    assert {event.data.outcome for event in events[known:]} == {Outcome.ERROR}
    assert all(event.data.tokens.output > 0 for event in events[known:])
    # Every request since the worker's start is in both.
    assert engine_sum(events) == counted
    assert all(errors), errors
    assert all(status >= 500 for status in statuses), statuses


def test_sigterm_loses_nothing(generator: VllmWorker) -> None:
    """Requests that run when the worker is told to stop have events too; its numbers have no hole, and its sums no difference."""
    known = len(generator.events())
    with streaming(generator, 3, until_the_end=False):
        generator.signal_engine(signal.SIGSTOP)
        counted = generator.counters_at_rest()
        generator.signal(signal.SIGTERM)
        events = generator.await_events(known + 3)
    generator.await_end()
    assert {event.data.outcome for event in events[known:]} <= {Outcome.ABORTED, Outcome.ERROR}
    assert all(event.data.tokens.output > 0 for event in events[known:])
    assert [event.data.worker.sequence for event in events if event.data.worker] == list(range(len(events)))
    # Everything that the other tests asked of this worker is in both, but for what a gateway metered.
    assert engine_sum(events) == counted - generator.metered_elsewhere
