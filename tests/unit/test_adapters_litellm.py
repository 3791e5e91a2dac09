"""What LiteLLM hands to a callback becomes one usage event a call; what cannot be metered is said."""

import asyncio
import copy
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from taximeter_producers import UsageProducer
from taximeter_producers.adapters.litellm import CALLS_REMEMBERED, TaximeterLogger
from taximeter_producers.adapters.litellm_call import CallNames, event_of_call, tokens_from_litellm
from taximeter_producers.errors import CallError, ProducerError
from taximeter_schemas.events import Operation, Outcome, ServiceTier, UsageEvent

CALLS: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "recorded" / "litellm_calls.json").read_text())
BY_NAME = {call["what"]: call for call in CALLS}
OPENAI = "a completion of OpenAI, cut at its length"


class CustomLogger:
    """LiteLLM's class, as far as a subclass meets it (litellm/integrations/custom_logger.py, 1.110)."""

    def __init__(self, turn_off_message_logging: bool = False, message_logging: bool = True, **kwargs: object) -> None:
        self.message_logging = message_logging
        self.turn_off_message_logging = turn_off_message_logging


class Kept:
    """Keeps events; `error` is raised instead, where given."""

    def __init__(self) -> None:
        self.events: list[UsageEvent] = []
        self.error: ProducerError | None = None

    def emit(self, event: UsageEvent) -> None:
        if self.error is not None:
            raise self.error
        self.events.append(event)


@pytest.fixture
def litellm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if LiteLLM were installed: the one module that the callback imports."""
    module = ModuleType("litellm.integrations.custom_logger")
    module.__dict__["CustomLogger"] = CustomLogger
    for name in ("litellm", "litellm.integrations"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def call(what: str = OPENAI, **metadata: Any) -> dict[str, Any]:
    """A recorded call; `metadata` is added to what its caller said, None takes away."""
    found = copy.deepcopy(BY_NAME[what])
    said = found["kwargs"]["litellm_params"]["metadata"]
    found["kwargs"]["litellm_params"]["metadata"] = {
        name: value for name, value in (said | metadata).items() if value is not None
    }
    return found


def event_of(found: Mapping[str, Any], names: CallNames | None = None) -> UsageEvent | None:
    return event_of_call(found["kwargs"], found["response"], names or CallNames(), failed=found["failed"])


def event(found: Mapping[str, Any], names: CallNames | None = None) -> UsageEvent:
    made = event_of(found, names)
    assert made is not None
    return made


# What was called, and: operation, outcome, uncached, read from a cache, written to it, output, reasoning, attempt.
EXPECTED: list[tuple[str, Operation, Outcome, tuple[int, ...]]] = [
    ("a completion with mock_response", Operation.CHAT, Outcome.COMPLETED, (10, 0, 0, 20, 0, 0)),
    ("a stream with mock_response", Operation.CHAT, Outcome.COMPLETED, (8, 0, 0, 3, 0, 0)),
    (OPENAI, Operation.CHAT, Outcome.LENGTH, (86, 1920, 0, 300, 64, 0)),
    ("a stream of OpenAI", Operation.CHAT, Outcome.COMPLETED, (86, 1920, 0, 300, 64, 0)),
    ("an asynchronous stream", Operation.CHAT, Outcome.COMPLETED, (86, 1920, 0, 300, 64, 0)),
    ("a message of Anthropic", Operation.CHAT, Outcome.COMPLETED, (2048, 1800, 248, 503, 0, 0)),
    ("a server that failed", Operation.CHAT, Outcome.ERROR, (0, 0, 0, 0, 0, 0)),
    ("the router: first try", Operation.CHAT, Outcome.ERROR, (0, 0, 0, 0, 0, 0)),
    ("the router: its retry", Operation.CHAT, Outcome.ERROR, (0, 0, 0, 0, 0, 1)),
    ("the router: its fallback", Operation.CHAT, Outcome.LENGTH, (86, 1920, 0, 300, 64, 2)),
]


@pytest.mark.parametrize(("what", "operation", "outcome", "counts"), EXPECTED)
def test_a_recorded_call(what: str, operation: Operation, outcome: Outcome, counts: tuple[int, ...]) -> None:
    made = event(call(what))
    tokens = made.data.tokens
    written = tokens.cache_write.five_minutes + tokens.cache_write.one_hour
    assert (made.data.operation, made.data.outcome) == (operation, outcome)
    assert (
        tokens.uncached_input, tokens.cache_read.provider, written, tokens.output, tokens.reasoning, made.data.attempt
    ) == counts  # fmt: skip
    assert (made.data.tenant, made.data.feature, made.source) == ("acme", "chat", "litellm")


def test_every_recorded_call_is_looked_at() -> None:
    others = {"a model that there is not", "an embedding (the local server answered with a chat completion's usage)"}
    assert {what for what, *_rest in EXPECTED} | others == set(BY_NAME)


def test_an_embedding_is_one() -> None:
    made = event(call("an embedding (the local server answered with a chat completion's usage)"))
    assert made.data.operation is Operation.EMBEDDING


def test_lifetimes_of_anthropic_are_kept() -> None:
    write = event(call("a message of Anthropic")).data.tokens.cache_write
    assert (write.five_minutes, write.one_hour) == (148, 100)


def test_times_and_ids() -> None:
    stream = event(call("a stream of OpenAI"))
    logged = BY_NAME["a stream of OpenAI"]["kwargs"]["standard_logging_object"]
    assert stream.time.timestamp() == pytest.approx(logged["endTime"], abs=1e-6)
    assert stream.data.timing.ttft_ms == pytest.approx((logged["completionStartTime"] - logged["startTime"]) * 1000)
    assert event(call()).data.timing.ttft_ms is None  # nothing was streamed
    assert stream.id == stream.data.request_id == BY_NAME["a stream of OpenAI"]["kwargs"]["litellm_call_id"]
    assert stream.data.root_request_id == logged["trace_id"]


def test_the_attempts_of_one_call_share_a_root_and_no_id() -> None:
    tries = [event(call(f"the router: {name}")) for name in ("first try", "its retry", "its fallback")]
    assert len({made.id for made in tries}) == 3
    assert len({made.data.root_request_id for made in tries}) == 1
    assert [made.data.model for made in tries] == ["fast", "fast", "sure"]  # the names that callers use
    same = call("the router: first try")
    assert event(same).id == event(same).id


def test_a_refusal_and_an_answer_from_litellms_own_cache_used_nothing() -> None:
    assert event_of(call("a model that there is not")) is None
    hit = call()
    hit["kwargs"]["cache_hit"] = True
    assert event_of(hit) is None


def test_tags_are_taken_by_names_that_can_be_set() -> None:
    found = call(tenant="spoofed", hop=2, turn="t-1", team="search")
    found["kwargs"]["standard_logging_object"]["metadata"]["user_api_key_team_id"] = "globex"
    names = CallNames(tenant=("user_api_key_team_id",), feature=("app", "team"), root=("turn",), source="proxy-1")
    made = event(found, names)
    assert (made.data.tenant, made.data.feature, made.data.root_request_id) == ("globex", "search", "t-1")
    assert (made.data.hop, made.source, made.data.attributes["litellm.provider"]) == (2, "proxy-1", "openai")


def test_a_client_of_a_proxy_cannot_claim_another_tenants_key() -> None:
    found = call(team=None)
    known = found["kwargs"]["standard_logging_object"]["metadata"]
    known["user_api_key_team_id"] = None  # a key without a team
    known["requester_metadata"] = {"user_api_key_team_id": "globex", "app": "search"}
    with pytest.raises(CallError, match="the call has no tenant: put user_api_key_team_id"):
        event_of(found, CallNames(tenant=("user_api_key_team_id",)))
    assert event(found, CallNames(feature=("app",))).data.feature == "search"


def without(found: dict[str, Any], *path: str) -> dict[str, Any]:
    inner = found
    for name in path[:-1]:
        inner = inner[name]
    inner.pop(path[-1])
    return found


def no_id() -> dict[str, Any]:
    found = without(call(), "kwargs", "litellm_call_id")
    return without(found, "kwargs", "standard_logging_object", "litellm_call_id")


def no_usage() -> dict[str, Any]:
    found = call()
    found["response"]["usage"] = None
    found["kwargs"]["standard_logging_object"]["metadata"]["usage_object"] = {}
    return found


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (call(tenant=None), "the call has no tenant: put tenant into its metadata"),
        (call(feature=""), "the call has no feature"),
        (call(tenant="a b"), "tenant: String should match"),
        (call(hop="2"), "hop in the metadata is not a whole number: '2'"),
        (call(attempt=2_000), "attempt"),
        (no_usage(), "states no usage"),
        (without(call(), "kwargs", "standard_logging_object"), "has no startTime"),
        (no_id(), "no litellm_call_id"),
    ],
)
def test_a_call_that_cannot_be_metered_is_named(found: dict[str, Any], reason: str) -> None:
    with pytest.raises(CallError, match=reason):
        event_of(found)


def test_usage_in_earlier_shapes_and_of_own_engines() -> None:
    anthropic = {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105}
    anthropic |= {"cache_read_input_tokens": 40, "cache_creation_input_tokens": 30}
    tokens = tokens_from_litellm(anthropic)
    assert (tokens.uncached_input, tokens.cache_read.provider, tokens.cache_write.five_minutes) == (30, 40, 30)
    own = {"prompt_tokens": 100, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 64}}
    assert tokens_from_litellm(own, "hosted_vllm").cache_read.gpu == 64


def test_the_service_tier_is_the_answers() -> None:
    found = call()
    found["response"]["service_tier"] = "flex"
    assert event(found).data.service_tier is ServiceTier.BATCH


def report(logger: TaximeterLogger, found: Mapping[str, Any], *, later: bool = False) -> None:
    """As LiteLLM calls it: by keyword, and not at all on a stream's chunks."""
    said: dict[str, Any] = {
        "kwargs": found["kwargs"],
        "response_obj": found["response"],
        "start_time": None,
        "end_time": None,
    }
    if later:
        asyncio.run(
            logger.async_log_failure_event(**said) if found["failed"] else logger.async_log_success_event(**said)
        )
    elif found["failed"]:
        logger.log_failure_event(**said)
    else:
        logger.log_success_event(**said)


@pytest.mark.usefixtures("litellm")
@pytest.mark.parametrize("later", [False, True])
def test_one_event_a_call_for_success_failure_and_streams(later: bool) -> None:
    kept = Kept()
    logger = TaximeterLogger(kept)
    assert isinstance(logger, CustomLogger)
    assert logger.message_logging  # made by LiteLLM's own constructor
    for found in CALLS:
        report(logger, found, later=later)
        report(logger, found, later=not later)  # some calls are reported to both kinds of callback
    assert len(kept.events) == len(CALLS) - 1  # all but the refusal
    assert len({made.id for made in kept.events}) == len(kept.events)
    assert logger.unmetered == 0


@pytest.mark.usefixtures("litellm")
def test_what_is_not_metered_is_counted_and_told() -> None:
    told: list[str] = []
    kept = Kept()
    logger = TaximeterLogger(kept, on_problem=lambda error, kwargs: told.append(f"{kwargs['model']}: {error}"))
    report(logger, call(tenant=None))
    kept.error = ProducerError("no room")
    report(logger, call())
    assert logger.unmetered == 2
    assert told == ["gpt-4o: the call has no tenant: put tenant into its metadata", "gpt-4o: no room"]
    kept.error = None
    report(logger, call())  # it was not remembered as emitted
    assert len(kept.events) == 1


@pytest.mark.usefixtures("litellm")
def test_a_stream_that_broke_off_is_an_event_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    found = call("a server that failed")
    found["kwargs"]["stream"] = True
    logged = found["kwargs"]["standard_logging_object"]
    logged["error_information"] = {"error_code": "", "error_class": "APIConnectionError"}
    kept = Kept()
    logger = TaximeterLogger(kept)
    report(logger, found)  # it failed before the first token
    logged["startTime"] += 1
    logged["completionStartTime"] = logged["startTime"] + 2
    logged["endTime"] = logged["startTime"] + 3
    report(logger, found)
    before, broken = kept.events
    assert (before.data.outcome, broken.data.outcome) == (Outcome.ERROR, Outcome.ERROR)
    assert "taximeter.usage" not in before.data.attributes
    assert broken.data.attributes["taximeter.usage"] == "unknown"
    assert logger.unmetered == 1
    assert "the stream broke off" in caplog.text


@pytest.mark.usefixtures("litellm")
def test_by_default_the_log_tells_it(caplog: pytest.LogCaptureFixture) -> None:
    report(TaximeterLogger(Kept()), call(tenant=None))
    assert "a call of LiteLLM is not metered: the call has no tenant" in caplog.text


@pytest.mark.usefixtures("litellm")
def test_what_is_remembered_is_bounded() -> None:
    kept = Kept()
    logger = TaximeterLogger(kept)
    for number in range(CALLS_REMEMBERED + 1):
        logger._emitted[str(number)] = None
    report(logger, call())
    assert len(logger._emitted) == CALLS_REMEMBERED + 1


@pytest.mark.usefixtures("litellm")
def test_it_works_on_a_real_producer(tmp_path: Path) -> None:
    with UsageProducer(bootstrap_servers="127.0.0.1:1", producer_id="proxy", spool_dir=tmp_path) as producer:
        logger = TaximeterLogger(producer)
        report(logger, call())
        assert producer.flush(60) == 0
        assert producer.state().spool_bytes > 0
        assert logger.unmetered == 0


def test_a_usage_model_of_the_sdk_is_read() -> None:
    found = call()
    answer = SimpleNamespace(model_dump=lambda: found["response"])
    made = event_of_call(found["kwargs"], answer, CallNames(), failed=False)
    assert made is not None and made.data.tokens.output == 300


def test_importing_it_does_not_need_litellm_and_making_one_says_what_to_install() -> None:
    script = (
        "import sys; sys.modules['litellm'] = None\n"
        "from taximeter_producers.adapters.litellm import TaximeterLogger\n"
        "try: TaximeterLogger(None)\n"
        "except ImportError as error: print(error)\n"
    )
    shown = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    assert "litellm" in shown.stdout
