"""An invoice as an HTML page that also prints well on A4. No script, no picture, nothing from elsewhere."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from taximeter_billing.exports.invoice_source import ExportedInvoice
from taximeter_billing.exports.invoice_view import view

TEMPLATES = Path(__file__).parent.parent / "service" / "templates"


def environment() -> Environment:
    """Jinja over our templates: everything is escaped, and a name that is missing is an error."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def invoice_page(invoice: ExportedInvoice) -> str:
    """The page."""
    return environment().get_template("invoice.html").render(it=view(invoice))
