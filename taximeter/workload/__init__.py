"""Workloads that drive a stack through its gateway: the seeded one of the demo, and recorded traces."""
