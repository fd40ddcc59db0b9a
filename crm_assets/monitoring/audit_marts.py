"""The marts against the messages in the warehouse, row by row: orders, their lines, daily sales, and what customers bought.

Belongs here: the comparisons, written from the definitions and not from the models. Not here: the models (the dbt project), or
what a difference means for the verdict (`audit`).

Everything is compared in the order's own currency; only what the definitions sum up is restricted to the base currency. What a
cancellation takes back from which order is the business of the models and of their tests; here it is only made sure that
every mart shows the same outcome.
"""

from __future__ import annotations

import re
from datetime import date
from typing import TYPE_CHECKING

from crm_assets.monitoring.audit_sources import MartCheck, MartFindings
from crm_resources import warehouse
from crm_resources.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

_MOST_ROWS = 10_000
"""Rows that a check names; more are counted."""


def compare_marts(settings: Settings) -> MartFindings:
    """Compare the marts of a data set with the messages in its raw tables.

    Raises:
        crm_resources.warehouse.WarehouseError: PostgreSQL does not answer.
    """
    try:
        state = warehouse.fetch_rows(
            settings,
            "select to_regclass('marts.fct_orders') is not null and to_regclass('marts.daily_sales') is not null "
            "and to_regclass('marts.rfm_scores') is not null and to_regclass('meta.refreshes') is not null",
        )
    except warehouse.DatabaseMissing:
        return MartFindings("there is no database yet")
    as_of = warehouse.last_refresh_as_of(settings) if state[0][0] else None
    if as_of is None:
        return MartFindings("the marts were never built")
    refreshes = warehouse.fetch_rows(settings, _REFRESHES)
    behind = warehouse.fetch_rows(
        settings, "select coalesce((select max(finished_at) from meta.loads) > (select max(started_at) from meta.refreshes), false)"
    )
    if behind[0][0]:
        return MartFindings("rows were loaded since the marts were last built; run the job `refresh`, or wait for it")
    shared = _shared_sql(settings.business_timezone, as_of)
    checks = tuple(_compare(settings, name, f"{shared} {query}") for name, query in _queries().items())
    ((orders, superseded, raw),) = warehouse.fetch_rows(settings, f"{shared} {_TOTALS}")
    if warehouse.fetch_rows(settings, _REFRESHES) != refreshes:
        return MartFindings("the marts were built anew meanwhile; run the audit again")
    return MartFindings("", str(orders), str(superseded), str(raw), checks)


_REFRESHES = "select count(*) from meta.refreshes"

_TOTALS = """
    select coalesce((select sum(amount) from marts.fct_orders), 0)::text,
        coalesce((select sum(amount) from raw.orders where event_id not in (select event_id from content)), 0)::text,
        coalesce((select sum(amount) from raw.orders), 0)::text
"""


def _compare(settings: Settings, name: str, query: str) -> MartCheck:
    rows = warehouse.fetch_rows(settings, f"select row_name, mart, expected, count(*) over () from ({query}) as f limit {_MOST_ROWS}")  # noqa: S608 -- queries of this module
    named = tuple(f"{row}: mart {mart}, expected {expected}" for row, mart, expected, _ in rows)
    return MartCheck(name, named, int(rows[0][3]) if rows else 0)


def _shared_sql(time_zone: str, as_of: date) -> str:
    """CTEs: the message that gives each order its content, and its lines by class."""
    if not re.fullmatch(r"[A-Za-z0-9_+/-]+", time_zone):
        raise ValueError(f"{time_zone!r} is no time zone")
    return (
        "with messages as ("  # noqa: S608 -- names of this module
        " select o.*, o.status in ('cancelled', 'refunded') as takes_back,"
        f" cast(o.event_time at time zone '{time_zone}' as date) as message_date,"
        f" cast(o.event_time at time zone '{time_zone}' as date) <= date '{as_of.isoformat()}' as is_known"
        " from raw.orders as o),"
        # Messages dated after the as-of date have no effect on an order that has earlier ones.
        " considered as (select * from (select *, bool_or(is_known) over (partition by order_id) as any_known from messages) as m"
        " where is_known or not any_known),"
        # The highest message counts; one that takes the order back only where there is no other.
        " content as (select distinct on (order_id) * from considered"
        " order by order_id, takes_back, sequence desc, event_time desc, event_id desc),"
        " begun as (select distinct on (order_id, takes_back) order_id, takes_back, message_date as business_date from considered"
        " order by order_id, takes_back, sequence, event_time, event_id),"
        " base as (select currency from marts.daily_sales limit 1),"
        " orders as (select c.*, b.business_date, c.customer_id is not null as customer_known,"
        " c.currency = (select currency from base) as in_base_currency,"
        " case when c.takes_back then 'cancellation' when c.status = 'adjustment' then 'adjustment' else 'sale' end as kind"
        " from content as c join begun as b on b.order_id = c.order_id and b.takes_back = c.takes_back),"
        " lines as (select o.order_id, l.line_number, o.business_date, o.customer_known, o.is_known, o.in_base_currency,"
        " case when o.kind <> 'sale' then o.kind when l.quantity > 0 and l.unit_price > 0 then 'sale' else 'other' end as class,"
        " l.quantity * l.unit_price as amount from orders as o join raw.order_lines as l on l.event_id = o.event_id)"
    )


def _queries() -> Mapping[str, str]:
    """By name: a query that gives the rows of a mart that differ, as `row_name`, `mart`, `expected`."""
    return {
        "orders in the mart have the amounts of their messages": (
            "select 'fct_orders ' || coalesce(f.order_id, o.order_id) || ' amount' as row_name, f.amount::text as mart,"
            " o.amount::text as expected from marts.fct_orders as f full join orders as o on o.order_id = f.order_id"
            " where f.amount is distinct from o.amount"
        ),
        "order lines in the mart have the amounts of their messages": (
            "select 'fct_order_lines ' || coalesce(f.order_id || '/' || f.line_number, l.order_id || '/' || l.line_number) || ' amount'"
            " as row_name, f.amount::text as mart, l.amount::text as expected from marts.fct_order_lines as f"
            " full join lines as l on l.order_id = f.order_id and l.line_number = f.line_number"
            " where f.amount is distinct from l.amount"
        ),
        "orders in the mart are the sums of their lines": _columns_sql(
            "fct_orders",
            "f.order_id",
            "marts.fct_orders as f left join (select order_id,"  # noqa: S608 -- names of this module
            + ",".join(f" sum(amount) filter (where class = '{c}') as {c}_amount" for c in _CLASSES)
            + " from lines group by order_id) as e on e.order_id = f.order_id"
            " left join (select order_id, sum(amount) as amount from ("
            " select target_order_id as order_id, applied_amount as amount from intermediate.int_cancellations"
            " where target_order_id is not null"
            " union all select order_id, amount from intermediate.int_cancellation_matches) as t group by order_id) as t"
            " on t.order_id = f.order_id",
            {
                **{f"{c}_amount": f"coalesce(e.{c}_amount, 0)" for c in _CLASSES},
                "cancelled_amount": "coalesce(t.amount, 0)",
                "restated_amount": "coalesce(e.sale_amount, 0) - coalesce(t.amount, 0)",
            },
        ),
        "daily sales are the sums of the lines": _columns_sql(
            "daily_sales",
            "coalesce(f.business_date, e.business_date) || case when coalesce(f.customer_known, e.customer_known) then '/known'"
            " else '/guest' end",
            "marts.daily_sales as f full join (select business_date, customer_known,"  # noqa: S608 -- names of this module
            + ",".join(f" coalesce(sum(amount) filter (where class = '{c}'), 0) as {c}_amount" for c in _CLASSES)
            + " from lines where is_known and in_base_currency group by business_date, customer_known) as e"
            " on e.business_date = f.business_date and e.customer_known = f.customer_known"
            # Credits count on their own date as booked, and on that of their order as restated.
            " left join (select business_date, customer_id is not null as customer_known, sum(applied_amount + unmatched_amount) as amount,"
            " sum(unmatched_amount) as unmatched from intermediate.int_cancellations group by 1, 2) as c"
            " on c.business_date = f.business_date and c.customer_known = f.customer_known"
            " left join (select business_date, customer_known, sum(cancelled_amount) as amount from marts.fct_orders"
            " where is_within_as_of and is_base_currency group by 1, 2) as r"
            " on r.business_date = f.business_date and r.customer_known = f.customer_known",
            _DAILY,
        ),
        "documents in another currency are counted": (
            "select 'daily_sales ' || f.business_date || case when f.customer_known then '/known' else '/guest' end"
            " || ' foreign_currency_documents' as row_name, f.foreign_currency_documents::text as mart, coalesce(e.n, 0)::text as expected"
            " from marts.daily_sales as f left join (select business_date, customer_known, count(*) as n from orders"
            " where is_known and not in_base_currency group by 1, 2) as e"
            " on e.business_date = f.business_date and e.customer_known = f.customer_known"
            " where f.foreign_currency_documents <> coalesce(e.n, 0)"
        ),
        "what customers bought is the sum of their orders": _columns_sql(
            "rfm_scores",
            "f.rfm_score_key",
            "marts.rfm_scores as f left join (select 'id:' || o.customer_id as customer_key, sum(l.amount) as amount"
            " from orders as o join lines as l on l.order_id = o.order_id"
            " where o.customer_known and o.is_known and o.in_base_currency and l.class = 'sale' group by 1) as e"
            " on e.customer_key = f.customer_key"
            " left join (select 'id:' || customer_id as customer_key, sum(applied_amount + unmatched_amount) as amount"
            " from intermediate.int_cancellations where customer_id is not null group by 1) as c on c.customer_key = f.customer_key",
            {"monetary": "coalesce(e.amount, 0) - case when f.basis = 'restated' then coalesce(c.amount, 0) else 0 end"},
        ),
    }


_CLASSES = ("sale", "cancellation", "adjustment", "other")

_DAILY = {
    "gross_amount": "coalesce(e.sale_amount, 0)",
    "adjustment_amount": "coalesce(e.adjustment_amount, 0)",
    "other_amount": "coalesce(e.other_amount, 0)",
    "cancelled_amount_booked": "-coalesce(c.amount, 0)",
    "cancelled_amount_restated": "-coalesce(r.amount, 0) - coalesce(c.unmatched, 0)",
}
_DAILY |= {
    f"net_amount_{basis}": f"{_DAILY['gross_amount']} + ({_DAILY[f'cancelled_amount_{basis}']})" for basis in ("booked", "restated")
} | {
    f"total_amount_{basis}": f"{_DAILY['gross_amount']} + ({_DAILY[f'cancelled_amount_{basis}']})"
    f" + {_DAILY['adjustment_amount']} + {_DAILY['other_amount']}"
    for basis in ("booked", "restated")
}


def _columns_sql(mart: str, key: str, tables: str, expected: Mapping[str, str]) -> str:
    """Rows of a mart `f`, one for each column that is not what is expected of it."""
    columns = ", ".join(f"('{column}', f.{column}, {value})" for column, value in expected.items())
    return (
        f"select '{mart} ' || {key} || ' ' || v.name as row_name, v.mart::text as mart, v.expected::text as expected "  # noqa: S608 -- names of this module
        f"from {tables} cross join lateral (values {columns}) as v (name, mart, expected) "
        "where coalesce(v.mart, 0) <> v.expected"
    )
