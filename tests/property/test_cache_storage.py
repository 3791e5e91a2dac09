"""Laws of what keeping blocks in cache costs: periods are the whole, nothing is borne twice, order decides nothing."""

from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from taximeter_billing.domain.epochs import Epoch, epochs_within, in_order, trace_epochs
from taximeter_billing.domain.storage import BorneBy, Kept, storage_classes, token_times
from taximeter_billing.domain.storage_lines import Stored, companies, exact_text, storage_lines
from taximeter_schemas.cache_policies import load_cache_policy
from taximeter_schemas.cache_uses import CacheUse, Cleared, Evicted
from taximeter_schemas.periods import billing_month
from tests.property.test_cache_savings import RATES, Records, some_records

END = 20
MONTH = billing_month("2026-11", "UTC")

ttls = st.sampled_from([None, 0, 1, 3, 30])
turns = st.lists(st.integers(1, END - 1), max_size=3, unique=True).map(sorted)
borne: st.SearchStrategy[BorneBy] = st.sampled_from(["creator", "shared"])


def until(records: Records, moment: int) -> Records:
    return [record for record in in_order(records, RATES) if record.ts < moment]


def parts(records: Records, ttl: int | None, cuts: list[int]) -> list[list[Epoch]]:
    """Each period settled by itself, from what had happened by its end."""
    bounds = [0, *cuts, END]
    return [list(epochs_within(until(records, end), ttl, start, end)) for start, end in pairwise(bounds)]


def length(epochs: Iterable[Epoch]) -> int:
    return sum(epoch.tokens * (epoch.ended_at - epoch.opened_at) for epoch in epochs)


def resident(records: Records, ttl: int | None) -> int:
    """Token-seconds up to END, second by second: a plain second opinion, with nothing of the engine's in it."""
    ordered = in_order(records, RATES)
    kept: dict[tuple[str, str, str], tuple[int, int]] = {}
    whole = 0
    for now in range(END):
        for record in ordered:
            if record.ts != now:
                continue
            if isinstance(record, CacheUse):
                for block, tokens in record.blocks:
                    kept[record.pool, record.model or record.sku, block] = (tokens, now)
            else:
                kept = {place: value for place, value in kept.items() if not left(record, place)}
        whole += sum(tokens for tokens, used_at in kept.values() if ttl is None or now < used_at + ttl)
    return whole


def left(record: Evicted | Cleared, place: tuple[str, str, str]) -> bool:
    pool, model, block = place
    if isinstance(record, Cleared):
        return pool == record.pool and record.model in (None, model)
    return (pool, model) == (record.pool, record.model) and block in record.blocks


@given(some_records(), ttls, turns)
def test_periods_one_after_the_other_are_the_whole(records: Records, ttl: int | None, cuts: list[int]) -> None:
    whole = list(trace_epochs(in_order(records, RATES), ttl, END))
    cut = parts(records, ttl, cuts)
    assert sum(map(length, cut)) == length(whole) == resident(records, ttl)
    # Each creator pays the same, however often its residencies were cut.
    assert by_creator(epoch for part in cut for epoch in part) == by_creator(whole)


def by_creator(epochs: Iterable[Epoch]) -> dict[Kept, Fraction]:
    return token_times(storage_classes((epoch for epoch in epochs if epoch.warmer is not None), "creator"))


@given(some_records(), ttls, turns, borne)
def test_all_that_is_kept_is_borne_by_who_used_it(
    records: Records, ttl: int | None, cuts: list[int], borne_by: BorneBy
) -> None:
    used = {(record.tenant, record.sku) for record in records if isinstance(record, CacheUse)}
    for epochs in parts(records, ttl, cuts):
        kept = token_times(storage_classes(epochs, borne_by))
        assert sum(kept.values()) == length(epochs)
        assert all(time > 0 and cell in used for (cell, _sku), time in kept.items())


@given(some_records(), ttls, turns, borne, st.randoms(use_true_random=False))
def test_arrival_and_repetition_change_nothing(
    records: Records, ttl: int | None, cuts: list[int], borne_by: BorneBy, random: Random
) -> None:
    def kept(of: Records) -> list[dict[Kept, Fraction]]:
        return [token_times(storage_classes(part, borne_by)) for part in parts(of, ttl, cuts)]

    again = [*records, *(record for record in records if isinstance(record, CacheUse))]
    random.shuffle(again)
    assert kept(again) == kept(records)


@given(some_records(), ttls, turns)
def test_what_comes_later_changes_no_period_before_it(records: Records, ttl: int | None, cuts: list[int]) -> None:
    late = CacheUse(event_id="late", tenant="B", ts=cuts[-1] if cuts else 7, sku="m", blocks=(("S", 7),), hit_blocks=1)
    bounds = [0, *cuts, END]
    before, after = parts(records, ttl, cuts), parts([*records, late], ttl, cuts)
    untouched = [place for place, end in enumerate(bounds[1:]) if end <= late.ts]
    assert [before[place] for place in untouched] == [after[place] for place in untouched]
    # A hit keeps a block, so whatever it changes adds to what was kept.
    assert sum(map(length, after)) >= sum(map(length, before))


@given(some_records(), ttls, turns, borne)
def test_company_by_company_is_the_whole(records: Records, ttl: int | None, cuts: list[int], borne_by: BorneBy) -> None:
    uses = [record for record in records if isinstance(record, CacheUse)]
    users: dict[str, set[str]] = {}
    for use in uses:
        users.setdefault(use.pool, set()).add(use.tenant)
    company = companies(users.values(), {use.tenant for use in uses})
    # Who shares a pool is in one company, and companies have nobody in common.
    assert all(len({company[tenant] for tenant in those}) == 1 for those in users.values())
    assert all(tenant in own and {company[each] for each in own} == {own} for tenant, own in company.items())
    whole: dict[Kept, Fraction] = {}
    for own in set(company.values()):
        of_these = [record for record in records if not isinstance(record, CacheUse) or record.tenant in own]
        for epochs in parts(of_these, ttl, cuts):
            for kept, time in token_times(storage_classes(epochs, borne_by)).items():
                whole[kept] = whole.get(kept, Fraction(0)) + time
    together: dict[Kept, Fraction] = {}
    for epochs in parts(records, ttl, cuts):
        for kept, time in token_times(storage_classes(epochs, borne_by)).items():
            together[kept] = together.get(kept, Fraction(0)) + time
    assert whole == together


@given(
    st.dictionaries(
        st.tuples(st.sampled_from("ABC"), st.sampled_from(["chat", "search"]), st.integers(1, 10**9)),
        st.fractions(min_value=0, max_value=10**15, max_denominator=10**6),
        max_size=8,
    )
)
def test_lines_are_within_a_unit_and_add_up(sums: dict[tuple[str, str, int], Fraction]) -> None:
    kept = {(tenant, (feature, "m", "default@1", price)): time for (tenant, feature, price), time in sums.items()}
    policy = load_cache_policy({"kind": "retain", "ttl_seconds": 60}, {})
    lines = storage_lines(Stored(kept, 1), [], policy, MONTH, "salt")
    exact = sum((time * line[3] / 3_600_000_000 for (_tenant, line), time in kept.items()), Fraction(0))
    amounts = [line.amount_pico for own in lines.values() for line in own]
    assert len(amounts) == len(kept)
    assert abs(sum(amounts) - exact) <= Fraction(1, 2)
    for tenant, own in lines.items():
        for line in own:
            feature, model, card, price = line.id.split("|")
            time = kept[tenant, (feature, model, card, int(price))]
            assert abs(line.amount_pico - time * int(price) / 3_600_000_000) < 2
            assert line.detail["token_seconds"] == exact_text(time / 1_000_000)


@given(st.fractions(min_value=0, max_value=10**12, max_denominator=10**20))
def test_a_quantity_is_told_exactly(quantity: Fraction) -> None:
    text = exact_text(quantity)
    assert Fraction(text) == quantity
