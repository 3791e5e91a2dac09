"""Alerts: budget alerts as signed webhooks, retried for days, in order, with a log of what was delivered and what failed."""

from taximeter_streams.alerts.delivery_log import Delivery, DeliveryLog, DeliveryStatus

__all__ = ["Delivery", "DeliveryLog", "DeliveryStatus"]
