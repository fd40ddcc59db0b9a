"""The batch ledger: which offsets each batch of the stream read, and how many rows it wrote to which table.

A batch is noted after its last table and before Spark's own commit, in one commit that carries it as a Delta transaction, so it is
noted once however often it runs. What is noted is done: a lost checkpoint is made anew from here. Belongs here: writing and reading
the ledger. Not here: what a batch does (`ingest`, `refine`), or judging the ledger (the audit).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from crm_resources.lake import read_table
from crm_resources.lake_tables import append_rows, create_table, last_transaction, table_schema
from crm_resources.layout import BATCHES
from crm_resources.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

RETRIES = 10
"""Both queries append, and upkeep rewrites the table's files meanwhile; neither changes what the other wrote."""

Partition = tuple[str, int]
"""Topic and partition."""


@dataclass(frozen=True)
class BatchRange:
    """What a batch did with the records of one partition; counts of tables its query does not write are `None`."""

    partition: Partition
    from_offset: int
    to_offset: int
    rows_in: int
    rows_bronze: int | None = None
    rows_silver: int | None = None
    rows_dead_letters: int | None = None
    rows_duplicates: int | None = None
    rows_placed_before: int | None = None


@dataclass(frozen=True)
class Batch:
    """A batch as the ledger keeps it.

    Attributes:
        query: `ingest` or `refine`.
        generation: its checkpoint's.
        batch_id: its number in the generation.
        ranges: what it did, by partition.
        source_version: for `refine`, the version of bronze whose files before it are all refined.
        seconds: from its begin to its last commit.
        committed_at: when that was, with a time zone.
        newest: Kafka's time of its newest record, which the ledger does not keep.
    """

    query: str
    generation: str
    batch_id: int
    ranges: tuple[BatchRange, ...]
    source_version: int | None
    seconds: float
    committed_at: datetime
    newest: datetime | None = None

    @property
    def ends(self) -> dict[Partition, int]:
        """Offset behind the last record, by partition."""
        return {r.partition: r.to_offset for r in self.ranges}

    @property
    def rows_in(self) -> int:
        """Records read."""
        return sum(r.rows_in for r in self.ranges)


class BatchLedger:
    """Writer of the ledger; one in a driver, for both its queries.

    Args:
        settings: data set of the stream.
    """

    def __init__(self, settings: Settings) -> None:
        self._lock = threading.Lock()
        self._table = create_table(settings, BATCHES)

    def note(self, batch: Batch) -> None:
        """Append a batch, unless it is there."""
        application = _application(batch.query, batch.generation)
        with self._lock:
            if batch.ranges and self._last_batch(application) < batch.batch_id:
                append_rows(self._table, _rows(batch), application=application, version=batch.batch_id, retries=RETRIES)

    def last_batch(self, query: str, generation: str) -> int:
        """Number of the last batch noted of a generation, -1 before the first."""
        with self._lock:
            return self._last_batch(_application(query, generation))

    def _last_batch(self, application: str) -> int:
        self._table.update_incremental()
        return last_transaction(self._table, application)


def captured_ends(settings: Settings) -> dict[Partition, int]:
    """Offset behind the last record each partition has in bronze, as far as it is noted."""
    rows = read_table(settings, BATCHES.path, ["query", "kafka_topic", "kafka_partition", "to_offset"])
    ends: dict[Partition, int] = {}
    for row in rows.group_by(["query", "kafka_topic", "kafka_partition"]).aggregate([("to_offset", "max")]).to_pylist():
        if row["query"] == "ingest":
            ends[row["kafka_topic"], row["kafka_partition"]] = row["to_offset_max"]
    return ends


@dataclass(frozen=True)
class RefinedBatch:
    """Where a batch of `refine` left off: the version of bronze before which everything was refined, `None` where it could not say."""

    generation: str
    batch_id: int
    source_version: int | None


def refined_batches(settings: Settings) -> list[RefinedBatch]:
    """Batches of all generations of `refine`, in the order in which they were committed."""
    rows = read_table(settings, BATCHES.path, ["query", "generation", "batch_id", "source_version", "committed_at"]).to_pylist()
    found = {(r["committed_at"], r["generation"], r["batch_id"], r["source_version"]) for r in rows if r["query"] == "refine"}
    return [RefinedBatch(*batch[1:]) for batch in sorted(found, key=lambda batch: batch[:3])]


def ranges_of(found: Mapping[Partition, pa.Table], **counts: Mapping[Partition, int]) -> tuple[BatchRange, ...]:
    """Ranges of a batch from the offsets it read by partition; pure.

    Args:
        found: tables with `kafka_offset`, by partition; empty ones are left out.
        counts: rows by table and partition, as `rows_…` of `BatchRange`.
    """
    import pyarrow.compute as pc

    ranges = []
    for partition in sorted(found):
        offsets = found[partition]["kafka_offset"]
        if len(offsets) == 0:
            continue
        span = pc.min_max(offsets)
        rows = {name: by_partition.get(partition, 0) for name, by_partition in counts.items()}
        ranges.append(BatchRange(partition, span["min"].as_py(), span["max"].as_py() + 1, len(offsets), **rows))
    return tuple(ranges)


def rows_by_partition(topic: str, tables: Iterable[pa.Table | None]) -> dict[Partition, int]:
    """Rows of some tables with `kafka_partition`, by partition of a topic; pure."""
    counts: dict[Partition, int] = {}
    for table in tables:
        if table is None or table.num_rows == 0:
            continue
        for row in table.group_by("kafka_partition").aggregate([([], "count_all")]).to_pylist():
            key = (topic, row["kafka_partition"])
            counts[key] = counts.get(key, 0) + row["count_all"]
    return counts


def _application(query: str, generation: str) -> str:
    return f"{query}-{generation}-{BATCHES.name}"


def _rows(batch: Batch) -> pa.Table:
    import pyarrow as pa

    schema = table_schema(BATCHES).remove_metadata()
    rows = [
        {
            "query": batch.query,
            "generation": batch.generation,
            "batch_id": batch.batch_id,
            "kafka_topic": r.partition[0],
            "kafka_partition": r.partition[1],
            "from_offset": r.from_offset,
            "to_offset": r.to_offset,
            "rows_in": r.rows_in,
            "rows_bronze": r.rows_bronze,
            "rows_silver": r.rows_silver,
            "rows_dead_letters": r.rows_dead_letters,
            "rows_duplicates": r.rows_duplicates,
            "rows_placed_before": r.rows_placed_before,
            "source_version": batch.source_version,
            "seconds": Decimal(f"{batch.seconds:.3f}"),
            "committed_at": batch.committed_at,
        }
        for r in batch.ranges
    ]
    return pa.Table.from_pylist(rows, schema=schema)
