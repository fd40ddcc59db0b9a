"""The tables of the stream as Spark makes them: places, schemas, properties, and the checkpoint generations that write them.

Belongs here: what exists before the first batch. Not here: what a batch does with it (`ingest`, `refine`).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from crm_resources.contracts import Column, contracts
from crm_resources.contracts.derive_spark import silver_type
from crm_resources.layout import (
    BRONZE,
    COORDINATES,
    DEAD_LETTER_COLUMNS,
    DEAD_LETTERS,
    DUPLICATE_COLUMNS,
    DUPLICATES,
    SILVER,
    LakeTable,
    silver_columns,
)
from crm_resources.settings import Settings
from crm_resources.spark import TableProperties

if TYPE_CHECKING:
    from pyspark.sql import SparkSession
    from pyspark.sql.types import StructType

# Different primes, so that no two tables write a checkpoint of their log in the same batch more often than need be.
_INTERVALS = {"bronze": 101, "events": 83, "orders": 89, "products": 97, "profiles": 103, "dead_letters": 107, "duplicates": 109}


@dataclass(frozen=True)
class Place:
    """Where a set of the refine step's tables and its checkpoint stand.

    Args:
        prefix: path below the lake's root, empty for the live tables, otherwise ending in a slash.
        checkpoint: folder of the query's checkpoint.
    """

    prefix: str
    checkpoint: Path

    def path(self, table: LakeTable) -> str:
        """Path of a table below the lake's root."""
        return f"{self.prefix}{table.path}"


def live(settings: Settings) -> Place:
    """The tables everybody reads."""
    return Place("", Path(settings.checkpoint_root) / "refine")


def ingest_checkpoint(settings: Settings) -> Path:
    """Folder of the ingest query's checkpoint."""
    return Path(settings.checkpoint_root) / "ingest"


def refined_tables() -> tuple[LakeTable, ...]:
    """The tables the refine step writes: silver in contract order, dead letters, duplicates."""
    return (*(SILVER[c.plural] for c in contracts()), DEAD_LETTERS, DUPLICATES)


def bronze_schema() -> StructType:
    """Columns of bronze in storage order; the first carry statistics."""
    from pyspark.sql import types as t

    names = ("kafka_partition", "kafka_offset", "kafka_timestamp", "ingested_at")
    by_name = {c.name: c for c in COORDINATES}
    stored = silver_type([by_name[n] for n in names])
    return t.StructType(
        [
            *stored.fields,
            t.StructField("kafka_key", t.BinaryType()),
            t.StructField("value", t.BinaryType()),
            t.StructField("kafka_topic", t.StringType()),
            t.StructField("ingest_date", t.DateType()),
        ]
    )


def create_bronze(spark: SparkSession, settings: Settings) -> None:
    """Make bronze where it does not exist."""
    _create(spark, settings, BRONZE.path, BRONZE, bronze_schema(), ("kafka_partition", "kafka_offset", "kafka_timestamp"), ())


def create_refined(spark: SparkSession, settings: Settings, place: Place) -> None:
    """Make the refine step's tables of a place where they do not exist."""
    for contract in contracts():
        silver = SILVER[contract.plural]
        _create(spark, settings, place.path(silver), silver, silver_type(silver_columns(contract)), ("event_id",), silver_columns(contract))
    for table, columns in ((DEAD_LETTERS, DEAD_LETTER_COLUMNS), (DUPLICATES, DUPLICATE_COLUMNS)):
        _create(spark, settings, place.path(table), table, silver_type(columns), ("event_id",), columns)


def _create(
    spark: SparkSession,
    settings: Settings,
    path: str,
    table: LakeTable,
    schema: StructType,
    stats_columns: tuple[str, ...],
    described: Iterable[Column],
) -> None:
    from delta.tables import DeltaTable

    uri = settings.table_uri(path)
    if DeltaTable.isDeltaTable(spark, uri):
        return
    comments = {c.name: c.description for c in described}
    builder = DeltaTable.createIfNotExists(spark).location(uri)
    for item in schema.fields:
        builder = builder.addColumn(item.name, item.dataType, nullable=True, comment=comments.get(item.name))
    if table.partition_by:
        builder = builder.partitionedBy(*table.partition_by)
    for name, value in TableProperties(stats_columns, _INTERVALS[table.name]).as_properties().items():
        builder = builder.property(name, value)
    builder.execute()


class CheckpointDamaged(RuntimeError):
    """A checkpoint has lost a part; going on could write rows twice."""


@dataclass(frozen=True)
class Generation:
    """One life of a checkpoint.

    Spark numbers the batches of a new checkpoint from 0 again, and Delta silently skips a write whose transaction it has
    seen; so the generation is part of the transaction's name.

    Args:
        id: name of this generation.
        created_at: when the checkpoint was made, ISO 8601 in UTC.
        over_existing: whether the tables held rows already when it was made.
    """

    id: str
    created_at: str
    over_existing: bool


def generation_of(checkpoint: Path, *, tables_hold_rows: bool) -> Generation:
    """Generation of a checkpoint; a new one when the checkpoint does not exist yet.

    Args:
        checkpoint: folder of the query's checkpoint.
        tables_hold_rows: whether the query's tables hold rows now.

    Raises:
        CheckpointDamaged: Spark's part is there but the generation is not.
    """
    file = checkpoint / "generation.json"
    if file.exists():
        return Generation(**json.loads(file.read_text()))
    if (checkpoint / "offsets").exists():
        raise CheckpointDamaged(
            f"{checkpoint} has no generation.json, so its writes cannot be told from older ones. Restore the file, or move the folder "
            "away: a new checkpoint reads bronze from its start and leaves rows that have their place where they are"
        )
    made = Generation(uuid.uuid4().hex, datetime.now(UTC).isoformat(timespec="seconds"), tables_hold_rows)
    checkpoint.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".tmp")
    draft.write_text(json.dumps(asdict(made)) + "\n")
    draft.rename(file)
    return made
