"""Splits add up to the last unit."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taximeter_billing.domain.split import largest_remainder, round_to_total

TABLE: list[tuple[int, dict[str, int], str, dict[str, int]]] = [
    # A tie among equals: the salt decides.
    (100, {"a": 1, "b": 1, "c": 1}, "inv_1", {"a": 33, "b": 33, "c": 34}),
    # A negative total mirrors the positive one.
    (-100, {"a": 1, "b": 1, "c": 1}, "inv_1", {"a": -33, "b": -33, "c": -34}),
    # The largest remainder gets the unit, not the largest weight.
    (1000, {"a": 5000, "b": 3000, "c": 1999}, "", {"a": 500, "b": 300, "c": 200}),
    # Nobody gets a unit for a weight of 0.
    (1, {"a": 0, "b": 7}, "", {"a": 0, "b": 1}),
    # Nothing to split.
    (0, {"a": 0, "b": 0}, "", {"a": 0, "b": 0}),
    (0, {}, "", {}),
]


@pytest.mark.parametrize(("total", "weights", "salt", "shares"), TABLE)
def test_largest_remainder(total: int, weights: dict[str, int], salt: str, shares: dict[str, int]) -> None:
    assert largest_remainder(total, weights, salt) == shares


@pytest.mark.parametrize("weights", [{"a": -1, "b": 2}, {"a": 0}, {}])
def test_a_split_among_nobody_is_refused(weights: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="weight"):
        largest_remainder(1, weights)


def test_fractions_far_from_the_total_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be rounded"):
        round_to_total({"a": Fraction(1, 2)}, 5)


@given(
    st.integers(-(10**20), 10**20),
    st.dictionaries(st.text(max_size=3), st.integers(0, 10**12), min_size=1).filter(lambda w: any(w.values())),
    st.text(max_size=3),
)
def test_shares_add_up_and_are_within_one_unit(total: int, weights: dict[str, int], salt: str) -> None:
    whole = sum(weights.values())
    exact = {key: Fraction(total * weight, whole) for key, weight in weights.items()}
    shares = largest_remainder(total, weights, salt)
    assert sum(shares.values()) == total
    assert all(abs(shares[key] - exact[key]) < 1 for key in weights)
    assert shares == largest_remainder(total, dict(reversed(weights.items())), salt)  # order decides nothing
    rounded = round_to_total(exact, total, salt)
    assert sum(rounded.values()) == total
    assert all(abs(rounded[key] - exact[key]) < 1 for key in weights)
