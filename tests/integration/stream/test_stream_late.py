"""Late, early and out-of-order records, from bronze to the marts: each counts on the day it happened, however late it comes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import count
from random import Random
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from crm_resources import warehouse
from crm_resources.contracts.entities import utc
from crm_resources.settings import Settings
from deploy.local.stack import Stack
from tests.integration.stream.lake_fixtures import Lake, records
from tests.integration.stream.messages import ARRIVED, Message, good_message
from tests.oracle.refresh import WITHOUT_TESTS, data_set, refresh

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ZONE = "Europe/London"
NUMBERS = count(1)

MOMENTS = {
    "2024-02-28T23:59:59.999999": date(2024, 2, 28),
    "2024-02-29T00:00:00": date(2024, 2, 29),  # leap day, in winter time
    "2024-02-29T23:59:59.999999": date(2024, 2, 29),
    "2024-03-01T00:00:00": date(2024, 3, 1),
    "2025-03-29T23:59:59": date(2025, 3, 29),
    "2025-03-30T00:59:59": date(2025, 3, 30),  # summer time begins a second later
    "2025-03-30T22:59:59": date(2025, 3, 30),
    "2025-03-30T23:00:00": date(2025, 3, 31),
    "2025-10-25T22:59:59": date(2025, 10, 25),
    "2025-10-25T23:00:00": date(2025, 10, 26),  # the day of 25 hours
    "2025-10-26T23:59:59": date(2025, 10, 26),
    "2025-10-27T00:00:00": date(2025, 10, 27),
}
"""Times in UTC and the business dates that London's clocks gave them, written out by hand."""

MIDNIGHT = datetime(2026, 2, 28, tzinfo=UTC)
SHIFTS = [sign * shift for shift in (timedelta(minutes=2), timedelta(hours=1), timedelta(days=1)) for sign in (1, -1)]


def order(at: datetime, **fields: object) -> Message:
    """An order of another amount than every other one."""
    number = next(NUMBERS)
    line = {"line_number": 1, "product_id": "P", "quantity": number, "unit_price": "1.01"}
    name = f"O-{number}"
    amount = str(number * Decimal("1.01"))
    own = {"order_id": name, "entity_key": name, "sequence": 1, "amount": amount, "lines": [line], "status": "paid", "customer_id": "C"}
    return good_message("order", Random(number), at) | own | fields


def truth(orders: Iterable[Message]) -> dict[date, Decimal]:
    """Sales by business date, from the messages alone."""
    sums: dict[date, Decimal] = defaultdict(Decimal)
    for message in orders:
        at = datetime.fromisoformat(str(message["event_time"]))
        sums[at.astimezone(ZoneInfo(ZONE)).date()] += Decimal(str(message["amount"]))
    return dict(sums)


def daily_sales(settings: Settings) -> dict[date, Decimal]:
    sql = "select business_date, sum(gross_amount)::text from marts.daily_sales group by 1 having sum(gross_amount) <> 0"
    return {day: Decimal(amount) for day, amount in warehouse.fetch_rows(settings, sql)}


def test_late_orders_restate_the_day_they_belong_to(spark: SparkSession, stack_services: Stack) -> None:
    settings = data_set(stack_services.settings, "late", as_of=ARRIVED.date(), timezone=ZONE)
    lake = Lake(spark, settings)
    on_time = [order(datetime.fromisoformat(text).replace(tzinfo=UTC)) for text in MOMENTS]
    on_time += [order(MIDNIGHT - timedelta(hours=12)), order(MIDNIGHT + timedelta(hours=12))]
    # Its second message comes first.
    shipped = order(MIDNIGHT, sequence=2, status="shipped")
    lake.capture(records("order", [*on_time, shipped]))
    lake.refine()
    refresh(settings, *WITHOUT_TESTS, "--select", "+daily_sales")

    first = daily_sales(settings)
    assert first == truth([*on_time, shipped])
    assert set(MOMENTS.values()) <= set(first)

    late = [order(MIDNIGHT + shift) for shift in SHIFTS]
    future = order(ARRIVED + timedelta(days=365))
    placed = order(MIDNIGHT - timedelta(hours=2), order_id=shipped["order_id"], entity_key=shipped["order_id"], status="placed")
    lake.capture(records("order", [*late, future, placed], first_offset=100))
    lake.refine()
    refresh(settings, *WITHOUT_TESTS, "--select", "+daily_sales")

    second = daily_sales(settings)
    # What was placed is one order with what was shipped: its day is that of its first message, its lines are those of its last.
    moved = shipped | {"event_time": placed["event_time"]}
    assert second == truth([*on_time, *late, moved])
    assert {day for day in second if second[day] != first.get(day)} == {MIDNIGHT.date() + timedelta(days=n) for n in (-1, 0, 1)}
    assert lake.rows("dead_letters", "reason", "event_id") == [{"reason": "future_event", "event_id": future["event_id"]}]
    kept = warehouse.fetch_rows(settings, "select event_id, event_time, ingested_at from raw.orders")
    times = {event_id: (utc(happened), arrived) for event_id, happened, arrived in kept}
    assert all(times[str(m["event_id"])] == (m["event_time"], ARRIVED) for m in late), "both times are kept"
