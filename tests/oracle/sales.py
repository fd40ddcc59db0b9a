"""The sales marts of the real file, computed in polars from its lines, by the page of definitions.

Nothing here looks at the warehouse. Each line carries what it adds to every sum: a sale line what was sold and, restated, what was
taken back from it; a cancellation line what it takes back as booked and, restated, what found no sale.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from decimal import Decimal

import polars as pl

from tests.oracle.marts import AS_OF, MONEY, Matching, member

SUMS = (
    "gross_amount",
    "cancelled_amount_booked",
    "cancelled_amount_restated",
    "net_amount_booked",
    "net_amount_restated",
    "adjustment_amount",
    "other_amount",
    "total_amount_booked",
    "total_amount_restated",
)
AVERAGES = ("average_order_value_booked", "average_order_value_restated")

NON_MERCHANDISE = {"POST", "DOT", "C2", "M", "D", "S", "PADS", "BANK CHARGES", "AMAZONFEE", "CRUK", "B"}

_FIRST_PURCHASE = pl.col("business_date").filter(pl.col("line_class") == "sale").min()


def entries(lines: pl.DataFrame, matching: Matching, channels: Mapping[str, str], categories: Mapping[str, str]) -> pl.DataFrame:
    """Lines with what each adds to the sums of its own date.

    Args:
        lines: classified lines of the file.
        matching: what became of the cancellations.
        channels: channel of each invoice.
        categories: category of product codes that have one.
    """
    kind, amount = pl.col("line_class"), pl.col("amount")
    price, zero = pl.col("unit_price").cast(MONEY), pl.lit(Decimal(0)).cast(MONEY)
    joined = (
        lines.join(matching.taken, on="source_line", how="left")
        .join(matching.credits.select("source_line", "matched"), on="source_line", how="left")
        .with_columns(pl.col("cancelled_quantity", "matched").fill_null(0))
    )
    return joined.with_columns(
        channel=pl.col("invoice").replace_strict(channels),
        category=pl.col("product_code").replace_strict(categories, default="unknown"),
        is_merchandise=~(pl.col("product_code").is_in(sorted(NON_MERCHANDISE)) | pl.col("product_code").str.starts_with("GIFT_")),
        first_purchase=_FIRST_PURCHASE.over("customer"),
        sale_quantity=pl.when(kind == "sale").then(pl.col("quantity")).otherwise(0),
        gross_amount=pl.when(kind == "sale").then(amount).otherwise(zero),
        adjustment_amount=pl.when(kind == "adjustment").then(amount).otherwise(zero),
        other_amount=pl.when(kind == "other").then(amount).otherwise(zero),
        cancelled_amount_booked=pl.when(kind == "cancellation").then(amount).otherwise(zero),
        cancelled_amount_restated=pl.when(kind == "cancellation")
        .then(amount + pl.col("matched").cast(MONEY) * price)
        .otherwise(-pl.col("cancelled_quantity").cast(MONEY) * price),
    )


def by_channel(lines: pl.DataFrame) -> pl.DataFrame:
    """daily_sales_by_channel."""
    keys = ["business_date", "channel"]
    return _with_averages(_summed(lines, keys).join(_orders(lines, keys), on=keys, how="left"))


def by_category(lines: pl.DataFrame) -> pl.DataFrame:
    """daily_sales_by_category."""
    keys = ["business_date", "category", "is_merchandise"]
    return _summed(lines, keys)


def by_customer_type(lines: pl.DataFrame, period: str) -> pl.DataFrame:
    """The rows of sales_by_customer_type of a period (day or month)."""
    every = {"day": "1d", "month": "1mo"}[period]
    start, first = pl.col("business_date").dt.truncate(every), pl.col("first_purchase").dt.truncate(every)
    typed = lines.with_columns(
        period=pl.lit(period),
        period_start=start,
        customer_type=pl.when(pl.col("customer").is_null())
        .then(pl.lit("guest"))
        .when(first.is_null() | (start < first))
        .then(pl.lit("no purchase yet"))
        .when(start == first)
        .then(pl.lit("new"))
        .otherwise(pl.lit("returning")),
    )
    keys = ["period", "period_start", "customer_type"]
    found = _summed(typed, keys).join(_orders(typed, keys), on=keys, how="left").join(_customers(typed, keys), on=keys, how="left")
    return _with_averages(found.with_columns(pl.col("customers_booked", "customers_restated").fill_null(0)))


def cohorts(lines: pl.DataFrame) -> pl.DataFrame:
    """customer_cohorts: each cohort by each month since then."""
    bought = lines.filter(pl.col("customer").is_not_null() & pl.col("first_purchase").is_not_null()).with_columns(
        cohort_month=pl.col("first_purchase").dt.truncate("1mo"), activity_month=pl.col("business_date").dt.truncate("1mo")
    )
    sizes = bought.group_by("cohort_month").agg(customers=pl.col("customer").n_unique().cast(pl.Int64))
    months = pl.DataFrame({"activity_month": _months(bought["cohort_month"].min(), AS_OF)})
    grid = sizes.join(months, how="cross").filter(pl.col("activity_month") >= pl.col("cohort_month"))
    keys = ["cohort_month", "activity_month"]
    sums = _summed(bought, keys).select(*keys, *SUMS[:5])
    found = grid.join(sums, on=keys, how="left").with_columns(pl.col(*SUMS[:5]).fill_null(Decimal(0)))
    found = found.join(_orders(bought, keys), on=keys, how="left").join(_customers(bought, keys), on=keys, how="left")
    found = found.rename({"customers_booked": "active_customers_booked", "customers_restated": "active_customers_restated"})
    cohort, month = pl.col("cohort_month"), pl.col("activity_month")
    return _with_averages(
        found.with_columns(pl.col("active_customers_booked", "active_customers_restated").fill_null(0)).with_columns(
            month_number=(month.dt.year() - cohort.dt.year()).cast(pl.Int64) * 12 + month.dt.month() - cohort.dt.month(),
            is_whole_month=month.dt.month_end() <= AS_OF,
            retention_booked=pl.col("active_customers_booked") / pl.col("customers"),
            retention_restated=pl.col("active_customers_restated") / pl.col("customers"),
        )
    )


def product_performance(lines: pl.DataFrame) -> pl.DataFrame:
    """product_performance: a product code each."""
    sale = pl.col("line_class") == "sale"
    credit, found_none = (
        pl.col("cancelled_amount_booked"),
        pl.col("cancelled_amount_restated").filter(pl.col("line_class") == "cancellation"),
    )
    return lines.group_by("product_code").agg(
        product_key=member("product_code").first(),
        is_merchandise=pl.col("is_merchandise").first(),
        sale_quantity=pl.col("sale_quantity").sum(),
        orders_booked=pl.col("invoice").filter(sale).n_unique().cast(pl.Int64),
        gross_amount=pl.col("gross_amount").sum().cast(MONEY),
        cancelled_amount=credit.sum().cast(MONEY),
        unmatched_amount=found_none.sum().cast(MONEY),
        net_amount=(pl.col("gross_amount").sum() + credit.sum()).cast(MONEY),
        first_sold_date=pl.col("business_date").filter(sale).min(),
        last_sold_date=pl.col("business_date").filter(sale).max(),
    )


def _summed(lines: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """The sums of each group."""
    parts = [name for name in SUMS if not name.startswith(("net", "total"))]
    found = lines.group_by(keys).agg(pl.col("sale_quantity").sum(), *(pl.col(name).sum().cast(MONEY) for name in parts))
    aside = pl.col("adjustment_amount") + pl.col("other_amount")
    for view in ("booked", "restated"):
        net = (pl.col("gross_amount") + pl.col(f"cancelled_amount_{view}")).cast(MONEY)
        found = found.with_columns(net.alias(f"net_amount_{view}"), (net + aside).cast(MONEY).alias(f"total_amount_{view}"))
    return found


def _orders(lines: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """Invoices with a sale line of the group; restated, without those whose whole quantity was taken back."""
    left = pl.col("quantity") - pl.col("cancelled_quantity")
    sold = lines.filter(pl.col("line_class") == "sale").with_columns(left=left.sum().over("invoice"))
    return sold.group_by(keys).agg(
        orders_booked=pl.col("invoice").n_unique().cast(pl.Int64),
        orders_restated=pl.col("invoice").filter(pl.col("left") > 0).n_unique().cast(pl.Int64),
    )


def _customers(lines: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """Known customers with such an invoice."""
    left = pl.col("quantity") - pl.col("cancelled_quantity")
    sold = lines.filter((pl.col("line_class") == "sale") & pl.col("customer").is_not_null()).with_columns(left=left.sum().over("invoice"))
    return sold.group_by(keys).agg(
        customers_booked=pl.col("customer").n_unique().cast(pl.Int64),
        customers_restated=pl.col("customer").filter(pl.col("left") > 0).n_unique().cast(pl.Int64),
    )


def _with_averages(frame: pl.DataFrame) -> pl.DataFrame:
    """Average order values, rounded half up to four decimals; null without an order."""
    filled = frame.with_columns(pl.col("orders_booked", "orders_restated").fill_null(0))
    pairs = (("gross_amount", "orders_booked"), ("net_amount_restated", "orders_restated"))
    columns = []
    for name, (amount, orders) in zip(AVERAGES, pairs, strict=True):
        values = [_quotient(a, n) for a, n in filled.select(amount, orders).iter_rows()]
        columns.append(pl.Series(name, values, dtype=MONEY))
    return filled.with_columns(columns)


def _quotient(amount: Decimal, count: int) -> Decimal | None:
    return (amount / count).quantize(Decimal("0.0001"), "ROUND_HALF_UP") if count else None


def _months(first: date, last: date) -> pl.Series:
    return pl.date_range(first, last, "1mo", eager=True)
