"""Public price lists as declarations: LiteLLM's price JSON and the genai-prices package, exactly, with the hash of their source.

What comes out is what an operator could have written by hand: it is read, planned and applied like any other rate card. Nothing
is dropped in silence: a model that cannot be taken is named with the reason, and so is a price that has no place on a card.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files
from re import fullmatch
from typing import Any

from pydantic import ValidationError

from taximeter_billing.declarations.prices import read_rate_card
from taximeter_billing.errors import DeclarationError
from taximeter_schemas.events import TAG_PATTERN

_BASE = {
    "input_cost_per_token": "uncached_input",
    "output_cost_per_token": "output",
    "output_cost_per_reasoning_token": "reasoning",
    "cache_read_input_token_cost": "cache_read_provider",
    "cache_creation_input_token_cost": "cache_write_5m",
    "cache_creation_input_token_cost_above_1hr": "cache_write_1h",
    "input_cost_per_query": "search_unit",
    "input_cost_per_request": "request",
}
_TIERS = {"": None, "_batches": "batch", "_priority": "priority"}
_GENAI = {
    "input_mtok": "uncached_input",
    "output_mtok": "output",
    "output_reasoning_mtok": "reasoning",
    "cache_read_mtok": "cache_read_provider",
    "cache_write_mtok": "cache_write_5m",
    "cache_write_1h_mtok": "cache_write_1h",
    "requests_kcount": "request",
}
_GENAI_TIERS = {("processing", "batch"): "batch", ("service_tier", "priority"): "priority"}
_PER_TOKEN = {"uncached_input", "output", "reasoning", "cache_read_provider", "cache_write_5m", "cache_write_1h"}

Place = tuple[str | None, int]
"""Service tier and context band (input over so many tokens; 0: none)."""


@dataclass(slots=True)
class Imported:
    """A card as a declarations file holds it; models that were not taken, and prices that have no place, with the reason."""

    card: dict[str, Any]
    refused: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, list[str]] = field(default_factory=dict)


def from_litellm(
    text: bytes,
    card_id: str,
    number: int,
    effective_from: datetime,
    models: Iterable[str] = (),
    *,
    quantize: bool = False,
) -> Imported:
    """LiteLLM's model_prices_and_context_window.json. `models`: patterns ("gpt-5*"); none means all. Raises DeclarationError."""
    try:
        content = json.loads(text, parse_float=Decimal)
    except ValueError as error:
        raise DeclarationError(f"not JSON: {error}") from None
    if not isinstance(content, dict):
        raise DeclarationError("not an object of models")
    listed = {name: entry for name, entry in content.items() if isinstance(entry, dict) and "litellm_provider" in entry}
    listed.pop("sample_spec", None)
    source = f"litellm sha256:{sha256(text).hexdigest()}"
    return _imported(_card(card_id, number, effective_from, source, quantize), listed, models, _litellm_prices)


def from_genai_prices(
    card_id: str,
    number: int,
    effective_from: datetime,
    providers: Iterable[str],
    models: Iterable[str] = (),
    *,
    quantize: bool = False,
) -> Imported:
    """The prices of some providers ("openai") that hold at that moment, from the installed genai-prices package (an extra)."""
    from genai_prices.data import providers as known

    wanted = set(providers)
    if unknown := wanted - {provider.id for provider in known}:
        raise DeclarationError(f"genai-prices knows no provider {', '.join(sorted(unknown))}")
    listed = {model.id: model for provider in known if provider.id in wanted for model in provider.models}
    digest = sha256(files("genai_prices").joinpath("data.py").read_bytes()).hexdigest()
    source = f"genai-prices {version('genai-prices')} sha256:{digest}"
    card = _card(card_id, number, effective_from, source, quantize)
    return _imported(card, listed, models, lambda model: _genai_prices(model, effective_from))


def _card(card_id: str, number: int, effective_from: datetime, source: str, quantize: bool) -> dict[str, Any]:
    card = {"id": card_id, "version": number, "currency": "USD", "source": source}
    return {
        **card,
        "effective_from": effective_from.astimezone(UTC).isoformat(),
        **({"quantize": True} if quantize else {}),
    }


def _imported(
    card: dict[str, Any],
    listed: Mapping[str, Any],
    patterns: Iterable[str],
    read: Callable[[Any], tuple[dict[Place, dict[str, Decimal]], list[str]]],
) -> Imported:
    chosen = tuple(patterns)
    found = Imported(card)
    prices: list[dict[str, Any]] = []
    for name, entry in sorted(listed.items()):
        if chosen and not any(fnmatchcase(name, pattern) for pattern in chosen):
            continue
        try:
            if not fullmatch(TAG_PATTERN, name):
                raise DeclarationError("its name is no tag")
            places, ignored = read(entry)
            own = _priced(name, places)
            read_rate_card({**card, "prices": [dict(price) for price in own]})  # what cannot be applied is refused here
        except (DeclarationError, ValidationError) as error:
            found.refused[name] = str(error).splitlines()[0]
            continue
        prices += own
        if ignored:
            found.ignored[name] = ignored
    if not prices:
        raise DeclarationError("no model with a price was found")
    card["prices"] = prices
    return found


def _priced(name: str, places: Mapping[Place, Mapping[str, Decimal]]) -> list[dict[str, Any]]:
    """One price for each service tier; a tier that states a part of its prices has the others of the standard one."""
    plain = places.get((None, 0), {})
    if "uncached_input" not in plain:
        raise DeclarationError("it has no price for input tokens")
    prices = []
    for tier in sorted({tier for tier, _ in places}, key=lambda tier: tier or ""):
        stated = {**plain, **places.get((tier, 0), {})}
        price: dict[str, Any] = {"model": name, **({"service_tier": tier} if tier else {})}
        price |= {kind: _text(kind, amount) for kind, amount in stated.items()}
        bands = sorted(over for at, over in places if over and at in (None, tier))
        price["bands"] = [
            {"input_over": over, **{kind: _text(kind, amount) for kind, amount in
                                    {**places.get((None, over), {}), **places.get((tier, over), {})}.items()}}
            for over in dict.fromkeys(bands)
        ]  # fmt: skip
        prices.append({kind: value for kind, value in price.items() if value != []})
    return prices


def _text(kind: str, amount: Decimal) -> str:
    """As it is declared: a million tokens, or one of anything else; plain notation, every digit."""
    return f"{amount * 1_000_000 if kind in _PER_TOKEN else amount:f}"


def _litellm_prices(entry: Mapping[str, Any]) -> tuple[dict[Place, dict[str, Decimal]], list[str]]:
    places: dict[Place, dict[str, Decimal]] = {}
    ignored = []
    for name, value in entry.items():
        if isinstance(value, bool) or not isinstance(value, Decimal | int) or "cost" not in name:
            continue
        place, kind = _litellm_place(name)
        if kind is None:
            if value:
                ignored.append(name)
            continue
        places.setdefault(place, {})[kind] = Decimal(value)
    return places, ignored


def _litellm_place(name: str) -> tuple[Place, str | None]:
    for suffix, tier in _TIERS.items():
        stem = name.removesuffix(suffix) if suffix else name
        if suffix and stem == name:
            continue
        if stem in _BASE:
            return (tier, 0), _BASE[stem]
        banded = fullmatch(r"(.+?)_above_(\d+)k_tokens", stem)
        if banded and banded[1] in _BASE and _BASE[banded[1]] in _PER_TOKEN:
            return (tier, int(banded[2]) * 1000), _BASE[banded[1]]
    return (None, 0), None


def _genai_prices(model: Any, moment: datetime) -> tuple[dict[Place, dict[str, Decimal]], list[str]]:
    places: dict[Place, dict[str, Decimal]] = {}
    ignored: list[str] = []
    _genai_place(model.get_prices(moment), None, places, ignored)
    for variant in model.price_variants or ():
        conditions = tuple(variant.when.items())
        tier = _GENAI_TIERS.get(conditions[0]) if len(conditions) == 1 else None
        if tier is None or (variant.constraint is not None and not variant.constraint.active(moment)):
            ignored.append(f"variant {dict(conditions)}")
        else:
            _genai_place(variant.prices, tier, places, ignored)
    return places, ignored


def _genai_place(prices: Any, tier: str | None, places: dict[Place, dict[str, Decimal]], ignored: list[str]) -> None:
    for name, value in vars(prices).items():
        if value is None or name.startswith("_"):
            continue
        kind = _GENAI.get(name)
        if kind is None:
            ignored.append(name)
            continue
        per = Decimal(1_000_000) if kind in _PER_TOKEN else Decimal(1000)
        tiers = getattr(value, "tiers", ())
        places.setdefault((tier, 0), {})[kind] = Decimal(getattr(value, "base", value)) / per
        for step in tiers:
            places.setdefault((tier, step.start), {})[kind] = Decimal(step.price) / per
