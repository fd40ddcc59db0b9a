"""The tables the refine step writes, their places, and the checkpoint generations that write them.

Belongs here: what exists before the first batch. Not here: what a batch does with it (`ingest`, `refine`).
"""

from __future__ import annotations

import json
import logging
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from crm_resources.contracts import contracts
from crm_resources.lake_tables import create_table, refuse_altered
from crm_resources.layout import DEAD_LETTERS, DUPLICATES, REPLAYS, SILVER, LakeTable
from crm_resources.settings import Settings

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a set of the refine step's tables and its checkpoint stand.

    Args:
        prefix: path below the lake's root, empty for the live tables, otherwise ending in a slash.
        checkpoint: folder of the query's checkpoint.
        query: name under which its batches stand in the ledger. Those of a rebuild, which may never become live, have another.
    """

    prefix: str
    checkpoint: Path
    query: str = "refine"

    def path(self, table: LakeTable) -> str:
        """Path of a table below the lake's root."""
        return f"{self.prefix}{table.path}"


def live(settings: Settings) -> Place:
    """The tables everybody reads."""
    return Place("", Path(settings.checkpoint_root) / "refine")


def ingest_checkpoint(settings: Settings) -> Path:
    """Folder of the ingest query's checkpoint."""
    return Path(settings.checkpoint_root) / "ingest"


def refined_tables() -> tuple[LakeTable, ...]:
    """The tables with a place for every record of bronze: silver in contract order, dead letters, duplicates."""
    return (*(SILVER[c.plural] for c in contracts()), DEAD_LETTERS, DUPLICATES)


def create_refined(settings: Settings, place: Place) -> None:
    """Make the refine step's tables of a place, and the replay ledger, where they do not exist, and add the columns they have gained.

    Raises:
        SchemaRefused, TableAltered: a table is not as the product left it, or a contract changed in a way it cannot follow.
    """
    tables = (*refined_tables(), REPLAYS)
    refuse_altered(settings, [(table, place.path(table)) for table in tables])
    for table in tables:
        create_table(settings, table, place.path(table))


class BooksOpen(RuntimeError):
    """A batch wrote another number of rows than it read. The query stops; Spark does not take the batch for done."""


@dataclass(frozen=True)
class Generation:
    """One life of a checkpoint.

    Spark numbers the batches of a new checkpoint from 0 again, and Delta silently skips a write whose transaction it has
    seen; so the generation is part of the transaction's name.

    Args:
        id: name of this generation.
        created_at: when the checkpoint was made, ISO 8601 in UTC.
        over_existing: whether the tables held rows already when it was made.
        bronze_version: version of bronze at that time, -1 where nobody noted it.
    """

    id: str
    created_at: str
    over_existing: bool
    bronze_version: int = -1


def generation_of(checkpoint: Path, *, tables_hold_rows: bool, bronze_version: int = -1) -> Generation:
    """Generation of a checkpoint; a new one when the checkpoint does not exist yet.

    A checkpoint without its generation, be it damaged or made by an older version of the platform, is moved aside: its writes
    could not be told from older ones, and a new one goes on from what stands in the tables.

    Args:
        checkpoint: folder of the query's checkpoint.
        tables_hold_rows: whether the query's tables hold rows now.
        bronze_version: version of bronze now.
    """
    file = checkpoint / "generation.json"
    if file.exists():
        return Generation(**json.loads(file.read_text()))
    now = datetime.now(UTC)
    if (checkpoint / "offsets").exists():
        aside = checkpoint.with_name(f"{checkpoint.name}.without-generation-{now:%Y%m%dT%H%M%S}")
        checkpoint.rename(aside)
        LOG.warning("the checkpoint %s has no generation.json; it is now %s, a new one goes on from the tables", checkpoint, aside)
    made = Generation(uuid.uuid4().hex, now.isoformat(timespec="seconds"), tables_hold_rows, bronze_version)
    checkpoint.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".tmp")
    draft.write_text(json.dumps(asdict(made)) + "\n")
    draft.rename(file)
    return made
