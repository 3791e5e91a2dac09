"""Amounts as operators write them: quoted decimals in major units. A float is refused, and so is what is too fine."""

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from taximeter_billing.errors import DeclarationError
from taximeter_schemas.errors import AmountError


def amount(entry: Mapping[str, Any], field: str, convert: Callable[[str | int | Decimal], int]) -> int:
    """An amount as whole pico-units. Raises DeclarationError that begins with the field."""
    value = entry.get(field)
    if isinstance(value, float):
        raise DeclarationError(f'{field}: {value!r} is not exact; quote it: "{value}"')
    if not isinstance(value, str | int | Decimal):
        raise DeclarationError(f"{field}: an amount is needed, as a quoted decimal")
    try:
        return convert(value)
    except AmountError as error:
        raise DeclarationError(f"{field}: {error}") from None


def listed(entry: dict[str, Any], field: str) -> list[Any]:
    """Take a list out of an entry. Raises DeclarationError when it is missing or empty."""
    value = entry.pop(field, None)
    if not isinstance(value, list) or not value:
        raise DeclarationError(f"{field}: a list is needed")
    return value
