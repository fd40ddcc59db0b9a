"""The real file: read straight with polars, and turned into the silver rows that its replay gives."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa  # noqa: TID253 -- tests need not start fast

from crm_resources.contracts import contract_for
from crm_resources.contracts.derive_arrow import arrow_schema
from crm_resources.layout import silver_columns
from tests.oracle.lake_writer import event_id, nullable

FILE = Path(__file__).resolve().parents[3] / "shared" / "data" / "online-retail" / "online_retail_2010_2011.csv.gz"
ZONE = "Europe/London"


def read_lines(path: Path = FILE) -> pl.DataFrame:
    """One row per row of the file, in file order: exact decimals, aware times, `source_line` from 1."""
    text = pl.read_csv(path, infer_schema_length=0).with_row_index("source_line", offset=1)
    return text.select(
        pl.col("source_line").cast(pl.Int64),
        invoice=pl.col("InvoiceNo"),
        stock_code=pl.col("StockCode"),
        description=pl.col("Description"),
        quantity=pl.col("Quantity").cast(pl.Int64),
        local_time=pl.col("InvoiceDate").str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="us"),
        unit_price=pl.col("UnitPrice").cast(pl.Decimal(14, 4)),
        customer=pl.col("CustomerID").str.strip_suffix(".0"),
        country=pl.col("Country"),
    ).with_columns(line_time=pl.col("local_time").dt.replace_time_zone(ZONE).dt.convert_time_zone("UTC"))


def silver_orders(lines: pl.DataFrame) -> pa.Table:
    """One order message per invoice, as the replay sends them, in the schema of `silver/orders`."""
    contract = contract_for("order")
    schema = nullable(arrow_schema(silver_columns(contract)))
    ordered = lines.with_columns(first=pl.col("source_line").min().over("invoice"), order_time=pl.col("line_time").min().over("invoice"))
    ordered = ordered.sort("first", "source_line").with_columns(
        line_number=pl.int_range(1, pl.len() + 1).over("invoice").cast(pl.Int32),
        amount=pl.col("quantity").cast(pl.Decimal(18, 4)) * pl.col("unit_price"),
    )
    struct = schema.field("lines").type.value_type
    line_columns = {
        "line_number": ordered["line_number"],
        "product_id": ordered["stock_code"],
        "description": ordered["description"],
        "quantity": ordered["quantity"],
        "unit_price": ordered["unit_price"],
        "line_time": ordered.select(pl.when(pl.col("line_time") != pl.col("order_time")).then(pl.col("line_time"))).to_series(),
        "source_line": ordered["source_line"],
    }
    items = pa.StructArray.from_arrays([_array(line_columns[f.name], f.type) for f in struct], fields=list(struct))
    heads = ordered.group_by("first", maintain_order=True).agg(
        pl.col("invoice", "customer", "country", "order_time").first(), pl.col("amount").sum(), pl.len().alias("lines")
    )
    offsets = pa.array([0, *heads["lines"].cum_sum().to_list()], pa.int32())
    status = heads.select(
        pl.when(pl.col("invoice").str.starts_with("C"))
        .then(pl.lit("cancelled"))
        .when(pl.col("invoice").str.starts_with("A"))
        .then(pl.lit("adjustment"))
        .otherwise(pl.lit("completed"))
    ).to_series()
    count = heads.height
    ids = [event_id(at, number) for number, at in enumerate(heads["order_time"], start=1)]
    constant = {
        "entity": "order",
        "sequence": 1,
        "schema_version": 1,
        "source": "replay",
        "run_id": "test",
        "currency": "GBP",
        "channel": "web",
        "cancels_order_id": None,
        "kafka_topic": "test.orders",
        "kafka_partition": 0,
    }
    varying = {
        "event_id": ids,
        "entity_key": heads["invoice"],
        "order_id": heads["invoice"],
        "event_time": heads["order_time"],
        "customer_id": heads["customer"],
        "status": status,
        "country": heads["country"],
        "amount": heads["amount"],
        "payload_hash": pl.Series(range(count)),
        "kafka_offset": pl.Series(range(count)),
        "kafka_timestamp": heads["order_time"],
        "ingested_at": heads["order_time"],
    }
    arrays = []
    for field in schema:
        if field.name == "lines":
            arrays.append(pa.ListArray.from_arrays(offsets, items, type=field.type))
        elif field.name in constant:
            arrays.append(pa.array([constant[field.name]] * count, field.type))
        else:
            arrays.append(_array(varying[field.name], field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _array(values: pl.Series | list[str], kind: pa.DataType) -> pa.Array:
    array = values.to_arrow() if isinstance(values, pl.Series) else pa.array(values)
    return array.cast(kind)
