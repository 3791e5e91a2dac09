"""The workers of the suite: one generator for a module of tests."""

from collections.abc import Iterator

import pytest

from tests.vllm.worker_process import MODELS, VllmWorker

LORA = (
    "--enable-lora", "--max-lora-rank", "8", "--lora-modules",
    f"adapter-a={MODELS / 'adapter-a'}", f"adapter-b={MODELS / 'adapter-b'}",
)  # fmt: skip


@pytest.fixture(scope="module")
def generator(bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmWorker]:
    """A generator with two adapters, of which adapter-b belongs to globex."""
    worker = VllmWorker(
        tmp_path_factory.mktemp("generator"),
        bootstrap_servers,
        arguments=(*LORA, "--block-size", "32"),
        settings={"TAXIMETER_WORKER_ADAPTERS": '{"adapter-b": ["globex"]}'},
    )
    worker.begin_start()
    try:
        worker.await_start()
        yield worker
    finally:
        worker.stop()


@pytest.fixture(scope="module")
def embedder(bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmWorker]:
    """An embedding model, which also scores and reranks."""
    worker = VllmWorker(
        tmp_path_factory.mktemp("embedder"),
        bootstrap_servers,
        model="embedder",
        arguments=("--runner", "pooling", "--convert", "embed", "--block-size", "32"),
    )
    worker.begin_start()
    try:
        worker.await_start()
        yield worker
    finally:
        worker.stop()
