"""Reads from the warehouse what the models are fitted to and judged by. Nothing here decides.

Belongs here: the customers' histories as of the marts' date, and time splits of the past. Not here: writing (`storage`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from crm_assets.monitoring.refresh import business_date
from crm_assets.warehouse.models.evaluation import HoldOut
from crm_assets.warehouse.models.histories import Floats, Histories, Integers
from crm_resources import warehouse
from crm_resources.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

ACTIVITY = "intermediate.int_customer_activity"
ORDERS = "marts.fct_orders"
UNIT = "day"

_PURCHASE_DAYS = f"""
select distinct customer_key, business_date
from {ORDERS}
where customer_known and is_within_as_of and is_base_currency and sale_lines > 0
"""  # noqa: S608 -- the table's own name
"""Booked: a cancelled order is a sign of life as well."""


@dataclass(frozen=True)
class Activity:
    """Customers as of a date: histories in days; of each, how many purchase days after the first have an amount, and their sum."""

    as_of: date
    window_from: date
    seen: Histories
    value_days: Integers
    value_amount: Floats


def models_as_of(settings: Settings, now: datetime) -> date:
    """The date to age histories to: the one the marts show, or before the first refresh the one they will."""
    return warehouse.last_refresh_as_of(settings) or business_date(now, settings.business_timezone, settings.as_of)


def read_activity(settings: Settings, as_of: date) -> Activity | None:
    """Every customer with a booked sale, aged to a date; `None` where there is none yet.

    Raises:
        WarehouseError: no connection.
        HistoryError: the warehouse holds a purchase after the date.
    """
    if not _is_there(settings, ACTIVITY):
        return None
    table = warehouse.fetch_arrow(
        settings,
        f"select purchase_days - 1 as repeats, last_purchase_date - first_purchase_date as last, "  # noqa: S608 -- a date and the table's own name
        f"date '{as_of.isoformat()}' - first_purchase_date as age, repeat_value_days, "
        f"cast(repeat_value_amount as double precision) as repeat_value_amount, "
        f"date '{as_of.isoformat()}' - min(first_purchase_date) over () as days from {ACTIVITY}",
    )
    if not table.num_rows:
        return None
    return Activity(
        as_of,
        as_of - timedelta(days=int(table["days"][0].as_py())),
        Histories.of(_column(table, "repeats"), _column(table, "last"), _column(table, "age")),
        _column(table, "repeat_value_days").astype(np.int64),
        _column(table, "repeat_value_amount"),
    )


def read_hold_out(settings: Settings, as_of: date, horizon_days: int) -> HoldOut | None:
    """Customers born on or before a date of the past, and whether they bought within the horizon after it; `None` where nobody was.

    Whether the hold-out is over is for the caller to know.
    """
    if not _is_there(settings, ORDERS):
        return None
    split, end, begin = (f"date '{as_of + timedelta(days=d)}'" for d in (0, horizon_days, -horizon_days))
    table = warehouse.fetch_arrow(
        settings,
        f"""with days as ({_PURCHASE_DAYS}),
customers as (
    select
        count(*) filter (where business_date <= {split}) - 1 as repeats,
        max(business_date) filter (where business_date <= {split}) - min(business_date) as last,
        {split} - min(business_date) as age,
        count(*) filter (where business_date > {split} and business_date <= {end}) as days_after,
        case when min(business_date) <= {begin} then count(*) filter (where business_date > {begin} and business_date <= {split}) end
            as days_before
    from days
    group by customer_key
    having min(business_date) <= {split}
)
select repeats, last, age, days_after, days_before from customers""",  # noqa: S608 -- dates and the table's own name
    )
    if not table.num_rows:
        return None
    after, before = _column(table, "days_after"), _column(table, "days_before")
    old = np.isfinite(before)
    return HoldOut(
        as_of,
        horizon_days,
        Histories.of(_column(table, "repeats"), _column(table, "last"), _column(table, "age")),
        after > 0,
        float(after[old].sum() / before[old].sum()) if before[old].sum() else math.nan,
    )


def _is_there(settings: Settings, table: str) -> bool:
    return warehouse.rows_if_prepared(settings, "select 1 where to_regclass($1::text) is not null", (table,)) == [(1,)]


def _column(table: pa.Table, name: str) -> Floats:
    """A column as numbers, null as NaN."""
    return np.asarray(table[name].to_numpy(zero_copy_only=False), np.float64)
