"""The columns of a FOCUS 1.2 cost and usage file, with the allocation columns of FOCUS 1.3, as a table. Pure.

Levels and nullability follow the published specification (focus.finops.org, version 1.2; 1.3 for the columns that say so).
Columns that are always null here are those that FOCUS 1.0 asks every file to have.
"""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How much the specification asks for a column."""

    MANDATORY = "mandatory"
    CONDITIONAL = "conditional"
    RECOMMENDED = "recommended"
    CUSTOM = "custom"


class Kind(StrEnum):
    """What a cell holds."""

    TEXT = "text"
    DECIMAL = "decimal"
    TIME = "time"
    CURRENCY = "currency"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `allowed`: the values that it may hold; empty means any."""

    name: str
    level: Level
    kind: Kind = Kind.TEXT
    nullable: bool = True
    allowed: tuple[str, ...] = ()
    introduced: str = "1.0"


def _mandatory(name: str, kind: Kind = Kind.TEXT, *allowed: str, nullable: bool = False) -> Column:
    return Column(name, Level.MANDATORY, kind, nullable, allowed)


def _conditional(name: str, kind: Kind = Kind.TEXT, *allowed: str, introduced: str = "1.0") -> Column:
    return Column(name, Level.CONDITIONAL, kind, True, allowed, introduced)


def _recommended(name: str, kind: Kind = Kind.TEXT, *allowed: str, introduced: str = "1.0") -> Column:
    return Column(name, Level.RECOMMENDED, kind, True, allowed, introduced)


def _custom(name: str, kind: Kind = Kind.TEXT) -> Column:
    return Column(name, Level.CUSTOM, kind)


COLUMNS = (
    _recommended("AllocatedMethodDetails", Kind.JSON, introduced="1.3"),
    _conditional("AllocatedMethodId", introduced="1.3"),
    _conditional("AllocatedResourceId", introduced="1.3"),
    _conditional("AllocatedResourceName", introduced="1.3"),
    _conditional("AllocatedTags", Kind.JSON, introduced="1.3"),
    _recommended("AvailabilityZone"),
    _mandatory("BilledCost", Kind.DECIMAL),
    _mandatory("BillingAccountId"),
    _mandatory("BillingAccountName", nullable=True),
    _mandatory("BillingCurrency", Kind.CURRENCY),
    _mandatory("BillingPeriodEnd", Kind.TIME),
    _mandatory("BillingPeriodStart", Kind.TIME),
    _mandatory("ChargeCategory", Kind.TEXT, "Usage", "Purchase", "Tax", "Credit", "Adjustment"),
    _mandatory("ChargeClass", Kind.TEXT, "Correction", nullable=True),
    _mandatory("ChargeDescription", nullable=True),
    _recommended("ChargeFrequency", Kind.TEXT, "One-Time", "Recurring", "Usage-Based"),
    _mandatory("ChargePeriodEnd", Kind.TIME),
    _mandatory("ChargePeriodStart", Kind.TIME),
    _conditional("CommitmentDiscountCategory", Kind.TEXT, "Spend", "Usage"),
    _conditional("CommitmentDiscountId"),
    _conditional("CommitmentDiscountName"),
    _conditional("CommitmentDiscountStatus", Kind.TEXT, "Used", "Unused"),
    _conditional("CommitmentDiscountType"),
    _conditional("ConsumedQuantity", Kind.DECIMAL),
    _conditional("ConsumedUnit"),
    _mandatory("ContractedCost", Kind.DECIMAL),
    _conditional("ContractedUnitPrice", Kind.DECIMAL),
    _mandatory("EffectiveCost", Kind.DECIMAL),
    _recommended("InvoiceId", introduced="1.2"),
    _mandatory("InvoiceIssuerName"),
    _mandatory("ListCost", Kind.DECIMAL),
    _conditional("ListUnitPrice", Kind.DECIMAL),
    _conditional("PricingCategory", Kind.TEXT, "Standard", "Dynamic", "Committed", "Other"),
    _mandatory("PricingQuantity", Kind.DECIMAL, nullable=True),
    _mandatory("PricingUnit", nullable=True),
    _mandatory("ProviderName"),
    _mandatory("PublisherName"),
    _conditional("RegionId"),
    _conditional("RegionName"),
    _conditional("ResourceId"),
    _conditional("ResourceName"),
    _conditional("ResourceType"),
    _mandatory("ServiceCategory", Kind.TEXT, "AI and Machine Learning"),
    _mandatory("ServiceName"),
    _recommended("ServiceSubcategory", Kind.TEXT, "Generative AI", introduced="1.1"),
    _conditional("SkuId"),
    _conditional("SkuMeter", introduced="1.1"),
    _conditional("SkuPriceDetails", Kind.JSON, introduced="1.1"),
    _conditional("SkuPriceId"),
    _conditional("SubAccountId"),
    _conditional("SubAccountName"),
    _conditional("Tags", Kind.JSON),
    _custom("x_CachePolicy"),
    _custom("x_ChargeKind"),
    _custom("x_DocumentSha256"),
    _custom("x_EventSetHash"),
    _custom("x_Feature"),
    _custom("x_InvoiceLine", Kind.DECIMAL),
    _custom("x_Model"),
    _custom("x_RateCard"),
    _custom("x_TokenClass"),
)
"""In the order in which a file has them: FOCUS's own by name, then ours."""

NAMES = tuple(column.name for column in COLUMNS)
MANDATORY = tuple(column.name for column in COLUMNS if column.level is Level.MANDATORY)
ALLOCATION = tuple(column.name for column in COLUMNS if column.introduced == "1.3")
