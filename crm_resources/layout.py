"""Names and columns of the tables between Kafka and the marts, beside what the contracts declare.

Belongs here: the coordinates every record keeps, the columns of bronze, dead letters and dropped duplicates, and where a
table of an environment lives. Not here: contract fields (`contracts`), or how a table is written.
"""

from __future__ import annotations

from dataclasses import dataclass

from crm_resources.contracts import Column, ColumnType, Contract, contracts

COORDINATES: tuple[Column, ...] = (
    Column("kafka_topic", ColumnType.STRING, False, "Topic the record came from."),
    Column("kafka_partition", ColumnType.INT, False, "Partition the record came from."),
    Column("kafka_offset", ColumnType.LONG, False, "Offset of the record in its partition."),
    Column("kafka_timestamp", ColumnType.TIMESTAMP, False, "Time stamped on the record by producer or broker."),
    Column("ingested_at", ColumnType.TIMESTAMP, False, "When the record was captured in bronze."),
)
"""Where a record came from; `(kafka_topic, kafka_partition, kafka_offset)` names it for good."""

PAYLOAD_HASH = Column(
    "payload_hash", ColumnType.LONG, False, "xxhash64 (seed 42) of the raw bytes; tells a conflicting duplicate from an exact one."
)

RECORD_KEY = Column("kafka_key", ColumnType.BINARY, True, "Key of the record as bytes.")
RECORD_VALUE = Column("value", ColumnType.BINARY, True, "Value of the record as bytes, untouched.")
"""The raw record, beside its coordinates; null where the record has none."""

BRONZE_COLUMNS: tuple[Column, ...] = (
    *COORDINATES[1:],
    RECORD_KEY,
    RECORD_VALUE,
    COORDINATES[0],
    Column("ingest_date", ColumnType.DATE, False, "Date of `ingested_at` in UTC; partition column."),
)
"""Columns of bronze in storage order: the raw record, and last the columns it is partitioned by."""

DEAD_LETTER_COLUMNS: tuple[Column, ...] = (
    Column("event_id", ColumnType.STRING, True, "Event id, where the record could be read that far."),
    *COORDINATES,
    RECORD_KEY,
    RECORD_VALUE,
    Column("entity", ColumnType.STRING, False, "Entity the topic belongs to."),
    Column("reason", ColumnType.STRING, False, "Reason code."),
    Column("detail", ColumnType.STRING, True, "Field or value that was at fault."),
    Column("stage", ColumnType.STRING, False, "Step that refused the record."),
    Column("attempt", ColumnType.INT, False, "How many times the record was tried."),
    Column("first_failed_at", ColumnType.TIMESTAMP, False, "First refusal."),
    Column("failed_at", ColumnType.TIMESTAMP, False, "Latest refusal."),
)
"""Columns of the dead letters in storage order: the raw record, and why it went no further."""

DUPLICATE_COLUMNS: tuple[Column, ...] = (
    Column("event_id", ColumnType.STRING, False, "Event id that had been accepted before."),
    Column("entity", ColumnType.STRING, False, "Entity of the record."),
    PAYLOAD_HASH,
    *COORDINATES,
)
"""Columns of the dropped exact duplicates in storage order."""


def silver_columns(contract: Contract) -> tuple[Column, ...]:
    """Columns of an entity's silver table: the contract's, the payload hash, the coordinates."""
    return (*contract.columns, PAYLOAD_HASH, *COORDINATES)


@dataclass(frozen=True)
class LakeTable:
    """A Delta table of the lake.

    `path` is below the lake's root; `statistics` are the columns with minimum and maximum per file, for data skipping;
    `checkpoint_interval` the commits between two checkpoints of the log. It differs between tables, because a batch in which
    all tables checkpoint at once was measured at 8-18 s on two cores.
    """

    name: str
    path: str
    columns: tuple[Column, ...]
    statistics: tuple[str, ...]
    checkpoint_interval: int
    partition_by: tuple[str, ...] = ()


BRONZE = LakeTable(
    "bronze", "bronze", BRONZE_COLUMNS, ("kafka_partition", "kafka_offset", "kafka_timestamp"), 101, ("kafka_topic", "ingest_date")
)
DEAD_LETTERS = LakeTable("dead_letters", "dead_letters", DEAD_LETTER_COLUMNS, ("event_id",), 107)
DUPLICATES = LakeTable("duplicates", "duplicates", DUPLICATE_COLUMNS, ("event_id",), 109)
SILVER: dict[str, LakeTable] = {
    contract.plural: LakeTable(contract.plural, f"silver/{contract.plural}", silver_columns(contract), ("event_id",), interval)
    for contract, interval in zip(contracts(), (83, 89, 97, 103), strict=True)
}
"""Silver tables by plural: events, orders, products, profiles."""


def topic_name(environment: str, plural: str) -> str:
    """Kafka topic of an entity in an environment, e.g. `demo.orders`."""
    return f"{environment}.{plural}"
