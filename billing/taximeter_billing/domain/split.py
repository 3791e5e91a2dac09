"""Exact splits of whole pico-units: the shares always add up to the total, and no share is a whole unit off.

`largest_remainder` splits a whole total by whole weights; `round_to_total` rounds fractions that already add up to a
whole total. These are the only places where a split is rounded. Who gets an odd unit among equals is decided by
sha256("salt|key"), so neither the order of the keys nor anybody's name decides it, and a replay decides the same.
"""

from collections.abc import Hashable, Iterable, Mapping
from fractions import Fraction
from hashlib import sha256
from math import gcd
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


def largest_remainder(total: int, weights: Mapping[str, int], salt: str = "") -> dict[str, int]:
    """Split `total` (any whole unit) in proportion to `weights`; the shares sum to it, each within one unit of exact.

    A negative total mirrors the positive one. Raises ValueError for a negative weight, and when there is a total and
    nobody to give it to (no weight above 0).
    """
    if any(weight < 0 for weight in weights.values()):
        raise ValueError("a weight of a split is negative")
    whole = sum(weights.values())
    if whole == 0:
        if total:
            raise ValueError(f"{total} cannot be split: no weight is above 0")
        return dict.fromkeys(weights, 0)
    sign = -1 if total < 0 else 1
    exact = {key: divmod(abs(total) * weight, whole) for key, weight in weights.items()}
    floors = {key: floor for key, (floor, _) in exact.items()}
    left = abs(total) - sum(floors.values())
    shares = _hand_out(floors, {key: remainder for key, (_, remainder) in exact.items()}, left, salt)
    return {key: sign * share for key, share in shares.items()}


def round_to_total(exact: Mapping[str, Fraction], total: int, salt: str = "") -> dict[str, int]:
    """Round exact shares to whole units that sum to `total`, each within one unit of its exact share.

    Raises ValueError when the shares are too far from the total for that.
    """
    floors = {key: share.numerator // share.denominator for key, share in exact.items()}
    return _hand_out(
        floors, {key: share - floors[key] for key, share in exact.items()}, total - sum(floors.values()), salt
    )


def round_to_units(amounts: Mapping[str, int], unit: int, total: int, salt: str = "") -> dict[str, int]:
    """The same for shares that are whole multiples of 1 / `unit`: `amounts` in such parts, the result in whole units."""
    parts = {key: divmod(amount, unit) for key, amount in amounts.items()}
    floors = {key: floor for key, (floor, _) in parts.items()}
    left = total - sum(floors.values())
    return _hand_out(floors, {key: remainder for key, (_, remainder) in parts.items()}, left, salt)


def exact_sum(shares: Iterable[Fraction]) -> Fraction:
    """The sum of exact shares; those of one denominator are added as whole numbers, which is most of them."""
    terms: dict[int, int] = {}
    for share in shares:
        terms[share.denominator] = terms.get(share.denominator, 0) + share.numerator
    return _sum_pairwise(list(terms.items()))


def round_half(exact: Fraction) -> int:
    """A sum of exact shares in whole units, a half upwards: the total that they are rounded to."""
    return (2 * exact.numerator + exact.denominator) // (2 * exact.denominator)


class ExactSums(Generic[Key]):
    """Sums of fractions by key, exact. Terms of one denominator are added as whole numbers, so a million terms stay cheap."""

    def __init__(self) -> None:
        self._terms: dict[Key, dict[int, int]] = {}

    def add(self, key: Key, numerator: int, denominator: int = 1) -> None:
        """Add numerator / denominator (above 0) to the key's sum."""
        common = gcd(numerator, denominator)
        terms = self._terms.setdefault(key, {})
        reduced = denominator // common
        terms[reduced] = terms.get(reduced, 0) + numerator // common

    def totals(self) -> dict[Key, Fraction]:
        """Every key's sum."""
        return {key: _sum_pairwise(list(terms.items())) for key, terms in self._terms.items()}


def _sum_pairwise(terms: list[tuple[int, int]]) -> Fraction:
    """The sum of numerators over denominators, halves first: the denominators grow only near the end."""
    if len(terms) <= 2:
        return sum((Fraction(numerator, denominator) for denominator, numerator in terms), Fraction(0))
    middle = len(terms) // 2
    return _sum_pairwise(terms[:middle]) + _sum_pairwise(terms[middle:])


def _hand_out(
    floors: Mapping[str, int], remainders: Mapping[str, int | Fraction], left: int, salt: str
) -> dict[str, int]:
    """One more unit for each of the `left` largest remainders; among equal ones the hash decides."""
    if not 0 <= left <= len(floors):
        raise ValueError(
            f"shares that sum to about {sum(floors.values())} cannot be rounded: {left} units are left over"
        )
    shares = dict(floors)
    if not left:
        return shares
    ordered = sorted(remainders, key=remainders.__getitem__, reverse=True)
    bound = remainders[ordered[left - 1]]
    lucky = [key for key in ordered[:left] if remainders[key] != bound]
    tied = sorted((key for key in ordered if remainders[key] == bound), key=lambda key: (_tie(salt, key), key))
    for key in (*lucky, *tied[: left - len(lucky)]):
        shares[key] += 1
    return shares


def _tie(salt: str, key: str) -> str:
    return sha256(f"{salt}|{key}".encode()).hexdigest()
