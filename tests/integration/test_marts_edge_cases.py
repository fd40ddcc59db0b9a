"""What the marts make of orders that go wrong: taken back twice, too much, too early, by guests, in other currencies, out of order."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from crm_assets.monitoring.audit_marts import compare_marts
from crm_resources import warehouse
from crm_resources.settings import Settings
from deploy.local.stack import Stack
from tests.oracle.lake_writer import append, event, order, product, profile
from tests.oracle.refresh import WITHOUT_TESTS, data_set, refresh, run_dbt

AS_OF = date(2026, 3, 31)


def at(day: int, hour: int = 12, month: int = 3) -> datetime:
    return datetime(2026, month, day, hour, tzinfo=UTC)


MESSAGES = [
    # Cancelled twice: the second document has no effect.
    order("twice", at(1), [("A", 2, "10.00")], customer_id="twice"),
    order("twice-1", at(3), [("A", -2, "10.00")], customer_id="twice", status="cancelled", cancels_order_id="twice"),
    order("twice-2", at(4), [("A", -2, "10.00")], customer_id="twice", status="cancelled", cancels_order_id="twice"),
    # Refunds in parts, the last beyond what is left.
    order("excess", at(1), [("A", 3, "10.00")], customer_id="excess"),
    order("excess-1", at(5), [("A", -2, "10.00")], customer_id="excess", status="refunded", cancels_order_id="excess"),
    order("excess-2", at(6), [("A", -3, "10.00")], customer_id="excess", status="refunded", cancels_order_id="excess"),
    # Money back for goods that stay.
    order("goodwill", at(1), [("A", 1, "10.00")], customer_id="goodwill"),
    order("goodwill-1", at(5), [("A", -1, "2.50")], customer_id="goodwill", status="refunded", cancels_order_id="goodwill"),
    # The order's own status.
    order("own", at(2), [("A", 1, "5.00"), ("B", 2, "7.50")], customer_id="own", status="placed", sequence=1),
    order("own", at(3), [("A", 1, "5.00"), ("B", 2, "7.50")], customer_id="own", status="paid", sequence=2),
    order("own", at(9), [("A", 1, "5.00"), ("B", 2, "7.50")], customer_id="own", status="cancelled", sequence=3),
    # By sequence and not by arrival: the later state came first, with another line.
    order("sequence", at(4), [("A", 1, "5.00"), ("B", 1, "1.00")], customer_id="sequence", status="shipped", sequence=3),
    order("sequence", at(2), [("A", 1, "5.00")], customer_id="sequence", status="placed", sequence=1),
    # Guests: a document that names its order counts, one that names none never matches.
    order("guest", at(7), [("A", 2, "4.00")]),
    order("guest-1", at(8), [("A", -1, "4.00")], status="refunded", cancels_order_id="guest"),
    order("guest-2", at(8), [("A", -1, "4.00")], status="refunded"),
    # No order named: newest first, splitting, by product in either case and by price.
    order("stack-1", at(1), [("sku", 5, "2.00")], customer_id="stack"),
    order("stack-2", at(2), [("SKU", 5, "2.00")], customer_id="stack"),
    order("stack-3", at(3), [("SKU", 5, "3.00")], customer_id="stack"),
    order("stack-c1", at(4), [("SKU", -7, "2.00")], customer_id="stack", status="cancelled"),
    order("stack-4", at(5), [("SKU", 1, "2.00")], customer_id="stack"),
    order("stack-c2", at(6), [("SKU", -6, "2.00")], customer_id="stack", status="cancelled"),
    # A cancellation before any sale finds nothing.
    order("early-c", at(1), [("A", -1, "9.00")], customer_id="early", status="cancelled"),
    order("early", at(2), [("A", 1, "9.00")], customer_id="early"),
    # Another currency: counted, in no sum.
    order("euro", at(10), [("A", 1, "100.00")], customer_id="euro", currency="EUR"),
    # After the as-of date: no effect yet.
    order("future", at(30), [("A", 1, "6.00")], customer_id="future"),
    order("future-1", at(1, month=4), [("A", -1, "6.00")], customer_id="future", status="cancelled", cancels_order_id="future"),
    order("tomorrow", at(1, month=4), [("A", 1, "6.00")], customer_id="tomorrow"),
    # No price, or bookkeeping.
    order("free", at(11), [("A", 1, "0")], customer_id="free"),
    order("debt", at(11), [("B", 1, "-3.00")], status="adjustment"),
    # A negative price is kept and no sale; a cancellation of an order nobody knows is held.
    order("minus", at(13), [("A", 1, "-2.00"), ("B", 1, "5.00")], customer_id="minus"),
    order("held-1", at(13), [("A", -1, "8.00")], customer_id="held", status="cancelled", cancels_order_id="nowhere"),
    # Seen before its profile or product.
    event("visitor", at(12), customer_id="browser", product_id="seen-only"),
    profile("own", at(1), country="France", email="own@example.com", sequence=2),
    profile("own", at(2), country="Spain", email="old@example.com", sequence=1),
    profile("gone", at(1), email="gone@example.com", erased=True),
    product("a", at(1), name="Apple", price=Decimal("10.00")),
]


@pytest.fixture(scope="module")
def built(stack_services: Stack) -> Settings:
    settings = data_set(stack_services.settings, "marts_edges", as_of=AS_OF)
    append(settings, MESSAGES)
    refresh(settings)
    return settings


def one(settings: Settings, sql: str, *parameters: object) -> tuple[Any, ...]:
    (row,) = warehouse.fetch_rows(settings, sql, parameters)
    return row


@pytest.fixture
def of_order(built: Settings) -> Callable[[str], dict[str, Any]]:
    def read(order_id: str) -> dict[str, Any]:
        names = (
            "sale_amount", "cancelled_amount", "cancelled_quantity", "restated_amount", "is_wholly_cancelled",
            "refund_excess", "repeated_cancellations", "status", "business_date", "messages", "lines",
        )  # fmt: skip
        row = one(built, f"select {', '.join(names)} from marts.fct_orders where order_id = $1::text", order_id)
        found = dict(zip(names, row, strict=True))
        return {k: Decimal(v) if k.endswith("amount") or k == "refund_excess" else v for k, v in found.items()}

    return read


@pytest.fixture
def score(built: Settings) -> Callable[[str, str], tuple[Any, ...] | None]:
    def read(customer: str, basis: str) -> tuple[Any, ...] | None:
        sql = "select recency_days, frequency, monetary from marts.rfm_scores where rfm_score_key = $1::text"
        rows = warehouse.fetch_rows(built, sql, (f"id:{customer}/{basis}",))
        return (rows[0][0], rows[0][1], Decimal(rows[0][2])) if rows else None

    return read


def test_the_second_cancellation_has_no_effect_and_is_counted(of_order, score, built: Settings):
    found = of_order("twice")
    assert (found["cancelled_amount"], found["repeated_cancellations"], found["refund_excess"]) == (20, 1, 0)
    assert score("twice", "booked") == (30, 1, 20)
    assert score("twice", "restated") is None
    outcome, applied = one(built, "select cancellation_outcome, applied_amount from marts.fct_order_lines where order_id = 'twice-2'")
    assert (outcome, Decimal(applied)) == ("repeated", 0)


def test_a_refund_above_the_amount_is_capped(of_order, score):
    found = of_order("excess")
    assert (found["cancelled_amount"], found["refund_excess"], found["is_wholly_cancelled"]) == (30, 20, True)
    assert score("excess", "restated") is None


def test_money_back_for_goods_that_stay_takes_back_no_piece(of_order, score):
    found = of_order("goodwill")
    assert (found["cancelled_amount"], found["cancelled_quantity"], found["is_wholly_cancelled"]) == (Decimal("2.5"), 0, False)
    assert score("goodwill", "restated") == (30, 1, Decimal("7.5"))


def test_a_later_message_of_the_order_cancels_the_whole_of_it(of_order, score, built: Settings):
    found = of_order("own")
    assert (found["status"], found["business_date"], found["messages"]) == ("cancelled", date(2026, 3, 2), 3)
    assert (found["sale_amount"], found["cancelled_amount"], found["is_wholly_cancelled"]) == (20, 20, True)
    assert score("own", "booked") == (29, 1, 20)
    assert score("own", "restated") is None
    sql = "select business_date, cancelled_amount from (select business_date, {0} as cancelled_amount from marts.daily_sales where "
    sql += "customer_known and business_date in ('2026-03-02', '2026-03-09')) as days where cancelled_amount <> 0"
    booked = {day: Decimal(v) for day, v in warehouse.fetch_rows(built, sql.format("cancelled_amount_booked"))}
    restated = {day: Decimal(v) for day, v in warehouse.fetch_rows(built, sql.format("cancelled_amount_restated"))}
    assert booked == {date(2026, 3, 9): Decimal(-20)}
    # Five pieces of stack-2 are taken back on the same date.
    assert restated == {date(2026, 3, 2): Decimal(-20) + Decimal(-10)}


def test_the_highest_sequence_wins_not_the_last_to_arrive(of_order):
    found = of_order("sequence")
    assert (found["status"], found["sale_amount"], found["lines"], found["business_date"]) == ("shipped", 6, 2, date(2026, 3, 2))


def test_a_guest_order_is_taken_back_only_by_name(of_order, built: Settings):
    assert of_order("guest")["cancelled_amount"] == 4
    rows = warehouse.fetch_rows(
        built, "select order_id, cancellation_outcome, unmatched_amount from marts.fct_order_lines where order_id like 'guest-%' order by 1"
    )
    assert [(o, c, Decimal(u)) for o, c, u in rows] == [("guest-1", "by order", 0), ("guest-2", "unmatched", 4)]


def test_cancellations_take_the_newest_sales_first_and_split(of_order, score):
    taken = {name: of_order(name)["cancelled_quantity"] for name in ("stack-1", "stack-2", "stack-3", "stack-4")}
    # Seven pieces: five of stack-2, two of stack-1. Then six: one of stack-4, three left of stack-1, and two find nothing.
    assert taken == {"stack-1": 5, "stack-2": 5, "stack-3": 0, "stack-4": 1}
    # Booked 10 + 10 + 15 + 2, less all that was credited (14 and 12), of which 22 found an order.
    assert score("stack", "restated") == (28, 1, 11)


def test_a_credit_before_any_sale_finds_nothing(of_order, score):
    assert of_order("early")["cancelled_amount"] == 0
    assert score("early", "restated") == (29, 1, 0)


def test_another_currency_is_counted_and_in_no_sum(score, built: Settings):
    assert score("euro", "booked") is None
    sql = "select gross_amount, foreign_currency_documents from marts.daily_sales where business_date = '2026-03-10'"
    gross, documents = one(built, sql)
    assert (Decimal(gross), documents) == (0, 1)


def test_what_happens_after_the_as_of_date_has_no_effect_yet(score, built: Settings):
    assert score("future", "restated") == (1, 1, 6)
    assert score("tomorrow", "booked") is None
    assert one(built, "select max(business_date) from marts.daily_sales") == (date(2026, 3, 30),)
    assert one(built, "select count(*) from marts.fct_orders where not is_within_as_of") == (2,)


def test_lines_without_price_and_bookkeeping_are_no_sales(score, built: Settings):
    assert score("free", "booked") is None
    sql = "select sum(adjustment_amount), sum(orders_booked) from marts.daily_sales where business_date = '2026-03-11'"
    adjustment, orders = one(built, sql)
    assert (Decimal(adjustment), orders) == (-3, 0)


def test_a_line_with_a_negative_price_is_kept_and_no_sale(score, built: Settings):
    rows = warehouse.fetch_rows(built, "select line_class, amount from marts.fct_order_lines where order_id = 'minus' order by line_number")
    assert [(kind, Decimal(amount)) for kind, amount in rows] == [("other", -2), ("sale", 5)]
    assert score("minus", "booked") == (18, 1, 5)
    gross, other = one(built, "select gross_amount, other_amount from marts.daily_sales where business_date = '2026-03-13'")
    assert (Decimal(gross), Decimal(other)) == (5, -2)


def test_input_that_goes_wrong_is_warned_of_and_counted(built: Settings):
    output = run_dbt(built, "test", "--select", "test_type:generic,config.severity:warn")
    counts = {name: int(count) for count, name in re.findall(r"WARN (\d+) (?!in )(\w+)", output)}
    assert counts == {
        "orders_are_cancelled_once": 1,
        "refunds_do_not_exceed_their_order": 1,
        "cancellations_find_their_order": 1,
        "documents_are_in_the_currency_of_the_sums": 1,
        "prices_are_not_negative": 1,
        # Only events, only a profile, only another currency, only a gift, only a later order, only a held cancellation.
        "customers_have_an_order": 6,
    }


def test_keys_seen_before_their_record_are_inferred_members(built: Settings):
    customers = dict(warehouse.fetch_rows(built, "select customer_id, is_inferred from marts.dim_customers where not is_unknown"))
    assert customers["browser"] is True
    assert customers["own"] is False
    products = dict(warehouse.fetch_rows(built, "select product_code, is_inferred from marts.dim_products where not is_unknown"))
    assert products == {"A": False, "B": True, "SKU": True, "SEEN-ONLY": True}
    for dimension in ("dim_customers", "dim_products"):
        assert one(built, f"select count(*) from marts.{dimension} where is_unknown") == (1,)


def test_a_profile_shows_its_highest_sequence_and_forgets_the_erased(built: Settings):
    sql = "select country, email from marts.dim_customers where customer_id = $1::text"
    assert one(built, sql, "own") == ("France", "own@example.com")
    assert one(built, sql, "gone") == (None, None)


class TestArrivalOrder:
    """The same messages in another order of arrival end in the same marts."""

    def test_a_cancellation_before_its_order_is_held_and_applied_on_arrival(self, stack_services: Stack):
        settings = data_set(stack_services.settings, "marts_held", as_of=AS_OF)
        cancellation = order("late-1", at(5), [("A", -1, "8.00")], customer_id="late", status="cancelled", cancels_order_id="late")
        own_status = order("self", at(6), [("A", 1, "3.00")], customer_id="self", status="cancelled", sequence=2)
        append(settings, [cancellation, own_status, order("other", at(5), [("A", 1, "1.00")], customer_id="other")])
        refresh(settings, *WITHOUT_TESTS)
        sql = "select sum(total_amount_booked), sum(total_amount_restated), sum(held_cancellation_lines) from marts.daily_sales"
        booked, restated, held = one(settings, sql)
        assert (Decimal(booked), Decimal(restated), held) == (1, 1, 2)

        append(settings, [order("late", at(4), [("A", 1, "8.00"), ("B", 1, "2.00")], customer_id="late")])
        append(settings, [order("self", at(4), [("A", 1, "3.00")], customer_id="self", status="placed", sequence=1)])
        refresh(settings, *WITHOUT_TESTS)
        sql = "select business_date::text, {0} from marts.daily_sales where {0} <> 0 order by 1"
        booked_days = {day: Decimal(v) for day, v in warehouse.fetch_rows(settings, sql.format("cancelled_amount_booked"))}
        restated_days = {day: Decimal(v) for day, v in warehouse.fetch_rows(settings, sql.format("cancelled_amount_restated"))}
        assert booked_days == {"2026-03-05": Decimal(-8), "2026-03-06": Decimal(-3)}
        assert restated_days == {"2026-03-04": Decimal(-11)}

    def test_a_late_product_and_profile_replace_the_inferred_members(self, stack_services: Stack):
        settings = data_set(stack_services.settings, "marts_late", as_of=AS_OF)
        append(settings, [order("o", at(1), [("late-sku", 1, "1.00")], customer_id="late")])
        refresh(settings, *WITHOUT_TESTS)
        sql = "select (select is_inferred from marts.dim_customers where customer_id = 'late'), is_inferred, name "
        sql += "from marts.dim_products where product_code = 'LATE-SKU'"
        assert one(settings, sql) == (True, True, None)

        append(settings, [profile("late", at(1)), product("late-sku", at(1) + timedelta(days=1), name="Late")])
        refresh(settings, *WITHOUT_TESTS)
        assert one(settings, sql) == (False, False, "Late")


@pytest.fixture(scope="module")
def refreshed(built: Settings) -> Settings:
    """The marts as the refresh job leaves them: with a note of when they were built."""
    now = datetime.now(UTC)
    warehouse.record_refresh(built, started_at=now, finished_at=now, as_of=AS_OF)
    return built


def test_the_audit_agrees_with_every_mart(refreshed: Settings) -> None:
    found = compare_marts(refreshed)
    assert found.unavailable == ""
    assert {c.name: c.rows for c in found.checks} == {c.name: () for c in found.checks}
    assert len(found.checks) == 6
    # Foreign currency and later states are in the one sum that compares with what was sent.
    assert Decimal(found.orders_amount) + Decimal(found.superseded_amount) == Decimal(found.raw_amount)


CHANGED_CENTS = [
    ("daily_sales", "gross_amount", "business_date = '2026-03-01' and customer_known", "2026-03-01/known gross_amount: "),
    ("daily_sales", "cancelled_amount_booked", "business_date = '2026-03-03'", "2026-03-03/known cancelled_amount_booked: "),
    ("daily_sales", "total_amount_restated", "business_date = '2026-03-01'", "2026-03-01/known total_amount_restated: "),
    ("fct_orders", "amount", "order_id = 'euro'", "euro amount: mart 100.0100, expected 100.0000"),
    ("fct_orders", "restated_amount", "order_id = 'excess'", "excess restated_amount: "),
    ("fct_order_lines", "amount", "order_id = 'own' and line_number = 2", "own/2 amount: mart 15.0100, expected 15.0000"),
    ("rfm_scores", "monetary", "customer_key = 'id:stack' and basis = 'restated'", "id:stack/restated monetary: "),
]


@pytest.mark.parametrize(("table", "column", "where", "named"), CHANGED_CENTS, ids=lambda value: value.partition(" ")[0])
def test_a_changed_cent_in_a_mart_is_named(refreshed: Settings, table: str, column: str, where: str, named: str) -> None:
    change = f"update marts.{table} set {column} = {column} {{}} 0.01 where {where}"
    # The table's own rules refuse some of these; the audit has to find what came past them.
    checks = f"select conname from pg_constraint where contype = 'c' and conrelid = 'marts.{table}'::regclass"
    for (rule,) in warehouse.fetch_rows(refreshed, checks):
        _execute(refreshed, f'alter table marts.{table} drop constraint "{rule}"')
    _execute(refreshed, change.format("+"))
    try:
        rows = [row for check in compare_marts(refreshed).checks for row in check.rows]
        assert any(row.startswith(f"{table} {named}") for row in rows), rows
    finally:
        _execute(refreshed, change.format("-"))


def _execute(settings: Settings, statement: str) -> None:
    with warehouse.connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        connection.commit()
