"""An invoice for the terminal."""

import json
from decimal import Decimal

from rich.table import Table
from rich.text import Text

from taximeter_billing.book import InvoiceRow
from taximeter_schemas.money import currency_exponent, format_pico


def invoice_tables(row: InvoiceRow) -> list[Table | Text]:
    """The invoice's lines, and below them what it was made from."""
    document = json.loads(row.document)
    exponent = currency_exponent(row.currency)
    title = f"{row.number or 'draft'}  {row.tenant}  {row.period}"
    table = Table("feature", "model", title=title, title_justify="left", show_footer=True)
    for name in ("events", "input", "cached", "output", "list", "cache savings", "net"):
        table.add_column(name, justify="right")
    for line in document["lines"]:
        tokens = line["tokens"]
        whole = tokens["uncached_input"] + tokens["cache_read"] + tokens["cache_write"]
        amounts = [format_pico(int(line[name]), row.currency, 6) for name in ("list_pico", "savings_pico", "net_pico")]
        counts = [f"{number:,}" for number in (line["events"], whole, tokens["cache_read"], tokens["output"])]
        table.add_row(line["feature"], line["model"], *counts, *amounts)
    total = Decimal(row.total_minor).scaleb(-exponent)
    table.columns[-3].footer = format_pico(row.list_pico, row.currency, 6)
    table.columns[-2].footer = format_pico(row.savings_pico, row.currency, 6)
    table.columns[-1].footer = Text(f"{total:,} {row.currency}", style="bold")
    inputs = document["inputs"]
    receipt = Text(
        f"from {inputs['events']:,} events (hash {inputs['event_set_hash'][:16]}), policy {inputs['cache_policy']}, "
        f"prices {', '.join(inputs['rate_cards'])}; document {row.document_sha256[:16]}",
        style="dim",
    )
    return [table, receipt]
