"""Contract → PostgreSQL: the raw tables the loader fills, one per entity and one per list field."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from crm_resources.contracts.evolution import SchemaChanges
from crm_resources.contracts.model import Column, ColumnType, Contract
from crm_resources.layout import COORDINATES, PAYLOAD_HASH

RAW_SCHEMA = "raw"

LOADED_AT = Column("loaded_at", ColumnType.TIMESTAMP, False, "When the load that brought the row ran.")

LOOK_UPS = {
    "events": ("visitor_id, event_time",),
    "orders": ("order_id", "nullif(cancels_order_id, order_id)"),
    "products": ("upper(product_id)",),
    "profiles": ("customer_id",),
}
"""By entity, what all messages about one thing are found by when a new one has come; an index each."""


@dataclass(frozen=True)
class RawTable:
    """A table of the raw schema; `primary_key` makes a second load of the same row a no-op."""

    name: str
    description: str
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...]


def raw_tables(contract: Contract) -> tuple[RawTable, ...]:
    """The entity's own table first, then a child table for each list field (`order_lines`)."""
    parent = RawTable(
        contract.plural,
        contract.description,
        (*contract.scalar_columns, PAYLOAD_HASH, *COORDINATES, LOADED_AT),
        ("event_id",),
    )
    event_id = next(c for c in contract.columns if c.name == "event_id")
    children = tuple(
        RawTable(
            child.name,
            f"One row per item of `{contract.plural}.{child.field}`.",
            (event_id, *child.columns, LOADED_AT),
            ("event_id", child.key),
        )
        for child in contract.children
    )
    return (parent, *children)


def create_table_sql(table: RawTable) -> str:
    """`create table if not exists` for a raw table, columns in contract order."""
    columns = [f"    {c.name} {postgres_type(c)}{'' if c.nullable else ' not null'}" for c in table.columns]
    columns.append(f"    primary key ({', '.join(table.primary_key)})")
    body = ",\n".join(columns)
    return f"create table if not exists {RAW_SCHEMA}.{table.name} (\n{body}\n)"


def alter_table_sql(table: RawTable, changes: SchemaChanges) -> list[str]:
    """Statements that bring a raw table that exists to its declaration; none where it follows it."""
    types = {c.name: postgres_type(c) for c in table.columns}
    name = f"{RAW_SCHEMA}.{table.name}"
    return [
        *(f"alter table {name} add column {column} {types[column]}" for column in changes.add),
        *(f"alter table {name} alter column {column} drop not null" for column in changes.relax),
    ]


def postgres_type(column: Column) -> str:
    """PostgreSQL's spelling of a column type.

    Raises:
        ValueError: lists have no column type; they become child tables.
    """
    match column.type:
        case ColumnType.STRING:
            return "text"
        case ColumnType.INT:
            return "integer"
        case ColumnType.LONG:
            return "bigint"
        case ColumnType.BOOLEAN:
            return "boolean"
        case ColumnType.TIMESTAMP:
            return "timestamp with time zone"
        case ColumnType.DECIMAL:
            return f"numeric({column.precision},{column.scale})"
        case ColumnType.DATE:
            return "date"
        case ColumnType.BINARY:
            return "bytea"
        case ColumnType.LIST:
            msg = f"{column.name} is a list and belongs in a child table"
            raise ValueError(msg)


def bootstrap_sql(entities: Iterable[Contract]) -> list[str]:
    """All statements that bring an empty database to what the loader expects; each may run again."""
    statements = [f"create schema if not exists {RAW_SCHEMA}"]
    statements.extend(create_table_sql(table) for contract in entities for table in raw_tables(contract))
    return statements


def index_sql(entities: Iterable[Contract]) -> dict[str, str]:
    """`create index` by name of the index: an entity's rows by the time they were loaded, and by what they are about."""
    return {
        name: f"create index {name} on {RAW_SCHEMA}.{contract.plural} ({expression})"
        for contract in entities
        for expression in (LOADED_AT.name, *LOOK_UPS.get(contract.plural, ()))
        for name in [f"{contract.plural}_{re.sub(r'[^a-z_]+', '_', expression).strip('_')}"]
    }
