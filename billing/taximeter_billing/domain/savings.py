"""Cache savings of a period: what every tenant is charged when cached prefixes made input cheaper.

list = every input token at the uncached price; metered = with cache prices; the difference is the saving, and a policy
says who gets it: charge = list + write premium - credit. The only rounding is at the very end, once, so every share is
within one unit of exact and everything adds up: sum of charges = sum of metered + what the provider keeps.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from operator import add, attrgetter

from taximeter_billing.domain.epochs import CacheRecords, Cell, Epoch, in_order, trace_epochs
from taximeter_billing.domain.lots import Tallies, Tally, tally_uses
from taximeter_billing.domain.shapley import shapley_credits
from taximeter_billing.domain.split import exact_sum, round_half, round_to_total
from taximeter_billing.domain.storage import storage_costs
from taximeter_billing.domain.waterfall import PROVIDER, waterfall_credits
from taximeter_schemas.cache_policies import (
    CachePolicy,
    Published,
    Rule,
    ShapleyRule,
    WaterfallRule,
    refuse_mixed_prices,
)
from taximeter_schemas.cache_uses import CacheUse, SkuRates


@dataclass(frozen=True, slots=True)
class CellSavings:
    """One tenant's (or one tenant's and SKU's) account of a period, in whole pico-units.

    `reduction_pico` is what the policy takes off list cost and write premium, under every policy. `storage_pico` is the
    cost of keeping blocks and not part of `charge_pico`.
    """

    list_pico: int = 0
    metered_pico: int = 0
    write_premium_pico: int = 0
    exact_pico: int = 0
    inferred_pico: int = 0
    unattributed_pico: int = 0
    cached_tokens: int = 0
    input_tokens: int = 0
    reduction_pico: int = 0
    storage_pico: int = 0

    @property
    def charge_pico(self) -> int:
        """What the tenant pays for input tokens."""
        return self.list_pico + self.write_premium_pico - self.reduction_pico

    @property
    def gross_pico(self) -> int:
        """What this tenant's own hits saved, whoever gets it."""
        return self.exact_pico + self.inferred_pico + self.unattributed_pico


@dataclass(frozen=True, slots=True)
class SavingsResult:
    """A settled period. `by_tenant` sums `by_tenant_and_sku`; both are sorted by key."""

    rule: Rule
    by_tenant: Mapping[str, CellSavings]
    by_tenant_and_sku: Mapping[Cell, CellSavings]
    provider_retained_pico: int

    @property
    def charges_pico(self) -> dict[str, int]:
        """What each tenant pays for its input; every tenant of the period has an entry."""
        return {tenant: account.charge_pico for tenant, account in self.by_tenant.items()}

    @property
    def credits_pico(self) -> dict[str, int]:
        """Waterfall: what each tenant gets off list cost and write premium. Shapley: off its metered cost (negative for
        who came late). Every tenant of the period has an entry."""
        return {tenant: self._credit(account) for tenant, account in self.by_tenant.items()}

    @property
    def known(self) -> dict[str, int]:
        """The gross saving by how well it is known, in pico-units: exact, inferred, unattributed."""
        accounts = self.by_tenant.values()
        return {
            "exact": sum(account.exact_pico for account in accounts),
            "inferred": sum(account.inferred_pico for account in accounts),
            "unattributed": sum(account.unattributed_pico for account in accounts),
        }

    def _credit(self, account: CellSavings) -> int:
        if isinstance(self.rule, ShapleyRule):
            return account.metered_pico - account.charge_pico
        return account.reduction_pico


def savings_for_period(
    events: CacheRecords,
    rates: Mapping[str, SkuRates],
    policy: CachePolicy | Rule,
    salt: str = "",
    *,
    ttl_s: int | None = None,
    until: int | None = None,
) -> SavingsResult:
    """Settle a period: who is charged what for its input tokens.

    `events` may come in any order and more than once. `salt` (an invoice series, a period) decides who gets an odd unit.
    `ttl_s`: seconds after which an unused block has left the cache. `until`: the period's end in seconds, for the storage
    cost of blocks still in cache. A published policy is checked again against `rates`.

    Raises CacheUseError for a use without a rate or an event id with two bodies; CachePolicyError when the policy weighs
    by tokens and the rates have come to differ.
    """
    rule = policy.rule if isinstance(policy, Published) else policy
    ordered = in_order(events, rates)
    uses = [record for record in ordered if isinstance(record, CacheUse)]
    if rule is not policy:
        refuse_mixed_prices(rule, {use.sku: rates[use.sku] for use in uses})
    return settle(trace_epochs(ordered, ttl_s, until), tally_uses(uses, rates), rates, rule, salt)


def settle(
    epochs: Iterable[Epoch], tallies: Tallies, rates: Mapping[str, SkuRates], rule: Rule, salt: str = ""
) -> SavingsResult:
    """Settle traced epochs."""
    storage: dict[Cell, Fraction] = {}
    if any(rate.s for rate in rates.values()):
        epochs = list(epochs)  # read twice; without storage prices a stream of epochs is never held
        storage = storage_costs(epochs, rates, rule.storage)
    if isinstance(rule, WaterfallRule):
        shares = waterfall_credits(epochs, tallies, rates, rule)
    else:
        shares = shapley_credits(epochs, tallies, rates, rule.players)
    return settle_shares(shares, storage, tallies, rule, salt)


def settle_shares(
    shares: dict[Cell, Fraction], storage: Mapping[Cell, Fraction], tallies: Tallies, rule: Rule, salt: str = ""
) -> SavingsResult:
    """The last step, from exact shares that may have been summed elsewhere (a warehouse, another process): round once."""
    stored = round_once(storage, salt)
    for (_, tenant, sku), tally in tallies.items():
        cell = PROVIDER if rule.unattributed == "provider" else (tenant, sku)
        shares[cell] = shares.get(cell, Fraction(0)) + tally.unattributed_pico
    cells: dict[Cell, Tally] = {}
    for (_, tenant, sku), tally in tallies.items():
        cells.setdefault((tenant, sku), Tally()).__iadd__(tally)
    reductions = round_once({**dict.fromkeys(cells, Fraction(0)), **shares}, salt)
    retained = reductions.pop(PROVIDER, 0)
    accounts = {
        cell: _account(cells.get(cell, Tally()), reductions[cell], stored.get(cell, 0)) for cell in sorted(reductions)
    }
    return SavingsResult(rule, _sum_by_tenant(accounts), accounts, retained)


def round_once(shares: Mapping[Cell, Fraction], salt: str) -> dict[Cell, int]:
    """Exact shares in whole units: first the tenants, then each tenant's SKUs, so both are within one unit of exact.

    The total is half up where it is no whole number (storage alone; savings always are).
    """
    by_tenant: dict[str, dict[str, Fraction]] = {}
    for (tenant, sku), share in shares.items():
        by_tenant.setdefault(tenant, {})[sku] = share
    tenants = {tenant: exact_sum(own.values()) for tenant, own in by_tenant.items()}
    whole = round_to_total(tenants, round_half(exact_sum(tenants.values())), salt)
    rounded: dict[Cell, int] = {}
    for tenant, cells in by_tenant.items():
        for sku, units in round_to_total(cells, whole[tenant], f"{salt}|{tenant}").items():
            rounded[(tenant, sku)] = units
    return rounded


def _account(tally: Tally, reduction_pico: int, storage_pico: int) -> CellSavings:
    return CellSavings(
        list_pico=tally.list_pico,
        metered_pico=tally.metered_pico,
        write_premium_pico=tally.write_premium_pico,
        exact_pico=tally.exact_pico,
        inferred_pico=tally.inferred_pico,
        unattributed_pico=tally.unattributed_pico,
        cached_tokens=tally.cached_tokens,
        input_tokens=tally.input_tokens,
        reduction_pico=reduction_pico,
        storage_pico=storage_pico,
    )


_FIELDS = attrgetter(*CellSavings.__dataclass_fields__)


def _sum_by_tenant(accounts: Mapping[Cell, CellSavings]) -> dict[str, CellSavings]:
    sums: dict[str, list[int]] = {}
    for (tenant, _), account in accounts.items():
        so_far = sums.get(tenant)
        values = _FIELDS(account)
        sums[tenant] = list(values) if so_far is None else list(map(add, so_far, values))
    return {tenant: CellSavings(*values) for tenant, values in sums.items()}
