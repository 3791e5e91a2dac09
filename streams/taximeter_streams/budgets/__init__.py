"""Budgets: the rules that hold a tenant inside its limits (`ledger`, pure), and the faust worker that keeps them."""
