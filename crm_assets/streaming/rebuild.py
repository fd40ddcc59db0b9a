"""Silver, dead letters and duplicates made anew from bronze: beside the live tables, compared with them, then swapped in.

What had been replayed is replayed again on the new tables, each record as of the time it was tried then, so that no record that came
to silver that way is lost, and the new replay ledger fits the new tables.
Belongs here: the way of a rebuild and its swap, which a crash may interrupt at any point. Not here: the refining itself
(`refine`), which a rebuild runs unchanged. A rebuilt table is another table (its id is new): readers with a bookmark notice.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from crm_assets.streaming.dead_letters import read_replays
from crm_assets.streaming.refine import RefineStep, drain_refine
from crm_assets.streaming.replay import repeat_replays
from crm_assets.streaming.tables import Place, live, refined_tables
from crm_resources.lake import files_of, open_table, read_columns
from crm_resources.lake_lock import lake_lock
from crm_resources.layout import REPLAYS, SILVER, LakeTable
from crm_resources.settings import Settings
from crm_resources.spark import end_session, spark_session

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
    with lake_lock(settings.lake_root, "rebuild"):
        spark = spark_session(settings, f"crm-rebuild-{settings.env}")
        try:
            return rebuild(spark, settings, swap=swap)
        finally:
            end_session(spark)


def rebuild(spark: SparkSession, settings: Settings, *, swap: bool = True) -> Rebuilt:
    """Rebuild, compare and swap; the caller holds the lock."""
    finish_swap(settings)
    root = Path(settings.lake_root)
    name = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    beside = Place(f"_rebuild/{name}/", Path(settings.checkpoint_root) / f"refine-{name}", query="rebuild")
    step = RefineStep(settings, beside)
    query = drain_refine(spark, settings, step)
    query.awaitTermination()
    error = query.exception()
    if error is not None:
        raise RebuildFailed(f"the rebuild in {root / beside.prefix} failed, the live tables are untouched: {error}")
    # Bronze knows nothing of replays: an event whose time came, or a record that fits a contract widened since.
    repeat_replays(settings, spark, step, read_replays(settings, [c.name for c in REPLAYS.columns]))
    comparisons = tuple(
        TableComparison(t.name, _content(settings, live(settings).path(t), t), _content(settings, beside.path(t), t))
        for t in _rebuilt_tables()
    )
    if not swap:
        _remove(root / beside.prefix)
        _remove(beside.checkpoint)
        return Rebuilt(comparisons, None)
    replaced = _plan_swap(settings, beside, name)
    finish_swap(settings)
    return Rebuilt(comparisons, replaced)


def finish_swap(settings: Settings) -> None:
    """Carry out the swap that was planned last, or what a crash left of it. Needs the lock; without a plan it does nothing."""
    if "://" in settings.lake_root:
        return
    journal = Path(settings.lake_root) / _JOURNAL
    if not journal.exists():
        return
    for source, target in json.loads(journal.read_text()):
        if Path(source).exists() and not Path(target).exists():
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            Path(source).rename(target)
    journal.unlink()
    LOG.info("the rebuilt tables are live")


def _plan_swap(settings: Settings, beside: Place, name: str) -> str:
    """Write down every renaming before the first one. A step whose target exists was done; sources are gone by then."""
    root, current = Path(settings.lake_root), live(settings)
    away = root / "_replaced" / name
    moves: list[tuple[str, str]] = []
    for table in _rebuilt_tables():
        if (root / current.path(table)).exists():
            moves.append((str(root / current.path(table)), str(away / table.path)))
        moves.append((str(root / beside.path(table)), str(root / current.path(table))))
    if current.checkpoint.exists():
        moves.append((str(current.checkpoint), str(away / "checkpoint")))
    # The rebuild's checkpoint stands exactly where its reading of bronze ended, and is a new generation: the stream goes on with it.
    moves.append((str(beside.checkpoint), str(current.checkpoint)))
    journal = root / _JOURNAL
    draft = journal.with_suffix(".tmp")
    draft.write_text(json.dumps(moves, indent=1) + "\n")
    draft.replace(journal)
    return str(away)


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


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
