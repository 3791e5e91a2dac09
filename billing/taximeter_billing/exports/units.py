"""Units as exports name them: what one of a class is counted in, and how many of ours make one of theirs. Pure."""

from dataclasses import dataclass
from decimal import Decimal

from taximeter_billing.domain.parcels import INPUT, OUTPUT
from taximeter_schemas.money import from_pico


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit's name, singular times in FOCUS's form ("Unit-Minutes"), and how many of what we count are one of it."""

    name: str
    meter: str
    of_ours: int = 1

    def quantity(self, ours: int) -> Decimal:
        """How many of this unit."""
        return Decimal(ours) / self.of_ours

    def price(self, price_pico: int) -> Decimal:
        """The price of one, in major units."""
        return from_pico(price_pico * self.of_ours)


_TOKENS = {name: Unit("Tokens", f"{name.replace('_', ' ')} tokens") for name in (*INPUT, *OUTPUT)}
UNITS = {
    **_TOKENS,
    "request": Unit("Requests", "requests"),
    "search_unit": Unit("Searches", "search units"),
    "gpu_microsecond": Unit("GPU-Seconds", "GPU time", 1_000_000),
    "adapter_hour": Unit("Adapter-Hours", "adapter time"),
    "unit_minute": Unit("Unit-Minutes", "reserved units"),
    "cache_storage": Unit("Charges", "cache storage"),
    "charge": Unit("Charges", "other charges"),
}
