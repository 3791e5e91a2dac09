"""The gateway at the limits, as a real process: scopes, bounds, queues, stand-ins, attempts, and model servers that misbehave."""

import json
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from taximeter_inference.forwarding import SIGNATURE_HEADER, TAGS_HEADER, signing_key, verify
from taximeter_producers.control import publish
from taximeter_schemas.budgets import Budget
from taximeter_schemas.control import ControlKind
from taximeter_schemas.events import Outcome, ServiceTier
from tests import gateway_stack
from tests.gateway_stack import PRICE, SECONDS_MAX, Client, GatewayStack, Keeper, Service, chat_body, declare
from tests.stubborn_upstream import ANSWER_TOKENS, StubbornUpstream
from tests.tokenizer_folder import write_tokenizer
from tests.waiting import await_true

MODELS = ("m-large", "m-small", "beyond", "silent", "more")
OUTPUT_PICO = PRICE.output or 0
SECRET = "a secret that the gateway and its workers share"


@pytest.fixture(scope="module")
def stack(bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayStack]:
    priced, gateway_stack.PRICED = gateway_stack.PRICED, MODELS
    built = GatewayStack(bootstrap_servers, tmp_path_factory.mktemp("limits"), MODELS)
    try:
        built.upstream.start()
        built.gateway.start()
        yield built
    finally:
        gateway_stack.PRICED = priced
        built.gateway.child.stop()
        built.upstream.child.stop()
    assert built.gateway.child.exit_status == 0, built.gateway.child.log_tail(50)


@pytest.fixture(scope="module")
def keeper(stack: GatewayStack) -> Iterator[Keeper]:
    with Keeper(stack.bootstrap_servers) as keeping:
        yield keeping


@pytest.fixture(scope="module")
def stubborn() -> Iterator[StubbornUpstream]:
    with StubbornUpstream() as serving:
        yield serving


@pytest.fixture(scope="module")
def patient(stack: GatewayStack, stubborn: StubbornUpstream) -> Iterator[Service]:
    """A gateway that tries twice, before the stubborn model server."""
    yield from started(stack, stubborn, TAXIMETER_GATEWAY_RETRIES="1", TAXIMETER_GATEWAY_UPSTREAM_TIMEOUT_SECONDS="2")


@pytest.fixture(scope="module")
def forwarding(stack: GatewayStack, stubborn: StubbornUpstream) -> Iterator[Service]:
    """A gateway whose model server meters for itself."""
    settings = {"TAXIMETER_UPSTREAM_METERED_BY": "worker", "TAXIMETER_FORWARDING_SECRET": SECRET}
    yield from started(stack, stubborn, **settings)


def started(stack: GatewayStack, stubborn: StubbornUpstream, **environment: str) -> Iterator[Service]:
    service = stack.another_gateway(f"gateway-{secrets.token_hex(4)}", stubborn.url, **environment)
    try:
        service.start()
        yield service
    finally:
        service.child.stop()
    assert service.child.exit_status == 0, service.child.log_tail(50)


@pytest.fixture
def tenant() -> str:
    return f"t-{secrets.token_hex(4)}"


def budget(tenant: str, limit_pico: int, **fields: object) -> Budget:
    return Budget.model_validate({"id": f"b-{tenant}", "tenant": tenant, "limit_pico": limit_pico, **fields})


def cost(prompt_tokens: int, output_tokens: int) -> int:
    return prompt_tokens * PRICE.uncached_input + output_tokens * OUTPUT_PICO


def redeclare(stack: GatewayStack, changed: Budget) -> None:
    publish(stack.bootstrap_servers, [gateway_stack._record(ControlKind.BUDGET, changed.id, changed)])


def code(answer: httpx.Response) -> object:
    return answer.json()["error"]["code"]


def test_a_root_request_has_a_cap_over_all_its_hops(stack: GatewayStack, keeper: Keeper, tenant: str) -> None:
    cap = budget(tenant, cost(6, 15), per_root_request=True)
    client = Client(stack.gateway.url, declare(stack, tenant, [cap]))

    def hop(root: str, number: int) -> httpx.Response:
        headers = {"x-taximeter-root-request-id": root, "x-taximeter-hop": str(number)}
        return client.post("/v1/chat/completions", chat_body("m-large", "a b", 5), **headers)

    assert [hop("turn-1", number).status_code for number in range(3)] == [200, 200, 200]
    refused = hop("turn-1", 3)
    assert (refused.status_code, code(refused)) == (402, "budget_exhausted")
    assert "resets_at" not in refused.json()["error"]
    assert hop("turn-2", 0).status_code == 200
    assert client.chat("m-large", "a b", 5).status_code == 200  # a turn by itself
    assert code(client.chat("m-large", "a b", 17)) == "budget_exhausted"
    assert [event.data.hop for event in stack.events(tenant, 5)][:3] == [0, 1, 2]


def test_a_refusal_by_one_scope_holds_nothing_of_the_others(stack: GatewayStack, keeper: Keeper, tenant: str) -> None:
    cap = budget(tenant, cost(2, 5), per_root_request=True, id=f"cap-{tenant}")
    client = Client(stack.gateway.url, declare(stack, tenant, [cap, budget(tenant, cost(20, 50))]))
    headers = {"x-taximeter-root-request-id": "turn-1"}
    assert client.post("/v1/chat/completions", chat_body("m-large", "a b", 5), **headers).status_code == 200
    refused = client.post("/v1/chat/completions", chat_body("m-large", "a b", 5), **headers)
    assert (refused.status_code, refused.json()["error"]["budget"]) == (402, cap.id)
    await_true(lambda: keeper.leased_pico(tenant, f"b-{tenant}") == cost(2, 5), lambda: "only what is on its way")


def test_a_key_has_a_budget_of_its_own(stack: GatewayStack, keeper: Keeper, tenant: str) -> None:
    secret = declare(stack, tenant)
    of_key = gateway_stack.key_record(tenant, secret).body
    assert of_key is not None
    other = f"sk-{secrets.token_hex(12)}"
    limited = budget(tenant, cost(2, 5), api_key=of_key["id"])
    redeclare(stack, limited)
    publish(stack.bootstrap_servers, [gateway_stack.key_record(tenant, other)])
    await_true(lambda: gateway_stack._knows(stack.gateway, other), lambda: "the other key")
    mine, others = Client(stack.gateway.url, secret), Client(stack.gateway.url, other)
    assert mine.chat("m-large", "a b", 5).status_code == 200
    assert others.chat("m-large", "a b", 50).status_code == 200
    assert mine.chat("m-large", "a b", 5).status_code == 402
    first, _ = stack.events(tenant, 2)
    assert first.data.attributes == {"taximeter.api_key": of_key["id"]}


def test_a_cheaper_model_stands_in_and_says_so(stack: GatewayStack, keeper: Keeper, tenant: str) -> None:
    of_model = budget(tenant, cost(2, 5), model="m-large", fallbacks={"m-large": "m-small"})
    client = Client(stack.gateway.url, declare(stack, tenant, [of_model]))
    answers = [client.chat("m-large", "a b", 5) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert [answer.headers.get("x-taximeter-fallback-model") for answer in answers] == [None, "m-small"]
    one, two = stack.events(tenant, 2)
    assert (one.data.model, one.data.attempt, one.data.attributes) == ("m-large", 0, {})
    assert (two.data.model, two.data.attempt) == ("m-small", 1)
    assert two.data.attributes == {"taximeter.asked_model": "m-large"}


def test_a_request_in_no_hurry_waits_for_money(stack: GatewayStack, keeper: Keeper, tenant: str) -> None:
    held = budget(tenant, cost(2, 5))
    client = Client(stack.gateway.url, declare(stack, tenant, [held]))
    assert client.chat("m-large", "a b", 5).status_code == 200
    body = chat_body("m-large", "a b", 5)
    hurried = client.post("/v1/chat/completions", body)
    assert hurried.status_code == 402 and "queue" not in hurried.json()["error"]
    late = client.post("/v1/chat/completions", body, **{"x-taximeter-wait-seconds": "1"})
    assert (late.status_code, late.json()["error"]["queue"]) == (402, "out_of_time")
    with ThreadPoolExecutor(3) as pool:
        waiting = [
            pool.submit(client.post, "/v1/chat/completions", body, **{"x-taximeter-wait-seconds": "60"})
            for _ in range(3)
        ]
        time.sleep(0.5)
        assert not any(future.done() for future in waiting)
        redeclare(stack, held.model_copy(update={"limit_pico": cost(8, 20)}))
        assert [future.result().status_code for future in waiting] == [200, 200, 200]


def test_a_prompt_is_counted_by_files_where_its_server_has_no_tokenizer(
    stack: GatewayStack, keeper: Keeper, stubborn: StubbornUpstream, tenant: str, tmp_path: Path
) -> None:
    stubborn.tokenizes = False
    write_tokenizer(tmp_path / "m-large", "{% for one in messages %}{{ one.content }} {% endfor %}")
    key = declare(stack, tenant, [budget(tenant, cost(5, 2))])
    for folder, expected in (({}, [402]), ({"TAXIMETER_GATEWAY_TOKENIZERS": str(tmp_path)}, [200, 402])):
        for service in started(stack, stubborn, **folder):
            client = Client(service.url, key)
            assert [client.chat("m-large", "a b c d e", 2).status_code for _ in expected] == expected
    stubborn.tokenizes = True
    stack.events(tenant, 1)


def test_a_lowered_limit_holds_at_once_also_for_leases_in_hand(
    stack: GatewayStack, keeper: Keeper, tenant: str
) -> None:
    held = budget(tenant, cost(200, 500))
    client = Client(stack.gateway.url, declare(stack, tenant, [held]))
    assert client.chat("m-large", "a b", 5).status_code == 200
    assert keeper.leased_pico(tenant, held.id) > cost(2, 5)
    redeclare(stack, held.model_copy(update={"limit_pico": cost(3, 6)}))
    await_true(lambda: keeper.leased_pico(tenant, held.id) == cost(2, 5), lambda: "the lease goes back")
    assert client.chat("m-large", "a b", 5).status_code == 402
    stack.events(tenant, 1)


def test_a_tier_must_be_in_the_tenants_plan(stack: GatewayStack, tenant: str) -> None:
    body, tier = chat_body("m-large", "a b", 5), {"x-taximeter-service-tier": "batch"}
    plain = Client(stack.gateway.url, declare(stack, tenant))
    refused = plain.post("/v1/chat/completions", body, **tier)
    assert (refused.status_code, code(refused)) == (403, "service_tier_not_allowed")
    planned = Client(stack.gateway.url, declare(stack, f"{tenant}-p", service_tiers=["standard", "batch"]))
    assert planned.post("/v1/chat/completions", body, **tier).status_code == 200
    (event,) = stack.events(f"{tenant}-p", 1)
    assert event.data.service_tier is ServiceTier.BATCH


def test_a_race_without_max_tokens_spends_what_the_budget_truly_pays_for(
    stack: GatewayStack, keeper: Keeper, tenant: str
) -> None:
    payable, limit_pico = 20, cost(40, 1_000)
    client = Client(stack.gateway.url, declare(stack, tenant, [budget(tenant, limit_pico)]))
    body = chat_body("m-large", "a b", 50)
    del body["max_tokens"]

    def insistent(_: int) -> int:
        """Comes again when only others' reservations stand in the way."""
        for _again in range(3):
            answer = client.post("/v1/chat/completions", body)
            if answer.status_code == 200 or code(answer) != "in_flight_budget_exhausted":
                break
        return answer.status_code

    with ThreadPoolExecutor(16) as pool:
        served = list(pool.map(insistent, range(payable + 6))).count(200)
    assert served >= payable * 95 // 100
    events = stack.events(tenant, served)
    spent_pico = sum(cost(event.data.tokens.uncached_input, event.data.tokens.output) for event in events)
    assert limit_pico * 95 // 100 <= spent_pico <= limit_pico


def test_a_stream_that_goes_beyond_its_bound_is_ended_there(
    stack: GatewayStack, keeper: Keeper, patient: Service, stubborn: StubbornUpstream, tenant: str
) -> None:
    client = Client(patient.url, declare(stack, tenant, [budget(tenant, cost(100, 1_000))]))
    body = chat_body("beyond", "a b", 20, stream=True, stream_options={"include_usage": True})
    with httpx.stream(
        "POST", f"{client.url}/v1/chat/completions", json=body, headers=client.headers(), timeout=SECONDS_MAX
    ) as response:
        lines = [line[6:] for line in response.iter_lines() if line]
    chunks: list[dict[str, Any]] = [json.loads(line) for line in lines[:-1]]
    assert lines[-1] == "[DONE]"
    assert "".join(c["delta"].get("content", "") for chunk in chunks for c in chunk["choices"]).split()[-1] == "w20"
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["usage"]["completion_tokens"] == 20 < ANSWER_TOKENS
    assert stubborn.left.wait(SECONDS_MAX), "the model server is stopped"
    (event,) = stack.events(tenant, 1)
    assert (event.data.outcome, event.data.tokens.output) == (Outcome.LENGTH, 20)


def test_a_failed_attempt_is_an_event_of_its_own_and_the_next_one_answers(
    stack: GatewayStack, keeper: Keeper, patient: Service, stubborn: StubbornUpstream, tenant: str
) -> None:
    client = Client(patient.url, declare(stack, tenant, [budget(tenant, cost(100, 1_000))]))
    stubborn.failures = 1
    answer = client.chat("more", "a b", 5)
    assert answer.status_code == 200
    failed, done = stack.events(tenant, 2)
    assert (failed.data.outcome, failed.data.attempt, failed.data.tokens.output) == (Outcome.ERROR, 0, 0)
    assert (done.data.outcome, done.data.attempt) == (Outcome.COMPLETED, 1)
    assert failed.data.root_request_id == done.data.root_request_id == failed.id
    assert answer.headers["x-taximeter-request-id"] == done.id
    stubborn.failures = 2
    assert client.chat("more", "a b", 5).status_code == 500
    assert [event.data.attempt for event in stack.events(tenant, 4)] == [0, 1, 0, 1]
    leased = partial(keeper.leased_pico, tenant, f"b-{tenant}")
    await_true(lambda: leased() == keeper.settled_pico(tenant) == cost(12, 2), lambda: str(keeper.ledgers.get(tenant)))


def test_a_model_server_that_keeps_silent_is_left_and_the_prompt_counts(
    stack: GatewayStack, keeper: Keeper, patient: Service, tenant: str
) -> None:
    client = Client(patient.url, declare(stack, tenant, [budget(tenant, cost(100, 1_000))]))
    refused = client.chat("silent", "a b", 5)
    assert (refused.status_code, code(refused)) == (504, "upstream_timeout")
    events = stack.events(tenant, 2)
    assert [(event.data.outcome, event.data.tokens.uncached_input) for event in events] == [(Outcome.ERROR, 5)] * 2


def test_prompts_that_the_model_server_lengthens_are_reserved_in_full_from_then_on(
    stack: GatewayStack, keeper: Keeper, patient: Service, tenant: str
) -> None:
    client = Client(patient.url, declare(stack, tenant, [budget(tenant, cost(27, 7))]))
    # Counted are 5 tokens, charged 12: known after the first answer (of any tenant).
    assert client.chat("more", "a b", 2).status_code == 200
    assert client.chat("more", "a b", 2).status_code == 200
    assert client.chat("more", "a b", 1).status_code == 402  # 3 tokens are left, which the count alone would not fill
    stack.events(tenant, 2)


def test_a_worker_that_meters_gets_signed_tags_and_the_gateway_emits_nothing(
    stack: GatewayStack, keeper: Keeper, forwarding: Service, stubborn: StubbornUpstream, tenant: str
) -> None:
    client = Client(forwarding.url, declare(stack, tenant, [budget(tenant, cost(100, 1_000))]))
    headers = {"x-taximeter-root-request-id": "turn-1", "x-taximeter-hop": "2", "x-taximeter-attributes": "a=b"}
    answer = client.post("/v1/chat/completions", chat_body("m-large", "a b", 5), **headers)
    assert answer.status_code == 200
    tags = verify(
        stubborn.headers[TAGS_HEADER].encode(),
        stubborn.headers[SIGNATURE_HEADER].encode(),
        [signing_key(SECRET.encode())],
        time.time(),
    )
    assert (tags.tenant, tags.feature, tags.pool) == (tenant, "chat", f"tenant:{tenant}")
    assert tags.request_id == answer.headers["x-taximeter-request-id"]
    assert (tags.root_request_id, tags.hop, tags.attempt, tags.attributes) == ("turn-1", 2, 0, {"a": "b"})
    assert tags.lease_id is not None
    leased = partial(keeper.leased_pico, tenant, f"b-{tenant}")
    await_true(lambda: leased() == keeper.settled_pico(tenant) == cost(5, 2), lambda: str(keeper.ledgers.get(tenant)))
    # What the other gateway's tenants did is there; of this tenant there is nothing.
    other = Client(stack.gateway.url, declare(stack, f"{tenant}-o"))
    assert other.chat("m-large", "a b", 5).status_code == 200
    stack.events(f"{tenant}-o", 1)
    stack.events(tenant, 0)
