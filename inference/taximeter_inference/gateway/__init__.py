"""The inference gateway: OpenAI-compatible, knows its tenants by their keys, holds budgets by leases, counts every token."""
