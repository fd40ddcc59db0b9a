"""Where a new checkpoint of the refine step goes on when the old one is lost, and which records have their place already.

The batch ledger says up to which version of bronze everything was refined. The new query begins with that version, and what the tables
hold of it, or of batches that were not noted, is not placed again. Only where the ledger or the log does not reach back that far is bronze
read from its start against all the tables hold. Belongs here: finding both. Not here: placing records (`refine`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from crm_assets.streaming.batch_ledger import RefinedBatch, refined_batches
from crm_assets.streaming.checkpoint import reach
from crm_assets.streaming.history import PlacedCoordinates, placed_coordinates
from crm_assets.streaming.tables import Generation, Place, refined_tables
from crm_resources.lake import DataFile, files_of, open_table, read_columns, read_commit, table_version
from crm_resources.layout import BRONZE, LakeTable
from crm_resources.settings import Settings

LOG = logging.getLogger(__name__)

_COORDINATES = ("kafka_topic", "kafka_partition", "kafka_offset")


@dataclass(frozen=True)
class Resumption:
    """Where a query begins that has no checkpoint yet.

    Attributes:
        starting_version: first version of bronze to read; `None` reads all of it.
        placed: coordinates from that version on that have their place.
    """

    starting_version: int | None = None
    placed: PlacedCoordinates = field(default_factory=PlacedCoordinates)


def resumption(settings: Settings, place: Place, generation: Generation) -> Resumption:
    """How a generation of the refine step goes on from what earlier ones left.

    Args:
        settings: where the lake is.
        place: its tables.
        generation: the generation, already made.
    """
    if not generation.over_existing:
        return Resumption()
    batches = refined_batches(settings)
    own = [b for b in batches if b.generation == generation.id and b.source_version is not None]
    if own and max(b.source_version or 0 for b in own) > generation.bronze_version >= 0:
        return Resumption()  # it has left behind everything that others placed
    start = reached(batches, generation.id)
    latest = table_version(settings, BRONZE.path)
    if start is not None and latest is not None and read_commit(settings, BRONZE.path, min(start, latest)) is not None:
        start = min(start, latest)
        found = {t: _files_from(settings, place.path(t), batches, start, generation.id) for t in refined_tables()}
        complete = {t: files for t, files in found.items() if files is not None}
        if len(complete) == len(found):
            LOG.warning("the checkpoint of refine is new: going on with version %s of bronze, as the batch ledger says", start)
            return Resumption(start, _coordinates(settings, place, complete))
    LOG.warning("the checkpoint of refine is new and the batch ledger does not reach back to its tables: bronze is read from its start")
    everything = {t: files_of(opened) for t in refined_tables() if (opened := open_table(settings, place.path(t))) is not None}
    return Resumption(None, _coordinates(settings, place, everything))


def reached(batches: list[RefinedBatch], own: str) -> int | None:
    """Version of bronze before which the last batch of another generation had refined everything, `None` where it did not say; pure.

    Args:
        batches: batches in the order in which they were committed.
        own: generation that goes on, whose batches do not count.
    """
    others = [b for b in batches if b.generation != own]
    return others[-1].source_version if others else None


def source_version(checkpoint: Path, batch_id: int) -> int | None:
    """Version of bronze before which everything is refined once a batch is done; `None` while Spark reads the table as it found it.

    Args:
        checkpoint: folder of the query's checkpoint, in which Spark notes what a batch reads before it runs it.
        batch_id: the batch.
    """
    found = reach(checkpoint, batch_id)
    return None if found is None or found.get("isStartingVersion") else int(found["reservoirVersion"])


def _files_from(settings: Settings, path: str, batches: list[RefinedBatch], start: int, own: str) -> list[DataFile] | None:
    """Files of a table that may hold records of bronze's version `start` or a later one; `None` when the log does not tell."""
    before = {(b.generation, b.batch_id) for b in batches if b.source_version is not None and b.source_version < start}
    files: list[DataFile] = []
    for version in range(table_version(settings, path) or 0, -1, -1):
        commit = read_commit(settings, path, version)
        if commit is None:
            return None
        writers = _writers(commit.transactions)
        if any(writer in before for writer in writers):
            return files
        if not any(generation == own for generation, _ in writers):
            files.extend(commit.added)
    return files


def _writers(transactions: Mapping[str, int]) -> list[tuple[str, int]]:
    """Generations and batches of `refine` among a commit's transactions, which are named `refine-<generation>-<table>`."""
    return [(name.split("-")[1], batch) for name, batch in transactions.items() if name.startswith("refine-")]


def _coordinates(settings: Settings, place: Place, files: Mapping[LakeTable, list[DataFile]]) -> PlacedCoordinates:
    return placed_coordinates(read_columns(settings, place.path(t), found, _COORDINATES) for t, found in files.items())
