"""What a tenant owes for a period, in the order in which it is computed: rate, tiers, cache savings, allowances, discounts,
reservations and late usage, credits, minimum. Pure and exact; tax is handed off and rounding comes last, in `invoice`.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from taximeter_billing.domain.adjusting import (
    Adjustment,
    apply_allowance,
    apply_discount,
    reservation_fees,
    take_back,
)
from taximeter_billing.domain.commitments import prorated, true_up
from taximeter_billing.domain.contracts import Agreement
from taximeter_billing.domain.credits import Grant, draw
from taximeter_billing.domain.parcels import Parcel
from taximeter_billing.domain.spans import Span, days_held
from taximeter_billing.domain.storage import STORAGE
from taximeter_billing.domain.takeback import Reserved
from taximeter_billing.domain.tariffing import Standing, apply_tariffs
from taximeter_schemas.periods import Period


@dataclass(frozen=True, slots=True)
class Charges:
    """A period's charges. `adjustments` stand in the order of computing; `drawn_pico` is by grant.

    `owed_pico`: usage, adjustments and minimum before credits, late usage of earlier periods left out: what a later look at the
    same period is compared with.
    """

    usage: tuple[Standing, ...]
    adjustments: tuple[Adjustment, ...]
    drawn_pico: dict[str, int]
    owed_pico: int

    @property
    def net_pico(self) -> int:
        """What is to be paid, before it is rounded."""
        usage = sum(net_pico(standing) for standing in self.usage)
        return usage + sum(adjustment.amount_pico for adjustment in self.adjustments)


@dataclass(frozen=True, slots=True)
class Agreed:
    """A period as a tenant has it: its spans, what was reserved, and the grants that may pay, with their balances."""

    period: Period
    time_zone: str
    currency: str
    spans: Sequence[Span]
    reserved: Sequence[Reserved] = ()
    grants: Sequence[Grant] = ()

    @property
    def agreements(self) -> list[Agreement]:
        """The agreements that hold in some span, in order of time."""
        found: dict[str, Agreement] = {}
        for span in self.spans:
            if span.agreement is not None:
                found.setdefault(span.agreement.name, span.agreement)
        return list(found.values())


def net_pico(standing: Standing) -> int:
    """What a parcel costs by its own line: list and tiers less savings."""
    return standing.parcel.list_pico + standing.tier_pico - standing.savings_pico


def charge(
    parcels: Sequence[Parcel],
    agreed: Agreed,
    salt: str,
    late: Sequence[Adjustment] = (),
    stored: Sequence[Adjustment] = (),
) -> Charges:
    """Compute. `late`: usage of earlier periods that came after their invoices, as lines of this one. `stored`: what keeping
    blocks in cache cost; like what is reserved, it has no discount, credits pay for it, and it counts towards a minimum."""
    standings = apply_tariffs(parcels, agreed.spans, salt)
    adjustments = take_back(standings, salt)
    for held in agreed.agreements:
        own = [standing for standing in standings if agreed.spans[standing.parcel.segment].agreement is held]
        for allowance in held.terms.allowances:
            adjustments += filter(None, [apply_allowance(own, allowance, salt)])
        for discount in held.terms.discounts:
            adjustments += filter(None, [apply_discount(own, discount, salt)])
    fees = reservation_fees(agreed.reserved)
    adjustments += [*stored, *fees]
    before_credits = [*adjustments, *late]
    drawn, credits = _credits(standings, [*stored, *fees, *late], agreed)
    minimums = [
        line for held in agreed.agreements if (line := _minimum(held, standings, [*stored, *fees], agreed)) is not None
    ]
    charged = sum(map(net_pico, standings)) + sum(line.amount_pico for line in (*adjustments, *minimums))
    return Charges(tuple(standings), (*before_credits, *credits, *minimums), drawn, charged)


def _credits(
    standings: Sequence[Standing], others: Sequence[Adjustment], agreed: Agreed
) -> tuple[dict[str, int], list[Adjustment]]:
    """Pay span by span, each by the grants that are open in it; fees and late usage belong to the last.

    A span in which something is owed back lessens the next one's amount.
    """
    by_span: dict[int, int] = defaultdict(int)
    for standing in standings:
        by_span[standing.parcel.segment] += standing.left_pico
    by_span[len(agreed.spans) - 1] += sum(line.amount_pico for line in others)
    grants = tuple(agreed.grants)
    drawn: dict[str, int] = defaultdict(int)
    owed_back = 0
    for segment, span in enumerate(agreed.spans):
        amount = by_span[segment] + owed_back
        owed_back = min(0, amount)
        paid = draw(grants, max(0, amount), span.start)
        grants = paid.grants
        for name, pico in paid.drawn_pico.items():
            drawn[name] += pico
    lines = []
    for grant in grants:
        if drawn.get(grant.id):
            detail = {"kind": grant.kind, "balance_after_pico": str(grant.balance_pico)}
            lines.append(Adjustment("credit", grant.id, f"credit {grant.id}", -drawn[grant.id], detail))
    return dict(drawn), sorted(lines, key=lambda line: line.id)


def _minimum(
    held: Agreement, standings: Sequence[Standing], fees: Sequence[Adjustment], agreed: Agreed
) -> Adjustment | None:
    """What is missing to the agreement's minimum; credits do not count towards it, reservations do."""
    minimum = held.terms.minimum
    if minimum is None:
        return None
    days, whole_days = days_held(held, agreed.period, agreed.time_zone)
    owed = minimum.amount_pico
    if minimum.prorate and days != whole_days:
        owed = prorated(owed, days, whole_days, agreed.currency)
    own = [standing for standing in standings if agreed.spans[standing.parcel.segment].agreement is held]
    reserved = {it.id for it in held.terms.reservations}
    # What was stored counts where the period ends, as credits that pay for it do.
    last = agreed.spans[-1].agreement is held
    fixed = sum(fee.amount_pico for fee in fees if (last if fee.kind == STORAGE else fee.id in reserved))
    gross = sum(standing.parcel.list_pico + standing.tier_pico for standing in own) + fixed
    net = sum(standing.left_pico for standing in own) + fixed
    missing = true_up(owed, gross, gross - net, minimum.basis)
    if not missing:
        return None
    counted = gross if minimum.basis == "list" else net
    detail = {"minimum_pico": str(owed), "counted_pico": str(counted), "basis": minimum.basis,
              "days": str(days), "of_days": str(whole_days)}  # fmt: skip
    return Adjustment("minimum", held.contract, f"minimum of contract {held.contract}", missing, detail)
