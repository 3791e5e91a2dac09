"""Billing: what is declared, what a month cost, and the invoice that says so. Import from its modules; `domain` is pure."""
