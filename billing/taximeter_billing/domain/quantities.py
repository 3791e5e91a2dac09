"""What an event used, by class: the quantities that prices are multiplied with. Pure."""

from taximeter_billing.domain.usage import UsageRow
from taximeter_schemas.rate_cards import Price
from taximeter_schemas.rating import beside_tokens


def quantities_of(row: UsageRow, price: Price) -> dict[str, int]:
    """What an event used, by class, as the price asks for it."""
    used = {"uncached_input": row.uncached_input}
    used |= {f"cache_read_{tier}": tokens for tier, tokens in row.reads.items()}
    used |= {f"cache_write_{lifetime}": tokens for lifetime, tokens in row.writes.items()}
    used |= {"output": row.output - row.reasoning, "reasoning": row.reasoning}
    if row.output or row.input_tokens:
        used["request"] = 1
    if price.extended:
        beside = beside_tokens(price, row.attributes, row.gpu_seconds)
        used["search_unit"] = beside.search_units
        used["gpu_microsecond"] = beside.gpu_microseconds
        used["adapter_hour"] = beside.adapter_hours
    return used
