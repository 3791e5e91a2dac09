"""The workers of the suite, each shared by the tests that need nothing else of it than to be there."""

from collections.abc import Iterator

import pytest

from tests.vllm.worker_process import MODELS, VllmWorker

LORA = (
    "--enable-lora", "--max-lora-rank", "8", "--lora-modules",
    f"adapter-a={MODELS / 'adapter-a'}", f"adapter-b={MODELS / 'adapter-b'}",
)  # fmt: skip


@pytest.fixture(scope="session")
def generator(bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmWorker]:
    """A generator with two adapters, of which adapter-b belongs to globex."""
    worker = VllmWorker(
        tmp_path_factory.mktemp("generator"),
        bootstrap_servers,
        arguments=LORA,
        settings={"TAXIMETER_WORKER_ADAPTERS": '{"adapter-b": ["globex"]}', "VLLM_SERVER_DEV_MODE": "1"},
    )
    worker.begin_start()
    try:
        worker.await_start()
        yield worker
    finally:
        worker.stop()


@pytest.fixture(scope="session")
def embedder(bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmWorker]:
    """An embedding model, which also scores and reranks."""
    worker = VllmWorker(
        tmp_path_factory.mktemp("embedder"),
        bootstrap_servers,
        model="embedder",
        arguments=("--runner", "pooling", "--convert", "embed"),
    )
    worker.begin_start()
    try:
        worker.await_start()
        yield worker
    finally:
        worker.stop()


@pytest.fixture(scope="session")
def unsalted(bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmWorker]:
    """A generator whose tenants share one cache, as in a plain vLLM."""
    worker = VllmWorker(
        tmp_path_factory.mktemp("unsalted"), bootstrap_servers, settings={"TAXIMETER_WORKER_ISOLATION": "off"}
    )
    worker.begin_start()
    try:
        worker.await_start()
        yield worker
    finally:
        worker.stop()
