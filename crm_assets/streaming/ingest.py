"""Step one, Kafka to bronze: raw bytes and coordinates, nothing parsed, so that nothing in a record can stop the capture.

Belongs here: the ingest query and what it does with a batch. A batch is written with its checkpoint generation and number as a Delta
transaction, by which the next start knows what is in bronze, so it is there once however often it runs; then it is looked up in the log,
counted and noted in the batch ledger.
Not here: what the bytes mean (`transform`), or whether Kafka still holds what the query wants to read (`source_offsets`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crm_assets.streaming.batch_ledger import Batch, BatchLedger, BatchRange, Partition, captured_ends, ranges_of
from crm_assets.streaming.checkpoint import ended_batches, first_offsets, reach
from crm_assets.streaming.crash_points import CrashPoint
from crm_assets.streaming.source_offsets import check_source, starting_offsets, topics
from crm_assets.streaming.tables import BooksOpen, generation_of, ingest_checkpoint
from crm_resources.lake import Commit, DataFile, files_of, open_table, read_columns, read_commit, row_count, table_version
from crm_resources.lake_tables import create_table, last_transaction, refuse_altered
from crm_resources.layout import BRONZE
from crm_resources.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.streaming.query import StreamingQuery
    from pyspark.sql.streaming.readwriter import DataStreamWriter

LOG = logging.getLogger(__name__)

INGEST = "ingest"

RECORDS_OF_ONE_TASK = 20_000
"""Records one task writes in a few tenths of a second. Beyond, all cores share a batch."""

Planned = Mapping[Partition, tuple[int | None, int]]
"""Offsets a batch was to read: the first (`None`: where the partition begins) and the one behind the last, by partition."""


class IngestStep:
    """What the ingest query does with each batch. One object per start of the query.

    Args:
        settings: data set and limits.
        ledger: where batches are noted.
        noted: called with each batch when it is in bronze and in the ledger.
        passing: called at each crash point.
        may_write: raises when the lake's lock is lost; asked before each commit.

    Raises:
        SchemaRefused, TableAltered: bronze is not as the product left it.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: BatchLedger | None = None,
        *,
        noted: Callable[[Batch], None] = lambda _batch: None,
        passing: Callable[[CrashPoint], None] = lambda _point: None,
        may_write: Callable[[], None] = lambda: None,
    ) -> None:
        refuse_altered(settings, [(BRONZE, BRONZE.path)])
        table = create_table(settings, BRONZE)
        self._settings = settings
        self._ledger = ledger or BatchLedger(settings)
        self._noted = noted
        self._passing = passing
        self._may_write = may_write
        self.checkpoint = ingest_checkpoint(settings)
        self.generation = generation_of(self.checkpoint, tables_hold_rows=row_count(settings, BRONZE.path) > 0)
        last = self._last_commit()
        self._settle(last)
        self._written = last_transaction(table, self.application)
        # The commit of the next batch, or of the last one when it is run again, lies behind this version.
        if last is not None and self.application in last.transactions:
            self._version = last.version - 1
        else:
            self._version = table_version(settings, BRONZE.path) or 0

    def __call__(self, batch: DataFrame, batch_id: int) -> None:
        """Write a batch to bronze and note it.

        Args:
            batch: rows with bronze's columns.
            batch_id: number of the batch in this checkpoint generation.

        Raises:
            BooksOpen: rows in bronze are not the records the batch's offsets stand for.
        """
        started = time.monotonic()
        self._passing(CrashPoint.INGEST_BEFORE_COMMIT)
        self._may_write()
        planned = planned_ranges(self.checkpoint, batch_id)
        if batch_id > self._written:
            rows = batch.coalesce(self._files(planned))
            append_by_spark(rows, self._settings.spark_uri(BRONZE.path), application=self.application, version=batch_id)
            self._written = batch_id
        else:
            LOG.warning("batch %s is in bronze already; it is not written again", batch_id)
        self._passing(CrashPoint.INGEST_AFTER_COMMIT)
        commit = self._commit_of(batch_id)
        seconds = time.monotonic() - started
        ranges = self._captured(commit.added)
        self._compare(batch_id, planned, ranges)
        done = Batch(INGEST, self.generation.id, batch_id, ranges, None, seconds, datetime.now(UTC), _newest(commit))
        self._ledger.note(done)
        self._noted(done)
        self._passing(CrashPoint.INGEST_BEFORE_CHECKPOINT)

    @property
    def application(self) -> str:
        """Name of the transactions with which this generation writes bronze."""
        return f"{INGEST}-{self.generation.id}"

    def _settle(self, last: Commit | None) -> None:
        """Note what is in bronze and not in the ledger, so that a new checkpoint knows where each partition ends.

        A batch is noted before the next one is written, so there is at most one that is not: that of an earlier generation which died in
        between and lost its checkpoint. This generation's own is run again and noted then. Rows from before there was a ledger are noted as
        one batch.
        """
        if not captured_ends(self._settings):
            table = open_table(self._settings, BRONZE.path)
            known = {f.path for f in last.added} if last is not None else set()
            older = [] if table is None else [f for f in files_of(table) if f.path not in known]
            self._note_older(older)
        if last is None:
            return
        for generation, batch_id in _batches_of(last):
            if generation != self.generation.id and self._ledger.last_batch(INGEST, generation) < batch_id:
                LOG.warning("batch %s of an earlier checkpoint of %s is in bronze but not in the ledger; noting it", batch_id, INGEST)
                ranges = self._captured(last.added)
                self._ledger.note(Batch(INGEST, generation, batch_id, ranges, None, 0.0, datetime.now(UTC)))

    def _last_commit(self) -> Commit | None:
        """The latest commit of any generation of the query."""
        for version in range(table_version(self._settings, BRONZE.path) or 0, -1, -1):
            commit = read_commit(self._settings, BRONZE.path, version)
            if commit is None or _batches_of(commit):
                return commit
        return None

    def _note_older(self, files: Sequence[DataFile]) -> None:
        found: dict[Partition, BatchRange] = {}
        for file in files:
            for r in self._captured([file]):
                if r.partition[1] < 0:  # did not come through Kafka
                    continue
                before = found.get(r.partition, replace(r, rows_bronze=0))
                first, end = min(before.from_offset, r.from_offset), max(before.to_offset, r.to_offset)
                found[r.partition] = BatchRange(r.partition, first, end, end - first, (before.rows_bronze or 0) + (r.rows_bronze or 0))
        if found:
            LOG.warning("bronze holds records of %s partitions from before there was a ledger; noting them", len(found))
            self._ledger.note(Batch(INGEST, "before-the-ledger", 0, tuple(found.values()), None, 0.0, datetime.now(UTC)))

    def _commit_of(self, batch_id: int) -> Commit:
        """The commit of a batch. Others that lie between, such as upkeep's, are passed over."""
        version = self._version
        while (commit := read_commit(self._settings, BRONZE.path, version + 1)) is not None:
            version += 1
            if commit.transactions.get(self.application) == batch_id:
                self._version = version
                return commit
        raise BooksOpen(
            f"batch {batch_id} of {INGEST} is in none of the versions {self._version + 1} to {version} of bronze, although Delta took it; "
            "another process writes this lake, or the log was changed by hand. Stop it, then start the stream again"
        )

    def _captured(self, files: Sequence[DataFile]) -> tuple[BatchRange, ...]:
        """What files of bronze hold, by partition."""
        import pyarrow.compute as pc

        rows = read_columns(self._settings, BRONZE.path, files, ["kafka_topic", "kafka_partition", "kafka_offset"])
        found = {}
        for topic in pc.unique(rows["kafka_topic"]).to_pylist() if rows.num_rows else []:
            of_topic = rows.filter(pc.equal(rows["kafka_topic"], topic))
            for partition in pc.unique(of_topic["kafka_partition"]).to_pylist():
                found[topic, partition] = of_topic.filter(pc.equal(of_topic["kafka_partition"], partition))
        ranges = ranges_of(found)
        return tuple(replace(r, rows_bronze=r.rows_in, rows_in=r.to_offset - r.from_offset) for r in ranges)

    def _files(self, planned: Planned) -> int:
        """In how many tasks to write, each of which leaves a file per topic: a small batch is not worth a second one."""
        records = sum(end - begin for begin, end in planned.values() if begin is not None)
        return self._settings.spark_cores if records > RECORDS_OF_ONE_TASK else 1

    def _compare(self, batch_id: int, wanted: Planned, ranges: tuple[BatchRange, ...]) -> None:
        """Rows written against records read, partition by partition."""
        written = {r.partition: r for r in ranges}
        for partition, (begin, end) in wanted.items():
            found = written.get(partition)
            rows = 0 if found is None else found.rows_bronze or 0
            first = begin if begin is not None and not self._settings.accept_gaps else (found.from_offset if found else end)
            if rows != end - first:
                topic, number = partition
                raise BooksOpen(
                    f"batch {batch_id} of {INGEST} read {end - first} offsets of {topic}[{number}], {first} to {end - 1}, but has {rows} "
                    "rows in bronze. If producers write this topic in transactions, which leave offsets without records, have them "
                    "write without; otherwise look at the disk, and run `make audit`"
                )


def append_by_spark(rows: DataFrame, uri: str, *, application: str, version: int) -> None:
    """Append rows in one commit that carries a Delta transaction. Whether that transaction was there before is the caller's question.

    Delta's options `txnAppId` and `txnVersion` ask that at each write, and Spark then puts the state of the whole table together from its
    log, which takes nearly as long as writing a small batch. So this goes to the transaction that Delta's own writers are made of.

    Args:
        rows: rows with the table's columns.
        uri: the table, as Spark names it.
        application: name of the transaction, with the checkpoint's generation in it.
        version: number of the transaction.
    """
    session: Any = rows.sparkSession
    java = session._jvm
    delta, option = java.org.apache.spark.sql.delta, java.scala.Option
    transaction = delta.DeltaLog.forTable(session._jsparkSession, uri).startTransaction(option.empty(), option.empty())
    files = transaction.writeFiles(rows._jdf)
    transaction.updateSetTransaction(application, version, option.apply(time.time_ns() // 1_000_000))
    unsaid = [option.empty()] * 8  # condition, partitions to replace, changes of the schema and the like: an append has none
    transaction.commit(files, delta.DeltaOperations.Write(java.org.apache.spark.sql.SaveMode.Append, *unsaid))


def _batches_of(commit: Commit) -> list[tuple[str, int]]:
    """Generations and batches of `ingest` among a commit's transactions, which are named `ingest-<generation>`."""
    return [(name.removeprefix(f"{INGEST}-"), batch) for name, batch in commit.transactions.items() if name.startswith(f"{INGEST}-")]


def planned_ranges(checkpoint: Path, batch_id: int) -> Planned:
    """Offsets a batch was to read, by partition: the first, and the one behind the last. Spark notes them before it runs the batch.

    The first is `None` where Spark began at the start of a partition that was new. Partitions without new records are left out.

    Args:
        checkpoint: folder of the ingest query's checkpoint.
        batch_id: the batch.
    """
    ends = _by_partition(reach(checkpoint, batch_id))
    before = _by_partition(reach(checkpoint, batch_id - 1) or first_offsets(checkpoint))
    return {p: (before.get(p), end) for p, end in ends.items() if before.get(p) != end}


def planned_ends(checkpoint: Path) -> dict[Partition, int]:
    """Where the last committed batch of a checkpoint ended, by partition; nothing comes of a checkpoint without one."""
    done = ended_batches(checkpoint)
    return _by_partition(reach(checkpoint, done[-1])) if done else {}


def _by_partition(offsets: Mapping[str, Any] | None) -> dict[Partition, int]:
    return {(topic, int(p)): int(offset) for topic, partitions in (offsets or {}).items() for p, offset in partitions.items()}


def _newest(commit: Commit) -> datetime | None:
    """Kafka's time of the newest record of a commit, from its files' statistics."""
    times = [str(f.maximum["kafka_timestamp"]) for f in commit.added if "kafka_timestamp" in f.maximum]
    return datetime.fromisoformat(max(times)).astimezone(UTC) if times else None


def start_ingest(spark: SparkSession, settings: Settings, step: IngestStep | None = None) -> StreamingQuery:
    """Start the endless query Kafka → bronze.

    Raises:
        TopicsMissing: a topic does not exist.
        SourceLost: Kafka no longer holds what was to be read next.
    """
    delay = f"{int(settings.max_trigger_delay_seconds * 1000)}ms"
    least = {"minOffsetsPerTrigger": str(settings.min_records_per_batch), "maxTriggerDelay": delay}
    writer = _writer(spark, settings, step or IngestStep(settings), least if settings.max_trigger_delay_seconds else {})
    return writer.trigger(processingTime=f"{int(settings.trigger_seconds * 1000)} milliseconds").start()


def drain_ingest(spark: SparkSession, settings: Settings, step: IngestStep | None = None) -> StreamingQuery:
    """Start the query for what is in Kafka now; it ends by itself.

    Raises:
        TopicsMissing: a topic does not exist.
        SourceLost: Kafka no longer holds what was to be read next.
    """
    return _writer(spark, settings, step or IngestStep(settings), {}).trigger(availableNow=True).start()


def _writer(spark: SparkSession, settings: Settings, step: IngestStep, options: Mapping[str, str]) -> DataStreamWriter:
    spark.sparkContext.setLocalProperty("spark.scheduler.pool", INGEST)
    rows = _bronze_rows(_kafka_rows(spark, settings, step, options))
    return rows.writeStream.queryName(INGEST).option("checkpointLocation", str(step.checkpoint)).foreachBatch(step)


def _kafka_rows(spark: SparkSession, settings: Settings, step: IngestStep, options: Mapping[str, str]) -> DataFrame:
    planned = planned_ends(step.checkpoint)
    following = planned or captured_ends(settings)
    partitions = check_source(settings, following)
    if following and not planned:
        LOG.warning("the checkpoint of %s is new, bronze holds records of %s partitions: going on behind them", INGEST, len(following))
    return (
        spark.readStream.format("kafka")
        .option("kafka.bootstrap.servers", settings.kafka_bootstrap)
        .option("subscribe", ",".join(topics(settings)))
        .option("startingOffsets", starting_offsets(partitions, following))
        .option("failOnDataLoss", "false" if settings.accept_gaps else "true")
        .option("maxOffsetsPerTrigger", str(settings.max_records_per_batch))
        .options(**options)
        .option("groupIdPrefix", f"crm-{settings.env}-{INGEST}")
        .option("kafka.max.partition.fetch.bytes", str(9 * 1024 * 1024))
        .load()
    )


def _bronze_rows(records: DataFrame) -> DataFrame:
    from pyspark.sql import functions as F

    now = F.current_timestamp()
    return records.select(
        F.col("partition").alias("kafka_partition"),
        F.col("offset").alias("kafka_offset"),
        F.col("timestamp").alias("kafka_timestamp"),
        now.alias("ingested_at"),
        F.col("key").alias("kafka_key"),
        "value",
        F.col("topic").alias("kafka_topic"),
        F.to_date(now).alias("ingest_date"),
    )
