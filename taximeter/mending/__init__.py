"""Mends what did not count: rates what had no price, and sends again what was rejected once the cause is gone."""
