"""An invoice for the terminal, narrow enough for 80 columns."""

import json
from decimal import Decimal

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from taximeter_billing.book import InvoiceRow
from taximeter_schemas.money import currency_exponent, format_pico

_PLACES = 4


def invoice_tables(row: InvoiceRow) -> list[Table | Text]:
    """The invoice's lines, and below them what it was made from."""
    document = json.loads(row.document)
    title = f"[bold]{row.number or 'draft'}  {row.tenant}  {row.period}[/]  (amounts in {row.currency})"
    table = Table(title=title, title_justify="left", show_footer=True, box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("feature", "to pay", footer_style="bold")
    for name in ("input", "cached", "output", "list", "savings"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("net", justify="right", no_wrap=True, footer_style="bold")
    for line in document["lines"]:
        if line.get("kind", "usage") != "usage":
            net = _amount(int(line["net_pico"]), row.currency)
            table.add_row(f"{line['kind']}\n[dim]{escape(line['model'])}[/]", *[""] * 5, net)
            continue
        tokens = line["tokens"]
        whole = tokens["uncached_input"] + tokens["cache_read"] + tokens["cache_write"]
        amounts = [_amount(int(line[name]), row.currency) for name in ("list_pico", "savings_pico", "net_pico")]
        counts = [f"{number:,}" for number in (whole, tokens["cache_read"], tokens["output"])]
        table.add_row(f"{line['feature']}\n[dim]{line['model']}[/]", *counts, *amounts)
    table.columns[-3].footer = _amount(row.list_pico, row.currency)
    table.columns[-2].footer = _amount(row.savings_pico, row.currency)
    table.columns[-1].footer = f"{Decimal(row.total_minor).scaleb(-currency_exponent(row.currency)):,}"
    inputs = document["inputs"]
    receipt = Text(
        f"from {inputs['events']:,} events ({inputs['event_set_hash'][:12]}), policy {inputs['cache_policy']}, "
        f"{''.join(f'agreed {name}, ' for name in inputs.get('agreements', []))}"
        f"prices {', '.join(inputs['rate_cards'])}, document {row.document_sha256[:12]}\n",
        style="dim",
    )
    return [table, receipt]


def _amount(amount_pico: int, currency: str) -> str:
    return format_pico(amount_pico, currency, _PLACES).removesuffix(f" {currency}")
