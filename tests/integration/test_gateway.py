"""The gateway as a real process before the simulated model server: exact usage, isolation, budgets, refusals."""

import json
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import pytest

from taximeter_producers.control import publish
from taximeter_schemas.budgets import Budget
from taximeter_schemas.events import Attribution, Outcome
from tests.gateway_stack import PRICE, PRICED, SECONDS_MAX, Client, GatewayStack, Keeper, chat_body, declare, key_record
from tests.waiting import await_true

REFUSED = f"t-{secrets.token_hex(4)}"
WORDS = " ".join(f"word{number}" for number in range(40))


@pytest.fixture(scope="module")
def stack(bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayStack]:
    built = GatewayStack(bootstrap_servers, tmp_path_factory.mktemp("gateway"), [*PRICED, "m-unpriced"])
    try:
        built.upstream.start()
        built.gateway.start()
        yield built
    finally:
        built.gateway.child.stop()
        built.upstream.child.stop()
    assert built.gateway.child.exit_status == 0, built.gateway.child.log_tail(50)


@pytest.fixture(scope="module")
def keeper(stack: GatewayStack) -> Iterator[Keeper]:
    with Keeper(stack.bootstrap_servers) as keeping:
        yield keeping


@pytest.fixture
def tenant() -> str:
    return f"t-{secrets.token_hex(4)}"


@pytest.fixture
def client(stack: GatewayStack, tenant: str) -> Client:
    return Client(stack.gateway.url, declare(stack, tenant))


@pytest.fixture(scope="module")
def refused_client(stack: GatewayStack) -> Client:
    return Client(stack.gateway.url, declare(stack, REFUSED))


def stream(client: Client, body: dict[str, object]) -> list[dict[str, Any]]:
    """The chunks of a stream that ends with its mark."""
    with httpx.stream(
        "POST", f"{client.url}/v1/chat/completions", json=body, headers=client.headers(), timeout=SECONDS_MAX
    ) as response:
        assert response.status_code == 200, response.read()
        lines = [line[6:] for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_chat_is_answered_and_counted(stack: GatewayStack, client: Client, tenant: str) -> None:
    answers = [client.chat("m-json", WORDS, 5, **extra) for extra in ({}, {"priority": 1})]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert "taximeter_cache" not in answers[0].text
    first, second = stack.events(tenant, 2)
    assert answers[0].headers["x-taximeter-request-id"] == first.id
    assert (first.data.tokens.uncached_input, first.data.tokens.output) == (40, 5)
    assert (second.data.tokens.uncached_input, second.data.tokens.cache_read.gpu) == (8, 32)
    assert (first.data.tenant, first.data.feature, first.data.model) == (tenant, "chat", "m-json")
    assert (first.source, first.data.operation) == (f"taximeter-gateway/{stack.gateway_id}", "chat")
    assert second.data.cache.attribution is Attribution.ENGINE
    assert (second.data.cache.block_size, second.data.cache.hit_blocks) == (16, 2)
    assert second.data.cache.blocks == first.data.cache.blocks
    assert {len(block) for block in first.data.cache.blocks} == {32}


def test_completions_embeddings_and_tags(stack: GatewayStack, client: Client, tenant: str) -> None:
    tags = {"x-taximeter-root-request-id": "turn-7", "x-taximeter-hop": "2", "x-taximeter-attributes": "team=search"}
    completion = client.post("/v1/completions", {"model": "m-json", "prompt": "a b c", "max_tokens": 2}, **tags)
    embedding = client.post("/v1/embeddings", {"model": "embed", "input": ["a b", "c"]})
    assert (completion.status_code, embedding.status_code) == (200, 200)
    one, two = stack.events(tenant, 2)
    assert (one.data.operation, one.data.tokens.uncached_input, one.data.tokens.output) == ("completion", 3, 2)
    assert (one.data.root_request_id, one.data.hop, one.data.attributes) == ("turn-7", 2, {"team": "search"})
    assert one.data.outcome is Outcome.LENGTH
    assert (two.data.operation, two.data.tokens.uncached_input, two.data.tokens.output) == ("embedding", 3, 0)


def test_a_stream_is_counted_and_gives_usage_only_to_who_asked(
    stack: GatewayStack, client: Client, tenant: str
) -> None:
    plain = stream(client, chat_body("m-stream", WORDS, 6, stream=True))
    asked = stream(client, chat_body("m-stream", WORDS, 6, stream=True, stream_options={"include_usage": True}))
    always = {"include_usage": True, "continuous_usage_stats": True}
    every = stream(client, chat_body("m-stream", WORDS, 6, stream=True, stream_options=always))
    words = ["".join(c["delta"]["content"] for chunk in chunks for c in chunk["choices"]) for chunks in (plain, asked)]
    assert words == ["w0 w1 w2 w3 w4 w5 "] * 2
    assert not any("usage" in chunk for chunk in plain)
    assert [chunk["usage"]["completion_tokens"] for chunk in asked if "usage" in chunk] == [6]
    assert asked[-1]["choices"] == []
    assert all("usage" in chunk for chunk in every)
    assert "taximeter_cache" not in json.dumps([asked, every])
    events = stack.events(tenant, 3)
    assert [event.data.tokens.output for event in events] == [6, 6, 6]
    assert [event.data.tokens.cache_read.gpu for event in events] == [0, 32, 32]
    assert all(event.data.timing.ttft_ms is not None for event in events)
    assert {event.data.outcome for event in events} == {Outcome.COMPLETED}


def test_an_aborted_stream_counts_what_was_generated_and_stops_the_model_server(
    stack: GatewayStack, client: Client, tenant: str
) -> None:
    body = chat_body("m-abort", WORDS, 10_000, stream=True)
    body["vllm_xargs"] = {"simulated_output_tokens": 10_000, "simulated_token_ms": 20}
    with httpx.stream(
        "POST", f"{client.url}/v1/chat/completions", json=body, headers=client.headers(), timeout=SECONDS_MAX
    ) as response:
        lines = (line for line in response.iter_lines() if line)
        seen = [next(lines) for _ in range(6)]
    assert len(seen) == 6
    await_true(lambda: stack.stats("m-abort")["aborted"] == 1, lambda: str(stack.stats("m-abort")))
    (event,) = stack.events(tenant, 1)
    assert event.data.outcome is Outcome.ABORTED
    assert event.data.tokens.uncached_input == stack.stats("m-abort")["prompt_tokens"] == 40
    # What the model server made after the client left and before it heard of that was never on the wire.
    generated = stack.stats("m-abort")["generated_tokens"]
    assert 5 <= event.data.tokens.output <= generated < 10_000
    assert event.data.cache.attribution is Attribution.ENGINE


def test_a_client_that_leaves_before_the_answer_pays_for_the_prompt(
    stack: GatewayStack, client: Client, tenant: str
) -> None:
    body = chat_body("m-abort", "a b c", 10_000)
    body["vllm_xargs"] = {"simulated_output_tokens": 10_000, "simulated_token_ms": 20}
    before = stack.stats("m-abort")["aborted"]
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{client.url}/v1/chat/completions", json=body, headers=client.headers(), timeout=1)
    await_true(lambda: stack.stats("m-abort")["aborted"] == before + 1, lambda: str(stack.stats("m-abort")))
    (event,) = stack.events(tenant, 1)
    assert (event.data.outcome, event.data.tokens.uncached_input) == (Outcome.ABORTED, 3)
    assert event.data.attributes == {"taximeter.counted": "gateway"}


def test_a_model_server_that_breaks_off_is_an_error_with_the_tokens_so_far(
    stack: GatewayStack, client: Client, tenant: str
) -> None:
    body = chat_body("m-stream", "a b", 10, stream=True)
    body["vllm_xargs"] = {"simulated_output_tokens": 10, "simulated_failure_after": 4, "simulated_token_ms": 1}
    with httpx.stream(
        "POST", f"{client.url}/v1/chat/completions", json=body, headers=client.headers(), timeout=SECONDS_MAX
    ) as response:
        text = response.read().decode()
    assert json.loads(text.strip().splitlines()[-1][6:])["error"]["code"] == "upstream_unreachable"
    assert "[DONE]" not in text
    failed = client.post("/v1/chat/completions", {**body, "stream": False})
    assert failed.status_code == 500
    one, two = stack.events(tenant, 2)
    assert (one.data.outcome, one.data.tokens.uncached_input, one.data.tokens.output) == (Outcome.ERROR, 2, 4)
    assert (two.data.outcome, two.data.tokens.output) == (Outcome.ERROR, 0)


def test_salts_isolate_tenants_and_a_clients_own_salt_only_splits_further(stack: GatewayStack) -> None:
    pool = f"pool-{secrets.token_hex(4)}"
    alone, one, two = (f"t-{secrets.token_hex(4)}" for _ in range(3))
    clients = [
        Client(stack.gateway.url, declare(stack, name, cache_pool=None if name == alone else pool))
        for name in (alone, one, two)
    ]

    def cached(client: Client, **fields: object) -> int:
        usage = client.chat("m-salt", WORDS, 1, **fields).json()["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    assert [cached(clients[0]), cached(clients[0])] == [0, 32]
    assert [cached(clients[1]), cached(clients[2])] == [0, 32]  # one pool, two tenants
    assert [cached(clients[1], cache_salt="mine"), cached(clients[1], cache_salt="mine")] == [0, 32]
    assert cached(clients[0], cache_salt="mine") == 0  # the same salt in another pool is another
    blocks = {name: stack.events(name, count)[0].data.cache.blocks for name, count in ((alone, 3), (one, 3), (two, 1))}
    assert blocks[one] == blocks[two]
    assert not set(blocks[alone]) & set(blocks[one])


@pytest.mark.parametrize(
    ("headers", "content", "status", "code"),
    [
        ({"authorization": "Bearer sk-wrong"}, b"{}", 401, "invalid_api_key"),
        ({"authorization": ""}, b"{}", 401, "invalid_api_key"),
        ({"x-taximeter-feature": ""}, b"{}", 400, "missing_feature"),
        ({"x-taximeter-feature": "no spaces"}, b"{}", 400, "invalid_tag"),
        ({"x-taximeter-hop": "-1"}, b"{}", 400, "invalid_tag"),
        ({}, b"{", 400, "invalid_json"),
        ({}, b"[]", 400, "invalid_json"),
        ({}, b"{}", 400, "invalid_request"),  # no model
        ({}, b'{"model": "m-json", "max_tokens": -1}', 400, "invalid_request"),
        ({}, b" " * 10_500_000, 413, "body_too_large"),
        ({}, b'{"model": "m-other", "messages": [{"role": "user", "content": "a"}]}', 404, 404),  # upstream's own
    ],
)
def test_refusals_have_a_code(
    refused_client: Client, headers: dict[str, str], content: bytes, status: int, code: object
) -> None:
    url = f"{refused_client.url}/v1/chat/completions"
    refused = httpx.post(url, content=content, headers={**refused_client.headers(), **headers}, timeout=SECONDS_MAX)
    assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)


def test_refusals_cost_nothing(stack: GatewayStack, refused_client: Client) -> None:
    assert refused_client.chat("m-json", "a").status_code == 200
    stack.events(REFUSED, 1)  # of the good request alone


def test_routes_and_tenants_that_are_not_served(stack: GatewayStack, client: Client, tenant: str) -> None:
    assert client.post("/v1/other", {}).json()["error"]["code"] == "unknown_route"
    got = httpx.get(f"{client.url}/v1/chat/completions", headers=client.headers(), timeout=SECONDS_MAX)
    assert (got.status_code, got.json()["error"]["code"]) == (405, "method_not_allowed")
    models = httpx.get(f"{client.url}/v1/models", headers=client.headers(), timeout=SECONDS_MAX).json()
    assert [model["id"] for model in models["data"]] == [*PRICED, "m-unpriced"]
    publish(stack.bootstrap_servers, [key_record(tenant, client.key, disabled=True)])
    await_true(lambda: client.chat("m-json", "a").status_code == 401, lambda: "the key is disabled")
    suspended = Client(client.url, declare(stack, f"{tenant}-s", status="suspended"))
    assert suspended.chat("m-json", "a").json()["error"]["code"] == "tenant_suspended"
    metrics = httpx.get(f"{client.url}/metrics", timeout=SECONDS_MAX).text
    assert "taximeter_gateway_requests_total" in metrics
    assert {"taximeter_gateway_spool_bytes 0.0", "taximeter_gateway_unsafe_events 0.0"} <= set(metrics.splitlines())


def budget(tenant: str, limit_pico: int, **fields: object) -> Budget:
    return Budget.model_validate({"id": f"b-{tenant}", "tenant": tenant, "limit_pico": limit_pico, **fields})


def test_a_budget_pays_for_what_fits_and_settles_to_the_true_cost(
    stack: GatewayStack, keeper: Keeper, tenant: str
) -> None:
    worst = 10 * PRICE.uncached_input + 100 * (PRICE.output or 0)
    client = Client(stack.gateway.url, declare(stack, tenant, [budget(tenant, 10 * worst)]))
    prompt = " ".join("abcdefghij")
    body = chat_body("m-budget", prompt, 4) | {"max_tokens": 100}
    served = [client.post("/v1/chat/completions", body) for _ in range(5)]
    assert [answer.status_code for answer in served] == [200] * 5
    assert served[0].headers["x-taximeter-budget-limit"] == "0.0041 USD"
    assert {"x-taximeter-budget-remaining", "x-taximeter-budget-reset"} <= set(served[0].headers)
    events = stack.events(tenant, 5)
    assert all(event.data.lease_id for event in events)
    true_cost = 5 * (10 * PRICE.uncached_input + 4 * (PRICE.output or 0))
    # The lease goes back when it is idle; what it settled is the true cost to the last unit.
    leased = partial(keeper.leased_pico, tenant, f"b-{tenant}")
    await_true(lambda: keeper.settled_pico(tenant) == leased() == true_cost, lambda: str(keeper.ledgers.get(tenant)))


def test_a_spent_budget_refuses_with_its_limit_and_reset(stack: GatewayStack, keeper: Keeper, tenant: str) -> None:
    client = Client(stack.gateway.url, declare(stack, tenant, [budget(tenant, 5 * 10**12)]))
    assert client.chat("m-budget", "a b").status_code == 200
    keeper.post(tenant, f"b-{tenant}", 5 * 10**12)
    # A lease in hand still counts; a request that it does not pay for meets the limit.
    dear = chat_body("m-budget", "a b", 1) | {"max_tokens": 10_000_000}

    def exhausted() -> bool:
        return bool(client.post("/v1/chat/completions", dear).json()["error"]["code"] == "budget_exhausted")

    await_true(exhausted, lambda: "the spent budget is known")
    refused = client.post("/v1/chat/completions", dear)
    error = refused.json()["error"]
    assert (refused.status_code, error["type"], error["budget"]) == (402, "budget_exhausted", f"b-{tenant}")
    assert (error["limit"], error["spent"]) == ("5.00 USD", "5.00 USD")
    assert error["resets_at"].endswith("Z")
    stack.events(tenant, 1)


def test_reservations_in_the_way_say_when_to_come_again(stack: GatewayStack, keeper: Keeper, tenant: str) -> None:
    worst = 1 * PRICE.uncached_input + 400 * (PRICE.output or 0)
    client = Client(stack.gateway.url, declare(stack, tenant, [budget(tenant, worst + 10)]))
    slow = chat_body("m-budget", "a", 400)
    slow["vllm_xargs"] = {"simulated_output_tokens": 400, "simulated_token_ms": 10}
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/v1/chat/completions", slow)
        await_true(lambda: keeper.leased_pico(tenant, f"b-{tenant}") > 0, lambda: "a lease")
        refused = client.post("/v1/chat/completions", slow)
        assert first.result().status_code == 200
    assert (refused.status_code, refused.json()["error"]["code"]) == (402, "in_flight_budget_exhausted")
    assert refused.headers["retry-after"] == "1"


def test_a_race_never_spends_more_than_the_budget(stack: GatewayStack, keeper: Keeper, tenant: str) -> None:
    cost = 2 * PRICE.uncached_input + 5 * (PRICE.output or 0)
    client = Client(stack.gateway.url, declare(stack, tenant, [budget(tenant, 10 * cost)]))
    body = chat_body("m-race", "a b", 5)
    with ThreadPoolExecutor(8) as pool:
        statuses = [
            answer.status_code for answer in pool.map(lambda _: client.post("/v1/chat/completions", body), range(16))
        ]
    assert statuses.count(200) == 10
    assert set(statuses) == {200, 402}
    stack.events(tenant, 10)


def test_without_a_keeper_each_budget_says_what_happens(stack: GatewayStack, keeper: Keeper, tenant: str) -> None:
    strict, lenient = tenant, f"{tenant}-l"
    keeper.deaf.update((strict, lenient))
    denying = Client(stack.gateway.url, declare(stack, strict, [budget(strict, 10**12)]))
    allowing = Client(stack.gateway.url, declare(stack, lenient, [budget(lenient, 10**12, when_unreachable="allow")]))
    refused = denying.chat("m-budget", "a")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "budget_unavailable")
    assert allowing.chat("m-budget", "a").status_code == 200
    (event,) = stack.events(lenient, 1)
    assert event.data.lease_id is None


def test_a_hard_budget_does_not_serve_what_has_no_price(stack: GatewayStack, keeper: Keeper, tenant: str) -> None:
    client = Client(stack.gateway.url, declare(stack, tenant, [budget(tenant, 10**12, feature="chat")]))
    assert client.chat("m-unpriced", "a").json()["error"]["code"] == "unpriced_model"
    client.feature = "search"
    assert client.chat("m-unpriced", "a").status_code == 200
    (event,) = stack.events(tenant, 1)
    assert event.data.model == "m-unpriced"


def test_a_model_server_that_is_away(stack: GatewayStack, client: Client, tenant: str) -> None:
    away = stack.another_gateway(f"gateway-{secrets.token_hex(4)}", "http://127.0.0.1:9")
    try:
        away.start()
        refused = Client(away.url, client.key).chat("m-json", "a")
        assert (refused.status_code, refused.json()["error"]["code"]) == (502, "upstream_unreachable")
    finally:
        away.child.stop()
    assert away.child.exit_status == 0, away.child.log_tail(50)
    assert client.chat("m-json", "a").status_code == 200
    stack.events(tenant, 1)
