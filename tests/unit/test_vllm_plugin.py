"""The plugin's own rules, without vLLM: what is checked, dropped, refused, counted and remembered."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from taximeter_inference.forwarding import Forwarded
from taximeter_inference.gateway.salt import PoolKeys
from taximeter_inference.vllm.block_join import BlockJoin
from taximeter_inference.vllm.block_table import BlockTable, Label
from taximeter_inference.vllm.blocks import NOTHING_KNOWN
from taximeter_inference.vllm.connector import tier_of
from taximeter_inference.vllm.drift import find_prefill_problems, find_problems
from taximeter_inference.vllm.errors import UntaggedError
from taximeter_inference.vllm.exchange import CURRENT, METERED_ELSEWHERE, Exchange, Part
from taximeter_inference.vllm.hooks import EngineHooks
from taximeter_inference.vllm.incidents import alert_of
from taximeter_inference.vllm.isolation import Guard
from taximeter_inference.vllm.journal import Journal
from taximeter_inference.vllm.kv_source import BlockRemoved, BlockStored, KvBatch, Lost
from taximeter_inference.vllm.middleware import SeenRequests
from taximeter_inference.vllm.settings import WorkerSettings
from taximeter_inference.vllm.sink import EventSink
from taximeter_inference.vllm.usage import Origin, as_tag, build_event
from taximeter_producers import UsageProducer
from taximeter_producers.frames import decode_frames
from taximeter_producers.tracing import traceparent_within
from taximeter_schemas import wire
from taximeter_schemas.events import Attribution, Outcome

NOW = datetime(2026, 11, 24, 8, tzinfo=UTC)
KEYS = PoolKeys(b"a secret of sixteen", "1")
PLACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def tags(tenant: str = "acme", pool: str = "duo") -> Forwarded:
    """Tags of a request."""
    return Forwarded(tenant, "chat", "gateway-1:aa:7", "root-1", pool, attributes={"team": "search"})


@dataclass
class Stats:
    """As the engine keeps them for a sequence that began at 10 s, had its first token at 11 s and its last at 14 s."""

    num_generation_tokens: int = 5
    num_preemptions: int = 0
    arrival_time: float = 0.0
    queued_ts: float = 9.5
    scheduled_ts: float = 10.0
    first_token_ts: float = 11.0
    last_token_ts: float = 14.0
    first_token_latency: float = 1.5


class Reason(IntEnum):
    """Why a sequence ended, as the engine says it."""

    LENGTH = 1
    ABORT = 2

    def __str__(self) -> str:
        return self.name.lower()


@dataclass
class State:
    """A sequence."""

    request_id: str
    prompt_len: int = 100
    num_cached_tokens: int = 64
    parent_req: Any = None
    request_index: int = 0
    lora_name: str | None = None
    is_prefilling: bool = False
    detokenizer: Any = None
    stats: Stats | None = field(default_factory=Stats)


@dataclass
class Request:
    """A request on its way into the engine."""

    request_id: str = "r-1"
    sampling_params: Any = None
    lora_request: Any = None
    cache_salt: str | None = None
    priority: int = 0
    session_id: str | None = None
    kv_hints: Any = None


class Processor:
    """Behaves as the engine's output processor does towards its hooks."""

    def __init__(self) -> None:
        self.request_states: dict[str, State] = {}
        self.log_stats = True
        self.ending = False

    def add_request(
        self, request: Any, prompt: Any, parent_req: Any = None, request_index: int = 0, queue: Any = None
    ) -> None:
        known = self.request_states.get(request.request_id)
        if known is None:
            self.request_states[request.request_id] = State(
                request.request_id, parent_req=parent_req, request_index=request_index
            )
        elif self.ending:
            self._finish_request(known)

    def abort_requests(self, request_ids: Any, internal: bool) -> list[str]:
        return [identity for identity in request_ids if self.request_states.pop(identity, None)]

    def _finish_request(self, req_state: State) -> None:
        del self.request_states[req_state.request_id]

    def _update_stats_from_finished(self, req_state: State, finish_reason: Any, iteration_stats: Any) -> None:
        """Counts."""

    def propagate_error(self, e: Exception) -> None:
        """Tells everybody."""

    def process_outputs(self, engine_core_outputs: list[Any], engine_core_timestamp: float | None = None) -> int:
        """Finishes what is said to be finished."""
        for output in engine_core_outputs:
            if output.finish_reason is not None and output.request_id in self.request_states:
                self.finish(output.request_id, output.finish_reason)
        return len(engine_core_outputs)

    def finish(self, identity: str, reason: str) -> None:
        """What happens when a sequence finishes."""
        state = self.request_states[identity]
        self._finish_request(state)
        self._update_stats_from_finished(state, reason, None)


@dataclass
class Bench:
    """Hooks on a processor, and what left."""

    guard: Guard = field(default_factory=lambda: Guard(KEYS, meter_untagged=True, adapters={}, privileges={}))
    connected: bool = False

    def __post_init__(self) -> None:
        self.left: list[Part] = []
        self.numbers = iter(range(1_000))
        self.processor = Processor()
        self.hooks = EngineHooks(self.guard.prepare, lambda: next(self.numbers), self.left.append, self.connected)
        self.hooks.attach(self.processor)

    def add(self, exchange: Exchange | None, identity: str, parent: Any = None, index: int = 0) -> None:
        """A sequence enters for an exchange."""
        before = CURRENT.set(exchange)
        self.processor.add_request(Request(identity), "", parent, index)
        CURRENT.reset(before)


ORIGIN = Origin("worker-1", "worker-1:abcd", "org/tiny model")


def event_of(part: Part, origin: Origin = ORIGIN) -> Any:
    """The event of a part, at 20 s of the engine's clock."""
    return build_event(part, origin, 0.25, NOTHING_KNOWN, NOW, 20.0)


@dataclass
class Prefill:
    """What the engine says of a prompt's cached tokens."""

    num_cached_tokens: int
    num_external_cached_tokens: int


def output(identity: str, prefill: Prefill | None = None, finish_reason: str | None = None) -> Any:
    """One sequence's part in a step of the engine."""
    return SimpleNamespace(request_id=identity, prefill_stats=prefill, finish_reason=finish_reason)


def test_a_request_leaves_once_with_all_its_sequences() -> None:
    """Over and nothing open: whichever comes last."""
    bench, exchange = Bench(), Exchange(tags(), "/v1/completions", 0.0)
    bench.add(exchange, "a")
    bench.add(exchange, "b")
    bench.processor.finish("a", "length")
    bench.hooks.end(exchange)
    assert not bench.left
    bench.processor.abort_requests(["b"], True)
    (part,) = bench.left
    event = event_of(part)
    assert (event.id, event.source) == ("gateway-1:aa:7", "taximeter-gateway/gateway-1")
    assert event.data.outcome is Outcome.ABORTED
    assert (event.data.tokens.uncached_input, event.data.tokens.cache_read.gpu, event.data.tokens.output) == (
        72,
        128,
        10,
    )
    assert event.data.model == "org/tiny-model"
    assert event.data.attributes["team"] == "search"
    assert event.data.attributes["engine.decode_ms"] == "3000.0"
    # Ten seconds before now the engine began on it.
    assert (NOW - event.time).total_seconds() == 10.0


def test_answers_to_one_prompt_bill_it_once() -> None:
    """As its first answer was computed; what the engine counted stands beside."""
    bench, exchange, parent = Bench(), Exchange(tags(), "/v1/completions", 0.0), SimpleNamespace(request_id="p")
    for index in range(3):
        bench.add(exchange, f"{index}_p", parent, index)
    bench.processor.request_states["0_p"].num_cached_tokens = 0
    for index in (2, 1, 0):
        bench.processor.finish(f"{index}_p", "stop")
    bench.hooks.end(exchange)
    event = event_of(bench.left[0])
    assert (event.data.tokens.uncached_input, event.data.tokens.cache_read.gpu, event.data.tokens.output) == (
        100,
        0,
        15,
    )
    assert event.data.attributes["engine.prompt_tokens"] == "300"
    assert event.data.attributes["engine.cached_tokens"] == "128"


@pytest.mark.parametrize(
    ("prefilling", "output", "reason", "counted"),
    [
        (True, 0, "abort", 0),  # gone before the first token
        (False, 0, "error", 0),  # failed in the engine, which counted no prompt
        (False, 0, Reason.ABORT, 0),  # told by the engine itself
        (False, 3, Reason.LENGTH, 100),
        (False, 3, "abort", 100),  # gone in mid-stream
        (False, 0, "stop", 100),  # an embedding
    ],
)
def test_a_prompt_counts_with_the_first_token(prefilling: bool, output: int, reason: Any, counted: int) -> None:
    """As the engine's own counters have it."""
    bench, exchange = Bench(), Exchange(tags(), "/v1/completions", 0.0)
    bench.add(exchange, "a")
    state = bench.processor.request_states["a"]
    state.is_prefilling, state.num_cached_tokens = prefilling, 0
    assert state.stats is not None
    state.stats.num_generation_tokens = output
    bench.processor.finish("a", reason)
    bench.hooks.end(exchange)
    event = event_of(bench.left[0])
    assert event.data.tokens.uncached_input == counted
    outcomes = {"abort": Outcome.ABORTED, "error": Outcome.ERROR, "length": Outcome.LENGTH, "stop": Outcome.COMPLETED}
    assert event.data.outcome is outcomes[str(reason)]


@pytest.mark.parametrize("tier", ["gpu", "cpu", "disk"])
def test_what_a_connector_brought_counts_under_its_tier(tier: Any) -> None:
    """Of several prompts (or inputs of an embedding) the sum; a sequence that is put off and computed again counts once."""
    bench, exchange = Bench(connected=True), Exchange(tags(), "/v1/embeddings", 0.0)
    for identity in ("a", "b", "gone"):
        bench.add(exchange, identity)
    stats = bench.processor.request_states["a"].stats
    assert stats is not None
    stats.num_preemptions = 1
    assert (
        bench.processor.process_outputs([output("a", Prefill(64, 32)), output("b", Prefill(96, 96), "stop")], 1.0) == 2
    )
    bench.processor.process_outputs([output("a"), output("never added", Prefill(64, 64))])
    bench.processor.request_states["gone"].is_prefilling = True
    bench.processor.abort_requests(["gone"], True)
    bench.processor.process_outputs([output("gone", Prefill(64, 64)), output("a", None, "stop")])
    bench.hooks.end(exchange)
    tokens = event_of(bench.left[0], Origin("worker-1", "worker-1:abcd", "tiny", tier)).data.tokens
    expected = {"gpu": 32, "cpu": 0, "disk": 0}
    expected[tier] += 128
    assert {name: getattr(tokens.cache_read, name) for name in expected} == expected
    assert tokens.uncached_input == 200 - 160
    assert event_of(bench.left[0]).data.tokens.cache_read.cpu == 128
    bench.hooks.detach()
    assert "process_outputs" not in vars(bench.processor)


def test_answers_to_one_prompt_bill_what_its_first_one_got() -> None:
    """Here from the connector, which then had it in the engine for the second; and what the engine counted stands beside."""
    bench, exchange, parent = Bench(connected=True), Exchange(tags(), "", 0.0), SimpleNamespace(request_id="p")
    for index, external in ((0, 64), (1, 0)):
        bench.add(exchange, f"{index}_p", parent, index)
        bench.processor.process_outputs([output(f"{index}_p", Prefill(64, external), "stop")])
    bench.hooks.end(exchange)
    event = event_of(bench.left[0])
    assert (event.data.tokens.uncached_input, event.data.tokens.cache_read.gpu, event.data.tokens.cache_read.cpu) == (
        36,
        0,
        64,
    )
    names = ("engine.prompt_tokens", "engine.cached_tokens", "engine.external_tokens")
    assert [event.data.attributes[name] for name in names] == ["200", "128", "64"]


def test_a_prompt_that_another_worker_computed_came_from_the_connector() -> None:
    """What that worker had cached of it is not this one's to count."""
    bench, exchange = Bench(connected=True), Exchange(tags(), "", 0.0)
    bench.add(exchange, "a")
    bench.processor.request_states["a"].num_cached_tokens = 7  # as the other worker said
    bench.processor.process_outputs([output("a", Prefill(99, 99), "stop")])
    bench.hooks.end(exchange)
    tokens = event_of(bench.left[0]).data.tokens
    assert (tokens.uncached_input, tokens.cache_read.gpu, tokens.cache_read.cpu) == (1, 0, 99)


MIXED = [{"kv_connector": "OffloadingConnector"}, {"kv_connector": "NixlConnector"}]


@pytest.mark.parametrize(
    ("connector", "extra", "tier"),
    [
        ("OffloadingConnector", {"cpu_bytes_to_use": 1}, "cpu"),
        ("OffloadingConnector", {"spec_name": "TieringOffloadingSpec"}, None),  # memory, and what stands behind it
        ("SimpleCPUOffloadConnector", None, "cpu"),
        ("SimpleCPUOffloadConnector", {"kv_offload_backend": "disk", "disk_path": "/kv"}, "disk"),
        ("ExampleConnector", {"shared_storage_path": "/kv"}, "disk"),
        ("NixlConnector", {}, "gpu"),
        ("MultiConnector", {"connectors": MIXED[:1]}, "cpu"),
        ("MultiConnector", {"connectors": MIXED}, None),
        ("LMCacheConnectorV1", {}, None),
        ("OneOfYourOwn", {}, None),
    ],
)
def test_a_connectors_tier(connector: str, extra: Any, tier: str | None) -> None:
    """As vLLM's --kv-transfer-config says it, where it does."""
    config = SimpleNamespace(kv_connector=connector, kv_connector_extra_config=extra)
    assert tier_of(config) == tier


def test_nothing_passes_unmetered() -> None:
    """A sequence without an exchange, one that starts after its request was over, one that the engine never closes."""
    bench, exchange = Bench(), Exchange(tags(), "/v1/responses", 0.0)
    bench.add(None, "stray")
    bench.processor.finish("stray", "stop")
    bench.add(exchange, "first")
    bench.processor.finish("first", "stop")
    bench.hooks.end(exchange)
    bench.add(exchange, "late")
    bench.add(None, "stuck")
    bench.hooks.detach()
    events = [event_of(part) for part in bench.left]
    assert [event.data.tenant for event in events] == ["untagged", "acme", "acme", "untagged"]
    assert [event.id for event in events[1:3]] == ["gateway-1:aa:7", "gateway-1:aa:7/1"]
    assert [event.data.worker.sequence for event in events] == [0, 1, 2, 3]
    assert events[3].data.outcome is Outcome.ABORTED
    assert "add_request" not in vars(bench.processor)


def test_a_session_that_goes_on_is_one_sequence() -> None:
    """More input for a sequence that is there does not end it; the input that is its last one does, with what it had."""
    bench, exchange = Bench(), Exchange(tags(), "/v1/realtime", 0.0)
    bench.add(exchange, "a")
    state = bench.processor.request_states["a"]
    state.stats, state.detokenizer = None, SimpleNamespace(num_output_tokens=lambda: 4)
    bench.add(exchange, "a")
    bench.hooks.end(exchange)
    assert not bench.left
    bench.processor.ending = True
    bench.add(exchange, "a")
    (part,) = bench.left
    event = event_of(part)
    assert (event.data.outcome, event.data.tokens.output, event.data.timing.queue_ms) == (Outcome.COMPLETED, 4, None)


def test_what_the_gateway_meters_has_no_number_and_no_event(tmp_path: Path) -> None:
    """It is salted and booked like the rest; the worker's own numbers have no hole."""
    bench = Bench()
    traced = replace(tags(), attributes={"team": "search", "taximeter.traceparent": PLACE})
    theirs, ours = Exchange(replace(tags(), is_metered=True), "", 0.0), Exchange(traced, "", 0.0)
    for identity, exchange in (("a", theirs), ("b", ours)):
        bench.add(exchange, identity)
        bench.processor.finish(identity, "stop")
        bench.hooks.end(exchange)
    assert [part.number for part in bench.left] == [METERED_ELSEWHERE, 0]
    producer = UsageProducer(bootstrap_servers="127.0.0.1:1", producer_id="w", spool_dir=tmp_path)
    sink = EventSink(producer, Journal(tmp_path / "w.open"), ORIGIN)
    sink.start(bench.hooks.running)
    for part in bench.left:
        sink.take(part)
    sink.close()
    (record,) = [r for path in tmp_path.rglob("*.seg") for r in decode_frames(path.read_bytes())[0]]
    event = wire.decode(record.value)
    assert event.data.worker is not None
    assert event.data.worker.sequence == 0
    # Its place in its trace, which the gateway signed, stands beside the event, not in it.
    assert traceparent_within(record.value) == PLACE
    assert event.data.attributes["team"] == "search"
    assert not [name for name in event.data.attributes if name.startswith("taximeter.")]


def test_an_incident_is_one_alert_a_day() -> None:
    """For the same tenants and pools; another day or another pool is another."""
    found = alert_of(tags("mallory", "own"), Label("acme", "duo"), "worker-1:ab", NOW)
    assert found.incident is not None
    assert (found.tenant, found.incident.pool, found.incident.warmed_by, found.incident.warmed_in) == (
        "mallory",
        "own",
        "acme",
        "duo",
    )
    again = alert_of(replace(tags("mallory", "own"), request_id="x"), Label("acme", "duo"), "worker-2:cd", NOW)
    assert again.id == found.id
    others = (
        alert_of(tags("mallory", "own"), Label("acme", "duo"), "worker-1:ab", NOW + timedelta(days=1)),
        alert_of(tags("mallory", "own"), Label("acme", "trio"), "worker-1:ab", NOW),
    )
    assert found.id not in {other.id for other in others}


def test_an_engine_that_fails_is_an_error() -> None:
    """Whatever was open is metered with what it had."""
    bench, exchange = Bench(), Exchange(tags(), "/v1/completions", 0.0)
    bench.add(exchange, "a")
    bench.processor.propagate_error(RuntimeError("the engine died"))
    bench.hooks.end(exchange)
    assert event_of(bench.left[0]).data.outcome is Outcome.ERROR


def test_the_worker_chooses_salt_priority_and_transfer() -> None:
    """A client's salt splits its own pool; the rest is dropped unless it was granted."""
    extra = {"kv_transfer_params": {"do_remote_prefill": True}, "kv_cache_report_mode": "full", "mine": 1}
    request = Request(cache_salt="x", priority=-9, kv_hints=object(), sampling_params=SimpleNamespace(extra_args=extra))
    Guard(KEYS, meter_untagged=False, adapters={}, privileges={}).prepare(request, Exchange(tags(), "", 0.0))
    assert request.cache_salt == KEYS.salt("duo", "x") != KEYS.salt("duo")
    assert request.priority == 0
    assert request.kv_hints is None
    assert request.sampling_params.extra_args == {"mine": 1}
    granted = Request(priority=-9, sampling_params=SimpleNamespace(extra_args=dict(extra)))
    privileges = {"acme": ("priority", "kv_transfer_params")}
    Guard(KEYS, meter_untagged=False, adapters={}, privileges=privileges).prepare(granted, Exchange(tags(), "", 0.0))
    assert granted.cache_salt == KEYS.salt("duo")
    assert granted.priority == -9
    assert "kv_transfer_params" in granted.sampling_params.extra_args


def test_rotation_gives_other_salts() -> None:
    """A new key id, and nobody hits what was cached under the old one."""
    assert KEYS.salt("duo") != PoolKeys(b"a secret of sixteen", "2").salt("duo")


def test_untagged_requests_and_foreign_adapters_are_refused() -> None:
    """With a client's error that says why."""
    guard = Guard(KEYS, meter_untagged=False, adapters={"lora": ("globex",)}, privileges={})
    with pytest.raises(UntaggedError, match="no tags"):
        guard.prepare(Request(), Exchange(None, "", 0.0))
    foreign = Request(lora_request=SimpleNamespace(lora_name="lora"))
    with pytest.raises(UntaggedError, match="does not exist for this tenant"):
        guard.prepare(foreign, Exchange(tags(), "", 0.0))
    guard.prepare(foreign, Exchange(tags("globex"), "", 0.0))


def test_drift_is_told_by_name() -> None:
    """A method that is gone, one that takes something else, a field that is gone."""
    problems = find_problems(Processor, State, Stats, Request, Outcome)
    assert "State.request_id is gone" not in problems
    assert any("REASONS" in problem or "STOP is gone" in problem for problem in problems)

    class Output:
        __struct_fields__ = ("request_id",)

    assert find_prefill_problems(Output, Prefill) == ["Output.prefill_stats is gone"]
    assert find_prefill_problems(Output, Stats)[1:] == [
        "Stats.num_cached_tokens is gone",
        "Stats.num_external_cached_tokens is gone",
    ]

    class Renamed(Processor):
        def abort_requests(self, ids: Any, internal: bool, why: str) -> list[str]:  # type: ignore[override]
            return []

    assert "Renamed.abort_requests takes ('ids', 'internal', 'why')" in find_problems(
        Renamed, State, Stats, Request, Outcome
    )


def test_the_journal_names_what_was_killed(tmp_path: Path) -> None:
    """Begun and not safe, across a kill; a clean end leaves nothing."""
    path = tmp_path / "worker.open"
    journal = Journal(path)
    assert journal.adopt("worker:1") == ("", [])
    assert [journal.begin() for _ in range(5)] == [0, 1, 2, 3, 4]
    for number in (0, 2, 3):
        journal.safe(number)
    journal.close()
    again = Journal(path)
    assert again.adopt("worker:2") == ("worker:1", [1, 4])
    assert again.adopt("worker:3") == ("worker:2", [])
    again.close()


def test_tags_are_used_once() -> None:
    """For longer than a signature holds."""
    seen = SeenRequests()
    assert seen.add("a", 0.0)
    assert not seen.add("a", 1.0)
    assert not seen.add("a", 601.0)
    assert seen.add("a", 2_000.0)


def test_names_become_tags() -> None:
    """A path or a name with blanks can stand in an event."""
    assert as_tag("/models/My Model") == "models/My-Model"
    assert as_tag("?") == "unnamed"


def test_settings_say_what_they_lack() -> None:
    """In one line, with the way out."""
    assert "TAXIMETER_FORWARDING_SECRET" in (WorkerSettings().problem() or "")
    trusted = WorkerSettings(worker_tags="trusted")
    assert "TAXIMETER_SALT_SECRET" in (trusted.problem() or "")
    assert WorkerSettings(worker_tags="trusted", worker_isolation="off").problem() is None


A, B, C = b"a" * 32, b"b" * 32, b"c" * 32


def test_who_warmed_a_block_and_when_it_went() -> None:
    """A residency begins with the first store and ends with the removal of the last copy."""
    table = BlockTable()
    table.expect("one", Label("acme", "duo"))
    table.stored("one", None, [A, B])
    table.expect("two", Label("globex", "duo"))
    table.stored("two", None, [A, B])
    table.stored("two", B, [C])
    assert table.chain("two") == [A, B, C]
    origin = table.join("two", 3, 2)
    assert [label.tenant for label in origin.warmers if label] == ["acme", "acme"]
    table.removed([C], 17.0)
    table.expect("three", Label("acme", "duo"))
    table.stored("three", None, [A, B])
    table.stored("three", B, [C])
    assert table.join("three", 3, 2).evicted_at == 17.0


def test_what_a_tenant_hits_of_its_own_stays_its_own() -> None:
    """Whoever hits it next, in whatever pool, hits what that tenant had warmed; and its copies are counted."""
    table = BlockTable()
    label = Label("acme", "duo")
    for session in ("one", "two"):
        table.expect(session, label)
        table.stored(session, None, [A])
    assert table.join("two", 1, 1).warmers == (label,)
    table.expect("three", label)
    table.stored("three", None, [A])
    table.join("three", 1, 0)  # computed beside the copy that was there
    table.removed([A], 17.0)
    table.expect("four", Label("mallory", "own"))
    table.stored("four", None, [A])
    assert table.join("four", 1, 1).warmers == (label,)


def test_a_copy_in_memory_keeps_a_blocks_residency() -> None:
    """What a connector loads from there is still whose it was, until both are gone."""
    table, label = BlockTable(), Label("acme", "duo")
    table.expect("one", label)
    table.stored("one", None, [A, B])
    table.kept([A, C])
    table.removed([A, B], 17.0)
    table.expect("two", Label("globex", "duo"))
    table.stored("two", None, [A, B])
    assert table.join("two", 2, 2).warmers == (label, None)
    table.removed([A], 18.0)
    table.dropped([A, C], 19.0)
    table.expect("three", Label("globex", "duo"))
    table.stored("three", None, [A])
    assert table.join("three", 1, 0).evicted_at == 19.0


def test_blocks_seen_after_a_loss_have_no_known_warmer() -> None:
    """A hit on a block that was stored in what was lost: nobody is credited with it."""
    table = BlockTable()
    table.expect("one", Label("acme", "duo"))
    table.stored("one", None, [A])
    table.lost()
    assert table.tainted == {"one"}
    table.expect("two", Label("globex", "duo"))
    table.stored("two", None, [A])
    assert table.join("two", 1, 1).warmers == (None,)


def part_of(identity: str, pool: str, cached: int) -> tuple[Part, State]:
    """A finished request of 64 tokens."""
    bench, exchange = Bench(), Exchange(tags("acme" if pool == "duo" else "mallory", pool), "/v1/completions", 0.0)
    bench.add(exchange, identity)
    state = bench.processor.request_states[identity]
    state.prompt_len, state.num_cached_tokens = 64, cached
    bench.processor.finish(identity, "stop")
    bench.hooks.end(exchange)
    return bench.left[0], state


def test_the_audit_finds_hits_across_pools_and_losses_are_inferred(caplog: pytest.LogCaptureFixture) -> None:
    """An incident names both; a request under way when messages were lost keeps its counts only."""
    told: list[KvBatch | Lost] = []

    def poll() -> list[KvBatch | Lost]:
        batch = list(told)
        told.clear()
        return batch

    join = BlockJoin(poll, KEYS)
    join.expect("one", "acme", "duo")
    told.append(KvBatch(1.0, [BlockStored([A, B], None, 32, 0, "one")]))
    report = join.report(part_of("one", "duo", 0)[0], False)
    assert report is not None
    assert (report.attribution, report.hit_blocks, len(report.blocks)) == (Attribution.ENGINE, 0, 2)
    join.expect("two", "mallory", "own")
    told.append(KvBatch(2.0, [BlockStored([A], None, 32, 0, "two"), BlockStored([B], A, 32, 0, "two")]))
    stolen = join.report(part_of("two", "own", 32)[0], False)
    assert stolen is not None
    assert stolen.attributes["cache.incident"] == "foreign_pool"
    assert "mallory (pool own) hit blocks that acme warmed in pool duo" in caplog.text
    assert not set(stolen.blocks) & set(report.blocks)
    # What a connector keeps, or lets go of, is not what the engine has; nor is its block size the engine's.
    told.append(KvBatch(2.5, [BlockStored([A, B], None, 4096, medium="CPU"), BlockRemoved([A, B], medium="CPU")]))
    told.append(KvBatch(2.5, [BlockStored([C], None, 4096, medium="STORAGE"), BlockRemoved([A], medium="STORAGE")]))
    join.expect("again", "acme", "duo")
    told.append(KvBatch(2.6, [BlockStored([A, B], None, 32, 0, "again")]))
    known = join.report(part_of("again", "duo", 64)[0], False)
    assert known is not None
    assert (known.attribution, known.hit_blocks, known.attributes["cache.warmed_by"]) == (
        Attribution.ENGINE,
        2,
        "acme*2",
    )
    join.expect("three", "acme", "duo")
    told.append(Lost(3, 5))
    told.append(KvBatch(3.0, [BlockStored([A, B], None, 32, 0, "three"), BlockRemoved([C])]))
    inferred = join.report(part_of("three", "duo", 32)[0], False)
    assert inferred is not None
    assert (inferred.attribution, inferred.blocks) == (Attribution.INFERRED, ())
    join.expect("four", "acme", "duo")
    assert join.report(part_of("four", "duo", 32)[0], False) is None
    late = join.report(part_of("four", "duo", 32)[0], True)
    assert late is not None
    assert late.attribution is Attribution.INFERRED
