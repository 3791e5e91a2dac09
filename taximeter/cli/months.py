"""The option --period, as every command about a month takes it: what is no month is told before anything is opened."""

from typing import Annotated

import typer

from taximeter_schemas.errors import PeriodError
from taximeter_schemas.periods import billing_month


def month(label: str | None) -> str | None:
    """The label as it is. Raises BadParameter when it is no month."""
    if label is not None:
        try:
            billing_month(label, "UTC")
        except PeriodError as error:
            raise typer.BadParameter(str(error)) from None
    return label


Month = Annotated[str, typer.Option("--period", callback=month, help="The month, as YYYY-MM.")]
OnlyMonth = Annotated[str | None, typer.Option("--period", callback=month, help="This month only, as YYYY-MM.")]
