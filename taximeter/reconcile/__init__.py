"""The laws of the system, checked on live data: conservation, exactly once, raw = rollup = invoice = Stripe."""

from taximeter.reconcile.findings import Check, Finding, Report

__all__ = ["Check", "Finding", "Report"]
