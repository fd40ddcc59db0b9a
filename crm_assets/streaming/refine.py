"""Step two, bronze to silver, dead letters and duplicates: every record of a batch gets exactly one place.

Belongs here: the refine query and what it does with a batch. A batch may run any number of times: its classification depends
on stored facts only, a record that is in silver under its own coordinates is itself, and each write carries the batch as a
Delta transaction. Not here: what makes a record good (`transform`) or a duplicate (`history`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crm_assets.streaming.history import IDENTITY, Decision, FileIndex, PlacedCoordinates, Verdict, decide, placed_coordinates
from crm_assets.streaming.tables import Place, bronze_schema, create_bronze, create_refined, generation_of, refined_tables
from crm_assets.streaming.transform import DETAIL, OK, RAW, REASON, Limits, Screen, classify
from crm_resources.contracts import Contract, Reason, contracts
from crm_resources.lake import files_of, open_table, read_columns, read_commit, row_count, unquoted
from crm_resources.layout import BRONZE, COORDINATES, DEAD_LETTERS, DUPLICATES, PAYLOAD_HASH, SILVER, LakeTable, silver_columns, topic_name
from crm_resources.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.streaming.query import StreamingQuery
    from pyspark.sql.streaming.readwriter import DataStreamWriter

LOG = logging.getLogger(__name__)

REFINE = "refine"

BYTES_PER_RECORD = 60
"""Size of a record in a bronze file while bronze is empty; then its own mean is taken."""

ROWS_PER_FILE = 500_000
"""A batch's rows of one table go to one file up to this many."""


MAX_FILES = 512
"""Most files of bronze a batch reads: a long backlog of small files is worked off in batches of bearable size."""

MAX_EVENT_ID_BYTES = 200


class BooksOpen(RuntimeError):
    """A batch wrote another number of rows than it read. The query stops; the batch is not committed."""


class StepClosed(RuntimeError):
    """A batch came after the step was closed; the next start of the stream takes it."""


@dataclass(frozen=True)
class BatchCounts:
    """What became of the records of a batch; `read` is the sum of the others but `placed_before` counts those of an older checkpoint."""

    read: int = 0
    silver: int = 0
    dead_letters: int = 0
    duplicates: int = 0
    placed_before: int = 0

    def __add__(self, other: BatchCounts) -> BatchCounts:
        return BatchCounts(
            self.read + other.read,
            self.silver + other.silver,
            self.dead_letters + other.dead_letters,
            self.duplicates + other.duplicates,
            self.placed_before + other.placed_before,
        )


@dataclass
class _Table:
    """Writer's view of a table: its version, its last transaction of this generation, and for silver its files by id."""

    table: LakeTable
    path: str
    version: int
    last_batch: int
    index: FileIndex = field(default_factory=FileIndex)


@dataclass(frozen=True)
class _Sorted:
    """The records of one entity in a batch, each with its place."""

    contract: Contract
    counts: BatchCounts
    silver: DataFrame | None = None
    dead_letters: DataFrame | None = None
    duplicates: DataFrame | None = None
    cached: tuple[DataFrame, ...] = ()


class RefineStep:
    """What the refine query does with each batch. One object per start of the query.

    Args:
        spark: session for tables that have to be made.
        settings: environment and limits.
        place: live tables, or those of a rebuild.
        after_commit: called with the name of a table after a batch's rows are in it; tests crash there.
    """

    def __init__(
        self, spark: SparkSession, settings: Settings, place: Place, after_commit: Callable[[str], None] = lambda _name: None
    ) -> None:
        create_refined(spark, settings, place)
        self._settings = settings
        self.place = place
        self._limits = Limits(settings.future_tolerance_seconds)
        self._screens = {c.entity: Screen(c, self._limits) for c in contracts()}
        self._after_commit = after_commit
        rows = sum(row_count(settings, place.path(t)) for t in refined_tables())
        self.generation = generation_of(place.checkpoint, tables_hold_rows=rows > 0)
        self._tables = {t.name: self._opened(t) for t in refined_tables()}
        self._placed = self._placed_before() if self.generation.over_existing else PlacedCoordinates()
        self.total = BatchCounts()
        self.rows_per_second = 0.0
        self._gate = threading.Lock()
        self._closed = False

    def close(self, timeout_seconds: float) -> bool:
        """Let no further batch begin, and wait for the one in hand.

        Args:
            timeout_seconds: longest wait.

        Returns:
            Whether no batch is in hand any more.
        """
        self._closed = True
        ended = self._gate.acquire(timeout=timeout_seconds)
        if ended:
            self._gate.release()
        return ended

    def __call__(self, batch: DataFrame, batch_id: int) -> None:
        """Place every record of a batch.

        Args:
            batch: rows with bronze's columns.
            batch_id: number of the batch in this checkpoint generation.

        Raises:
            BooksOpen: rows written are not rows read.
            StepClosed: the stream is stopping.
        """
        with self._gate:
            if self._closed:
                raise StepClosed(f"batch {batch_id} is not begun, the stream is stopping")
            started = time.monotonic()
            before = self.total.read
            self._place_all(batch, batch_id)
            self.rows_per_second = (self.total.read - before) / max(time.monotonic() - started, 1e-9)

    def _place_all(self, batch: DataFrame, batch_id: int) -> None:
        with ThreadPoolExecutor(max_workers=len(contracts()) + 2, thread_name_prefix=f"refine-{batch_id}") as pool:
            sorting = [pool.submit(self._sort, records, contract) for contract, records in self._by_contract(batch)]
            done = [f.result() for f in sorting]
            try:
                writes = [(SILVER[s.contract.plural], [s.silver], s.counts.silver) for s in done if s.silver is not None]
                dead = [s.dead_letters for s in done if s.dead_letters is not None]
                dropped = [s.duplicates for s in done if s.duplicates is not None]
                counts = sum((s.counts for s in done), BatchCounts())
                writes.append((DEAD_LETTERS, dead, counts.dead_letters))
                writes.append((DUPLICATES, dropped, counts.duplicates))
                running = [pool.submit(self._write, table, frames, rows, batch_id) for table, frames, rows in writes if frames]
                for future in running:
                    future.result()
            finally:
                for frame in (f for s in done for f in s.cached):
                    _release(frame)
        if counts.read != counts.silver + counts.dead_letters + counts.duplicates + counts.placed_before:
            raise BooksOpen(f"batch {batch_id}: the records do not add up, {counts}; the batch is not committed")
        self.total += counts

    def _by_contract(self, batch: DataFrame) -> list[tuple[Contract, DataFrame]]:
        """The batch's records of each entity that has some.

        The frame Spark hands over can only be read as a whole, four times for four entities. Its files are bronze's, one topic
        each, and reading those directly saves a tenth of the step's work.
        """
        from pyspark.sql import functions as F

        topics = {topic_name(self._settings.env, c.plural): c for c in contracts()}
        paths = _paths_of(batch)
        if paths is None:
            return [(contract, batch.where(F.col("kafka_topic") == topic)) for topic, contract in topics.items()]
        by_topic: dict[str, list[str]] = {}
        for path in paths:
            by_topic.setdefault(_topic_of(path), []).append(path)
        unknown = sorted(set(by_topic) - set(topics))
        if unknown:
            raise BooksOpen(
                f"bronze holds records of {', '.join(unknown)}, for which there is no contract; none of this batch is committed"
            )
        reader = batch.sparkSession.read.schema(bronze_schema()).option("basePath", self._settings.table_uri(BRONZE.path))
        return [(contract, reader.parquet(*by_topic[topic])) for topic, contract in topics.items() if topic in by_topic]

    def _sort(self, records: DataFrame, contract: Contract) -> _Sorted:
        """Decide on the place of each record of one entity."""
        import pyarrow as pa
        from pyspark.sql import functions as F

        spark = records.sparkSession
        _share(spark)
        topic, names = topic_name(self._settings.env, contract.plural), [c.name for c in silver_columns(contract)]
        screened = self._screens[contract.entity](records).localCheckpoint(eager=False)
        cached = [screened]
        seen = screened.select(*IDENTITY, OK).toArrow()
        if seen.num_rows == 0:
            return _Sorted(contract, BatchCounts(), cached=tuple(cached))
        good, candidates = screened.where(OK).select(*names), seen.filter(seen[OK]).select(IDENTITY)
        bad, refused = None, seen.slice(0, 0)
        if candidates.num_rows < seen.num_rows:
            suspects = records.join(F.broadcast(screened.where(~F.col(OK)).select(*_POSITION)), _POSITION)
            judged = classify(suspects, contract, self._limits).localCheckpoint(eager=False)
            cached.append(judged)
            reasons = judged.select(*IDENTITY, REASON).toArrow()
            rescued, refused = reasons.filter(reasons[REASON].is_null()), reasons.filter(reasons[REASON].is_valid())
            bad = judged.where(F.col(REASON).isNotNull())
            if rescued.num_rows:
                candidates = pa.concat_tables([candidates, rescued.select(IDENTITY).cast(candidates.schema)])
                good = good.union(judged.where(F.col(REASON).isNull()).select(*names))
        placed = self._placed.decisions(topic, seen)
        decisions = [*placed, *decide(_without(candidates, placed), self._history(contract, candidates))]
        duplicates = sum(d.verdict is Verdict.DUPLICATE for d in decisions)
        conflicts = sum(d.verdict is Verdict.CONFLICT for d in decisions)
        counts = BatchCounts(
            read=seen.num_rows,
            silver=_without(candidates, placed).num_rows - duplicates - conflicts,
            dead_letters=_without(refused, placed).num_rows + conflicts,
            duplicates=duplicates,
            placed_before=len(placed),
        )
        dead: list[DataFrame] = []
        dropped: DataFrame | None = None
        if decisions:
            decided = F.broadcast(_decisions_frame(spark, decisions))
            if duplicates:
                dropped = good.join(decided.where(F.col("verdict") == Verdict.DUPLICATE), _POSITION).select(
                    "event_id", F.lit(contract.entity).alias("entity"), PAYLOAD_HASH.name, *(c.name for c in COORDINATES)
                )
            if conflicts:
                dead.append(_conflicting(records, good, decided.where(F.col("verdict") == Verdict.CONFLICT), contract))
            if placed and bad is not None:
                bad = bad.join(decided, _POSITION, "left_anti")
            good = good.join(decided, _POSITION, "left_anti")
        if bad is not None and _without(refused, placed).num_rows:
            dead.append(_dead_letters(bad, contract))
        return _Sorted(
            contract,
            counts,
            silver=good.select(*names) if counts.silver else None,
            dead_letters=_union(dead) if dead else None,
            duplicates=dropped,
            cached=tuple(cached),
        )

    def _history(self, contract: Contract, candidates: pa.Table) -> pa.Table:
        """Accepted records of the files whose id range the batch touches, those with one of its ids."""
        import pyarrow as pa
        import pyarrow.compute as pc

        table = self._tables[SILVER[contract.plural].name]
        ids = pc.unique(candidates["event_id"])
        found = []
        for file in table.index.overlapping(ids):
            rows = read_columns(self._settings, table.path, [file], IDENTITY)
            found.append(rows.filter(pc.is_in(rows["event_id"], value_set=ids)))
        return pa.concat_tables(found, promote_options="permissive") if found else candidates.slice(0, 0)

    def _write(self, table: LakeTable, frames: Sequence[DataFrame], rows: int, batch_id: int) -> None:
        """Append a batch's rows to a table, unless this batch did so before."""
        state = self._tables[table.name]
        if state.last_batch >= batch_id:
            LOG.warning("batch %s is in %s already; it is not written again", batch_id, table.name)
            return
        frame = _union(frames)
        _share(frame.sparkSession)
        files = -(-rows // ROWS_PER_FILE)
        (
            frame.coalesce(files)
            .write.format("delta")
            .mode("append")
            .option("txnAppId", self._application(table))
            .option("txnVersion", str(batch_id))
            .save(self._settings.table_uri(state.path))
        )
        commit = read_commit(self._settings, state.path, state.version + 1)
        if commit is None or commit.transactions.get(self._application(table)) != batch_id:
            raise BooksOpen(
                f"batch {batch_id}: version {state.version + 1} of {table.name} is not this batch's; another process writes this lake. "
                "Stop it, then start the stream again"
            )
        if commit.rows_written != rows:
            raise BooksOpen(f"batch {batch_id}: {commit.rows_written} rows were written to {table.name}, {rows} belong there")
        state.version, state.last_batch = commit.version, batch_id
        if table.name in SILVER:
            state.index.add(commit.added)
        self._after_commit(table.name)

    def _opened(self, table: LakeTable) -> _Table:
        path = self.place.path(table)
        opened = open_table(self._settings, path)
        if opened is None:
            raise BooksOpen(f"{self._settings.table_uri(path)} is gone although it was just made; look at the disk")
        last = opened.transaction_version(self._application(table))
        state = _Table(table, path, int(opened.version()), -1 if last is None else int(last))
        if table.name in SILVER:
            state.index.add(files_of(opened))
        return state

    def _application(self, table: LakeTable) -> str:
        return f"{REFINE}-{self.generation.id}-{table.name}"

    def _placed_before(self) -> PlacedCoordinates:
        """Coordinates of all rows in the tables, read once: the checkpoint is new, they are not."""
        columns = ["kafka_topic", "kafka_partition", "kafka_offset"]
        found = []
        for table in refined_tables():
            path = self.place.path(table)
            opened = open_table(self._settings, path)
            files = [] if opened is None else files_of(opened)
            found.append(read_columns(self._settings, path, files, columns))
        return placed_coordinates(found)


_POSITION = ["kafka_partition", "kafka_offset"]


def start_refine(spark: SparkSession, settings: Settings, step: RefineStep) -> StreamingQuery:
    """Start the endless query bronze → silver."""
    seconds = f"{int(settings.trigger_seconds * 1000)} milliseconds"
    return _writer(spark, settings, step).trigger(processingTime=seconds).start()


def drain_refine(spark: SparkSession, settings: Settings, step: RefineStep) -> StreamingQuery:
    """Start the query for what is in bronze now; it ends by itself."""
    return _writer(spark, settings, step).trigger(availableNow=True).start()


def _writer(spark: SparkSession, settings: Settings, step: RefineStep) -> DataStreamWriter:
    create_bronze(spark, settings)
    _share(spark)
    rows = (
        spark.readStream.format("delta")
        .option("maxBytesPerTrigger", str(batch_bytes(settings)))
        .option("maxFilesPerTrigger", str(MAX_FILES))
        .load(settings.table_uri(BRONZE.path))
    )
    return rows.writeStream.queryName(REFINE).option("checkpointLocation", str(step.place.checkpoint)).foreachBatch(step)


def batch_bytes(settings: Settings) -> int:
    """Bytes of bronze that hold about `max_records_per_batch` records; Delta's source has no limit by records."""
    table = open_table(settings, BRONZE.path)
    files = [] if table is None else files_of(table)
    rows, size = sum(f.rows for f in files), sum(f.size_bytes for f in files)
    return int(settings.max_records_per_batch * (size / rows if rows else BYTES_PER_RECORD)) or 1


def _share(spark: SparkSession) -> None:
    """Put what this thread runs into the refine query's share of the cores."""
    spark.sparkContext.setLocalProperty("spark.scheduler.pool", REFINE)


def _paths_of(batch: DataFrame) -> list[str] | None:
    """Data files a frame of Delta's source reads, as its scan holds them; `None` for a frame of another making."""
    plan = batch._jdf.logicalPlan()
    if not plan.getClass().getSimpleName().startswith("LogicalRDD"):
        return None
    rdd = plan.rdd()
    while rdd.getClass().getSimpleName() != "FileScanRDD":
        dependencies = rdd.dependencies()
        if dependencies.size() != 1:
            return None
        rdd = dependencies.head().rdd()
    partitions = rdd.filePartitions()
    paths = {str(file.filePath().toString()) for i in range(partitions.size()) for file in partitions.apply(i).files()}
    return sorted(unquoted(path) for path in paths)


def _topic_of(path: str) -> str:
    """Topic of a file of bronze, from its partition's folder."""
    folder = next(part for part in path.split("/") if part.startswith("kafka_topic="))
    return folder.removeprefix("kafka_topic=")


def _without(rows: pa.Table, decisions: list[Decision]) -> pa.Table:
    """Rows but those decided on, by coordinates."""
    import pyarrow as pa

    if not decisions or not rows.num_rows:
        return rows
    decided = {(d.kafka_partition, d.kafka_offset) for d in decisions}
    pairs = zip(rows["kafka_partition"].to_pylist(), rows["kafka_offset"].to_pylist(), strict=True)
    return rows.filter(pa.array([pair not in decided for pair in pairs]))


def _decisions_frame(spark: SparkSession, decisions: list[Decision]) -> DataFrame:
    import pyarrow as pa

    table = pa.table(
        {
            "kafka_partition": pa.array([d.kafka_partition for d in decisions], pa.int32()),
            "kafka_offset": pa.array([d.kafka_offset for d in decisions], pa.int64()),
            "verdict": pa.array([str(d.verdict) for d in decisions], pa.string()),
            "first": pa.array([f"partition {d.first_partition}, offset {d.first_offset}" for d in decisions], pa.string()),
        }
    )
    return spark.createDataFrame(table)


def _conflicting(records: DataFrame, good: DataFrame, conflicts: DataFrame, contract: Contract) -> DataFrame:
    """Dead letters of good records whose id was taken by another payload; their bytes are read again from the batch."""
    from pyspark.sql import functions as F

    typed = good.join(conflicts, _POSITION).select(
        *_POSITION,
        "event_id",
        F.lit(str(Reason.CONFLICTING_DUPLICATE)).alias(REASON),
        F.concat(F.lit("the accepted record is at "), F.col("first")).alias(DETAIL),
    )
    return _dead_letters(records.join(F.broadcast(typed), _POSITION), contract)


def _dead_letters(rows: DataFrame, contract: Contract) -> DataFrame:
    """Rows with coordinates, raw bytes, event id, reason and detail, in the dead letters' columns."""
    from pyspark.sql import functions as F

    now = F.current_timestamp()
    readable = F.when(F.octet_length("event_id") <= MAX_EVENT_ID_BYTES, F.col("event_id"))
    return rows.select(
        readable.alias("event_id"),
        *(c.name for c in COORDINATES),
        *RAW,
        F.lit(contract.entity).alias("entity"),
        REASON,
        DETAIL,
        F.lit(REFINE).alias("stage"),
        F.lit(1).alias("attempt"),
        now.alias("first_failed_at"),
        now.alias("failed_at"),
    )


def _union(frames: Sequence[DataFrame]) -> DataFrame:
    from functools import reduce

    return reduce(lambda a, b: a.union(b), frames)


def _release(frame: DataFrame) -> None:
    """Give back the memory of a locally checkpointed frame now; Spark itself would wait for Java's garbage collector."""
    frame._jdf.logicalPlan().rdd().unpersist(False)
