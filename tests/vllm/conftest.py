"""The workers of the suite, each shared by the tests that need nothing else of it than to be there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.vllm.worker_process import MODELS, VllmWorker

LORA = (
    "--enable-lora", "--max-lora-rank", "8", "--lora-modules",
    f"adapter-a={MODELS / 'adapter-a'}", f"adapter-b={MODELS / 'adapter-b'}",
)  # fmt: skip


@contextmanager
def started(worker: VllmWorker) -> Iterator[VllmWorker]:
    """Start it, and end it afterwards."""
    worker.begin_start()
    try:
        worker.await_start()
        yield worker
    finally:
        worker.stop()


@pytest.fixture(scope="session")
def generator(bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmWorker]:
    """A generator with two adapters, of which adapter-b belongs to globex."""
    worker = VllmWorker(
        tmp_path_factory.mktemp("generator"),
        bootstrap_servers,
        arguments=LORA,
        settings={"TAXIMETER_WORKER_ADAPTERS": '{"adapter-b": ["globex"]}', "VLLM_SERVER_DEV_MODE": "1"},
    )
    with started(worker):
        yield worker


@pytest.fixture(scope="session")
def embedder(bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmWorker]:
    """An embedding model, which also scores and reranks."""
    worker = VllmWorker(
        tmp_path_factory.mktemp("embedder"),
        bootstrap_servers,
        model="embedder",
        arguments=("--runner", "pooling", "--convert", "embed"),
    )
    with started(worker):
        yield worker


@pytest.fixture(scope="session")
def unsalted(bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmWorker]:
    """A generator whose tenants share one cache, as in a plain vLLM."""
    worker = VllmWorker(
        tmp_path_factory.mktemp("unsalted"), bootstrap_servers, settings={"TAXIMETER_WORKER_ISOLATION": "off"}
    )
    with started(worker):
        yield worker


@pytest.fixture(scope="session")
def drifted(bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmWorker]:
    """A generator that the plugin does not know, and meters by its answers."""
    worker = VllmWorker(
        tmp_path_factory.mktemp("drifted"),
        bootstrap_servers,
        settings={"TAXIMETER_WORKER_ON_DRIFT": "middleware"},
        program=(str(Path(__file__).with_name("drifted_server.py")),),
    )
    with started(worker):
        yield worker
