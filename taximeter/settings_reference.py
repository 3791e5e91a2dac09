"""The reference of settings, generated from the classes that the services really read.

`python -m taximeter.settings_reference FILE` writes it; a test says when the page is not current.
"""

import argparse
from pathlib import Path

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from taximeter.embedded.services import SERVICES
from taximeter.embedded.upstream.settings import UpstreamSettings
from taximeter_billing.settings import BillingSettings
from taximeter_inference.gateway.settings import GatewaySettings
from taximeter_inference.vllm.settings import WorkerSettings
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
    "worker": WorkerSettings,
}
_SECTIONS = {service.name: service.describes for service in SERVICES} | {
    "worker": "a vLLM server with [the plugin](../vllm.md), or a program with `WorkerMeter`"
}
_HEAD = """# Settings

Every service is configured by environment variables alone. This page is generated from the classes that read them:
`python -m taximeter.settings_reference docs/reference/settings.md`.
"""


def variables(service: str) -> dict[str, tuple[str, str]]:
    """The variables that a service reads: name to default and description."""
    found = {}
    for name, field in SETTINGS[service].model_fields.items():
        found[f"TAXIMETER_{name.upper()}"] = (_default(field), field.description or "")
    return found


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "`{}`" if field.default_factory is dict else "computed"
    return f"`{field.default}`" if str(field.default) else "empty"


def page() -> str:
    """The whole page."""
    parts = [_HEAD]
    for name, describes in _SECTIONS.items():
        parts.append(f"\n## {name}: {describes}\n\n| variable | default | what |\n|---|---|---|")
        rows = sorted(variables(name).items())
        parts.extend(f"| `{variable}` | {default} | {what} |" for variable, (default, what) in rows)
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    reader = argparse.ArgumentParser(description="Write the reference of settings.")
    reader.add_argument("file", type=Path)
    reader.parse_args().file.write_text(page())
