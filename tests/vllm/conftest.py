"""The workers of the suite, each shared by the tests that need nothing else of it than to be there.

A start takes most of what the suite takes, so the next worker that a chosen test will ask for starts while tests run on one.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from taximeter.embedded.broker import EmbeddedBroker
from taximeter.embedded.ports import free_port
from tests.vllm.worker_process import MODELS, VllmWorker

LORA = (
    "--enable-lora", "--max-lora-rank", "8", "--lora-modules",
    f"adapter-a={MODELS / 'adapter-a'}", f"adapter-b={MODELS / 'adapter-b'}",
)  # fmt: skip


class Fleet:
    """The workers by the names of their fixtures, in the order in which tests ask for them."""

    def __init__(self, workers: dict[str, VllmWorker], asked_for: set[str]) -> None:
        self._workers = workers
        self._to_start = [name for name in workers if name in asked_for]
        self._started: list[VllmWorker] = []

    def get(self, name: str) -> VllmWorker:
        """The worker, once it serves. The one after it begins to start."""
        self._begin(name)
        self._workers[name].await_start()
        if self._to_start:
            self._begin(self._to_start[0])
        return self._workers[name]

    def stop(self) -> None:
        """End what was started."""
        for worker in self._started:
            worker.stop()

    def _begin(self, name: str) -> None:
        if name in self._to_start:
            self._to_start.remove(name)
            self._started.append(self._workers[name])
            self._workers[name].begin_start()


@pytest.fixture(scope="session")
def fleet(
    request: pytest.FixtureRequest, bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    """All workers; none is started before a test asks for one."""

    def folder(name: str) -> Path:
        return tmp_path_factory.mktemp(name)

    own = EmbeddedBroker(folder("own-broker"), free_port())
    squeezed = ("--num-gpu-blocks-override", "21", "--max-num-seqs", "2", "--scheduling-policy", "priority")
    squeezed_settings = {
        "TAXIMETER_WORKER_UNTAGGED": "meter",
        "TAXIMETER_WORKER_PRIVILEGES": '{"globex": ["priority", "kv_transfer_params"]}',
        "TAXIMETER_WORKER_SPOOL_BYTES_MAX": "24000",
    }
    drifted_server = (str(Path(__file__).with_name("drifted_server.py")),)
    lora_settings = {"TAXIMETER_WORKER_ADAPTERS": '{"adapter-b": ["globex"]}', "VLLM_SERVER_DEV_MODE": "1"}
    pooling = ("--runner", "pooling", "--convert", "embed")
    connector = {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(folder("connector-storage"))},
    }
    workers = {
        "drifted": VllmWorker(
            folder("drifted"),
            bootstrap_servers,
            settings={"TAXIMETER_WORKER_ON_DRIFT": "middleware"},
            program=drifted_server,
        ),
        "connected": VllmWorker(
            folder("connected"),
            bootstrap_servers,
            arguments=("--kv-transfer-config", json.dumps(connector)),
            settings={"VLLM_SERVER_DEV_MODE": "1"},
        ),
        "generator": VllmWorker(folder("generator"), bootstrap_servers, arguments=LORA, settings=lora_settings),
        "unsalted": VllmWorker(folder("unsalted"), bootstrap_servers, settings={"TAXIMETER_WORKER_ISOLATION": "off"}),
        "embedder": VllmWorker(folder("embedder"), bootstrap_servers, model="embedder", arguments=pooling),
        "squeezed": VllmWorker(
            folder("squeezed"),
            own.bootstrap_servers,
            arguments=squeezed,
            settings=squeezed_settings,
            context_tokens=512,
            broker=own,
        ),
    }
    asked_for = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    made = Fleet(workers, asked_for)
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def generator(fleet: Fleet) -> VllmWorker:
    """A generator with two adapters, of which adapter-b belongs to globex."""
    return fleet.get("generator")


@pytest.fixture(scope="session")
def embedder(fleet: Fleet) -> VllmWorker:
    """An embedding model, which also scores and reranks."""
    return fleet.get("embedder")


@pytest.fixture(scope="session")
def unsalted(fleet: Fleet) -> VllmWorker:
    """A generator whose tenants share one cache, as in a plain vLLM."""
    return fleet.get("unsalted")


@pytest.fixture(scope="session")
def squeezed(fleet: Fleet) -> VllmWorker:
    """A generator with next to no cache, places for two, and no room for many events should its own broker be away.

    It schedules by priority, which globex may set, and meters requests without tags.
    """
    return fleet.get("squeezed")


@pytest.fixture(scope="session")
def connected(fleet: Fleet) -> VllmWorker:
    """A generator with a KV connector, which keeps the cache of whole prompts on disk as well."""
    return fleet.get("connected")


@pytest.fixture(scope="session")
def drifted(fleet: Fleet) -> VllmWorker:
    """A generator that the plugin does not know, and meters by its answers."""
    return fleet.get("drifted")
