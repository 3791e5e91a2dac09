"""The reference of settings, generated from the classes that the services really read.

`python -m taximeter.settings_reference FILE` writes it; a test says when the page is not current.
"""

import sys
from pathlib import Path

from pydantic_settings import BaseSettings

from taximeter.embedded.services import SERVICES
from taximeter.embedded.upstream.settings import UpstreamSettings
from taximeter_billing.settings import BillingSettings
from taximeter_inference.gateway.settings import GatewaySettings
from taximeter_producers.ingest.settings import IngestSettings
from taximeter_streams.alerts.settings import AlertsSettings
from taximeter_streams.budgets.settings import BudgetsSettings
from taximeter_streams.meter.settings import MeterSettings

SETTINGS: dict[str, type[BaseSettings]] = {
    "billing": BillingSettings,
    "meter": MeterSettings,
    "budgets": BudgetsSettings,
    "alerts": AlertsSettings,
    "gateway": GatewaySettings,
    "ingest": IngestSettings,
    "upstream": UpstreamSettings,
}
_HEAD = """# Settings

Every service is configured by environment variables alone. This page is generated from the classes that read them:
`python -m taximeter.settings_reference docs/reference/settings.md`.
"""


def variables(service: str) -> dict[str, tuple[str, str]]:
    """The variables that a service reads: name to default and description."""
    found = {}
    for name, field in SETTINGS[service].model_fields.items():
        default = "required" if field.is_required() else f"`{field.default}`" if str(field.default) else "empty"
        found[f"TAXIMETER_{name.upper()}"] = (default, field.description or "")
    return found


def page() -> str:
    """The whole page."""
    parts = [_HEAD]
    for service in SERVICES:
        parts.append(f"\n## {service.name}: {service.describes}\n\n| variable | default | what |\n|---|---|---|")
        rows = sorted(variables(service.name).items())
        parts.extend(f"| `{name}` | {default} | {what} |" for name, (default, what) in rows)
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page())
