"""The tables the refine step writes, their places, and the checkpoint generations that write them.

Belongs here: what exists before the first batch. Not here: what a batch does with it (`ingest`, `refine`).
"""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from crm_resources.contracts import contracts
from crm_resources.lake_tables import create_table, refuse_altered
from crm_resources.layout import (
    DEAD_LETTERS,
    DUPLICATES,
    SILVER,
    LakeTable,
)
from crm_resources.settings import Settings

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Place:
    """Where a set of the refine step's tables and its checkpoint stand.

    Args:
        prefix: path below the lake's root, empty for the live tables, otherwise ending in a slash.
        checkpoint: folder of the query's checkpoint.
    """

    prefix: str
    checkpoint: Path

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
    """The tables the refine step writes: silver in contract order, dead letters, duplicates."""
    return (*(SILVER[c.plural] for c in contracts()), DEAD_LETTERS, DUPLICATES)


def create_refined(settings: Settings, place: Place) -> None:
    """Make the refine step's tables of a place where they do not exist, and add the columns the contracts have gained.

    Raises:
        SchemaRefused, TableAltered: a table is not as the product left it, or a contract changed in a way it cannot follow.
    """
    refuse_altered(settings, [(table, place.path(table)) for table in refined_tables()])
    for table in refined_tables():
        create_table(settings, table, place.path(table))


class CheckpointDamaged(RuntimeError):
    """A checkpoint has lost a part; going on could write rows twice."""


@dataclass(frozen=True)
class Generation:
    """One life of a checkpoint.

    Spark numbers the batches of a new checkpoint from 0 again, and Delta silently skips a write whose transaction it has
    seen; so the generation is part of the transaction's name.

    Args:
        id: name of this generation.
        created_at: when the checkpoint was made, ISO 8601 in UTC.
        over_existing: whether the tables held rows already when it was made.
    """

    id: str
    created_at: str
    over_existing: bool


def generation_of(checkpoint: Path, *, tables_hold_rows: bool) -> Generation:
    """Generation of a checkpoint; a new one when the checkpoint does not exist yet.

    Args:
        checkpoint: folder of the query's checkpoint.
        tables_hold_rows: whether the query's tables hold rows now.

    Raises:
        CheckpointDamaged: Spark's part is there but the generation is not.
    """
    file = checkpoint / "generation.json"
    if file.exists():
        return Generation(**json.loads(file.read_text()))
    if (checkpoint / "offsets").exists():
        raise CheckpointDamaged(
            f"{checkpoint} has no generation.json, so its writes cannot be told from older ones. Restore the file, or move the folder "
            "away: a new checkpoint reads bronze from its start and leaves rows that have their place where they are"
        )
    made = Generation(uuid.uuid4().hex, datetime.now(UTC).isoformat(timespec="seconds"), tables_hold_rows)
    checkpoint.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".tmp")
    draft.write_text(json.dumps(asdict(made)) + "\n")
    draft.rename(file)
    return made
