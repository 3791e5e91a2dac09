"""What one event costs, in every dimension that a rate card may price."""

from datetime import UTC, datetime
from typing import Any

import pytest

from taximeter_billing.declarations.prices import read_rate_card
from taximeter_billing.errors import DeclarationError
from taximeter_schemas import wire
from taximeter_schemas.rate_cards import RateCard
from taximeter_schemas.rating import Rated, Unrated, rate, worst_case_pico

START = "2026-01-01T00:00:00Z"


def card(*prices: dict[str, Any], **more: Any) -> RateCard:
    listed = [{"model": "m", "uncached_input": "1", "output": "2", **price} for price in prices]
    return read_rate_card({"version": 1, "effective_from": START, "prices": listed, **more})


def event(**data: Any) -> wire.UsageData:
    full = {"tenant": "acme", "feature": "chat", "model": "m", "tokens": wire.Tokens(uncached_input=10), **data}
    return wire.UsageData(**full)


def cost(of: RateCard, **data: Any) -> int | str:
    rated = rate(of, event(**data))
    return rated.metered_pico if isinstance(rated, Rated) else rated.reason


EVERYTHING = card({"search_unit": "0.002", "gpu_second": "0.0007", "adapter_hour": "0.10", "request": "0.01"})
TOKENS_AND_REQUEST = 10 * 1_000_000 + 10**10


@pytest.mark.parametrize(
    ("data", "more"),
    [
        ({}, 0),
        ({"attributes": {"search_units": "3"}}, 3 * 2 * 10**9),
        ({"attributes": {"adapter_hours": "2"}}, 2 * 10**11),
        # 1.25 seconds at 700 pico-units a microsecond.
        ({"worker": wire.Worker(id="w", gpu_seconds=1.25)}, 1_250_000 * 700),
        # What a float cannot hold exactly is still a whole number of microseconds.
        ({"worker": wire.Worker(id="w", gpu_seconds=0.1 + 0.2)}, 300_000 * 700),
    ],
)
def test_dimensions_beside_tokens(data: dict[str, Any], more: int) -> None:
    assert cost(EVERYTHING, **data) == TOKENS_AND_REQUEST + more


@pytest.mark.parametrize("text", ["three", "-1", "1.5", "1e3", "", "٣", "9999999999"])
def test_a_count_that_is_no_whole_number_leaves_the_event_unrated(text: str) -> None:
    assert cost(EVERYTHING, attributes={"search_units": text}) == "bad_search_units"
    # A card that does not ask for it does not look.
    assert cost(card({}), attributes={"search_units": text}) == 10 * 1_000_000


def test_the_length_of_the_input_chooses_the_prices_of_the_whole_request() -> None:
    bands = [{"input_over": 100, "uncached_input": "2"}, {"input_over": 1000, "uncached_input": "4", "output": "8"}]
    banded = card({"cache_read_gpu": "0.1", "bands": bands})

    def costs(uncached: int, read: int, output: int) -> int | str:
        used = wire.Tokens(uncached_input=uncached, cache_read=wire.CacheRead(gpu=read), output=output)
        return cost(banded, tokens=used)

    assert costs(100, 0, 1) == 100 * 1_000_000 + 2_000_000
    assert costs(101, 0, 1) == 101 * 2_000_000 + 2_000_000
    assert costs(1, 100, 1) == 2_000_000 + 100 * 100_000 + 2_000_000  # cached input counts for the length
    assert costs(1001, 0, 1) == 1001 * 4_000_000 + 8_000_000
    assert worst_case_pico(banded.prices[0], 100, 10) == 100 * 1_000_000 + 20_000_000
    assert worst_case_pico(banded.prices[0], 5000, 10) == 5000 * 4_000_000 + 80_000_000


def test_multipliers_are_prices_of_their_own() -> None:
    factored = card({"request": "0.01"}, multipliers={"batch": "0.5", "priority": "1.75"})
    assert cost(factored, service_tier="batch") == TOKENS_AND_REQUEST // 2
    assert cost(factored, service_tier="priority") == TOKENS_AND_REQUEST * 7 // 4
    assert cost(factored) == TOKENS_AND_REQUEST
    assert cost(card({"multipliers": {}}, multipliers={"batch": "0.5"}), service_tier="batch") == 10 * 1_000_000


def test_the_most_specific_price_and_the_region() -> None:
    regional = card({}, {"region": "eu", "uncached_input": "3"}, {"adapter": "a", "uncached_input": "5"})
    assert cost(regional, attributes={"region": "eu"}) == 30_000_000
    assert cost(regional, attributes={"region": "us"}) == 10_000_000
    assert cost(regional, adapter="a") == 50_000_000
    assert cost(regional, adapter="a", attributes={"region": "eu"}) == 50_000_000  # the adapter outranks the others


@pytest.mark.parametrize(
    ("price", "more", "words"),
    [
        ({"uncached_input": "0.0000015"}, {}, "finer than 1e-12"),
        ({"uncached_input": "0.000001"}, {"multipliers": {"batch": "0.5"}}, "finer than 1e-12; say `quantize: true`"),
        ({"gpu_second": "0.0000000005"}, {}, "finer than 1e-12 a microsecond"),
        ({}, {"multipliers": {"cheap": "0.5"}}, "multipliers.cheap: there are: standard, batch"),
        ({}, {"multipliers": {"batch": 0.5}}, "multipliers.batch: 0.5 is not exact"),
        ({}, {"multipliers": {"batch": "-1"}}, "a factor is not below 0"),
        ({"bands": [{"input_over": 10, "cache_read_gpu": "9"}]}, {}, "a cache read is dearer"),
        ({"bands": [{"input_over": 10, "output": 1.5}]}, {}, "bands[0].output: 1.5 is not exact"),
        ({}, {"quantize": "yes"}, "quantize: true or false"),
    ],
)
def test_refused(price: dict[str, Any], more: dict[str, Any], words: str) -> None:
    with pytest.raises(DeclarationError) as refused:
        card(price, **more)
    assert words in str(refused.value)


def test_finer_values_are_rounded_half_up_on_request_only() -> None:
    fine = card({"uncached_input": "0.0000015", "gpu_second": "0.0000000005"}, quantize=True)
    assert (fine.prices[0].uncached_input, fine.prices[0].gpu_microsecond) == (2, 0)


def test_a_card_is_known_by_what_it_says() -> None:
    first = card({})
    assert first.sha256 == first.model_copy(update={"recorded_at": datetime(2026, 5, 1, tzinfo=UTC)}).sha256
    assert first.sha256 != card({"output": "3"}).sha256


def test_output_without_a_price_is_unrated_also_in_a_band() -> None:
    nothing = RateCard.model_validate(
        {**card({}).model_dump(), "prices": [{"model": "m", "uncached_input": 1, "bands": [{"input_over": 5}]}]}
    )
    assert rate(nothing, event(tokens=wire.Tokens(uncached_input=9, output=1))) == Unrated("no_output_price")
