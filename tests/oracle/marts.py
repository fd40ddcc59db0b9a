"""Every mart of the real file, computed in polars and plain Python from its lines, by the page of definitions.

Nothing here looks at the warehouse. Cancellations are matched one by one, the way a clerk would do it, not by the levels that the
SQL uses.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

import polars as pl

AS_OF = date(2011, 12, 10)
MONEY = pl.Decimal(38, 4)

SEGMENTS = {
    "Champions": "555 554 544 545 454 455 445",
    "Loyal": "543 444 435 355 354 345 344 335",
    "Potential Loyalist": "553 551 552 541 542 533 532 531 452 451 442 441 431 453 433 432 423 353 352 351 342 341 333 323",
    "New Customers": "512 511 422 421 412 411 311",
    "Promising": "525 524 523 522 521 515 514 513 425 424 413 414 415 315 314 313",
    "Need Attention": "535 534 443 434 343 334 325 324",
    "About To Sleep": "331 321 312 221 213 231 241 251",
    "At Risk": "255 254 245 244 253 252 243 242 235 234 225 224 153 152 145 143 142 135 134 133 125 124",
    "Cannot Lose Them": "155 154 144 214 215 115 114 113",
    "Hibernating": "332 322 233 232 223 222 132 123 122 212 211",
    "Lost": "111 112 121 131 141 151",
}
SEGMENT_BY_CODE = {code: name for name, codes in SEGMENTS.items() for code in codes.split()}


@dataclass(frozen=True)
class Matching:
    """What became of the cancellation lines.

    `taken` holds (source line of the sale, pieces), `credits` (source line of the cancellation, pieces matched, pieces asked).
    """

    taken: pl.DataFrame
    credits: pl.DataFrame


def classified(lines: pl.DataFrame) -> pl.DataFrame:
    """Lines with their class, exact amount, business date and the code in upper case."""
    return lines.sort("source_line").with_columns(
        line_number=pl.int_range(1, pl.len() + 1).over("invoice"),
        product_code=pl.col("stock_code").str.to_uppercase(),
        amount=pl.col("quantity").cast(MONEY) * pl.col("unit_price").cast(MONEY),
        business_date=pl.col("local_time").min().over("invoice").dt.date(),
        line_class=pl.when(pl.col("invoice").str.starts_with("C"))
        .then(pl.lit("cancellation"))
        .when(pl.col("invoice").str.starts_with("A"))
        .then(pl.lit("adjustment"))
        .when((pl.col("quantity") > 0) & (pl.col("unit_price") > 0))
        .then(pl.lit("sale"))
        .otherwise(pl.lit("other")),
    )


def match(lines: pl.DataFrame) -> Matching:
    """Match each cancellation line of a known customer with earlier sales of the same product and price, newest first."""
    sales: dict[tuple[str, str, Decimal], list[list[object]]] = defaultdict(list)
    cancellations = []
    known = lines.filter(pl.col("customer").is_not_null()).sort("line_time", "source_line")
    names = ("source_line", "line_time", "customer", "product_code", "unit_price", "quantity", "line_class")
    for source_line, at, customer, code, price, quantity, kind in known.select(names).iter_rows():
        if kind == "sale":
            sales[customer, code, price].append([source_line, at, quantity])
        elif kind == "cancellation":
            cancellations.append((source_line, at, (customer, code, price), -quantity))
    taken: dict[int, int] = defaultdict(int)
    credits = []
    for source_line, at, pile, asked in cancellations:
        wanted = asked
        for sale in reversed(sales[pile]):
            if sale[1] > at or wanted <= 0:
                continue
            pieces = min(wanted, sale[2])
            sale[2] -= pieces
            wanted -= pieces
            if pieces:
                taken[sale[0]] += pieces
        credits.append((source_line, asked - wanted, asked))
    return Matching(
        pl.DataFrame(list(taken.items()), schema={"source_line": pl.Int64, "cancelled_quantity": pl.Int64}, orient="row"),
        pl.DataFrame(credits, schema={"source_line": pl.Int64, "matched": pl.Int64, "asked": pl.Int64}, orient="row"),
    )


def order_lines(lines: pl.DataFrame, matching: Matching) -> pl.DataFrame:
    """fct_order_lines: a row of the file each."""
    return lines.join(matching.taken, on="source_line", how="left").select(
        "source_line",
        order_id="invoice",
        line_number=pl.col("line_number").cast(pl.Int64),
        customer_key=member("customer"),
        product_key=member("product_code"),
        product_id="stock_code",
        product_code="product_code",
        description="description",
        line_class="line_class",
        quantity=pl.col("quantity"),
        unit_price=pl.col("unit_price").cast(MONEY),
        amount=pl.col("amount"),
        cancelled_quantity=pl.col("cancelled_quantity").fill_null(0),
        line_at="line_time",
        business_date="business_date",
    )


def orders(lines: pl.DataFrame, matching: Matching) -> pl.DataFrame:
    """fct_orders: an invoice each."""
    sale = pl.col("line_class") == "sale"
    joined = lines.join(matching.taken, on="source_line", how="left").with_columns(pl.col("cancelled_quantity").fill_null(0))

    def total(kind: str) -> pl.Expr:
        return pl.col("amount").filter(pl.col("line_class") == kind).sum().cast(MONEY)

    return (
        joined.group_by("invoice")
        .agg(
            customer_key=member("customer").first(),
            country=pl.col("country").first(),
            ordered_at=pl.col("line_time").min(),
            business_date=pl.col("business_date").first(),
            lines=pl.len().cast(pl.Int64),
            sale_lines=sale.sum().cast(pl.Int64),
            sale_quantity=pl.col("quantity").filter(sale).sum(),
            sale_amount=total("sale"),
            cancellation_amount=total("cancellation"),
            adjustment_amount=total("adjustment"),
            other_amount=total("other"),
            cancelled_quantity=pl.col("cancelled_quantity").sum(),
            cancelled_amount=(pl.col("cancelled_quantity").cast(MONEY) * pl.col("unit_price").cast(MONEY)).sum().cast(MONEY),
        )
        .with_columns(
            restated_amount=(pl.col("sale_amount") - pl.col("cancelled_amount")).cast(MONEY),
            is_wholly_cancelled=(pl.col("sale_quantity") > 0) & (pl.col("sale_quantity") == pl.col("cancelled_quantity")),
        )
        .rename({"invoice": "order_id"})
    )


def daily_sales(lines: pl.DataFrame, matching: Matching) -> pl.DataFrame:
    """daily_sales: business date by whether the customer is known, booked and restated."""
    invoices = orders(lines, matching).with_columns(customer_known=pl.col("customer_key") != "unknown")
    by_order = invoices.group_by("business_date", "customer_known").agg(
        orders_booked=(pl.col("sale_lines") > 0).sum().cast(pl.Int64),
        orders_restated=((pl.col("sale_lines") > 0) & ~pl.col("is_wholly_cancelled")).sum().cast(pl.Int64),
        sale_quantity=pl.col("sale_quantity").sum(),
        gross_amount=pl.col("sale_amount").sum().cast(MONEY),
        cancelled_amount_booked=pl.col("cancellation_amount").sum().cast(MONEY),
        adjustment_amount=pl.col("adjustment_amount").sum().cast(MONEY),
        other_amount=pl.col("other_amount").sum().cast(MONEY),
        taken_back=pl.col("cancelled_amount").sum().cast(MONEY),
    )
    # What found a sale moves to the sale's date; the rest stays where it is.
    left_over = (
        lines.filter(pl.col("line_class") == "cancellation")
        .join(matching.credits, on="source_line", how="left")
        .with_columns(customer_known=pl.col("customer").is_not_null(), matched=pl.col("matched").fill_null(0).cast(MONEY))
        .group_by("business_date", "customer_known")
        .agg(left_over=(pl.col("amount") + pl.col("matched") * pl.col("unit_price").cast(MONEY)).sum().cast(MONEY))
    )
    zero = pl.lit(Decimal(0)).cast(MONEY)
    return (
        by_order.join(left_over, on=["business_date", "customer_known"], how="left")
        .with_columns(cancelled_amount_restated=(pl.coalesce("left_over", zero) - pl.col("taken_back")).cast(MONEY))
        .drop("left_over", "taken_back")
    )


def rfm(lines: pl.DataFrame, matching: Matching, basis: str, as_of: date = AS_OF) -> pl.DataFrame:
    """rfm_scores and rfm_segments on a basis: a customer each. Lines and matching must be those up to the as-of date."""
    bought = orders(lines, matching).filter((pl.col("sale_lines") > 0) & (pl.col("customer_key") != "unknown"))
    booked = bought.group_by("customer_key").agg(monetary=pl.col("sale_amount").sum().cast(MONEY))
    if basis == "restated":
        credits = (
            lines.filter((pl.col("line_class") == "cancellation") & pl.col("customer").is_not_null())
            .group_by(customer_key=member("customer"))
            .agg(credit=pl.col("amount").sum().cast(MONEY))
        )
        booked = booked.join(credits, on="customer_key", how="left").select(
            "customer_key", monetary=(pl.col("monetary") + pl.coalesce("credit", pl.lit(Decimal(0)).cast(MONEY))).cast(MONEY)
        )
        bought = bought.filter(~pl.col("is_wholly_cancelled"))
    customers = (
        bought.group_by("customer_key")
        .agg(
            recency_days=(pl.lit(as_of) - pl.col("business_date").max()).dt.total_days(),
            frequency=pl.len().cast(pl.Int64),
            purchase_days=pl.col("business_date").n_unique().cast(pl.Int64),
        )
        .join(booked, on="customer_key")
    )
    worse = {"recency_score": [-v for v in customers["recency_days"]], "frequency_score": customers["frequency"].to_list()}
    worse["monetary_score"] = customers["monetary"].to_list()
    scored = customers.with_columns(pl.Series(name, scores(values), dtype=pl.Int64) for name, values in worse.items())
    codes = [f"{r}{f}{m}" for r, f, m in scored.select("recency_score", "frequency_score", "monetary_score").iter_rows()]
    return scored.with_columns(pl.Series("segment", [SEGMENT_BY_CODE[code] for code in codes]))


def migration(earlier: pl.DataFrame, later: pl.DataFrame) -> dict[tuple[str | None, str | None], int]:
    """Customers by their segments in two results of `rfm`; None is no score."""
    names = ("customer_key", "segment")
    joined = earlier.select(names).join(later.select(names), on="customer_key", how="full", suffix="_later", coalesce=True)
    counted = joined.group_by("segment", "segment_later").len()
    return {(before, after): count for before, after, count in counted.iter_rows()}


def scores(values: list[int] | list[Decimal], bands: int = 5) -> list[int]:
    """1 + (n_below × bands) div n, with n_below the values strictly smaller."""
    below: dict[object, int] = {}
    for place, value in enumerate(sorted(values)):
        below.setdefault(value, place)
    return [1 + below[value] * bands // len(values) for value in values]


def customers(lines: pl.DataFrame) -> pl.DataFrame:
    """dim_customers: country of the latest sale, ties by the highest line of the file; without a sale, of the latest line."""
    return (
        _latest(lines.filter(pl.col("customer").is_not_null()), "customer")
        .select(customer_key=member("customer"), customer_id="customer", country="country")
        .sort("customer_key")
    )


def products(lines: pl.DataFrame) -> pl.DataFrame:
    """dim_products: description of the latest sale, ties by the highest line of the file; without a sale, of the latest line with one."""
    described = _latest(lines.filter(pl.col("description").is_not_null()), "product_code").select("product_code", "description")
    codes = lines.select("product_code").unique()
    return codes.join(described, on="product_code", how="left").with_columns(product_key=member("product_code")).sort("product_key")


def member(column: str) -> pl.Expr:
    """Key of a dimension member."""
    return pl.when(pl.col(column).is_null()).then(pl.lit("unknown")).otherwise(pl.lit("id:") + pl.col(column))


def _latest(lines: pl.DataFrame, key: str) -> pl.DataFrame:
    ranked = lines.with_columns(is_sale=pl.col("line_class") == "sale").sort("is_sale", "line_time", "source_line")
    return ranked.group_by(key, maintain_order=True).last()
