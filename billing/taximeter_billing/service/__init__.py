"""The billing API: what is declared, keys, usage and invoices over HTTP; and the sender of the control topic."""
