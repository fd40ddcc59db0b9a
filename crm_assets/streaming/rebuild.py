"""Silver, dead letters and duplicates made anew from bronze: beside the live tables, compared with them, then swapped in.

What had been replayed is replayed again on the new tables, each record as of the time it was tried then, so that no record that came
to silver that way is lost, and the new replay ledger fits the new tables.
Belongs here: the way of a rebuild and its swap, which a crash may interrupt at any point. Not here: the refining itself
(`refine`), which a rebuild runs unchanged. A rebuilt table is another table (its id is new): readers with a bookmark notice.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from crm_assets.streaming.dead_letters import read_replays
from crm_assets.streaming.refine import RefineStep, drain_refine
from crm_assets.streaming.replay import repeat_replays
from crm_assets.streaming.tables import Place, live, refined_tables
from crm_resources.lake import files_of, lake_filesystem, open_table, read_columns, write_whole
from crm_resources.lake_lock import lake_lock
from crm_resources.layout import REPLAYS, SILVER, LakeTable
from crm_resources.object_store import ObjectStore
from crm_resources.settings import Settings
from crm_resources.spark import end_session, kill_java, spark_session

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

LOG = logging.getLogger(__name__)

_JOURNAL = "_rebuild/swap.json"


@dataclass(frozen=True)
class Content:
    """Rows of a table and, for silver, a checksum over (event_id, payload_hash) that does not depend on their order."""

    rows: int
    checksum: str | None


@dataclass(frozen=True)
class TableComparison:
    """A table before and after."""

    table: str
    live: Content
    rebuilt: Content

    @property
    def equal(self) -> bool:
        """Whether both hold the same."""
        return self.live == self.rebuilt


@dataclass(frozen=True)
class Rebuilt:
    """Result of a rebuild: how the tables compare, and the folder the replaced ones were moved to (`None`: not swapped)."""

    comparisons: tuple[TableComparison, ...]
    replaced: str | None

    @property
    def equal(self) -> bool:
        """Whether nothing changed."""
        return all(c.equal for c in self.comparisons)


class RebuildFailed(RuntimeError):
    """The rebuild did not come to its end; the live tables are as they were."""


def rebuild_silver(settings: Settings, *, swap: bool = True) -> Rebuilt:
    """Rebuild, compare and swap under the lake's lock, in a Spark session of its own.

    Args:
        settings: environment and limits.
        swap: put the new tables in the place of the live ones; otherwise only compare and throw the new ones away.

    Raises:
        LakeLocked: the stream or another run writes this lake.
        RebuildFailed: the refine step failed on bronze.
    """
    with lake_lock(settings, "rebuild", lambda _lost: kill_java()) as lock:
        spark = spark_session(settings, f"crm-rebuild-{settings.env}")
        try:
            return rebuild(spark, settings, swap=swap, may_write=lock.check)
        finally:
            end_session(spark)


def rebuild(spark: SparkSession, settings: Settings, *, swap: bool = True, may_write: Callable[[], None] = lambda: None) -> Rebuilt:
    """Rebuild, compare and swap; the caller holds the lock, and `may_write` raises when it is lost."""
    finish_swap(settings, may_write)
    name = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    beside = Place(f"_rebuild/{name}/", Path(settings.checkpoint_root) / f"refine-{name}", query="rebuild")
    step = RefineStep(settings, beside, may_write=may_write)
    query = drain_refine(spark, settings, step)
    query.awaitTermination()
    error = query.exception()
    if error is not None:
        raise RebuildFailed(f"the rebuild in {settings.table_uri(beside.prefix)} failed, the live tables are untouched: {error}")
    # Bronze knows nothing of replays: an event whose time came, or a record that fits a contract widened since.
    repeat_replays(settings, spark, step, read_replays(settings, [c.name for c in REPLAYS.columns]))
    comparisons = tuple(
        TableComparison(t.name, _content(settings, live(settings).path(t), t), _content(settings, beside.path(t), t))
        for t in _rebuilt_tables()
    )
    if not swap:
        _remove_tables(settings, beside)
        shutil.rmtree(beside.checkpoint, ignore_errors=True)
        return Rebuilt(comparisons, None)
    replaced = _plan_swap(settings, beside, name)
    finish_swap(settings, may_write)
    return Rebuilt(comparisons, replaced)


def finish_swap(settings: Settings, may_write: Callable[[], None] = lambda: None) -> None:
    """Carry out the swap that was planned last, or what a crash left of it. Needs the lock; without a plan it does nothing."""
    left = _read_journal(settings)
    if left is None:
        return
    while left:
        may_write()
        _move(settings, *left[0])
        # A step that is done leaves the list before the next one begins: that one may fill the place this one has emptied.
        left = left[1:]
        _write_journal(settings, left)
    lake_filesystem(settings).delete_file(_JOURNAL)
    LOG.info("the rebuilt tables are live")


def _plan_swap(settings: Settings, beside: Place, name: str) -> str:
    """Write down every renaming before the first one: tables by their path below the lake's root, checkpoints as folders of this disk."""
    current, away = live(settings), f"_replaced/{name}"
    moves: list[tuple[str, str]] = []
    for table in _rebuilt_tables():
        if open_table(settings, current.path(table)) is not None:
            moves.append((current.path(table), f"{away}/{table.path}"))
        moves.append((beside.path(table), current.path(table)))
    if current.checkpoint.exists():
        moves.append((str(current.checkpoint), str(Path(settings.checkpoint_root) / "_replaced" / name / "refine")))
    # The rebuild's checkpoint stands exactly where its reading of bronze ended, and is a new generation: the stream goes on with it.
    moves.append((str(beside.checkpoint), str(current.checkpoint)))
    _write_journal(settings, moves)
    return settings.table_uri(away)


def _move(settings: Settings, source: str, target: str) -> None:
    """One renaming; one that was carried out before has nothing left at its source, and then nothing is done."""
    if settings.lake_on_object_store and not source.startswith("/"):
        ObjectStore(settings).move_folder(source, target)
        return
    root = Path(settings.lake_root)  # an absolute path joined to it stays as it is
    if (root / source).exists() and not (root / target).exists():
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        (root / source).rename(root / target)


def _read_journal(settings: Settings) -> list[tuple[str, str]] | None:
    from pyarrow.fs import FileType

    files = lake_filesystem(settings)
    if files.get_file_info(_JOURNAL).type != FileType.File:
        return None
    with files.open_input_stream(_JOURNAL) as stream:
        return [(source, target) for source, target in json.loads(stream.read())]


def _write_journal(settings: Settings, moves: list[tuple[str, str]]) -> None:
    write_whole(settings, _JOURNAL, json.dumps(moves, indent=1).encode() + b"\n")


def _remove_tables(settings: Settings, place: Place) -> None:
    if settings.lake_on_object_store:
        ObjectStore(settings).delete_folder(place.prefix)
    else:
        shutil.rmtree(Path(settings.table_uri(place.prefix)), ignore_errors=True)


def _rebuilt_tables() -> tuple[LakeTable, ...]:
    return (*refined_tables(), REPLAYS)


def _content(settings: Settings, path: str, table: LakeTable) -> Content:
    """Rows and checksum of a table as it stands."""
    opened = open_table(settings, path)
    files = [] if opened is None else files_of(opened)
    if table.name not in SILVER:
        return Content(sum(f.rows for f in files), None)
    rows, total = 0, 0
    for file in files:
        part = read_columns(settings, path, [file], ["event_id", "payload_hash"])
        rows += part.num_rows
        total = (total + checksum(part["event_id"].to_pylist(), part["payload_hash"].to_pylist())) % 2**64
    return Content(rows, f"{total:016x}")


def checksum(ids: list[str], hashes: list[int]) -> int:
    """Order-free checksum of pairs: halves of their md5 summed modulo 2^64; pure."""
    import hashlib

    total = 0
    for pair in zip(ids, hashes, strict=True):
        digest = hashlib.md5(f"{pair[0]}|{pair[1]}".encode(), usedforsecurity=False).digest()
        total += int.from_bytes(digest[:8]) + int.from_bytes(digest[8:])
    return total % 2**64
