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
    BATCHES,
    BRONZE,
    COORDINATES,
    DEAD_LETTERS,
    DUPLICATES,
    REPLAYS,
    SILVER,
    LakeTable,
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
    MODELS = "models"


KAFKA_KEY = dg.AssetKey(["infrastructure", "kafka"])
POSTGRES_KEY = dg.AssetKey(["infrastructure", "postgres"])
LAKE_STORE_KEY = dg.AssetKey(["infrastructure", "lake_store"])
STREAM_KEY = dg.AssetKey(["stream", "driver"])
BRONZE_KEY = dg.AssetKey(["lake", "bronze"])
DEAD_LETTERS_KEY = dg.AssetKey(["lake", "dead_letters"])
DUPLICATES_KEY = dg.AssetKey(["lake", "duplicates"])
REPLAYS_KEY = dg.AssetKey(["lake", "replays"])
BATCHES_KEY = dg.AssetKey(["lake", "batches"])


def topic_key(plural: str) -> dg.AssetKey:
    """Key of an entity's topic."""
    return dg.AssetKey(["topics", plural])


def silver_key(plural: str) -> dg.AssetKey:
    """Key of an entity's silver table."""
    return dg.AssetKey(["silver", plural])


def raw_key(table: str) -> dg.AssetKey:
    """Key of a raw table in the warehouse."""
    return dg.AssetKey(["warehouse", "raw", table])


def lake_tables() -> Mapping[dg.AssetKey, LakeTable]:
    """Every lake table, by asset key."""
    return {
        BRONZE_KEY: BRONZE,
        DEAD_LETTERS_KEY: DEAD_LETTERS,
        DUPLICATES_KEY: DUPLICATES,
        REPLAYS_KEY: REPLAYS,
        BATCHES_KEY: BATCHES,
        **{silver_key(plural): table for plural, table in SILVER.items()},
    }


def table_schema(columns: Iterable[Column]) -> dg.TableSchema:
    """Contract columns as the UI shows them."""
    return dg.TableSchema(
        columns=[dg.TableColumn(c.name, _spelling(c), c.description, dg.TableColumnConstraints(nullable=c.nullable)) for c in columns]
    )


def lake_schema(key: dg.AssetKey) -> dg.TableSchema:
    """Column schema of a lake table by asset key."""
    return table_schema(lake_tables()[key].columns)


def lake_lineage(key: dg.AssetKey) -> dg.TableColumnLineage:
    """Which upstream column each column of a lake table comes from; what the stream itself adds comes from none."""
    if key == BATCHES_KEY:
        return dg.TableColumnLineage({})
    coordinates = {c.name for c in COORDINATES}
    deps: dict[str, list[dg.TableColumnDep]] = {}
    for column in lake_schema(key).columns:
        if key == BRONZE_KEY:
            deps[column.name] = [dg.TableColumnDep(topic_key(c.plural), _RECORD_FIELDS.get(column.name, "timestamp")) for c in contracts()]
        elif key == REPLAYS_KEY:
            if column.name in _DEAD_LETTER_NAMES:
                deps[column.name] = [dg.TableColumnDep(DEAD_LETTERS_KEY, column.name)]
        else:
            source = column.name if column.name in coordinates or column.name in {"kafka_key", "value"} else "value"
            deps[column.name] = [dg.TableColumnDep(BRONZE_KEY, source)]
    return dg.TableColumnLineage(deps)


_DEAD_LETTER_NAMES = {c.name for c in DEAD_LETTERS.columns}


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


def _spelling(column: Column) -> str:
    if column.type is ColumnType.DECIMAL:
        return f"decimal({column.precision},{column.scale})"
    if column.type is ColumnType.LIST:
        return "array<struct<" + ",".join(f"{c.name}:{_spelling(c)}" for c in column.items) + ">>"
    return str(column.type)
