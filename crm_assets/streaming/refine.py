"""Step two, bronze to silver, dead letters and duplicates: every record of a batch gets exactly one place.

Spark reads and judges the records; what it found comes here as Arrow, duplicates are told, and delta-rs appends to the tables,
which only this step writes. A batch may run any number of times: its classification depends on stored facts only, a record that
is in silver under its own coordinates is itself, and each write carries the batch as a Delta transaction. Not here: what makes
a record good (`transform`) or a duplicate (`history`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from crm_assets.streaming.batch_ledger import Batch, BatchLedger, BatchRange, ranges_of, rows_by_partition
from crm_assets.streaming.crash_points import CrashPoint
from crm_assets.streaming.history import IDENTITY, Decision, FileIndex, Verdict, decide
from crm_assets.streaming.resumption import resumption, source_version
from crm_assets.streaming.tables import BooksOpen, Place, create_refined, generation_of, refined_tables
from crm_assets.streaming.transform import DETAIL, OK, RAW, REASON, Classifier, Limits, Screen
from crm_resources.contracts import Contract, Reason, contracts
from crm_resources.contracts.derive_spark import silver_type
from crm_resources.lake import files_of, open_table, read_columns, read_commit, row_count, table_version, unquoted
from crm_resources.lake_tables import append_rows, create_table, last_transaction, table_schema
from crm_resources.layout import BRONZE, COORDINATES, DEAD_LETTERS, DUPLICATES, SILVER, LakeTable, silver_columns, topic_name
from crm_resources.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.streaming.query import StreamingQuery
    from pyspark.sql.streaming.readwriter import DataStreamWriter

LOG = logging.getLogger(__name__)

REFINE = "refine"

BYTES_PER_RECORD = 60
"""Size of a record in a bronze file while bronze is empty; then its own mean is taken."""

MAX_FILES = 512
"""Most files of bronze a batch reads: a long backlog of small files is worked off in batches of bearable size."""

MAX_EVENT_ID_BYTES = 200


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
    """Writer's view of a table: the open table, its last batch of this generation, and for silver its files by id."""

    table: LakeTable
    path: str
    delta: DeltaTable
    last_batch: int
    index: FileIndex = field(default_factory=FileIndex)


@dataclass(frozen=True)
class Placed:
    """The records of one entity in a batch, by the table they go to. `read` holds the coordinates of all of them."""

    contract: Contract
    counts: BatchCounts
    read: pa.Table
    silver: pa.Table
    dead_letters: pa.Table | None = None
    duplicates: pa.Table | None = None


class RefineStep:
    """What the refine query does with each batch. One object per start of the query.

    Args:
        settings: environment and limits.
        place: live tables, or those of a rebuild.
        ledger: where batches are noted.
        noted: called with each batch when its rows are in their tables and it is in the ledger.
        passing: called at each crash point.
        may_write: raises when the lake's lock is lost; asked before each commit.
    """

    def __init__(
        self,
        settings: Settings,
        place: Place,
        ledger: BatchLedger | None = None,
        *,
        noted: Callable[[Batch], None] = lambda _batch: None,
        passing: Callable[[CrashPoint], None] = lambda _point: None,
        may_write: Callable[[], None] = lambda: None,
    ) -> None:
        create_refined(settings, place)
        self._settings = settings
        self.place = place
        self._limits = Limits(settings.future_tolerance_seconds)
        self._screens = {c.entity: Screen(c, self._limits) for c in contracts()}
        self._classifiers: dict[str, Classifier] = {}
        self._ledger = ledger or BatchLedger(settings)
        self._noted = noted
        self._passing = passing
        self._may_write = may_write
        rows = sum(row_count(settings, place.path(t)) for t in refined_tables())
        bronze = table_version(settings, BRONZE.path)
        self.generation = generation_of(place.checkpoint, tables_hold_rows=rows > 0, bronze_version=-1 if bronze is None else bronze)
        self._tables = {t.name: self._opened(t) for t in refined_tables()}
        self.resumption = resumption(settings, place, self.generation)
        self.total = BatchCounts()
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
            self._place_all(batch, batch_id)

    @contextmanager
    def between_batches(self) -> Iterator[None]:
        """Time between two batches, in which another thread of the driver may write the tables; the step looks at them anew then.

        Raises:
            StepClosed: the stream is stopping.
        """
        with self._gate:
            if self._closed:
                raise StepClosed("the stream is stopping")
            try:
                yield
            finally:
                self._tables = {t.name: self._opened(t) for t in refined_tables()}

    def _place_all(self, batch: DataFrame, batch_id: int) -> None:
        import pyarrow.compute as pc

        started = time.monotonic()
        with ThreadPoolExecutor(max_workers=len(contracts()) + 2, thread_name_prefix=f"refine-{batch_id}") as pool:
            placing = [pool.submit(self._place_entity, records, contract) for contract, records in self._by_contract(batch)]
            done = [f.result() for f in placing]
            counts = sum((p.counts for p in done), BatchCounts())
            writes: list[tuple[LakeTable, list[pa.Table | None], int]]
            writes = [(SILVER[p.contract.plural], [p.silver], p.counts.silver) for p in done]
            writes.append((DEAD_LETTERS, [p.dead_letters for p in done], counts.dead_letters))
            writes.append((DUPLICATES, [p.duplicates for p in done], counts.duplicates))
            self._passing(CrashPoint.REFINE_BEFORE_COMMIT)
            for future in [pool.submit(self._write, table, parts, rows, batch_id) for table, parts, rows in writes]:
                future.result()
        self._passing(CrashPoint.REFINE_AFTER_COMMIT)
        if counts.read != counts.silver + counts.dead_letters + counts.duplicates + counts.placed_before:
            raise BooksOpen(f"batch {batch_id}: the records do not add up, {counts}; the batch is not committed")
        version = source_version(self.place.checkpoint, batch_id)
        ranges = tuple(r for p in done for r in self._ranges(p))
        newest = max((pc.max(p.read["kafka_timestamp"]).as_py() for p in done if p.read.num_rows), default=None)
        seconds = time.monotonic() - started
        noted = Batch(self.place.query, self.generation.id, batch_id, ranges, version, seconds, datetime.now(UTC), newest)
        self._ledger.note(noted)
        self._noted(noted)
        self.total += counts
        self._passing(CrashPoint.REFINE_BEFORE_CHECKPOINT)

    def _ranges(self, placed: Placed) -> tuple[BatchRange, ...]:
        """What became of an entity's records, by partition."""
        import pyarrow.compute as pc

        topic = topic_name(self._settings.env, placed.contract.plural)
        partitions = pc.unique(placed.read["kafka_partition"]).to_pylist()
        read = {(topic, p): placed.read.filter(pc.equal(placed.read["kafka_partition"], p)) for p in partitions}
        silver = rows_by_partition(topic, [placed.silver])
        dead = rows_by_partition(topic, [placed.dead_letters])
        duplicates = rows_by_partition(topic, [placed.duplicates])
        before = {k: t.num_rows - silver.get(k, 0) - dead.get(k, 0) - duplicates.get(k, 0) for k, t in read.items()}
        return ranges_of(read, rows_silver=silver, rows_dead_letters=dead, rows_duplicates=duplicates, rows_placed_before=before)

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
        reader = batch.sparkSession.read.schema(silver_type(BRONZE.columns)).option("basePath", self._settings.spark_uri(BRONZE.path))
        return [(contract, reader.parquet(*by_topic[topic])) for topic, contract in topics.items() if topic in by_topic]

    def _place_entity(self, records: DataFrame, contract: Contract) -> Placed:
        """Decide on the place of each record of one entity."""
        _share(records.sparkSession)
        topic = topic_name(self._settings.env, contract.plural)
        read, good, refused = self._judge(records, contract)
        before = self.resumption.placed.decisions(topic, read)
        placed = self.assign(records, contract, _others(good, before), _others(refused, before), datetime.now(UTC))
        return replace(placed, counts=placed.counts + BatchCounts(read=len(before), placed_before=len(before)), read=read)

    def _judge(self, records: DataFrame, contract: Contract) -> tuple[pa.Table, pa.Table, pa.Table]:
        """Coordinates of all records, the good ones in silver's columns, and refused ones with their bytes and the reason."""
        import pyarrow as pa
        import pyarrow.compute as pc

        names = [c.name for c in silver_columns(contract)]
        screened = self._screens[contract.entity](records).toArrow()
        good = screened.filter(screened[OK]).select(names)
        read = screened.select(_READ)
        if good.num_rows == screened.num_rows:
            return read, good, good.slice(0, 0)
        suspects = _with_bytes(records, screened.filter(pc.invert(screened[OK])))
        # Not needed before the first record that is no good, and kept from then on.
        classifier = self._classifiers.get(contract.entity) or Classifier(contract, self._limits)
        self._classifiers[contract.entity] = classifier
        rescued, refused = judged_thoroughly(suspects, classifier)
        return read, pa.concat_tables([good, rescued.cast(good.schema)]), refused

    def assign(
        self,
        records: DataFrame,
        contract: Contract,
        good: pa.Table,
        refused: pa.Table,
        now: datetime,
        accepted: Sequence[pa.Table] = (),
    ) -> Placed:
        """Where judged records of one entity go: good ones to silver, unless their id was accepted before. Writes nothing.

        Args:
            records: the same records with bronze's columns; the bytes of conflicting ones are read from it.
            contract: contract of their topic.
            good: records in silver's columns.
            refused: records with coordinates, bytes, event id, reason and detail.
            now: time of the refusals.
            accepted: `IDENTITY` columns of records that count as accepted although they are not in silver.
        """
        import pyarrow as pa

        history = [self._history(contract, good), *accepted] if good.num_rows else []
        decisions = decide(good.select(IDENTITY), pa.concat_tables([h.select(IDENTITY) for h in history])) if history else []
        duplicates = [d for d in decisions if d.verdict is Verdict.DUPLICATE]
        conflicts = [d for d in decisions if d.verdict is Verdict.CONFLICT]
        dead = [dead_letters(refused, contract, now)] if refused.num_rows else []
        if conflicts:
            dead.append(dead_letters(_conflicting(records, good, conflicts), contract, now))
        silver = _others(good, decisions)
        return Placed(
            contract,
            BatchCounts(good.num_rows + refused.num_rows, silver.num_rows, sum(d.num_rows for d in dead), len(duplicates)),
            pa.concat_tables([good.select(_READ), refused.select(_READ)], promote_options="permissive"),
            silver,
            pa.concat_tables(dead) if dead else None,
            _those(good, duplicates) if duplicates else None,
        )

    def _history(self, contract: Contract, candidates: pa.Table) -> pa.Table:
        """Accepted records of the files whose id range the batch touches, those with one of its ids."""
        import pyarrow as pa
        import pyarrow.compute as pc

        table = self._tables[SILVER[contract.plural].name]
        ids = pc.unique(candidates["event_id"])
        found = [candidates.slice(0, 0).select(IDENTITY)]
        for file in table.index.overlapping(ids):
            rows = read_columns(self._settings, table.path, [file], IDENTITY)
            found.append(rows.filter(pc.is_in(rows["event_id"], value_set=ids)))
        return pa.concat_tables(found, promote_options="permissive")

    def _write(self, table: LakeTable, parts: Sequence[pa.Table | None], rows: int, batch_id: int) -> None:
        """Append a batch's rows to a table, unless there are none or this batch did so before."""
        if rows == 0:
            return
        state = self._tables[table.name]
        if state.last_batch >= batch_id:
            LOG.warning("batch %s is in %s already; it is not written again", batch_id, table.name)
            return
        self.append(table, parts, rows, application=self._application(table), number=batch_id)
        state.last_batch = batch_id
        self._passing(CrashPoint.REFINE_BETWEEN_TABLES)

    def append(self, table: LakeTable, parts: Sequence[pa.Table | None], rows: int, *, application: str, number: int) -> None:
        """Append rows to one of the step's tables, and see that they are there.

        Args:
            table: one of `refined_tables`.
            parts: tables with at least its columns.
            rows: how many they hold together.
            application: name of the Delta transaction.
            number: its number.

        Raises:
            BooksOpen: something else was committed.
        """
        import pyarrow as pa

        state = self._tables[table.name]
        before = int(state.delta.version())
        schema = table_schema(table).remove_metadata()
        content = pa.concat_tables([p.select(schema.names).cast(schema) for p in parts if p is not None])
        self._may_write()
        append_rows(state.delta, content, application=application, version=number)
        commit = read_commit(self._settings, state.path, before + 1)
        if commit is None or commit.transactions.get(application) != number:
            raise BooksOpen(
                f"{application} {number}: version {before + 1} of {table.name} was written by another process. "
                "Stop it, then start the stream again"
            )
        written = sum(f.rows for f in commit.added)
        if written != rows:
            raise BooksOpen(f"{application} {number}: {written} rows were written to {table.name}, {rows} belong there")
        if table.name in SILVER:
            state.index.add(commit.added)

    def _opened(self, table: LakeTable) -> _Table:
        path = self.place.path(table)
        opened = open_table(self._settings, path)
        if opened is None:
            raise BooksOpen(f"{self._settings.table_uri(path)} is gone although it was just made; look at the disk")
        state = _Table(table, path, opened, last_transaction(opened, self._application(table)))
        if table.name in SILVER:
            state.index.add(files_of(opened))
        return state

    def _application(self, table: LakeTable) -> str:
        return f"{REFINE}-{self.generation.id}-{table.name}"


_POSITION = ["kafka_partition", "kafka_offset"]
_READ = [*_POSITION, "kafka_timestamp"]


def start_refine(spark: SparkSession, settings: Settings, step: RefineStep) -> StreamingQuery:
    """Start the endless query bronze → silver."""
    seconds = f"{int(settings.trigger_seconds * 1000)} milliseconds"
    return _writer(spark, settings, step).trigger(processingTime=seconds).start()


def drain_refine(spark: SparkSession, settings: Settings, step: RefineStep) -> StreamingQuery:
    """Start the query for what is in bronze now; it ends by itself."""
    return _writer(spark, settings, step).trigger(availableNow=True).start()


def _writer(spark: SparkSession, settings: Settings, step: RefineStep) -> DataStreamWriter:
    create_table(settings, BRONZE)
    _share(spark)
    source = (
        spark.readStream.format("delta")
        .option("maxBytesPerTrigger", str(batch_bytes(settings)))
        .option("maxFilesPerTrigger", str(MAX_FILES))
    )
    if step.resumption.starting_version is not None:
        source = source.option("startingVersion", str(step.resumption.starting_version))
    rows = source.load(settings.spark_uri(BRONZE.path))
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


def _others(rows: pa.Table, decisions: Sequence[Decision]) -> pa.Table:
    """Rows but those decided on."""
    import pyarrow.compute as pc

    return rows.filter(pc.invert(_decided(rows, decisions))) if decisions and rows.num_rows else rows


def _those(rows: pa.Table, decisions: Sequence[Decision]) -> pa.Table:
    """Rows decided on."""
    return rows.filter(_decided(rows, decisions))


def _decided(rows: pa.Table, decisions: Sequence[Decision]) -> pa.Array:
    """Whether a row's coordinates are among the decisions'."""
    import pyarrow as pa
    import pyarrow.compute as pc

    by_partition: dict[int, list[int]] = {}
    for decision in decisions:
        by_partition.setdefault(decision.kafka_partition, []).append(decision.kafka_offset)
    found = pa.array([False] * rows.num_rows)
    for partition, offsets in by_partition.items():
        of_it = pc.is_in(rows["kafka_offset"], value_set=pa.array(offsets, pa.int64()))
        found = pc.or_(found, pc.and_(pc.equal(rows["kafka_partition"], partition), of_it))
    return found


def _with_bytes(records: DataFrame, wanted: pa.Table) -> DataFrame:
    """Records at the coordinates of some rows, with key and value."""
    from pyspark.sql import functions as F

    return records.join(F.broadcast(records.sparkSession.createDataFrame(wanted.select(_POSITION))), _POSITION)


def _conflicting(records: DataFrame, good: pa.Table, conflicts: Sequence[Decision]) -> pa.Table:
    """Good records whose id was taken by another payload, with their bytes, read again from bronze, and the reason."""
    import pyarrow as pa

    typed = _those(good, conflicts).select([*_POSITION, "event_id"])
    ids = {(r["kafka_partition"], r["kafka_offset"]): r["event_id"] for r in typed.to_pylist()}
    first = {
        (d.kafka_partition, d.kafka_offset): f"the accepted record is at partition {d.first_partition}, offset {d.first_offset}"
        for d in conflicts
    }
    found = _with_bytes(records, typed).toArrow()
    positions = list(zip(found["kafka_partition"].to_pylist(), found["kafka_offset"].to_pylist(), strict=True))
    return (
        found.append_column("event_id", pa.array([ids[p] for p in positions], pa.string()))
        .append_column(REASON, pa.array([str(Reason.CONFLICTING_DUPLICATE)] * len(positions), pa.string()))
        .append_column(DETAIL, pa.array([first[p] for p in positions], pa.string()))
    )


def judged_thoroughly(records: DataFrame, classifier: Classifier) -> tuple[pa.Table, pa.Table]:
    """Good records in silver's columns, and refused ones with their bytes and the reason.

    Args:
        records: rows with bronze's columns, all of the classifier's topic.
        classifier: says what they are.
    """
    judged = classifier(records).toArrow()
    good = judged.filter(judged[REASON].is_null())
    return good.select([c.name for c in silver_columns(classifier.contract)]), judged.filter(judged[REASON].is_valid())


def dead_letters(rows: pa.Table, contract: Contract, now: datetime) -> pa.Table:
    """Refused records in the columns of the dead letters; pure.

    Args:
        rows: coordinates, bytes, event id as far as it could be read, reason and detail.
        contract: contract of their topic.
        now: time of the refusal.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    count = rows.num_rows
    readable = pc.less_equal(pc.binary_length(rows["event_id"]), MAX_EVENT_ID_BYTES)
    at = pa.array([now] * count, pa.timestamp("us", tz="UTC"))
    return pa.table(
        {
            "event_id": pc.if_else(readable, rows["event_id"], pa.scalar(None, pa.string())),
            **{name: rows[name] for name in (*(c.name for c in COORDINATES), *RAW, REASON, DETAIL)},
            "entity": pa.array([contract.entity] * count, pa.string()),
            "stage": pa.array([REFINE] * count, pa.string()),
            "attempt": pa.array([1] * count, pa.int32()),
            "first_failed_at": at,
            "failed_at": at,
        }
    )
