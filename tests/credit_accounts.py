"""The credit ledger as tests look at it."""

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from taximeter_billing.book import CreditEntryRow


def accounts(book: Engine) -> dict[str, int]:
    """Sums by account; every transaction sums to zero."""
    sums: dict[str, int] = {}
    transactions: dict[str, int] = {}
    with Session(book) as session:
        for row in session.scalars(select(CreditEntryRow)):
            sums[row.account] = sums.get(row.account, 0) + row.amount_pico
            transactions[row.transaction] = transactions.get(row.transaction, 0) + row.amount_pico
    assert set(transactions.values()) <= {0}
    return sums
