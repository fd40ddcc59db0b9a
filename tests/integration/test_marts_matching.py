"""Cancellations that name no order, on made-up sales full of ties: the SQL's slices against a clerk who matches one by one."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from random import Random

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from crm_resources import warehouse
from deploy.local.stack import Stack
from tests.oracle import marts as oracle
from tests.oracle.lake_writer import append, order
from tests.oracle.refresh import WITHOUT_TESTS, data_set, refresh

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("seed", [1, 2])
def test_slices_and_clerk_agree(stack_services: Stack, seed: int):
    random = Random(seed)
    documents, lines = [], []
    for number in range(1_500):
        moment = START + timedelta(minutes=random.randrange(200))
        customer, cancels = random.choice([None, "a", "b", "c"]), random.random() < 0.35
        items = []
        for line in range(random.randint(1, 3)):
            source_line = number * 10 + line
            code, price = random.choice(["p", "P", "q"]), Decimal(random.choice(["1.00", "2.5000"]))
            quantity = -random.randint(1, 30) if cancels else random.randint(1, 9)
            items.append({"product_id": code, "quantity": quantity, "unit_price": price, "source_line": source_line})
            kind = "cancellation" if cancels else "sale"
            lines.append((source_line, moment, customer, code.upper(), price, quantity, kind))
        status = "cancelled" if cancels else "completed"
        documents.append(order(f"d{number}", moment, items, customer_id=customer, status=status))
    random.shuffle(documents)
    names = ("source_line", "line_time", "customer", "product_code", "unit_price", "quantity", "line_class")
    expected = oracle.match(pl.DataFrame(lines, schema=names, orient="row"))

    settings = data_set(stack_services.settings, f"matching_{seed}", as_of=date(2026, 12, 31))
    append(settings, documents)
    refresh(settings, *WITHOUT_TESTS, "--select", "+fct_order_lines")

    found = pl.DataFrame(
        warehouse.fetch_arrow(settings, "select source_line, cancelled_quantity from marts.fct_order_lines where cancelled_quantity > 0")
    )
    assert_frame_equal(found.sort("source_line"), expected.taken.sort("source_line"))
    credits = pl.DataFrame(
        warehouse.fetch_arrow(
            settings,
            "select source_line, matched_quantity as matched, requested_quantity as asked from intermediate.int_cancellations "
            "join marts.fct_order_lines on order_line_key = cancellation_key where customer_id is not null",
        )
    )
    assert_frame_equal(credits.sort("source_line"), expected.credits.sort("source_line"))
    assert {"matched in full", "matched in part", "unmatched"} <= {
        outcome for (outcome,) in warehouse.fetch_rows(settings, "select distinct outcome from intermediate.int_cancellations")
    }
