"""Upkeep of the lake's tables: small files are merged, files and log entries nobody needs any more are removed.

Belongs here: deciding what is due (pure, from a table's files, its log and who still reads it) and doing it, table by table.
Not here: when it happens (`crm_assets.lakehouse.upkeep`), or how a request reaches the driver (`requests`).

- **Compaction** changes no rows: its commits say `dataChange=false`, which the stream, the load and the audit pass over. Refined tables
  are compacted by delta-rs between two batches, one table at a time. Bronze belongs to Spark, whose commits delta-rs must not meet, so
  beside a running stream Spark compacts it, one partition at a time, while batches go on.
- **Vacuum** removes data files that left their table before the retention, and files no commit ever named, once they are as old. It
  writes no commit, so no batch waits for it. **Log clean-up** removes log entries from before the newest checkpoint that is older than
  the retention. Neither goes past the position of a reader; a table with a reader that far behind is skipped, and the answer says so.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

from crm_assets.streaming.checkpoint import begun_batches, ended_batches, reach
from crm_assets.streaming.requests import Request, RequestKind
from crm_assets.streaming.tables import live, refined_tables
from crm_resources import warehouse
from crm_resources.lake import DataFile, files_of, open_table, table_filesystem, table_id, unquoted
from crm_resources.layout import BATCHES, BRONZE, REPLAYS, SILVER, LakeTable
from crm_resources.refresh_reports import oldest_needed
from crm_resources.settings import SHORTEST_RETENTION_DAYS, Settings

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from pyarrow.fs import FileSystem
    from pyspark.sql import SparkSession

LOG = logging.getLogger(__name__)

TARGET_BYTES = 32 * 2**20
"""Size compaction aims at. A record that comes late makes the check against history read one such file: 0.2 s were measured."""

SMALL_BYTES = TARGET_BYTES // 2
"""A file below this is small."""

MIN_SMALL_FILES = 16
"""Small files in one partition from which compaction pays: below that a table at rest would be rewritten for nothing."""

POOL = "upkeep"
"""Share of Spark's cores compaction gets beside the two queries."""


class UpkeepRefused(ValueError):
    """A request that would remove what somebody was promised; the message says what to ask for instead."""


class Pausable(Protocol):
    """What lets upkeep write refined tables: the running refine step."""

    def between_batches(self) -> AbstractContextManager[None]:
        """Inside, no batch runs; afterwards the tables are looked at anew."""
        ...


@dataclass(frozen=True)
class Reader:
    """Somebody who goes on reading a table behind the version read last."""

    name: str
    version: int


@dataclass(frozen=True)
class LogEntry:
    """A file of a Delta log: its name, the version it belongs to, and when it was written (UTC)."""

    name: str
    version: int
    written_at: datetime
    size_bytes: int

    @property
    def is_commit(self) -> bool:
        """Whether it is the commit of its version."""
        return bool(_COMMIT.fullmatch(self.name))

    @property
    def is_checkpoint(self) -> bool:
        """Whether it holds, by itself, everything up to its version."""
        return bool(_CHECKPOINT.fullmatch(self.name))


_COMMIT = re.compile(r"\d{20}\.json")
_CHECKPOINT = re.compile(r"\d{20}\.checkpoint\.parquet")
_LOG_FILE = re.compile(r"\.?(\d{20})\..+")


@dataclass(frozen=True)
class TableState:
    """What the decisions look at: a table's current files, its log, and its readers."""

    table: LakeTable
    files: tuple[DataFile, ...]
    log: tuple[LogEntry, ...]
    readers: tuple[Reader, ...] = ()

    @property
    def small_files(self) -> int:
        """Files below half the size compaction aims at."""
        return sum(f.size_bytes < SMALL_BYTES for f in self.files)

    @property
    def commits(self) -> tuple[LogEntry, ...]:
        """Commits in the log, oldest first."""
        return tuple(sorted((e for e in self.log if e.is_commit), key=lambda e: e.version))

    def version_at(self, moment: datetime) -> int | None:
        """Version that was current at a moment, `None` when the log begins later."""
        return max((e.version for e in self.commits if e.written_at <= moment), default=None)

    def waiting_since(self, reader: Reader) -> datetime | None:
        """When the first commit that a reader has not read was written, `None` when it has read them all."""
        return next((e.written_at for e in self.commits if e.version > reader.version), None)


@dataclass(frozen=True)
class CompactionPlan:
    """A table, or one partition of it, whose small files are to be merged."""

    table: LakeTable
    partition: Mapping[str, str]
    small_files: int


@dataclass(frozen=True)
class RemovalPlan:
    """What may be removed of a table.

    Attributes:
        table: the table.
        before: data files that left it, or never belonged to it, before this may go.
        log_below: log files of versions below this may go; 0 for none.
        blocked_by: why nothing may be removed, `None` when it may.
    """

    table: LakeTable
    before: datetime
    log_below: int
    blocked_by: str | None = None


def plan_compaction(state: TableState, min_small_files: int = MIN_SMALL_FILES) -> list[CompactionPlan]:
    """Partitions with enough small files to be worth a rewrite, by partition; pure.

    Args:
        state: the table.
        min_small_files: from how many small files on; two is the least that can be merged.
    """
    small: dict[tuple[tuple[str, str], ...], int] = {}
    for file in state.files:
        if file.size_bytes < SMALL_BYTES:
            key = tuple(sorted((k, str(v)) for k, v in file.partition.items()))
            small[key] = small.get(key, 0) + 1
    return [CompactionPlan(state.table, dict(key), n) for key, n in sorted(small.items()) if n >= max(2, min_small_files)]


def plan_removal(state: TableState, retention: timedelta, now: datetime) -> RemovalPlan:
    """What may be removed of a table; pure.

    A reader behind version *b* needs the files that versions after *b* added, and their log entries. Files that left the table in
    versions up to the one that was current when the retention began go; so a reader must have read that version.

    Args:
        state: the table.
        retention: how long what left the table is kept.
        now: current time, with a time zone.
    """
    before = now - retention
    horizon = state.version_at(before)
    if horizon is None:
        return RemovalPlan(state.table, before, 0)
    behind = [r for r in state.readers if r.version < horizon]
    if behind:
        told = ", ".join(f"{r.name} has read version {r.version}" for r in behind)
        reason = f"{told}, but version {horizon} is older than {retention.days} days; nothing of {state.table.name} is removed until it has"
        return RemovalPlan(state.table, before, 0, reason)
    # The log can be read from a checkpoint on; the newest one from before the retention takes the place of all older entries.
    return RemovalPlan(state.table, before, max((e.version for e in state.log if e.is_checkpoint and e.version <= horizon), default=0))


def retention_of(arguments: Mapping[str, Any], settings: Settings) -> timedelta:
    """Retention a request asks for, by default that of the settings with its day of grace; pure.

    Raises:
        UpkeepRefused: it is shorter than promised, and the request does not say `unsafe`.
    """
    if "retention_days" not in arguments:
        return timedelta(days=settings.history_days)
    days = float(arguments["retention_days"])
    if days < SHORTEST_RETENTION_DAYS and not arguments.get("unsafe"):
        raise UpkeepRefused(
            f"a retention of {days:g} days was asked for, but loads and time travel are promised {SHORTEST_RETENTION_DAYS} days; "
            "ask for no less, or say `unsafe: true` to break that promise"
        )
    return timedelta(days=days)


@dataclass
class TableFigures:
    """What upkeep did to one table.

    `seconds` is the whole time, `pause_seconds` the longest time in which no refine batch could run.
    """

    table: str
    files_before: int
    files_after: int
    bytes_before: int
    bytes_after: int
    removed_files: int = 0
    removed_bytes: int = 0
    removed_log_files: int = 0
    seconds: float = 0.0
    pause_seconds: float = 0.0
    skipped: str | None = None


@dataclass
class _Pauses:
    """The refine step's pauses, and the longest of them."""

    step: Pausable | None
    longest_seconds: float = 0.0

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Hold the step between two batches."""
        with self.step.between_batches() if self.step is not None else nullcontext():
            started = time.monotonic()
            yield
        self.longest_seconds = max(self.longest_seconds, time.monotonic() - started)


def kept_tables() -> tuple[LakeTable, ...]:
    """Every table upkeep looks after, bronze first."""
    return (BRONZE, *dict.fromkeys((*refined_tables(), REPLAYS, BATCHES)))


def readers_of(settings: Settings) -> dict[str, tuple[Reader, ...]]:
    """Who reads which table by version: loads and time travel into the warehouse, and the refine query, which reads bronze.

    Raises:
        crm_resources.warehouse.WarehouseError: nobody knows what is still needed, so nothing may be removed.
    """
    needed = oldest_needed(settings, datetime.now(UTC))
    found: dict[str, tuple[Reader, ...]] = {
        table.name: (Reader("the warehouse load, or time travel,", needed[name].version),)
        for name, table in SILVER.items()
        # A table that was made anew is loaded from a whole snapshot; older versions of it are another table's.
        if name in needed and needed[name].table_id == table_id(settings, table.path)
    }
    return found | _refine(settings)


def followers_of(settings: Settings) -> dict[str, tuple[Reader, ...]]:
    """Of `readers_of` those who follow their table and should be close behind it: the loads, and the refine query.

    Raises:
        crm_resources.warehouse.WarehouseError: the bookmarks cannot be read.
    """
    marks = warehouse.bookmarks(settings)
    found: dict[str, tuple[Reader, ...]] = {
        table.name: (Reader("the warehouse load", marks[name].version),)
        for name, table in SILVER.items()
        if name in marks and marks[name].table_id == table_id(settings, table.path)
    }
    return found | _refine(settings)


def _refine(settings: Settings) -> dict[str, tuple[Reader, ...]]:
    position = refine_position(settings)
    return {} if position is None else {BRONZE.name: (Reader("the refine query", position),)}


def refine_position(settings: Settings) -> int | None:
    """Last version of bronze that is refined for good, by the refine query's checkpoint; `None` before its first batch."""
    checkpoint = live(settings).checkpoint
    begun = begun_batches(checkpoint)
    # The batch begun last may not be done: it is then run again from where the one before it ended.
    done = begun[-1:] if begun[-1:] == ended_batches(checkpoint)[-1:] else begun[-2:]
    reached = [found for batch in done if (found := reach(checkpoint, batch)) is not None]
    return min(int(found["reservoirVersion"]) for found in reached) - 1 if reached else None


Readers = Callable[[Settings], Mapping[str, Sequence[Reader]]]
"""Tells who reads which table, by the table's name."""


def carry_out(
    settings: Settings,
    spark: SparkSession | None,
    step: Pausable | None,
    request: Request,
    *,
    now: datetime | None = None,
    readers_of: Readers = readers_of,
) -> dict[str, Any]:
    """Do what a request of kind `compact`, `vacuum` or `checkpoint` asks for, table by table.

    Args:
        settings: where the lake is.
        spark: session of the stream's driver. Without one the caller holds the lake's lock and nothing else writes it.
        step: the running refine step, `None` where none runs.
        request: arguments of `compact`: `min_small_files`; of `vacuum`: `retention_days`, `unsafe`, `dry_run`; of all: `tables` (names).
        now: current time.
        readers_of: who reads which table.

    Returns:
        `tables` (one dict of `TableFigures` each), `seconds`, `longest_pause_seconds`, `skipped` (reasons), `dry_run`.

    Raises:
        UpkeepRefused: the retention asked for is shorter than promised, or a table is unknown.
    """
    started, moment = time.monotonic(), now or datetime.now(UTC)
    asked = request.arguments
    tables = _chosen(asked.get("tables"))
    retention = retention_of(asked, settings) if request.kind is RequestKind.VACUUM else timedelta()
    readers = readers_of(settings) if request.kind is RequestKind.VACUUM else {}
    done: list[TableFigures] = []
    for table in tables:
        state = table_state(settings, table, readers.get(table.name, ()))
        if state is None:
            continue
        pauses = _Pauses(step)
        figures = _figures(state)
        begun = time.monotonic()
        match request.kind:
            case RequestKind.COMPACT:
                _compact(settings, spark, pauses, state, int(asked.get("min_small_files", MIN_SMALL_FILES)))
            case RequestKind.VACUUM:
                _remove(settings, plan_removal(state, retention, moment), state, figures, dry_run=bool(asked.get("dry_run")))
            case RequestKind.CHECKPOINT:
                _checkpoint(settings, spark, table)
            case _:
                raise UpkeepRefused(f"{request.kind} is not upkeep")
        after = files_of(_opened(settings, table))
        figures.files_after, figures.bytes_after = len(after), sum(f.size_bytes for f in after)
        figures.seconds, figures.pause_seconds = round(time.monotonic() - begun, 3), round(pauses.longest_seconds, 3)
        done.append(figures)
    return {
        "tables": [asdict(f) for f in done],
        "seconds": round(time.monotonic() - started, 3),
        "longest_pause_seconds": max((f.pause_seconds for f in done), default=0.0),
        "skipped": [f.skipped for f in done if f.skipped],
        "dry_run": bool(asked.get("dry_run")),
    }


def table_state(settings: Settings, table: LakeTable, readers: Sequence[Reader] = ()) -> TableState | None:
    """What the decisions look at, `None` while the table does not exist."""
    opened = open_table(settings, table.path)
    if opened is None:
        return None
    return TableState(table, tuple(files_of(opened)), tuple(log_entries(table_filesystem(settings, table.path))), tuple(readers))


def log_entries(files: FileSystem) -> list[LogEntry]:
    """Files of a table's log that belong to a version.

    Args:
        files: file system whose root is the table's folder.
    """
    from pyarrow.fs import FileSelector

    listed = ((info, _LOG_FILE.fullmatch(info.base_name)) for info in files.get_file_info(FileSelector("_delta_log")))
    return [LogEntry(info.base_name, int(named[1]), info.mtime, info.size) for info, named in listed if named]


def _compact(settings: Settings, spark: SparkSession | None, pauses: _Pauses, state: TableState, min_small_files: int) -> None:
    due = plan_compaction(state, min_small_files)
    if state.table is BRONZE and spark is not None:
        for plan in due:
            _compact_by_spark(settings, spark, plan)
        return
    for plan in due:
        with pauses.pause():
            _compact_by_delta_rs(_opened(settings, state.table), plan)


def _compact_by_delta_rs(table: DeltaTable, plan: CompactionPlan) -> None:
    """Merge neighbouring files in the order they were written, so that a merged file spans the ids of its time only."""
    from deltalake import PostCommitHookProperties, WriterProperties

    found = table.optimize.compact(
        partition_filters=[(name, "=", value) for name, value in plan.partition.items()] or None,
        target_size=TARGET_BYTES,
        max_concurrent_tasks=1,
        writer_properties=WriterProperties(compression="ZSTD", compression_level=1),
        # Spark keeps a sum of `_last_checkpoint` on a local disk, which another writer would break.
        post_commithook_properties=PostCommitHookProperties(create_checkpoint=plan.table is not BRONZE, cleanup_expired_logs=False),
    )
    LOG.info("compacted %s %s: %s files became %s", plan.table.name, dict(plan.partition), found["numFilesRemoved"], found["numFilesAdded"])


def _compact_by_spark(settings: Settings, spark: SparkSession, plan: CompactionPlan) -> None:
    """Merge files of one partition of bronze in the Java process that also appends to it: its commits take turns."""
    from delta.tables import DeltaTable as SparkTable

    session = spark.newSession()
    session.sparkContext.setLocalProperty("spark.scheduler.pool", POOL)
    for name, value in {"minFileSize": SMALL_BYTES, "maxFileSize": TARGET_BYTES, "maxThreads": 1}.items():
        session.conf.set(f"spark.databricks.delta.optimize.{name}", str(value))
    where = " and ".join(f"{name} = '{value}'" for name, value in plan.partition.items())
    SparkTable.forPath(session, settings.spark_uri(plan.table.path)).optimize().where(where).executeCompaction()
    LOG.info("compacted %s %s: %s small files", plan.table.name, dict(plan.partition), plan.small_files)


def _remove(settings: Settings, plan: RemovalPlan, state: TableState, figures: TableFigures, *, dry_run: bool) -> None:
    """Remove what a plan allows, or count it."""
    if plan.blocked_by is not None:
        LOG.error("vacuum skips %s: %s", plan.table.name, plan.blocked_by)
        figures.skipped = plan.blocked_by
        return
    opened, files = _opened(settings, plan.table), table_filesystem(settings, plan.table.path)
    hours = max(0, math.ceil((datetime.now(UTC) - plan.before) / timedelta(hours=1)))
    # Only asked what is superfluous: its own removal would write two commits, and bronze is Spark's to commit to.
    superfluous = opened.vacuum(retention_hours=hours, dry_run=True, enforce_retention_duration=False, full=True)
    for path in superfluous:
        figures.removed_bytes += _remove_file(files, unquoted(path), dry_run=dry_run)
    figures.removed_files = len(superfluous)
    old = [e for e in state.log if e.version < plan.log_below]
    # Oldest first: a log that is cut off in the middle of this still begins somewhere.
    for entry in sorted(old, key=lambda e: e.version):
        figures.removed_bytes += _remove_file(files, f"_delta_log/{entry.name}", dry_run=dry_run)
    figures.removed_log_files = len(old)


def _remove_file(files: FileSystem, path: str, *, dry_run: bool) -> int:
    """Remove a file, and the checksum Spark keeps beside it on a local disk; returns its bytes."""
    from pyarrow.fs import FileType

    folder, _, name = path.rpartition("/")
    total = 0
    for found in files.get_file_info([path, f"{folder}/.{name}.crc" if folder else f".{name}.crc"]):
        if found.type == FileType.File:
            total += int(found.size)
            if not dry_run:
                files.delete_file(found.path)
    return total


def _checkpoint(settings: Settings, spark: SparkSession | None, table: LakeTable) -> None:
    """Write a checkpoint of a table's log; no rows change, so no batch has to wait."""
    if table is not BRONZE:
        _opened(settings, table).create_checkpoint()
    elif spark is not None:
        java: Any = spark._jvm
        java.org.apache.spark.sql.delta.DeltaLog.forTable(spark._jsparkSession, settings.table_uri(table.path)).checkpoint()


def _chosen(names: Sequence[str] | None) -> list[LakeTable]:
    known = {t.name: t for t in kept_tables()}
    unknown = sorted(set(names or ()) - set(known))
    if unknown:
        raise UpkeepRefused(f"the lake has no table {', '.join(unknown)}; it has {', '.join(known)}")
    return [known[name] for name in names] if names else list(known.values())


def _opened(settings: Settings, table: LakeTable) -> DeltaTable:
    opened = open_table(settings, table.path)
    if opened is None:
        raise UpkeepRefused(f"{settings.table_uri(table.path)} is gone while upkeep works on it; look at the disk")
    return opened


def _figures(state: TableState) -> TableFigures:
    size = sum(f.size_bytes for f in state.files)
    return TableFigures(state.table.name, len(state.files), len(state.files), size, size)
