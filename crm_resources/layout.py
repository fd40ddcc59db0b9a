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

BATCH_COLUMNS: tuple[Column, ...] = (
    Column("query", ColumnType.STRING, False, "Query that ran the batch: `ingest` or `refine`."),
    Column("generation", ColumnType.STRING, False, "Checkpoint generation that numbered the batch."),
    Column("batch_id", ColumnType.LONG, False, "Number of the batch in its generation."),
    *COORDINATES[:2],
    Column("from_offset", ColumnType.LONG, False, "First offset of the batch in the partition."),
    Column("to_offset", ColumnType.LONG, False, "Offset behind the last one of the batch in the partition."),
    Column("rows_in", ColumnType.LONG, False, "Records the batch read from the partition."),
    Column("rows_bronze", ColumnType.LONG, True, "Rows written to bronze; null for `refine`."),
    Column("rows_silver", ColumnType.LONG, True, "Rows written to silver; null for `ingest`."),
    Column("rows_dead_letters", ColumnType.LONG, True, "Rows written to the dead letters; null for `ingest`."),
    Column("rows_duplicates", ColumnType.LONG, True, "Rows written to the duplicates; null for `ingest`."),
    Column("rows_placed_before", ColumnType.LONG, True, "Records that had their place already, not written again; null for `ingest`."),
    Column("source_version", ColumnType.LONG, True, "Version of bronze whose files before it are all refined; null for `ingest`."),
    Column("seconds", ColumnType.DECIMAL, False, "Time from the batch's begin to its last commit.", precision=12, scale=3),
    Column("committed_at", ColumnType.TIMESTAMP, False, "When the batch's rows were in their tables."),
)
"""Columns of the batch ledger in storage order: one row per batch and topic partition that had records."""

REPLAY_COLUMNS: tuple[Column, ...] = (
    Column("replay_id", ColumnType.STRING, False, "Replay that tried the record again."),
    *COORDINATES[:3],
    Column("attempt", ColumnType.INT, False, "Attempt of the dead letter that was replayed; the coordinates and it name one."),
    Column("event_id", ColumnType.STRING, True, "Event id, where the record could be read that far."),
    Column("entity", ColumnType.STRING, False, "Entity the topic belongs to."),
    Column("reason", ColumnType.STRING, False, "Reason of the dead letter that was replayed."),
    Column("outcome", ColumnType.STRING, False, "What became of it: `silver`, `duplicate`, or `dead_letter` (with the next attempt)."),
    Column("replayed_at", ColumnType.TIMESTAMP, False, "When."),
)
"""Columns of the replay ledger in storage order. A dead letter without a row here is open."""


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
REPLAYS = LakeTable("replays", "replays", REPLAY_COLUMNS, ("event_id",), 113)
BATCHES = LakeTable("batches", "batches", BATCH_COLUMNS, ("batch_id",), 127)
SILVER: dict[str, LakeTable] = {
    contract.plural: LakeTable(contract.plural, f"silver/{contract.plural}", silver_columns(contract), ("event_id",), interval)
    for contract, interval in zip(contracts(), (83, 89, 97, 103), strict=True)
}
"""Silver tables by plural: events, orders, products, profiles."""


def topic_name(environment: str, plural: str) -> str:
    """Kafka topic of an entity in an environment, e.g. `demo.orders`."""
    return f"{environment}.{plural}"
