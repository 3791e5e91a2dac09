"""What was agreed with a tenant: tariffs, allowances, discounts, minimums, reservations, credits. Frozen data; pure.

A plan is a named set of terms; a contract gives a tenant a plan, terms of its own beside or instead of it, and a span.
Amounts are whole pico-units of the tenant's currency, quantities whole units of a meter.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from fractions import Fraction
from hashlib import sha256
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AwareDatetime, Field, model_validator

from taximeter_billing.domain.commitments import Basis
from taximeter_billing.domain.tariffs import Tier, Tiers
from taximeter_schemas.events import Tag
from taximeter_schemas.tenants import Currency, Declared

AmountPico = Annotated[int, Field(ge=0, le=10**30)]
Quantity = Annotated[int, Field(ge=1, le=10**24)]


class Meter(StrEnum):
    """What a tariff counts. Input is every input token, cached or not; GPU time is counted in microseconds."""

    INPUT = "input"
    OUTPUT = "output"
    REQUEST = "request"
    SEARCH_UNIT = "search_unit"
    GPU = "gpu_microsecond"
    ADAPTER_HOUR = "adapter_hour"


class Scoped(Declared):
    """Terms for some models and features; an empty list means all of them."""

    id: Tag
    models: tuple[Tag, ...] = ()
    features: tuple[Tag, ...] = ()

    def covers(self, feature: str, model: str) -> bool:
        """Whether usage under that feature and model falls under these terms."""
        return (not self.models or model in self.models) and (not self.features or feature in self.features)


class TierPrice(Declared):
    """Units up to and including `up_to` (None: all the rest) cost `price_pico` each (a package tariff: each package)."""

    up_to: Quantity | None = None
    price_pico: AmountPico


class Tariff(Scoped):
    """Prices by quantity, pooled over everything that the tariff covers. Takes the place of the rate card's price.

    flat: one price a unit. package: one price for each package of `package_size` units that the period began, spread over all of
    its units. graduated: each unit at the price of its own tier. volume: all units at the price of the tier that the whole
    reaches. Two tariffs of one id with different `effective_from` are a change of price: the position in the tiers carries over.
    """

    meter: Meter
    mode: Literal["flat", "package", "graduated", "volume"]
    tiers: Annotated[tuple[TierPrice, ...], Field(min_length=1)]
    package_size: Quantity | None = None
    effective_from: AwareDatetime | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        self.steps  # noqa: B018 - raises for tiers that do not rise
        if self.mode in {"flat", "package"} and len(self.tiers) != 1:
            raise ValueError(f"a {self.mode} tariff has one price")
        if (self.mode == "package") != (self.package_size is not None):
            raise ValueError("package_size belongs to a package tariff, and to no other")
        return self

    @property
    def steps(self) -> Tiers:
        """The tiers as arithmetic."""
        return Tiers(tuple(Tier(tier.up_to, tier.price_pico) for tier in self.tiers))

    def cost(self, quantity: int, already: int, whole: int) -> Fraction:
        """What `quantity` units cost after `already` others of the period, of `whole` units in all, in pico-units.

        Packages are those that the whole period began, and each of its units bears the same part of them: so neither the order
        of usage nor a cut within the period decides who pays for one that is not full.
        """
        if self.mode == "package":
            begun = -(-whole // (self.package_size or 1))
            return Fraction(begun * self.tiers[0].price_pico * quantity, whole)
        if self.mode == "volume":
            return Fraction(quantity * self.steps.volume_price(whole))
        return Fraction(self.steps.graduated(quantity, already))


class Allowance(Scoped):
    """Units of a meter that cost nothing in each period. They count for the position in the tiers all the same."""

    meter: Meter
    quantity: Quantity


class Discount(Scoped):
    """A part (basis points) or a sum off what cache savings and allowances left; a later one sees what earlier ones left."""

    label: Annotated[str, Field(max_length=120)] = ""
    bps: Annotated[int, Field(ge=1, le=10_000)] | None = None
    amount_pico: AmountPico | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.bps is None) == (self.amount_pico is None):
            raise ValueError("a discount has either basis points or an amount")
        return self


class Minimum(Declared):
    """What a period costs at least. A period that the contract covers in part owes that part of it, by days, if `prorate`."""

    amount_pico: AmountPico
    basis: Basis = "net"
    prorate: bool = True


class Reservation(Declared):
    """Provisioned throughput: `units` reserved for every minute, each worth `tokens_per_minute` of the model.

    Events of the service tier `provisioned` use it up minute by minute, in order of time; what spills over is priced apart,
    by the rate card's price for that tier.
    """

    id: Tag
    model: Tag
    units: Quantity
    tokens_per_minute: Quantity
    unit_minute_pico: AmountPico

    @property
    def capacity(self) -> int:
        """Tokens a minute."""
        return self.units * self.tokens_per_minute


class Terms(Declared):
    """What may be agreed."""

    tariffs: tuple[Tariff, ...] = ()
    allowances: tuple[Allowance, ...] = ()
    discounts: tuple[Discount, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    minimum: Minimum | None = None


class Plan(Terms):
    """Terms with a name, for many tenants."""

    id: Tag


class Contract(Terms):
    """A tenant's terms from `starts` until `ends` (not included; None: open). Its own stand instead of the plan's of one id."""

    id: Tag
    tenant: Tag
    plan: Tag | None = None
    starts: AwareDatetime
    ends: AwareDatetime | None = None

    @model_validator(mode="after")
    def _lasts(self) -> Self:
        if self.ends is not None and self.ends <= self.starts:
            raise ValueError("a contract ends after it starts")
        return self


class CreditGrant(Declared):
    """A sum that pays a tenant's invoices. Monthly: granted again each month on its day, and gone when the next comes."""

    id: Tag
    tenant: Tag
    amount_pico: AmountPico
    currency: Currency = "USD"
    kind: Literal["promotional", "paid"] = "paid"
    priority: Annotated[int, Field(ge=0, le=1000)] = 50
    effective_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    monthly: bool = False


@dataclass(frozen=True, slots=True)
class Agreement:
    """A contract with its plan folded in, and the hash of both: what an invoice names."""

    contract: str
    plan: str | None
    starts: datetime
    ends: datetime
    terms: Terms
    sha256: str

    @property
    def name(self) -> str:
        """Names what was agreed, to the byte: "acme-2026#0123456789abcdef"."""
        return f"{self.contract}#{self.sha256[:16]}"

    def holds_at(self, moment: datetime) -> bool:
        """Whether it is in force then."""
        return self.starts <= moment < self.ends


Named = TypeVar("Named", Tariff, Allowance, Discount, Reservation)


def agreement(contract: Contract, plans: Mapping[str, Plan]) -> Agreement:
    """Fold the plan into the contract. Raises KeyError for a plan that is not there."""
    plan: Terms = plans[contract.plan] if contract.plan else Terms()
    terms = Terms(
        tariffs=_over(plan.tariffs, contract.tariffs),
        allowances=_over(plan.allowances, contract.allowances),
        discounts=_over(plan.discounts, contract.discounts),
        reservations=_over(plan.reservations, contract.reservations),
        minimum=contract.minimum or plan.minimum,
    )
    said = [
        contract.model_dump(mode="json", exclude_defaults=True),
        terms.model_dump(mode="json", exclude_defaults=True),
    ]
    digest = sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    ends = contract.ends or datetime.max.replace(tzinfo=UTC)
    return Agreement(contract.id, contract.plan, contract.starts, ends, terms, digest)


def _over(plan: Iterable[Named], own: Iterable[Named]) -> tuple[Named, ...]:
    """The contract's own terms first (the first tariff that covers some usage prices it), then the plan's of other ids."""
    listed = list(own)
    ids = {term.id for term in listed}
    return tuple(listed + [term for term in plan if term.id not in ids])
