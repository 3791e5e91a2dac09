"""The invoice lines for blocks that were kept in cache: one for each feature, model and price of a tenant. Pure.

A cache has no time zone, so storage is settled by months in UTC, whatever the tenants' own are. What a month begins with is found
in the events of LOOKBACK before it: who filled a block longer ago is no longer known, and it is shared by those who hit it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction

from taximeter_billing.domain.adjusting import Adjustment
from taximeter_billing.domain.epochs import Cell, epochs_within, in_order
from taximeter_billing.domain.savings import round_once
from taximeter_billing.domain.spans import microseconds
from taximeter_billing.domain.storage import MICROSECONDS_AN_HOUR, STORAGE, BorneBy, Kept, storage_classes, token_times
from taximeter_billing.domain.usage import Prices, Skus, UsageRow, line_of
from taximeter_schemas.cache_policies import TTL_SECONDS_MAX, CachePolicy
from taximeter_schemas.cache_uses import CacheUse, Evicted
from taximeter_schemas.errors import CachePolicyError
from taximeter_schemas.periods import Period, billing_month
from taximeter_schemas.rate_cards import RateCard

LOOKBACK = timedelta(seconds=TTL_SECONDS_MAX)
DIGITS_MAX = 60
"""A fraction that is longer is shown to the microsecond below it; the amount is that of the exact one all the same."""

Line = tuple[str, str, str, int]
"""Feature and model of who bears it, and the rate card and price (pico-units a token-hour) that it has."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a group's tenants bear, exactly, in token-microseconds, and how many events were read for it."""

    kept: Mapping[tuple[str, Line], Fraction]
    events: int


def companies(shared: Iterable[Iterable[str]], tenants: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """For each tenant, sorted, all whose blocks are settled with its own: who used a pool that it used, who used one that they
    used, and so on; so blocks in a pool that a tenant has left are settled once. `shared`: who used one pool, pool by pool."""
    joined: dict[str, set[str]] = {}
    for users in shared:
        together = set().union(*(joined.get(user, {user}) for user in users))
        joined |= dict.fromkeys(together, together)
    return {tenant: tuple(sorted(joined.get(tenant, {tenant}))) for tenant in tenants}


def kept_by(own: CachePolicy, others: Iterable[CachePolicy]) -> CachePolicy:
    """The policy as it holds for a company. Where those of its tenants differ, the shortest time to live holds for all, and
    a block is its creator's."""
    stated = [policy for policy in (own, *others) if policy.ttl_seconds is not None]
    if not stated:
        return own
    borne_by: BorneBy = "shared" if all(policy.storage == "shared" for policy in stated) else "creator"
    ttl_seconds = min(policy.ttl_seconds for policy in stated if policy.ttl_seconds is not None)
    return own.model_copy(update={"storage": borne_by, "ttl_seconds": ttl_seconds})


def storage_month(label: str) -> Period:
    """The month in UTC in which storage is settled."""
    return billing_month(label, "UTC")


def ttl_us(policy: CachePolicy) -> int:
    """How long an unused block stays, in microseconds. Raises CachePolicyError where the policy does not say."""
    if policy.ttl_seconds is None:
        raise CachePolicyError(
            f"keeping blocks in cache has a price, and the cache policy {policy.name} does not say how long they stay:"
            " declare a version of it with ttl_seconds"
        )
    return policy.ttl_seconds * 1_000_000


def store(rows: Iterable[UsageRow], cards: Iterable[RateCard], policy: CachePolicy, month: Period) -> Stored:
    """What is borne in a month, from its events and those of LOOKBACK before it, in any order. Raises UnknownPriceError,
    CachePolicyError."""
    skus = Skus(Prices(cards))
    records: list[CacheUse | Evicted] = []
    events = 0
    for row in rows:
        events += 1
        own = [use for use in skus.uses(row) if use.blocks]
        records += own
        records += [gone for use in own if (gone := _evicted(row, use)) is not None]
    ordered = in_order(records, skus.rates)
    epochs = epochs_within(ordered, ttl_us(policy), microseconds(month.start), microseconds(month.end))
    return Stored(by_line(token_times(storage_classes(epochs, policy.storage)), skus.storage), events)


def by_line(kept: Mapping[Kept, Fraction], prices: Mapping[str, int]) -> dict[tuple[str, Line], Fraction]:
    """Sums by tenant and line, without what has no price. `prices`: of storage, by SKU."""
    lines: dict[tuple[str, Line], Fraction] = {}
    for ((tenant, own), sku), token_us in kept.items():
        if price := prices.get(sku, 0):
            feature, model, _card = line_of(own)
            key = (tenant, (feature, model, line_of(sku)[2], price))
            lines[key] = lines.get(key, Fraction(0)) + token_us
    return lines


def storage_lines(
    stored: Stored, cards: Iterable[RateCard], policy: CachePolicy, month: Period, salt: str
) -> dict[str, list[Adjustment]]:
    """By tenant. The group's cost is rounded half up to a whole pico-unit, once, and shared by largest remainder."""
    exact: dict[Cell, Fraction] = {}
    lines: dict[Cell, Line] = {}
    for (tenant, line), token_us in stored.kept.items():
        cell = (tenant, "|".join(map(str, line)))
        exact[cell], lines[cell] = token_us * line[3] / MICROSECONDS_AN_HOUR, line
    hashes = {card.name: card.sha256 for card in cards}
    found: dict[str, list[Adjustment]] = {}
    for cell, amount in sorted(round_once(exact, f"{salt}/{STORAGE}").items()):
        feature, model, card, price = lines[cell]
        token_us = stored.kept[cell[0], lines[cell]]
        detail = {
            "feature": feature,
            "model": model,
            "token_seconds": exact_text(token_us / 1_000_000),
            "price_pico_token_hour": str(price),
            "rate_card": card,
            "rate_card_sha256": hashes.get(card, ""),
            "cache_policy": policy.name,
            "borne_by": policy.storage,
            "ttl_seconds": str(policy.ttl_seconds),
            "fillers_known_since": (month.start - LOOKBACK).isoformat(),
            "from": month.start.isoformat(),
            "to": month.end.isoformat(),
        }
        label = f"cache storage of {model}, {feature}"
        found.setdefault(cell[0], []).append(Adjustment(STORAGE, cell[1], label, amount, detail))
    return found


def exact_text(quantity: Fraction) -> str:
    """A decimal where it has an end, else a fraction ("70/3"), or the microsecond below where that would be too long."""
    denominator = quantity.denominator
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    if denominator == 1 and 10**6 % quantity.denominator == 0:
        whole, rest = divmod(quantity * 10**6, 10**6)
        return f"{whole}.{int(rest):06d}".rstrip("0").rstrip(".") if rest else str(whole)
    text = str(quantity)
    return text if len(text) <= DIGITS_MAX else f"{exact_text(Fraction(quantity * 10**6 // 1, 10**6))}..."


def _evicted(row: UsageRow, use: CacheUse) -> Evicted | None:
    """When the blocks that an event filled had left the cache before, where the engine says so."""
    filled = tuple(block for block, _tokens in use.blocks[use.hit_blocks :])
    if row.evicted_us is None or not filled:
        return None
    return Evicted(kind="evict", ts=row.evicted_us, blocks=filled, model=use.model or use.sku, pool=use.pool)
