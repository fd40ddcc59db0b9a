"""A shop's history of a stated length, written straight into raw, and what its daily sales must be, computed from raw in polars.

Belongs here: the rows and the oracle. Not here: what is measured (`bench_marts`). Every row follows from its number, so two runs see the
same shop. Orders come at an even rate, so a longer history has more days and not fuller ones; of fifty documents one takes pieces back
from an order it names and one from an order it does not name, up to thirty days back.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import polars as pl

from crm_resources import warehouse
from crm_resources.settings import Settings
from tests.oracle import marts as oracle

BEGIN = datetime(2020, 1, 1, tzinfo=UTC)
LINES_PER_ORDER = 5
PRODUCTS = 4_000
MONEY = pl.Decimal(38, 4)


@dataclass(frozen=True)
class Shop:
    """How many customers a shop has, and how many orders a day; the latter a multiple of fifty."""

    customers: int
    orders_per_day: int

    def days(self, orders: int) -> int:
        """Days in which that many orders come."""
        return -(-orders // self.orders_per_day)


def write_model(settings: Settings) -> None:
    """A promoted purchase model, so that customers are scored by its closed forms and not by the fallback."""
    names = "r, alpha, a, b, gg_p, gg_q, gg_v"
    _execute(
        settings,
        f"""insert into models.purchase_models (model_version, model, unit, as_of, window_from, window_to, customers, log_likelihood,
            dropout_identified, data_hash, fitted_at, promoted_at, {names})
        values ('bench', 'bgnbd', 'day', date '{BEGIN.date()}', date '{BEGIN.date()}', date '{BEGIN.date()}', 10000, -1, true, 'none',
            now(), now(), 0.9, 60, 0.8, 2.4, 6.25, 3.74, 15.4)""",
    )


def write_members(settings: Settings, shop: Shop) -> None:
    """One profile per customer, and one message per product."""
    envelope = """event_id, entity, entity_key, sequence, schema_version, event_time, source, run_id, payload_hash,
        kafka_topic, kafka_partition, kafka_offset, kafka_timestamp, ingested_at, loaded_at"""
    at = f"timestamptz '{BEGIN.isoformat()}'"
    _execute(
        settings,
        f"""insert into raw.profiles ({envelope}, customer_id, country, consent_email, opted_out, erased)
        select '00000000-0000-7001-8000-' || lpad(n::text, 12, '0'), 'profile', {_customer("n")}, 1, 1, {at}, 'bench', 'bench', n,
            'bench', 0, n, {at}, {at}, now(), {_customer("n")}, 'France', true, false, false
        from generate_series(0, {shop.customers - 1}) as n""",
    )
    _execute(
        settings,
        f"""insert into raw.products ({envelope}, product_id, name, category, price, currency, active)
        select '00000000-0000-7002-8000-' || lpad(n::text, 12, '0'), 'product', {_product("n")}, 1, 1, {at}, 'bench', 'bench', n,
            'bench', 0, n, {at}, {at}, now(), {_product("n")}, 'Product ' || n, 'Category ' || n % 12, {_price("n")}, 'GBP', true
        from generate_series(0, {PRODUCTS - 1}) as n""",
    )


def write_orders(settings: Settings, shop: Shop, first: int, count: int) -> None:
    """The orders `first` to `first + count - 1`, with their lines and with a view and a purchase of each sale, loaded now."""
    # A document takes pieces back from the order that came some days before; by its number that one is a sale.
    earlier = f"n - {shop.orders_per_day} * (1 + n % 30) + 1"
    documents = f"""(
        select n, kind, case when kind = 'sale' then n else {earlier} end as of
        from (
            select n, case
                when n % 50 = 7 and {earlier} >= 0 then 'named'
                when n % 50 = 19 and {earlier} >= 0 then 'unnamed'
                else 'sale'
            end as kind
            from generate_series({first}::bigint, {first + count - 1}::bigint) as n
        ) as numbered
    ) as documents"""
    lines = f"""(
        select documents.*, line, (of * 31 + line * 977) % {PRODUCTS} as product,
            case when kind = 'sale' then 1 + (n + line) % 5 else -1 end as quantity
        from {documents} cross join generate_series(1, {LINES_PER_ORDER}) as line
    ) as lines"""
    at = f"timestamptz '{BEGIN.isoformat()}' + n * interval '{86_400 / shop.orders_per_day} seconds'"
    event_id = "'00000000-0000-7000-8000-' || lpad(n::text, 12, '0')"
    customer = f"case when of % 40 <> 3 then {_customer(f'(of * 7919 % {shop.customers})')} end"
    _execute(
        settings,
        f"""insert into raw.orders (event_id, entity, entity_key, sequence, schema_version, event_time, source, run_id, order_id,
            customer_id, status, cancels_order_id, currency, channel, country, amount, payload_hash,
            kafka_topic, kafka_partition, kafka_offset, kafka_timestamp, ingested_at, loaded_at)
        select {event_id}, 'order', 'o' || n, 1, 1, {at}, 'bench', 'bench', 'o' || n,
            {customer}, case kind when 'sale' then 'completed' else 'refunded' end, case kind when 'named' then 'o' || of end,
            'GBP', case n % 3 when 0 then 'app' else 'web' end, 'France', sum(quantity * {_price("product")}), n,
            'bench', 0, n, {at}, {at}, now()
        from {lines} group by n, kind, of""",
    )
    _execute(
        settings,
        f"""insert into raw.order_lines (event_id, line_number, product_id, description, quantity, unit_price, loaded_at)
        select {event_id}, line, {_product("product")}, 'Product ' || product, quantity, {_price("product")}, now()
        from {lines}""",
    )
    _execute(
        settings,
        f"""insert into raw.events (event_id, entity, entity_key, sequence, schema_version, event_time, source, run_id, event_type,
            visitor_id, customer_id, product_id, order_id, page, channel, payload_hash,
            kafka_topic, kafka_partition, kafka_offset, kafka_timestamp, ingested_at, loaded_at)
        select '00000000-0000-700' || 3 + step || '-8000-' || lpad(n::text, 12, '0'), 'event', 'v' || n, n, 1,
            {at} - (1 - step) * interval '10 minutes', 'bench', 'bench', case step when 0 then 'view' else 'purchase' end,
            'v' || n * 7919 % {shop.customers}, {customer}, {_product(f"((n * 31 + 977) % {PRODUCTS})")},
            case step when 1 then 'o' || n end, '/', 'web', n, 'bench', 0, n, {at}, {at}, now()
        from {documents} cross join generate_series(0, 1) as step where kind = 'sale'""",
    )


def expected_daily_sales(settings: Settings) -> pl.DataFrame:
    """Daily sales of raw, one row per date and whether the customer is known; nothing here looks at what dbt made.

    Only for rows of this module: one message per order, one currency, refunds of single pieces, no adjustments.
    """
    documents = pl.DataFrame(
        warehouse.fetch_arrow(
            settings,
            "select substr(order_id, 2)::bigint as n, customer_id as customer, status = 'refunded' as takes_back, "
            "substr(cancels_order_id, 2)::bigint as named, event_time as line_time from raw.orders",
        )
    )
    lines = pl.DataFrame(
        warehouse.fetch_arrow(
            settings,
            "select right(event_id, 12)::bigint as n, line_number, product_id as product_code, quantity, "
            "(unit_price * 10000)::bigint as price_units from raw.order_lines",
        )
    )
    lines = lines.join(documents, on="n").with_columns(amount_units=pl.col("quantity") * pl.col("price_units"))
    lines = lines.with_columns(source_line=pl.col("n") * 10 + pl.col("line_number"), date=pl.col("line_time").dt.date())
    named = lines.filter(pl.col("named").is_not_null())
    # Each of them takes one piece of each line of its order, whose lines are in the same places; no order is named twice.
    taken = named.select(n="named", line_number="line_number", taken_by_name=pl.lit(1))
    lines = lines.join(taken, on=["n", "line_number"], how="left").with_columns(pl.col("taken_by_name").fill_null(0))
    free = lines.filter(pl.col("takes_back") & pl.col("named").is_null())
    piles = free.filter(pl.col("customer").is_not_null()).select("customer", "product_code", "price_units").unique()
    left = pl.col("quantity") - pl.col("taken_by_name")
    matching = oracle.match(
        lines.filter(pl.col("named").is_null())
        .join(piles, on=["customer", "product_code", "price_units"], how="semi")
        .with_columns(
            quantity=left,
            unit_price="price_units",
            line_class=pl.when("takes_back").then(pl.lit("cancellation")).otherwise(pl.lit("sale")),
        )
    )
    found = lines.join(matching.taken, on="source_line", how="left").join(matching.credits, on="source_line", how="left")
    pieces_back = pl.col("cancelled_quantity").fill_null(0) + pl.col("taken_by_name")
    lost = (-pl.col("quantity") - pl.col("matched").fill_null(0)).clip(0)
    sale, free_credit = ~pl.col("takes_back"), pl.col("takes_back") & pl.col("named").is_null()
    sums = found.group_by("date", pl.col("customer").is_not_null().alias("customer_known")).agg(
        gross=pl.col("amount_units").filter(sale).sum(),
        cancelled_booked=pl.col("amount_units").filter(~sale).sum(),
        cancelled_restated=-(pieces_back * pl.col("price_units")).filter(sale).sum()
        - (lost * pl.col("price_units")).filter(free_credit).sum(),
        sale_lines=sale.sum().cast(pl.Int64),
    )
    return sums.sort("date", "customer_known")


def found_daily_sales(settings: Settings) -> pl.DataFrame:
    """The mart, in the columns of `expected_daily_sales`: amounts in ten-thousandths."""
    return pl.DataFrame(
        warehouse.fetch_arrow(
            settings,
            "select business_date as date, customer_known, (gross_amount * 10000)::bigint as gross, "
            "(cancelled_amount_booked * 10000)::bigint as cancelled_booked, (cancelled_amount_restated * 10000)::bigint as "
            "cancelled_restated, sale_lines::bigint as sale_lines from marts.daily_sales order by 1, 2",
        )
    )


def as_of(shop: Shop, orders: int) -> datetime:
    """A moment of the last day on which one of so many orders comes."""
    return BEGIN + timedelta(days=shop.days(orders) - 1)


def _execute(settings: Settings, statement: str) -> None:
    with warehouse.connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        connection.commit()


def _customer(number: str) -> str:
    return f"'C' || lpad({number}::text, 7, '0')"


def _product(number: str) -> str:
    return f"'P' || lpad({number}::text, 5, '0')"


def _price(number: str) -> str:
    return f"(1 + {number} % 900 / 100.0)::numeric(14, 4)"
