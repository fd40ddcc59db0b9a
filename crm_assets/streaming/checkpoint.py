"""What Spark keeps in the checkpoint of a query with one source: which batches were begun and ended, and how far each was to read.

Belongs here: reading those files. Not here: what follows from them (`ingest`, `resumption`, `upkeep`), or which checkpoint belongs to which
query (`tables`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def begun_batches(checkpoint: Path) -> list[int]:
    """Batches whose reach Spark has noted, which it does before it runs them, ascending."""
    return _numbers(checkpoint / "offsets")


def ended_batches(checkpoint: Path) -> list[int]:
    """Batches that Spark takes for done, ascending."""
    return _numbers(checkpoint / "commits")


def reach(checkpoint: Path, batch_id: int) -> dict[str, Any] | None:
    """Up to where a batch was to read, as the source spells it; `None` where the batch was not begun.

    Kafka's source gives offsets by topic and partition, Delta's the version (`reservoirVersion`) behind which the batch did not look.
    """
    return _last_line(checkpoint / "offsets" / str(batch_id))


def first_offsets(checkpoint: Path) -> dict[str, Any] | None:
    """Where Kafka's source began, as it noted it before its first batch."""
    return _last_line(checkpoint / "sources" / "0" / "0")


def _numbers(folder: Path) -> list[int]:
    return sorted(int(file.name) for file in folder.glob("*") if file.name.isdigit())


def _last_line(file: Path) -> dict[str, Any] | None:
    if not file.exists():
        return None
    # Kafka's source writes a zero byte and its version in front of its note of the beginning.
    found: dict[str, Any] = json.loads(file.read_text(errors="replace").strip().splitlines()[-1].lstrip("\x00v1"))
    return found
