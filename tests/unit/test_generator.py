"""The made-up shop is reproducible and coherent; its defects are the ordered ones."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crm_resources.contracts import ENTITIES, Order
from crm_resources.contracts.entities import kafka_key
from crm_resources.contracts.model import MAX_MESSAGE_BYTES
from generator.defects import DefectShares, spoil, with_defects
from generator.encode import pounds
from generator.ids import epoch_microseconds
from generator.pacing import Accelerated, AsFastAsPossible, PerSecond
from generator.records import Defect, Outgoing
from generator.synthetic import Shop, ShopOptions


def seeded(seed: int) -> Random:
    return Random(seed)


NOW = datetime(2026, 3, 29, 12, 0, tzinfo=UTC)
SMALL = ShopOptions(seed=7, customers=60, products=25, orders=300, events=900, days=30)


@pytest.fixture(scope="module")
def records() -> list[Outgoing]:
    return list(Shop(SMALL, NOW).history())


@pytest.fixture(scope="module")
def messages(records: list[Outgoing]) -> dict[str, list[dict[str, Any]]]:
    by_entity: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        by_entity[record.entity].append(orjson.loads(record.value or b""))
    return by_entity


def test_the_same_seed_gives_the_same_bytes(records: list[Outgoing]) -> None:
    assert list(Shop(SMALL, NOW).history()) == records


def test_live_traffic_is_reproducible_too() -> None:
    first, second = (list(Shop(SMALL, NOW).live(NOW, 10, 200)) for _ in range(2))
    assert first == second


def test_another_seed_gives_another_shop(records: list[Outgoing]) -> None:
    other = list(Shop(ShopOptions(seed=8, customers=60, products=25, orders=300, events=900, days=30), NOW).history())
    assert {r.event_id for r in other}.isdisjoint(r.event_id for r in records)


def test_every_record_follows_its_contract_and_says_so_outside(records: list[Outgoing]) -> None:
    for record in records:
        message = ENTITIES[record.entity].model_validate_json(record.value or b"", strict=True)
        assert record.key == kafka_key(message)
        assert (record.event_id, record.entity_key, record.sequence) == (message.event_id, message.entity_key, message.sequence)
        assert record.event_us == epoch_microseconds(message.event_time)
        assert record.amount == (message.amount if isinstance(message, Order) else None)


def test_ids_are_unique_and_sorted_by_time(records: list[Outgoing]) -> None:
    ids = [r.event_id for r in records]
    assert len(set(ids)) == len(ids)
    assert [i[:13] for i in ids] == sorted(i[:13] for i in ids)


def test_the_sizes_are_those_that_were_asked_for(messages: dict[str, list[dict[str, Any]]]) -> None:
    assert len(messages["event"]) == 900
    assert sum(o["status"] == "placed" for o in messages["order"]) == 300
    assert len({p["product_id"] for p in messages["product"]}) == 25
    assert len({p["customer_id"] for p in messages["profile"]}) == 60


def test_every_reference_leads_somewhere(messages: dict[str, list[dict[str, Any]]]) -> None:
    products = {p["product_id"] for p in messages["product"]}
    customers = {p["customer_id"] for p in messages["profile"]}
    orders = {o["order_id"]: o for o in messages["order"]}
    assert {line["product_id"] for o in messages["order"] for line in o["lines"]} <= products
    assert {o["customer_id"] for o in messages["order"]} - {None} <= customers
    assert {e["product_id"] for e in messages["event"]} - {None} <= products
    assert {e["customer_id"] for e in messages["event"]} - {None} <= customers
    assert {e["order_id"] for e in messages["event"]} - {None} <= orders.keys()
    for order in messages["order"]:
        if order["cancels_order_id"]:
            assert orders[order["cancels_order_id"]]["status"] in ("placed", "paid", "shipped")
            assert -Decimal(order["amount"]) <= Decimal(orders[order["cancels_order_id"]]["amount"])


def test_sequences_rise_with_time_per_key(records: list[Outgoing]) -> None:
    last: dict[tuple[str, str], int] = {}
    for record in records:
        assert record.sequence > last.get((record.entity, record.entity_key), -1)
        last[record.entity, record.entity_key] = record.sequence


def test_a_later_run_goes_on_rising_and_reuses_no_order_number(records: list[Outgoing]) -> None:
    later = list(Shop(SMALL, NOW + timedelta(minutes=5)).history())
    highest: dict[tuple[str, str], int] = {}
    for record in records:
        highest[record.entity, record.entity_key] = record.sequence
    for record in later:
        assert record.sequence > highest.get((record.entity, record.entity_key), -1)
        assert record.entity != "order" or ("order", record.entity_key) not in highest


def test_nothing_happens_after_now(records: list[Outgoing]) -> None:
    assert max(r.event_us for r in records) <= epoch_microseconds(NOW)


def test_some_orders_are_guests_cancelled_or_refunded(messages: dict[str, list[dict[str, Any]]]) -> None:
    statuses = Counter(o["status"] for o in messages["order"])
    assert {"placed", "paid", "shipped", "cancelled", "refunded"} == set(statuses)
    guests = sum(o["customer_id"] is None for o in messages["order"] if o["status"] == "placed")
    assert 10 <= guests <= 60


def test_live_records_happen_at_their_scheduled_times() -> None:
    live = list(Shop(SMALL, NOW).live(NOW, 50, 100))
    assert [r.event_us for r in live] == [epoch_microseconds(NOW) + i * 20_000 for i in range(100)]
    for record in live:
        ENTITIES[record.entity].model_validate_json(record.value or b"", strict=True)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="customers must be at least 1"):
        ShopOptions(customers=0)
    with pytest.raises(ValueError, match="orders must not be negative"):
        ShopOptions(orders=-1)


# defects


def test_defects_are_additional_and_repeatable(records: list[Outgoing]) -> None:
    shares = DefectShares.usual(0.05, 0.05)
    first, second = (list(with_defects(records, shares, seeded(3))) for _ in range(2))
    assert first == second
    assert [r for r in first if r.defect is None] == records
    assert 0.03 < sum(r.defect is Defect.DUPLICATE for r in first) / len(records) < 0.07


def test_without_shares_nothing_is_added(records: list[Outgoing]) -> None:
    assert list(with_defects(records, DefectShares(), seeded(3))) == records


def test_a_duplicate_follows_its_original_byte_for_byte(records: list[Outgoing]) -> None:
    seen: dict[str, Outgoing] = {}
    for record in with_defects(records, DefectShares(duplicate=0.2), seeded(3)):
        if record.defect:
            assert record.value == seen[record.event_id].value
            assert record.key == seen[record.event_id].key
        seen.setdefault(record.event_id, record)


@pytest.mark.parametrize("defect", [d for d in Defect if d.additional and d is not Defect.DUPLICATE])
def test_each_defect_is_what_its_name_says(defect: Defect, records: list[Outgoing]) -> None:
    good = next(r for r in records if r.entity == "order")
    bad = spoil(good, defect, seeded(1))
    assert bad.defect is defect
    assert (bad.event_id == good.event_id) is (defect is Defect.CONFLICTING_DUPLICATE)
    match defect:
        case Defect.CONFLICTING_DUPLICATE:
            assert orjson.loads(bad.value or b"")["event_id"] == good.event_id
            assert bad.value != good.value
        case Defect.CORRUPT_JSON:
            with pytest.raises(orjson.JSONDecodeError):
                orjson.loads(bad.value or b"")
        case Defect.BAD_UTF8:
            with pytest.raises(UnicodeDecodeError):
                (bad.value or b"").decode()
        case Defect.NULL_VALUE:
            assert bad.value is None
        case Defect.OVERSIZED:
            assert MAX_MESSAGE_BYTES < len(bad.value or b"") < 8 * MAX_MESSAGE_BYTES
        case Defect.UNKNOWN_VERSION:
            assert orjson.loads(bad.value or b"")["schema_version"] > 1
        case Defect.FAR_FUTURE:
            assert bad.event_us > epoch_microseconds(NOW + timedelta(days=365))


@pytest.mark.parametrize("wrong", [{"duplicate": 1.5}, {"oversized": -0.1}, {"duplicate": 0.6, "null_value": 0.6}])
def test_impossible_shares_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="share"):
        DefectShares(**wrong)


# pacing and spelling


@given(st.floats(0.001, 1e6), st.integers(0, 10**6))
def test_a_constant_rate_is_an_open_loop(rate: float, index: int) -> None:
    assert PerSecond(rate).due_seconds(index, 0) == pytest.approx(index / rate)


def test_an_accelerated_day_keeps_its_rhythm() -> None:
    pace = Accelerated(86_400, 1_000_000)
    assert pace.due_seconds(5, 1_000_000 + 43_200_000_000) == 0.5
    assert pace.due_seconds(6, 0) == 0.0
    assert AsFastAsPossible().due_seconds(7, 0) is None


@pytest.mark.parametrize("make", [lambda: PerSecond(0), lambda: Accelerated(-1, 0)])
def test_a_rate_of_nothing_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        make()


@given(st.integers(-(10**12), 10**12))
@settings(max_examples=200)
def test_pence_become_exact_decimals(pence: int) -> None:
    assert Decimal(pounds(pence)) == Decimal(pence) / 100
