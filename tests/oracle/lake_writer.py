"""Writes small silver tables for tests, in the contract's schema, with delta-rs: what the stream would have left behind."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa  # noqa: TID253 -- tests need not start fast
from deltalake import write_deltalake  # noqa: TID253 -- tests need not start fast

from crm_resources.contracts import Contract, contract_for
from crm_resources.contracts.derive_arrow import arrow_schema
from crm_resources.layout import SILVER, silver_columns
from crm_resources.object_store import storage_options
from crm_resources.settings import Settings

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COUNTER = itertools.count(1)


def event_id(event_time: datetime, number: int) -> str:
    """A time-ordered id: milliseconds, then a number."""
    milliseconds = int((event_time - _EPOCH).total_seconds() * 1000)
    text = f"{milliseconds:012x}7{number:019x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def record(entity: str, event_time: datetime, **fields: Any) -> dict[str, Any]:
    """One silver row with every envelope and coordinate field filled; `fields` overrides."""
    number = next(_COUNTER)
    contract = contract_for(entity)
    row: dict[str, Any] = {c.name: None for c in silver_columns(contract)}
    row |= {
        "event_id": event_id(event_time, number),
        "entity": contract.entity,
        "sequence": 1,
        "schema_version": 1,
        "event_time": event_time,
        "source": "test",
        "run_id": "test",
        "payload_hash": number,
        "kafka_topic": f"test.{contract.plural}",
        "kafka_partition": 0,
        "kafka_offset": number,
        "kafka_timestamp": event_time,
        "ingested_at": event_time,
    }
    return row | fields


def order(
    order_id: str, event_time: datetime, lines: Iterable[Mapping[str, Any] | tuple[str, int, str]] = (), **fields: Any
) -> dict[str, Any]:
    """An order message; a line is a mapping, or product, quantity and price."""
    items = []
    for number, line in enumerate(lines, start=1):
        if isinstance(line, tuple):
            line = dict(zip(("product_id", "quantity", "unit_price"), line, strict=True))
        item = {"line_number": number, "description": None, "line_time": None, "source_line": None} | dict(line)
        items.append(item | {"unit_price": Decimal(str(item["unit_price"]))})
    amount = sum((i["quantity"] * i["unit_price"] for i in items), Decimal(0))
    defaults = {
        "entity_key": order_id,
        "order_id": order_id,
        "status": "completed",
        "currency": "GBP",
        "channel": "web",
        "amount": amount,
        "lines": items,
    }
    return record("order", event_time, **(defaults | fields))


def profile(customer_id: str, event_time: datetime, **fields: Any) -> dict[str, Any]:
    """A profile message."""
    return record(
        "profile", event_time, **({"entity_key": customer_id, "customer_id": customer_id, "opted_out": False, "erased": False} | fields)
    )


def product(product_id: str, event_time: datetime, **fields: Any) -> dict[str, Any]:
    """A product message."""
    defaults = {
        "entity_key": product_id,
        "product_id": product_id,
        "name": product_id,
        "currency": "GBP",
        "price": Decimal(1),
        "active": True,
    }
    return record("product", event_time, **(defaults | fields))


def event(visitor_id: str, event_time: datetime, **fields: Any) -> dict[str, Any]:
    """A browsing event."""
    return record("event", event_time, **({"entity_key": visitor_id, "visitor_id": visitor_id, "event_type": "view"} | fields))


def append(settings: Settings, rows: list[dict[str, Any]]) -> None:
    """Append rows of any entities to their silver tables, one commit per entity."""
    for entity in sorted({str(row["entity"]) for row in rows}):
        contract = contract_for(entity)
        write(settings, contract, silver_table(contract, [row for row in rows if row["entity"] == entity]))


def silver_table(contract: Contract, rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as Arrow in the silver schema."""
    columns = silver_columns(contract)
    return pa.Table.from_pylist([{c.name: row[c.name] for c in columns} for row in rows], schema=nullable(arrow_schema(columns)))


def nullable(schema: pa.Schema) -> pa.Schema:
    """The schema with every field nullable, as Spark leaves tables."""
    return pa.schema([pa.field(f.name, _nullable(f.type)) for f in schema])


def _nullable(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(pa.field("element", _nullable(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(f.name, _nullable(f.type)) for f in kind])
    return kind


def write(settings: Settings, contract: Contract, table: pa.Table, mode: str = "append") -> None:
    """Commit a table to the entity's silver table."""
    write_deltalake(settings.table_uri(SILVER[contract.plural].path), table, mode=mode, storage_options=storage_options(settings))
