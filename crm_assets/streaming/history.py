"""Which records were accepted before: duplicates and conflicts, within a batch and against the table's whole history.

Belongs here: the decision (pure, on Arrow tables) and the index of a silver table's files by the ids they span. Event ids are
time-ordered, so a batch overlaps few files of the past, however long it is. Not here: reading those files (`crm_resources.lake`)
or acting on the verdicts (`refine`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from crm_resources.lake import DataFile

if TYPE_CHECKING:
    import pyarrow as pa

IDENTITY = ("event_id", "payload_hash", "kafka_partition", "kafka_offset")
"""Columns of batch and history that the decision looks at; topic is not among them, an entity has one."""


class Verdict(StrEnum):
    """What becomes of a good record whose id is not new."""

    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    PLACED = "placed"


@dataclass(frozen=True)
class Decision:
    """A record that is not written to silver, by its coordinates.

    `first_partition` and `first_offset` name the record that was accepted instead.
    """

    kafka_partition: int
    kafka_offset: int
    verdict: Verdict
    first_partition: int
    first_offset: int


def decide(batch: pa.Table, history: pa.Table) -> list[Decision]:
    """Which of a batch's good records are duplicates or conflicts.

    The first by partition and offset is accepted; what stands in history was accepted before. A record that stands in history
    under its own coordinates is itself, not its duplicate: the batch ran before and is run again.

    Args:
        batch: `IDENTITY` columns of the batch's good records of one entity.
        history: the same columns of accepted records; others than those with the batch's ids do no harm.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    known = history.filter(pc.is_in(history["event_id"], value_set=pc.unique(batch["event_id"]))) if history.num_rows else history
    counts = batch.group_by("event_id").aggregate([([], "count_all")])
    repeated = counts.filter(pc.greater(counts["count_all"], 1))["event_id"]
    ids = pa.concat_arrays([pc.unique(c) for c in (repeated, known["event_id"]) if len(c)]) if len(repeated) or known.num_rows else None
    if ids is None:
        return []
    suspects = batch.filter(pc.is_in(batch["event_id"], value_set=ids)).select(IDENTITY).to_pylist()
    suspects.sort(key=lambda r: (r["kafka_partition"], r["kafka_offset"]))
    accepted: dict[str, tuple[int, int, int]] = {}
    for row in known.select(IDENTITY).to_pylist():
        accepted.setdefault(row["event_id"], (row["payload_hash"], row["kafka_partition"], row["kafka_offset"]))
    decisions: list[Decision] = []
    for row in suspects:
        own = (row["payload_hash"], row["kafka_partition"], row["kafka_offset"])
        first = accepted.setdefault(row["event_id"], own)
        if first[1:] == own[1:]:
            continue
        verdict = Verdict.DUPLICATE if first[0] == own[0] else Verdict.CONFLICT
        decisions.append(Decision(own[1], own[2], verdict, first[1], first[2]))
    return decisions


@dataclass
class FileIndex:
    """Files of a silver table by the range of event ids each holds. Kept up to date by its only writer."""

    _files: list[DataFile] = field(default_factory=list)

    def add(self, files: Iterable[DataFile]) -> None:
        """Take in files that were added to the table."""
        self._files.extend(f for f in files if f.rows)

    def __len__(self) -> int:
        return len(self._files)

    def overlapping(self, ids: pa.Array) -> list[DataFile]:
        """Files whose range holds at least one of the ids; a file without statistics always counts.

        Args:
            ids: event ids in any order.
        """
        from bisect import bisect_left, bisect_right

        ordered = sorted(ids.to_pylist())
        return [
            file
            for file in self._files
            if bisect_left(ordered, str(file.minimum.get("event_id", ""))) < bisect_right(ordered, str(file.maximum.get("event_id", "~")))
        ]


@dataclass(frozen=True)
class PlacedCoordinates:
    """Coordinates that already have their place, for a checkpoint that was made anew over tables that hold rows.

    Args:
        offsets: offsets by topic and partition.
    """

    offsets: dict[tuple[str, int], pa.Array] = field(default_factory=dict)

    def decisions(self, topic: str, batch: pa.Table) -> list[Decision]:
        """The batch's records that have their place already, as decisions `PLACED`.

        Args:
            topic: topic of the batch's records.
            batch: at least `kafka_partition` and `kafka_offset`.
        """
        import pyarrow.compute as pc

        found: list[Decision] = []
        for partition in pc.unique(batch["kafka_partition"]).to_pylist() if self.offsets else []:
            placed = self.offsets.get((topic, partition))
            if placed is None:
                continue
            own = batch.filter(pc.equal(batch["kafka_partition"], partition))["kafka_offset"]
            again = own.filter(pc.is_in(own, value_set=placed)).to_pylist()
            found.extend(Decision(partition, offset, Verdict.PLACED, partition, offset) for offset in again)
        return found


def placed_coordinates(tables: Iterable[pa.Table]) -> PlacedCoordinates:
    """Index of coordinates from tables with `kafka_topic`, `kafka_partition` and `kafka_offset`."""
    import pyarrow as pa

    offsets: dict[tuple[str, int], list[pa.Array]] = {}
    for table in tables:
        if table.num_rows == 0:
            continue
        grouped = table.group_by(["kafka_topic", "kafka_partition"]).aggregate([("kafka_offset", "list")])
        for row in range(grouped.num_rows):
            key = (grouped["kafka_topic"][row].as_py(), grouped["kafka_partition"][row].as_py())
            offsets.setdefault(key, []).append(grouped["kafka_offset_list"][row].values)
    return PlacedCoordinates({key: pa.concat_arrays(parts) for key, parts in offsets.items()})
