"""Public price lists become rate cards, exactly: nothing rounded, nothing dropped in silence."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from taximeter.cli.main import app
from taximeter_billing.declarations import read_mapping
from taximeter_billing.declarations.importing import Imported, from_genai_prices, from_litellm
from taximeter_billing.declarations.prices import read_rate_card
from taximeter_billing.errors import DeclarationError
from taximeter_schemas import wire
from taximeter_schemas.events import ServiceTier
from taximeter_schemas.rate_cards import RateCard
from taximeter_schemas.rating import Rated, rate

START = datetime(2026, 11, 1, tzinfo=UTC)

# The shape of LiteLLM's list; numbers as they stand there, in exponents and with many digits.
LISTED = """{
 "sample_spec": {"litellm_provider": "one of ...", "input_cost_per_token": 1},
 "claude-x": {
  "litellm_provider": "anthropic", "mode": "chat", "max_tokens": 8192,
  "input_cost_per_token": 3e-06, "output_cost_per_token": 1.5e-05, "cache_read_input_token_cost": 3e-07,
  "cache_creation_input_token_cost": 3.75e-06, "cache_creation_input_token_cost_above_1hr": 6e-06,
  "input_cost_per_token_above_200k_tokens": 6e-06, "output_cost_per_token_above_200k_tokens": 2.25e-05,
  "input_cost_per_token_batches": 1.5e-06, "output_cost_per_token_batches": 7.5e-06,
  "input_cost_per_token_flex": 1e-06, "supports_vision": true
 },
 "rerank-x": {"litellm_provider": "cohere", "mode": "rerank", "input_cost_per_query": 0.002, "input_cost_per_token": 0.0},
 "fine": {"litellm_provider": "x", "input_cost_per_token": 1.00000000000005e-06},
 "dear-read": {"litellm_provider": "x", "input_cost_per_token": 1e-06, "cache_read_input_token_cost": 2e-06},
 "no input": {"litellm_provider": "x", "output_cost_per_token": 1e-06},
 "image": {"litellm_provider": "x", "output_cost_per_image": 0.04}
}"""


def read(imported: Imported) -> RateCard:
    return read_rate_card(imported.card)


def cost(
    card: RateCard, model: str, *, tier: str = "standard", attributes: dict[str, str] | None = None, **tokens: Any
) -> int:
    used = wire.Tokens(**tokens)
    data = wire.UsageData(
        tenant="acme",
        feature="f",
        model=model,
        tokens=used,
        service_tier=ServiceTier(tier),
        attributes=attributes or {},
    )
    rated = rate(card, data)
    assert isinstance(rated, Rated), rated
    return rated.metered_pico


def test_litellm_prices_are_taken_exactly() -> None:
    found = from_litellm(LISTED.encode(), "litellm", 1, START)
    card = read(found)
    assert card.source.startswith("litellm sha256:") and len(card.source) == len("litellm sha256:") + 64
    assert cost(card, "claude-x", uncached_input=1000, output=10) == 1000 * 3_000_000 + 10 * 15_000_000
    assert cost(card, "claude-x", cache_read=wire.CacheRead(provider=10)) == 10 * 300_000
    written = wire.CacheWrite(five_minutes=10, one_hour=10)
    assert cost(card, "claude-x", cache_write=written) == 10 * 3_750_000 + 10 * 6_000_000
    assert cost(card, "claude-x", uncached_input=200_001, output=2) == 200_001 * 6_000_000 + 2 * 22_500_000
    assert cost(card, "claude-x", tier="batch", uncached_input=10, output=1) == 10 * 1_500_000 + 7_500_000
    assert cost(card, "rerank-x", uncached_input=5, attributes={"search_units": "3"}) == 6_000_000_000


def test_what_is_not_taken_is_named_with_the_reason() -> None:
    found = from_litellm(LISTED.encode(), "litellm", 1, START)
    assert set(found.refused) == {"fine", "dear-read", "no input", "image"}
    assert "finer than 1e-12" in found.refused["fine"]
    assert "dearer than uncached input" in found.refused["dear-read"]
    assert found.ignored == {"claude-x": ["input_cost_per_token_flex"]}


def test_finer_prices_are_quantized_on_request() -> None:
    card = read(from_litellm(LISTED.encode(), "litellm", 1, START, ["fine"], quantize=True))
    assert cost(card, "fine", uncached_input=1) == 1_000_000


def test_patterns_choose_models() -> None:
    found = from_litellm(LISTED.encode(), "litellm", 1, START, ["claude-*"])
    assert {price["model"] for price in found.card["prices"]} == {"claude-x"}
    with pytest.raises(DeclarationError, match="no model with a price"):
        from_litellm(LISTED.encode(), "litellm", 1, START, ["gpt-*"])
    with pytest.raises(DeclarationError, match="not JSON"):
        from_litellm(b"{", "litellm", 1, START)


def test_genai_prices_are_taken_exactly() -> None:
    found = from_genai_prices("genai", 1, START, ["anthropic"], ["claude-sonnet-4*"])
    card = read(found)
    assert card.source.startswith("genai-prices ")
    models = {price.model for price in card.prices}
    assert models
    for model in models:
        assert cost(card, model, uncached_input=1000) > cost(card, model, cache_read=wire.CacheRead(provider=1000)) > 0
    with pytest.raises(DeclarationError, match="knows no provider nobody"):
        from_genai_prices("genai", 1, START, ["nobody"])


def test_the_command_prints_what_can_be_declared(tmp_path: Any) -> None:
    listed = tmp_path / "prices.json"
    listed.write_text(LISTED)
    words = ["prices", "litellm", str(listed), "--from", "2026-11-01", "--id", "default"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert "not taken: fine" in shown.stderr
    declared = yaml.safe_load(shown.stdout)
    [thing] = read_mapping(declared)
    assert thing.key == "default@1"
    assert json.loads(json.dumps(thing.body))["source"].startswith("litellm sha256:")
