"""The demo: the whole pipeline on the embedded stack, from tagged requests to invoices that are proven."""
