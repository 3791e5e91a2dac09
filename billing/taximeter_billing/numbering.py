"""Gapless numbers: drawn in the transaction that finalizes, so one that fails gives its number back."""

from sqlalchemy.orm import Session

from taximeter_billing.book import SeriesRow


def next_number(session: Session, series: str) -> str:
    """The next number of the series ("INV-000001")."""
    counter = session.get(SeriesRow, series, with_for_update=True)
    if counter is None:
        counter = SeriesRow(name=series, last=0)
        session.add(counter)
    counter.last += 1
    return f"{series}-{counter.last:06d}"
