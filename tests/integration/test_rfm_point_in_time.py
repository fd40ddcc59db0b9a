"""RFM of a date knows nothing of later rows, and the function for any date gives what a full refresh of that date gives."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from random import Random
from typing import Any

import pytest
from adbc_driver_postgresql import dbapi  # noqa: TID253 -- tests need not start fast

from crm_resources import warehouse
from crm_resources.settings import Settings
from deploy.local.stack import Stack
from tests.oracle.lake_writer import append, order
from tests.oracle.refresh import WITHOUT_TESTS, data_set, refresh

DAYS = tuple(date(2026, 5, day) for day in (10, 11, 20))
PUBLISHED = (
    "customer_key, basis, first_purchase_date, last_purchase_date, recency_days, frequency, purchase_days, monetary, recency_score, "
    "frequency_score, monetary_score, rfm_code, segment, segment_rank, is_lapsed, as_of, method"
)


def some_messages(random: Random) -> list[dict[str, Any]]:
    """Orders of 30 customers over a month, each with what may become of it later: states, refunds by order, refunds of the pile."""
    messages = []
    for number in range(160):
        at = datetime(2026, 4, 25, tzinfo=UTC) + timedelta(minutes=random.randrange(28 * 24 * 60))
        customer = f"c{random.randrange(30)}"
        quantity, price = random.randint(1, 5), random.choice(["1.0000", "2.5000", "9.9900"])
        bought = [("sku", quantity, price), ("other", 1, "3.0000")]
        name = f"o{number}"
        messages.append(order(name, at, bought, customer_id=customer, status="placed"))
        later = at + timedelta(hours=random.randrange(1, 24 * 12))
        match random.randrange(8):
            case 0:
                messages.append(order(name, later, bought, customer_id=customer, status="cancelled", sequence=2))
            case 1:
                changed = [("sku", quantity + 3, price)]
                messages.append(order(name, later, changed, customer_id=customer, status="shipped", sequence=2))
            case 2:
                back = [(code, -pieces, each) for code, pieces, each in bought]
                messages.append(order(f"r{number}", later, back, customer_id=customer, status="refunded", cancels_order_id=name))
            case 3 | 4:
                messages.append(order(f"p{number}", later, [("sku", -quantity, price)], customer_id=customer, status="cancelled"))
    return messages


def published(settings: Settings) -> list[tuple[Any, ...]]:
    """What the marts say of every customer."""
    tables = "marts.rfm_scores join (select rfm_score_key, rfm_code, segment, segment_rank, is_lapsed from marts.rfm_segments) as g"
    sql = f"select {PUBLISHED} from {tables} using (rfm_score_key) order by customer_key, basis"
    return warehouse.fetch_rows(settings, sql)


def as_of(settings: Settings, day: date) -> list[tuple[Any, ...]]:
    """What the function says, asked by the role that may only read."""
    with dbapi.connect(warehouse.reader_uri(settings), autocommit=True) as reader, reader.cursor() as cursor:
        cursor.execute(f"select {PUBLISHED} from marts.rfm_as_of(date '{day}') order by customer_key, basis")
        return [tuple(row) for row in cursor.fetchall()]


def build(settings: Settings, day: date) -> Settings:
    looking = settings.model_copy(update={"as_of": day})
    refresh(looking, *WITHOUT_TESTS, "--select", "+rfm_segments")
    return looking


@pytest.fixture(scope="module")
def history(stack_services: Stack) -> tuple[Settings, dict[date, list[tuple[Any, ...]]], list[tuple[Any, ...]]]:
    """The data set with everything in it, what it published of each day, and what it published of the first before later rows came."""
    settings = data_set(stack_services.settings, "rfm_time")
    messages = some_messages(Random(7))
    append(settings, [m for m in messages if m["event_time"].date() <= DAYS[0]])
    before = published(build(settings, DAYS[0]))
    append(settings, [m for m in messages if m["event_time"].date() > DAYS[0]])
    return settings, {day: published(build(settings, day)) for day in DAYS}, before


def test_no_later_row_influences_a_score(history):
    _, by_day, before = history
    assert len(before) > 40
    assert by_day[DAYS[0]] == before


@pytest.mark.parametrize("day", DAYS, ids=str)
def test_the_function_gives_what_a_full_refresh_of_the_date_gives(history, day: date):
    settings, by_day, _ = history
    assert as_of(settings, day) == by_day[day]


def test_the_days_differ_and_cancellations_are_at_work(history):
    _, by_day, _ = history
    position = PUBLISHED.split(", ").index("monetary")
    amounts = {day: {row[:2]: row[position] for row in rows} for day, rows in by_day.items()}
    assert len({tuple(a.items()) for a in amounts.values()}) == len(DAYS)
    for found in amounts.values():
        customers = {key for key, _ in found}
        assert any(found.get((key, "restated")) != found[key, "booked"] for key in customers)


def test_a_reader_may_call_the_function_and_still_not_read_what_it_reads(history):
    settings, _, _ = history
    with (
        dbapi.connect(warehouse.reader_uri(settings), autocommit=True) as reader,
        reader.cursor() as cursor,
        pytest.raises(Exception, match="permission denied"),
    ):
        cursor.execute("select count(*) from intermediate.int_customer_activity")
