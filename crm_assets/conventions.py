"""What all assets share: keys, groups, owners, and how a contract looks as Dagster metadata.

Belongs here: naming and metadata helpers without I/O. Not here: assets, or what a group does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

import dagster as dg

from crm_resources.contracts import Column, ColumnType, Contract, contracts
from crm_resources.contracts.derive_postgres import RawTable, postgres_type, raw_tables
from crm_resources.layout import (
    BRONZE,
    COORDINATES,
    DEAD_LETTER_COLUMNS,
    DEAD_LETTERS,
    DUPLICATE_COLUMNS,
    DUPLICATES,
    SILVER,
    silver_columns,
)

OWNERS = ["team:data-platform"]


class Group(StrEnum):
    """Asset groups, in the order of the data."""

    INFRASTRUCTURE = "infrastructure"
    INGESTION = "ingestion"
    STREAMING = "streaming"
    LAKEHOUSE = "lakehouse"
    WAREHOUSE = "warehouse"
    MARTS = "marts"


KAFKA_KEY = dg.AssetKey(["infrastructure", "kafka"])
POSTGRES_KEY = dg.AssetKey(["infrastructure", "postgres"])
STREAM_KEY = dg.AssetKey(["stream", "driver"])
BRONZE_KEY = dg.AssetKey(["lake", "bronze"])
DEAD_LETTERS_KEY = dg.AssetKey(["lake", "dead_letters"])
DUPLICATES_KEY = dg.AssetKey(["lake", "duplicates"])


def topic_key(plural: str) -> dg.AssetKey:
    """Key of an entity's topic."""
    return dg.AssetKey(["topics", plural])


def silver_key(plural: str) -> dg.AssetKey:
    """Key of an entity's silver table."""
    return dg.AssetKey(["silver", plural])


def raw_key(table: str) -> dg.AssetKey:
    """Key of a raw table in the warehouse."""
    return dg.AssetKey(["warehouse", "raw", table])


def lake_tables() -> Mapping[dg.AssetKey, str]:
    """Path below the lake's root of every lake table, by asset key."""
    return {
        BRONZE_KEY: BRONZE.path,
        DEAD_LETTERS_KEY: DEAD_LETTERS.path,
        DUPLICATES_KEY: DUPLICATES.path,
        **{silver_key(plural): table.path for plural, table in SILVER.items()},
    }


def table_schema(columns: Iterable[Column]) -> dg.TableSchema:
    """Contract columns as the UI shows them."""
    return dg.TableSchema(
        columns=[dg.TableColumn(c.name, _spelling(c), c.description, dg.TableColumnConstraints(nullable=c.nullable)) for c in columns]
    )


def bronze_schema() -> dg.TableSchema:
    """Columns of bronze: coordinates and raw bytes."""
    return table_schema(BRONZE.columns)


def lake_schema(key: dg.AssetKey) -> dg.TableSchema:
    """Column schema of a lake table by asset key."""
    if key == BRONZE_KEY:
        return bronze_schema()
    if key == DEAD_LETTERS_KEY:
        return table_schema(DEAD_LETTER_COLUMNS)
    if key == DUPLICATES_KEY:
        return table_schema(DUPLICATE_COLUMNS)
    return table_schema(silver_columns(_contract_of(key)))


def lake_lineage(key: dg.AssetKey) -> dg.TableColumnLineage:
    """Which upstream column each column of a lake table comes from."""
    coordinates = {c.name for c in COORDINATES}
    deps: dict[str, list[dg.TableColumnDep]] = {}
    for column in lake_schema(key).columns:
        if key == BRONZE_KEY:
            deps[column.name] = [dg.TableColumnDep(topic_key(c.plural), _RECORD_FIELDS.get(column.name, "timestamp")) for c in contracts()]
        else:
            source = column.name if column.name in coordinates or column.name in {"kafka_key", "value"} else "value"
            deps[column.name] = [dg.TableColumnDep(BRONZE_KEY, source)]
    return dg.TableColumnLineage(deps)


def raw_schema(table: RawTable) -> dg.TableSchema:
    """Columns of a raw table as PostgreSQL spells them."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                c.name,
                postgres_type(c),
                c.description,
                dg.TableColumnConstraints(nullable=c.nullable, unique=table.primary_key == (c.name,)),
            )
            for c in table.columns
        ]
    )


def raw_lineage(contract: Contract, table: RawTable) -> dg.TableColumnLineage:
    """Silver column behind each raw column; a child table's columns come from the list column."""
    child = next((c for c in contract.children if c.name == table.name), None)
    names = {c.name for c in silver_columns(contract)}
    deps = {}
    for column in table.columns:
        if child is not None and column.name != "event_id" and any(c.name == column.name for c in child.columns):
            deps[column.name] = [dg.TableColumnDep(silver_key(contract.plural), child.field)]
        elif column.name in names:
            deps[column.name] = [dg.TableColumnDep(silver_key(contract.plural), column.name)]
    return dg.TableColumnLineage(deps)


def raw_table_owners() -> Mapping[str, Contract]:
    """Contract behind each raw table name."""
    return {table.name: contract for contract in contracts() for table in raw_tables(contract)}


_RECORD_FIELDS = {
    "kafka_topic": "topic",
    "kafka_partition": "partition",
    "kafka_offset": "offset",
    "kafka_timestamp": "timestamp",
    "kafka_key": "key",
    "value": "value",
}


def _contract_of(key: dg.AssetKey) -> Contract:
    return next(c for c in contracts() if silver_key(c.plural) == key)


def _spelling(column: Column) -> str:
    if column.type is ColumnType.DECIMAL:
        return f"decimal({column.precision},{column.scale})"
    if column.type is ColumnType.LIST:
        return "array<struct<" + ",".join(f"{c.name}:{_spelling(c)}" for c in column.items) + ">>"
    return str(column.type)
