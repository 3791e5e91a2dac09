"""Billing's settings, from TAXIMETER_... variables."""

from pathlib import Path

from pydantic import Field, SecretStr

from taximeter_schemas.settings import LogSettings, WarehouseSettings


class BillingSettings(LogSettings, WarehouseSettings):
    """The book of record, the warehouse, the log, payments, and the API."""

    host: str = Field("127.0.0.1", description="Address that the API listens on")
    billing_port: int = Field(8082, description="Port of the API")
    database_url: str = Field("sqlite:///data/billing.db", description="The book of record, as an SQLAlchemy URL")
    admin_token: str = Field("", description="Bearer token of the API; the API refuses to start without one")
    stripe_url: str = Field("", description="Base address of Stripe's API; empty means Stripe itself")
    stripe_api_key: str = Field("", description="Stripe's secret key; a live key needs TAXIMETER_STRIPE_LIVE=true")
    stripe_live: bool = Field(False, description="Allow a live Stripe key")
    stripe_webhook_secret: SecretStr = Field(
        SecretStr(""), description="Signing secret of Stripe's webhook endpoint (whsec_...); several, divided by commas"
    )
    grace_hours: int = Field(72, ge=0, le=24 * 62, description="Hours after a period's end before it may be closed")
    invoice_series: str = Field("INV", pattern=r"^[A-Z0-9]{1,12}$", description="Series that invoice numbers belong to")
    margin_minutes: int = Field(
        60,
        ge=0,
        le=24 * 60,
        description="Minutes between looks at the month's margins, told of where negative; 0: never",
    )
    state_dir: Path = Field(Path("data/state"), description="Folder for what exports note of how far they came")
    issuer_name: str = Field("Taximeter", description="Who sends the invoices, as printed on them")
    issuer_address: str = Field("", description="The sender's address; \\n divides its lines")
    issuer_tax_id: str = Field("", description="The sender's tax number, as printed on invoices")
