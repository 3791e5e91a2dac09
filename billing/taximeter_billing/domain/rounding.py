"""The one place where exact amounts become what a bank can pay: half up at the invoice's total, then to its lines."""

from collections.abc import Mapping

from taximeter_billing.domain.split import round_to_units
from taximeter_schemas.money import pico_per_minor_unit


def round_half_up(amount_pico: int, currency: str) -> int:
    """Pico-units to whole minor units (cents for USD, yen for JPY), half away from zero."""
    unit = pico_per_minor_unit(currency)
    whole = (2 * abs(amount_pico) + unit) // (2 * unit)
    return whole if amount_pico >= 0 else -whole


def round_lines(lines_pico: Mapping[str, int], currency: str, salt: str) -> tuple[int, dict[str, int]]:
    """The total in minor units, rounded once, and each line's share of it: the largest remainders get what is left over."""
    unit = pico_per_minor_unit(currency)
    total = round_half_up(sum(lines_pico.values()), currency)
    return total, round_to_units(lines_pico, unit, total, salt)
