"""Minimum commitments: what a tenant owes beyond its usage to reach the sum that it has promised. Pure and exact."""

from typing import Literal

from taximeter_billing.domain.rounding import round_half_up
from taximeter_schemas.money import pico_per_minor_unit

Basis = Literal["net", "list"]


def true_up(minimum_pico: int, list_pico: int, savings_pico: int, basis: Basis = "net") -> int:
    """What is missing to the minimum: on a net basis cache savings do not count towards it, on a list basis they do."""
    counted = list_pico if basis == "list" else list_pico - savings_pico
    return max(0, minimum_pico - counted)


def prorated(minimum_pico: int, days: int, days_of_period: int, currency: str) -> int:
    """The minimum of a part of a period, in pico-units that are whole minor units (half up). Raises ValueError for no period."""
    if not 0 <= days <= days_of_period or days_of_period == 0:
        raise ValueError(f"{days} of {days_of_period} days")
    # Half a minor unit is a whole number of pico-units, so the fraction of one that is cut here never decides the rounding.
    whole_pico = minimum_pico * days // days_of_period
    return round_half_up(whole_pico, currency) * pico_per_minor_unit(currency)
