"""The commands that prove, explain and change invoices, as a person types them."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client
from typer.testing import CliRunner, Result

from taximeter.cli.main import app
from taximeter.embedded.ports import free_port
from taximeter_billing.book import open_book
from taximeter_billing.closing import close_period, finalize_period
from taximeter_billing.declarations import apply_declarations, read_mapping
from taximeter_billing.payments.double.store import Store
from taximeter_billing.warehouse import UsageReader
from tests.double_process import judged_double
from tests.face_process import FaceProcess
from tests.integration.test_billing import NOW, PERIOD, content, insert, publish, shared_prefix

Run = Callable[..., Result]


@pytest.fixture
def run(book_url: str, warehouse: Client, clickhouse: FaceProcess, unique_database: str) -> Run:
    """Runs a command on a finalized month of acme and globex."""
    book = open_book(book_url)
    apply_declarations(book, read_mapping(content()), "tester", datetime(2026, 10, 1, tzinfo=UTC), publish)
    insert(warehouse, *shared_prefix())
    close_period(book, UsageReader(warehouse), PERIOD, NOW)
    finalize_period(book, PERIOD, "INV", NOW)
    book.dispose()
    addresses = {"TAXIMETER_DATABASE_URL": book_url, "TAXIMETER_CLICKHOUSE_URL": clickhouse.url(unique_database)}

    def command(*words: str, env: Mapping[str, str] | None = None) -> Result:
        return CliRunner().invoke(app, words, env={**addresses, "COLUMNS": "200", **(env or {})})

    return command


def test_verify(run: Run, warehouse: Client) -> None:
    shown = run("verify", "INV-000002")
    assert shown.exit_code == 0 and "proven INV-000002: 1 events give the very bytes" in shown.output
    insert(warehouse, {"tenant": "globex", "event_id": "forged", "output": 1})
    differs = run("verify", "INV-000002", "--json")
    assert differs.exit_code == 1
    assert json.loads(differs.output)["proven"] is False
    unknown = run("verify", "INV-9")
    assert (unknown.exit_code, unknown.output.strip()[:6]) == (2, "error:")


def test_explain(run: Run) -> None:
    shown = run("explain", "INV-000002", "1")
    assert shown.exit_code == 0
    assert "cache_read_gpu" in shown.output and "128,000" in shown.output
    assert "list 0.114 USD + tiers 0.00 USD - cache savings 0.0576 USD = net 0.0564 USD" in shown.output
    found = json.loads(run("explain", "globex/2026-11", "1", "--json").output)
    assert found["events"][0]["cache_read"] == {"gpu": 128_000}
    assert run("explain", "INV-000002", "7").exit_code == 2


def test_a_line_that_is_no_usage_is_explained_too(run: Run, book_url: str) -> None:
    book = open_book(book_url)
    discount = {"id": "ten", "percent": "10", "label": "Launch [beta]"}
    contract = {"id": "c", "tenant": "globex", "starts": "2026-01-01T00:00:00Z", "discounts": [discount]}
    costs = {"id": "c", "version": 1, "effective_from": "2026-01-01T00:00:00Z",
             "prices": [{"model": "m", "uncached_input": "0.10", "output": "9"}]}  # fmt: skip
    declared = read_mapping({**content(), "contracts": [contract], "cost_cards": [costs]})
    apply_declarations(book, declared, "tester", datetime(2026, 10, 2, tzinfo=UTC), publish)
    book.dispose()
    run("invoice", "void", "INV-000002", "--reason", "a contract")
    run("invoice", "close", "--period", PERIOD, "--early")
    shown = run("explain", "globex/2026-11", "2")
    assert shown.exit_code == 0 and "bps: 1000" in shown.output
    assert "Launch [beta]" in run("invoice", "show", "globex/2026-11").output
    margin = run("margin", "--period", PERIOD, "--by", "model")
    assert margin.exit_code == 1 and "-0.1570 USD" in margin.output
    assert run("margin", "--period", PERIOD, "--by", "color").exit_code == 2
    nowhere = {"TAXIMETER_KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}"}
    untold = run("margin", "--period", PERIOD, "--alert", env=nowhere)
    assert untold.exit_code == 2 and "does not answer (TAXIMETER_KAFKA_BOOTSTRAP_SERVERS)" in untold.stderr


@pytest.mark.parametrize(
    "words", [("unrated", "list"), ("unrated", "rate"), ("rejected", "show", "0/1"), ("rejected", "replay", "--all")]
)
def test_without_kafka_nothing_is_sent_again(run: Run, words: tuple[str, ...]) -> None:
    told = run(*words, env={"TAXIMETER_KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}"})
    assert told.exit_code == 2
    assert "does not answer (TAXIMETER_KAFKA_BOOTSTRAP_SERVERS)" in told.stderr and "nothing was done" in told.stderr


def test_what_if(run: Run, tmp_path: Path) -> None:
    card = tmp_path / "card.yaml"
    price = '{model: m, uncached_input: "1.00", cache_read_gpu: "0.05", output: "1.50"}'
    card.write_text(f'{{version: 9, effective_from: "2026-12-01T00:00:00Z", prices: [{price}]}}')
    shown = run("what-if", "--period", PERIOD, "--rate-card", str(card))
    assert shown.exit_code == 0, shown.output
    assert "would complain: acme, globex" in shown.output
    retained = json.loads(run("what-if", "--period", PERIOD, "--policy", "retain", "--json").output)
    assert retained["would_complain"] == ["globex"]
    assert retained["differences"][0]["change_pico"] == "57600000000"
    assert run("what-if", "--period", PERIOD).exit_code == 2
    assert run("what-if", "--period", PERIOD, "--rate-card", "nothing@1").exit_code == 2
    unknown = run("what-if", "--period", PERIOD, "--policy", "nothing")
    assert unknown.exit_code == 2 and "kinds are: retain, " in unknown.output
    card.write_text(card.read_text().replace("model: m,", "model: another,"))
    blind = run("what-if", "--period", PERIOD, "--rate-card", str(card))
    assert "cannot be said: acme" in blind.output and "complain" not in blind.output


def test_credit_and_void(run: Run) -> None:
    given = run("invoice", "credit", "INV-000001", "--amount", "0.04", "--reason", "slow")
    assert "CN-000001 on INV-000001: -0.04 USD" in given.output
    assert run("invoice", "credit", "INV-000001", "--amount", "0.07", "--reason", "slow").exit_code == 2
    assert "INV-000002 is void" in run("invoice", "void", "INV-000002", "--reason", "address").output
    assert run("invoice", "void", "INV-000002", "--reason", "address").exit_code == 2
    assert "drafted: globex" in run("invoice", "close", "--period", PERIOD, "--early").output
    assert "reviewed globex/2026-11: 0.06 USD" in run("invoice", "review", "globex/2026-11").output
    assert "INV-000003: globex" in run("invoice", "finalize", "--period", PERIOD, "--reviewed-only").output
    assert "slow" in run("invoice", "notes").output
    assert "chat" in run("invoice", "show", "INV-000003").output


def test_what_is_voided_and_given_back_reaches_stripe_once(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with judged_double(tmp_path / "stripe.db") as double:
        monkeypatch.setenv("TAXIMETER_STRIPE_URL", double.url)
        monkeypatch.setenv("TAXIMETER_STRIPE_API_KEY", "sk_test_1")
        assert run("invoice", "push", "--period", PERIOD).exit_code == 0
        assert run("stripe", "reconcile", "--period", PERIOD).exit_code == 0
        assert run("invoice", "credit", "INV-000001", "--amount", "0.01", "--reason", "goodwill").exit_code == 0
        assert run("invoice", "void", "INV-000002", "--reason", "a wrong tenant").exit_code == 0
        differs = run("stripe", "reconcile", "--period", PERIOD)
        assert differs.exit_code == 1 and "INV-000002: ours is void, Stripe's is open" in differs.output
        with monkeypatch.context() as away:
            away.setenv("TAXIMETER_STRIPE_URL", f"http://127.0.0.1:{free_port()}")
            unknown = run("stripe", "reconcile", "--period", PERIOD)
        assert unknown.exit_code == 2 and "INV-000001 was not compared" in unknown.output, "not known is not different"
        pushed = run("invoice", "push", "--period", PERIOD)
        assert pushed.exit_code == 0, pushed.output
        assert "is void" in pushed.output and "CN-000001" in pushed.output and "created, issued" in pushed.output
        again = run("invoice", "push", "--period", PERIOD)
        assert again.exit_code == 0 and "CN-000001" not in again.output and "is void" not in again.output
        agrees = run("stripe", "reconcile", "--period", PERIOD)
        assert agrees.exit_code == 0, agrees.output
        shown = run("stripe", "payments", "INV-000001", "INV-000002")
        assert "0.01 USD" in shown.output and "void" in shown.output
        assert double.problems == []


def test_usage_goes_to_a_meter_once_however_often_it_is_sent(run: Run, warehouse: Client, tmp_path: Path) -> None:
    with judged_double(tmp_path / "stripe.db") as found:
        env = {"TAXIMETER_STRIPE_URL": found.url, "TAXIMETER_STRIPE_API_KEY": "sk_test_1"}
        env["TAXIMETER_STATE_DIR"] = str(tmp_path / "state")
        words = ("stripe", "meter-events", "--period", PERIOD, "--meter", "llm_tokens", "--count", "output")
        found.double.plan_faults({"POST /v1/billing/meter_events": ["lost"]})
        cut_off = run(*words, env=env)
        assert cut_off.exit_code == 2 and "meter event acme/test/a" in cut_off.output
        sent = run(*words, env=env)
        assert (sent.exit_code, sent.output) == (0, "2 events of 2026-11 sent to meter llm_tokens\n")
        assert "0 events" in run(*words, env=env).output
        came = {"time": datetime(2026, 11, 2, tzinfo=UTC), "inserted_at": datetime(2026, 11, 3, tzinfo=UTC)}
        nobody = run(*words, "--tenant", "acne", env=env)
        assert nobody.exit_code == 2 and "no tenant is called 'acne'" in nobody.output
        late = {"tenant": "acme", "event_id": "late", "output": 7, **came}
        insert(warehouse, late, {**late, "tenant": "globex", "output": 0})
        assert "1 events" in run(*words, env=env).output
        metered = Store(tmp_path / "stripe.db").all("meter_event")
        assert {(one["identifier"], one["payload"]["value"]) for one in metered} == {
            ("acme/test/a", "10000"), ("globex/test/b", "20000"), ("acme/test/late", "7"),
        }  # fmt: skip
        # Voided before it is sent: never sent. Voided after: cancelled. Voided a day after: it stands too high, and that is said.
        insert(warehouse, {**late, "event_id": "unsent", "attributes": {}}, *(
            {**late, "event_id": f"void-{event}", "output": 0, "attributes": {"voids": event}} for event in ("unsent", "late")
        ))  # fmt: skip
        cancelled = run(*words, env=env)
        assert (cancelled.exit_code, cancelled.output) == (
            0, "0 events of 2026-11 sent to meter llm_tokens\n1 voided or amended events cancelled there\n",
        )  # fmt: skip
        insert(warehouse, {**late, "event_id": "more", "output": 5, "attributes": {"amends": "a"},
                           "inserted_at": datetime(2026, 11, 4, tzinfo=UTC)})  # fmt: skip
        store = Store(tmp_path / "stripe.db")
        old = next(one for one in store.all("meter_event") if one["identifier"] == "acme/test/a")
        store.put({**old, "created": old["created"] - 25 * 3600}, "meter_event")
        stands = run(*words, env=env)
        assert stands.exit_code == 1 and "1 events of 2026-11 sent" in stands.output
        assert "acme/test/a was voided or amended and stands too high by 10,000 output" in stands.output
        later = run(*words, env=env)
        assert later.exit_code == 0 and "1 events stand too high by 10,000 output in all" in later.output
        assert found.problems == []
    assert run("stripe", "meter-events", "--period", PERIOD, "--meter", "m", "--count", "cats").exit_code == 2


def test_nothing_that_an_auditor_adds_up_is_cut(run: Run) -> None:
    shown = run("explain", "INV-000001", "1", env={"COLUMNS": "80"})
    assert shown.exit_code == 0 and "…" not in shown.output
