"""Top-ups of prepaid wallets: in the book, over the API's own functions, and through real gateways and the real keeper."""

import asyncio
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from taximeter.cli.main import app
from taximeter_billing.book import AuditRow, open_book
from taximeter_billing.declarations import apply_declarations, read_mapping, republish
from taximeter_billing.errors import BillingError, DeclarationError, FrozenError, NotFoundError
from taximeter_billing.keys import create_key
from taximeter_billing.service.app import build_app
from taximeter_billing.service.sender import ControlSender
from taximeter_billing.service.stripe_webhooks import StripeInbox
from taximeter_billing.settings import BillingSettings
from taximeter_billing.top_ups import Wanted, list_top_ups, top_up
from taximeter_producers.control import publish
from taximeter_producers.topics import ensure_topics
from taximeter_schemas.control import ControlRecord
from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_schemas.money import to_pico
from tests.gateway_stack import PARTITIONS, Client, GatewayStack, Service
from tests.waiting import await_true

NOW = datetime(2026, 11, 24, 8, tzinfo=UTC)
MODEL = "m-wallet"


class Log:
    """A control topic in memory."""

    def __init__(self) -> None:
        self.records: list[ControlRecord] = []

    def publish(self, records: Iterable[ControlRecord]) -> int:
        new = list(records)
        self.records += new
        return len(new)

    def limit_pico(self, tenant: str = "acme") -> int:
        snapshot = ControlSnapshot()
        for record in self.records:
            snapshot = snapshot.apply(record)
        return snapshot.budgets[tenant][0].limit_pico


def content(tenant: str, **more: Any) -> dict[str, Any]:
    """A tenant with a card and an empty wallet."""
    price = {"model": MODEL, "uncached_input": "1.00", "output": "4.00"}
    card = {"id": f"card-{tenant}", "version": 1, "effective_from": "2026-01-01T00:00:00Z", "prices": [price]}
    return {
        "rate_cards": [card],
        "tenants": [{"id": tenant, "rate_card": card["id"]}],
        "budgets": [{"id": f"{tenant}-wallet", "tenant": tenant, "period": "lifetime", "limit": "0"}],
        **more,
    }


@pytest.fixture
def log(book: Engine) -> Log:
    made = Log()
    apply_declarations(book, read_mapping(content("acme")), "test", NOW, made.publish)
    return made


def wanted(name: str = "order-1", amount: str = "25.00", **fields: Any) -> Wanted:
    return Wanted(**{"id": name, "tenant": "acme", "amount_pico": to_pico(amount), "currency": "USD", **fields})


def test_a_top_up_counts_once_is_listed_and_audited(book: Engine, log: Log) -> None:
    assert log.limit_pico() == 0
    first = top_up(book, wanted(), "ann", NOW, log.publish)
    assert (first.is_new, first.limit_pico) == (True, to_pico("25"))
    again = top_up(book, wanted(), "bob", NOW + timedelta(days=1), log.publish)
    assert (again.is_new, again.limit_pico) == (False, to_pico("25"))
    taken = top_up(book, wanted("order-1-back", "-5.5", note="refund"), "ann", NOW, log.publish)
    assert taken.limit_pico == log.limit_pico() == to_pico("19.5")
    listed = [(entry.top_up.id, entry.top_up.amount_pico, entry.top_up.note) for entry in list_top_ups(book, "acme")]
    assert listed == [("order-1", to_pico("25"), ""), ("order-1-back", to_pico("-5.5"), "refund")]
    assert list_top_ups(book, "globex") == []
    with Session(book) as session:
        rows = list(session.scalars(select(AuditRow).where(AuditRow.kind == "top_up")))
        assert [(row.actor, row.action, row.key) for row in rows] == [
            ("ann", "create", "order-1"),
            ("ann", "create", "order-1-back"),
        ]


def test_declaring_again_keeps_what_was_added_and_a_new_log_hears_of_it(book: Engine, log: Log) -> None:
    top_up(book, wanted(), "ann", NOW, log.publish)
    done = apply_declarations(book, read_mapping(content("acme")), "test", NOW, log.publish, prune=True)
    assert done.plan.empty
    emptied = Log()
    republish(book, emptied.publish)
    assert emptied.limit_pico() == log.limit_pico() == to_pico("25")


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (wanted(amount="26.00"), FrozenError),  # the id was used for another amount
        (wanted("order-2", tenant="globex"), NotFoundError),
        (wanted("order-2", budget="another"), NotFoundError),
        (wanted("order-2", currency="EUR"), DeclarationError),
        (wanted("order-2", "0"), DeclarationError),
        (wanted("order-2", "-25.01"), DeclarationError),  # more than was ever given
    ],
)
def test_what_is_refused_changes_nothing(book: Engine, log: Log, asked: Wanted, error: type[BillingError]) -> None:
    top_up(book, wanted(), "ann", NOW, log.publish)
    with pytest.raises(error):
        top_up(book, asked, "ann", NOW, log.publish)
    assert log.limit_pico() == to_pico("25")
    assert len(list_top_ups(book)) == 1


def test_a_tenant_with_two_wallets_says_which(book: Engine, log: Log) -> None:
    second = {"id": "second", "tenant": "acme", "period": "lifetime", "limit": "1.00"}
    declared = content("acme")
    declared["budgets"].append(second)
    apply_declarations(book, read_mapping(declared), "test", NOW, log.publish)
    with pytest.raises(DeclarationError, match="several wallets"):
        top_up(book, wanted(), "ann", NOW, log.publish)
    assert top_up(book, wanted(budget="second"), "ann", NOW, log.publish).limit_pico == to_pico("26")


def test_the_api_adds_once_and_lists(book: Engine, bootstrap_servers: str) -> None:
    ensure_topics(bootstrap_servers, PARTITIONS, 1)
    tenant = f"acme-{secrets.token_hex(4)}"
    settings = BillingSettings(kafka_bootstrap_servers=bootstrap_servers, admin_token="an-admin-token")
    apply_declarations(book, read_mapping(content(tenant)), "test", NOW, Log().publish)
    served = build_app(settings, book, ControlSender(book, settings), StripeInbox(book, settings))
    order = {"id": f"order-{tenant}", "tenant": tenant, "amount": "12.50"}

    async def calls() -> list[httpx.Response]:
        transport, headers = httpx.ASGITransport(served), {"authorization": "Bearer an-admin-token"}
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
            bodies = (order, order, {**order, "amount": "1"}, {**order, "amount": "much"}, {**order, "id": "a\n"})
            answers = [await client.post("/v1/top-ups", json=body) for body in bodies]
            return [*answers, await client.get("/v1/top-ups", params={"tenant": tenant})]

    answers = asyncio.run(calls())
    assert [answer.status_code for answer in answers] == [201, 200, 409, 422, 422, 200]
    assert answers[0].json()["limit"] == "12.50 USD"
    (listed,) = answers[-1].json()
    assert (listed["id"], listed["amount"], listed["budget"]) == (order["id"], "12.50 USD", f"{tenant}-wallet")


def test_gateways_serve_what_was_paid_for_and_no_more(bootstrap_servers: str, book_url: str, tmp_path: Path) -> None:
    """Two gateways and the keeper as processes: refused while the wallet is empty, served after a top-up, then refused again."""
    stack = GatewayStack(bootstrap_servers, tmp_path, [MODEL])
    tenant = f"acme-{secrets.token_hex(4)}"
    environment = {
        "TAXIMETER_KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
        "TAXIMETER_KAFKA_PARTITIONS": str(PARTITIONS),
        "TAXIMETER_KAFKA_REBALANCE_TIMEOUT_SECONDS": "3",
        "TAXIMETER_BUDGETS_GROUP": f"budgets-{tenant}",
        "TAXIMETER_STATE_DIR": str(tmp_path / "budgets"),
        "TAXIMETER_DATABASE_URL": book_url,
    }
    keeper = Service("taximeter_streams.budgets", "TAXIMETER_BUDGETS_PORT", environment, tmp_path)
    second = stack.another_gateway(f"{stack.gateway_id}-2", stack.upstream.url)
    services = [stack.upstream, keeper, stack.gateway, second]
    book = open_book(book_url)
    try:
        for service in services:
            service.start()

        def send(records: Iterable[ControlRecord]) -> int:
            return publish(bootstrap_servers, records)

        apply_declarations(book, read_mapping(content(tenant)), "test", datetime.now(UTC), send)
        key = create_key(book, tenant, "test", datetime.now(UTC), send).secret
        clients = [Client(gateway.url, key) for gateway in (stack.gateway, second)]

        def ask(client: Client) -> httpx.Response:
            return client.chat(MODEL, "hello", 10)

        def statuses() -> list[int]:
            return [ask(client).status_code for client in clients]

        await_true(lambda: statuses() == [402, 402], lambda: f"an empty wallet refuses: {ask(clients[0]).text}")
        assert "top it up" in ask(clients[0]).text
        arguments = ["topup", tenant, "0.001", "--id", "order-1"]
        result = CliRunner().invoke(app, arguments, env=environment)
        assert result.exit_code == 0, result.output
        await_true(lambda: statuses() == [200, 200], lambda: f"both serve: {ask(clients[0]).text}")
        # 1000 millionths are paid for; a request costs at least 41 (1 of prompt, 10 of 4).
        served, refused = 2, 0
        while refused < 2:
            answers = statuses()
            served += answers.count(200)
            refused = refused + 1 if 200 not in answers else 0
            assert served * 41 <= 1_000
        repeated = CliRunner().invoke(app, arguments, env=environment)
        assert "nothing changed" in repeated.output
        listed = CliRunner().invoke(
            app, ["budget", "topups", "--tenant", tenant], env={**environment, "COLUMNS": "200"}
        )
        assert "order-1" in listed.output and "0.001 USD" in listed.output
        shown = CliRunner().invoke(app, ["budget", "list", "--tenant", tenant], env={**environment, "COLUMNS": "200"})
        assert f"{tenant}-wallet" in shown.output and "prepaid" in shown.output
        nobody = CliRunner().invoke(app, ["budget", "list", "--tenant", "acne"], env=environment)
        assert nobody.exit_code == 2 and "no tenant is called 'acne'" in nobody.output
    finally:
        book.dispose()
        for service in reversed(services):
            service.child.stop()
