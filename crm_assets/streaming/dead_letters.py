"""Which dead letters are open, how a person or a replay chooses among them, and what each reason asks for.

A dead letter is open while the replay ledger has no row of its coordinates and attempt, and no later attempt of the record is among
the dead letters. Belongs here: reading them without Spark, without their bytes. Not here: trying them again (`replay`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from crm_resources.contracts import Reason
from crm_resources.contracts.derive_arrow import arrow_schema
from crm_resources.lake import DataFile, files_of, open_table, read_columns, read_table
from crm_resources.layout import DEAD_LETTERS, RECORD_KEY, RECORD_VALUE, REPLAYS
from crm_resources.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

POSITION = ("kafka_topic", "kafka_partition", "kafka_offset")
"""Columns that name a record for good."""

WHAT_TO_DO = {
    Reason.NULL_VALUE: "The producer sends records without a value (tombstones): stop it doing so. Nothing to replay.",
    Reason.OVERSIZED: "Have the producer split what it sends, and send it again under a new event id.",
    Reason.INVALID_UTF8: "Correct the producer's encoding, and have it send the record again.",
    Reason.CORRUPT_JSON: "Correct the producer; a cut-off record has to be sent again.",
    Reason.UNKNOWN_ENTITY: "The record is in the wrong topic: correct the producer, and have it send the record again.",
    Reason.UNKNOWN_SCHEMA_VERSION: "Update this platform to the contract the producer uses, then replay.",
    Reason.MISSING_FIELD: "Correct the producer; or make the field optional in the contract, then replay.",
    Reason.INVALID_FIELD: "Correct the producer; or widen the contract, then replay.",
    Reason.TOO_MANY_DECIMALS: "Correct the producer: money has at most four decimals.",
    Reason.AMOUNT_MISMATCH: "Correct the producer: the amount is the sum of quantity × unit price.",
    Reason.FUTURE_EVENT: "Correct the producer's clock; replay when the event's time has come.",
    Reason.CONFLICTING_DUPLICATE: "Two records share an event id: have the producer send the second under an id of its own.",
}
"""What a person does about open dead letters of each reason."""


@dataclass(frozen=True)
class Selection:
    """Which open dead letters are meant; what is empty or `None` does not restrict.

    Args:
        reasons: reason codes.
        failed_from: latest refusal not before this time.
        failed_before: latest refusal before this time.
        event_ids: event ids; records that could not be read that far have none.
        coordinates: topic, partition, offset.
    """

    reasons: tuple[str, ...] = ()
    failed_from: datetime | None = None
    failed_before: datetime | None = None
    event_ids: tuple[str, ...] = ()
    coordinates: tuple[tuple[str, int, int], ...] = ()


@dataclass(frozen=True)
class DeadLetters:
    """Dead letters and the files that hold them.

    Args:
        rows: all columns but the bytes, `latest` (the record's highest attempt), `file` (place in `files`) and `row` (place in the file).
        files: data files of the dead letters.
    """

    rows: pa.Table
    files: tuple[DataFile, ...]


def untried_dead_letters(settings: Settings, path: str = DEAD_LETTERS.path, replays_path: str = REPLAYS.path) -> DeadLetters:
    """Dead letters without a row in the replay ledger, in the order in which they were refused.

    Args:
        settings: where the lake is.
        path: dead letters below the lake's root.
        replays_path: their replay ledger.
    """
    import pyarrow as pa

    table = open_table(settings, path)
    files = () if table is None else tuple(files_of(table))
    schema = arrow_schema(tuple(c for c in DEAD_LETTERS.columns if c not in (RECORD_KEY, RECORD_VALUE)))
    parts = [_with_place(read_columns(settings, path, [file], schema.names).cast(schema), number) for number, file in enumerate(files)]
    rows = pa.concat_tables(parts) if parts else _with_place(schema.empty_table(), 0)
    latest = rows.group_by(list(POSITION)).aggregate([("attempt", "max")]).rename_columns([*POSITION, "latest"])
    rows = rows.join(latest, list(POSITION), join_type="inner")
    tried = read_replays(settings, [*POSITION, "attempt"], replays_path)
    rows = rows.join(tried, [*POSITION, "attempt"], join_type="left anti")
    return DeadLetters(rows.sort_by([(name, "ascending") for name in ("failed_at", *POSITION, "attempt")]), files)


def open_dead_letters(settings: Settings) -> pa.Table:
    """Open dead letters of the live tables, without their bytes; columns as in `DeadLetters.rows`."""
    return open_rows(untried_dead_letters(settings).rows)


def _with_place(rows: pa.Table, file: int) -> pa.Table:
    import pyarrow as pa

    numbers = pa.array([file] * rows.num_rows, pa.int32())
    return rows.append_column("file", numbers).append_column("row", pa.array(range(rows.num_rows), pa.int64()))


def open_rows(rows: pa.Table) -> pa.Table:
    """Of untried dead letters those in their record's latest attempt; pure."""
    import pyarrow.compute as pc

    return rows.filter(pc.equal(rows["attempt"], rows["latest"]))


def read_replays(settings: Settings, columns: Sequence[str], path: str = REPLAYS.path) -> pa.Table:
    """Columns of the whole replay ledger; no rows while there is none."""
    found = read_table(settings, path, columns)
    return found.cast(arrow_schema(tuple(c for name in columns for c in REPLAYS.columns if c.name == name)))


def selected(rows: pa.Table, selection: Selection) -> pa.Table:
    """The dead letters that are meant; pure."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if selection.reasons:
        rows = rows.filter(pc.is_in(rows["reason"], value_set=pa.array(selection.reasons, pa.string())))
    if selection.failed_from is not None:
        rows = rows.filter(pc.greater_equal(rows["failed_at"], pa.scalar(selection.failed_from, rows["failed_at"].type)))
    if selection.failed_before is not None:
        rows = rows.filter(pc.less(rows["failed_at"], pa.scalar(selection.failed_before, rows["failed_at"].type)))
    if selection.event_ids:
        rows = rows.filter(pc.is_in(rows["event_id"], value_set=pa.array(selection.event_ids, pa.string())))
    if selection.coordinates:
        rows = rows.join(_positions(rows, selection.coordinates), list(POSITION), join_type="left semi")
    return rows


def _positions(rows: pa.Table, coordinates: tuple[tuple[str, int, int], ...]) -> pa.Table:
    import pyarrow as pa

    schema = pa.schema([rows.schema.field(name) for name in POSITION])
    return pa.Table.from_pylist([dict(zip(POSITION, c, strict=True)) for c in coordinates], schema)


@dataclass(frozen=True)
class ReasonSummary:
    """Open dead letters of one reason: how many, the first refusal of the oldest, and one of them."""

    reason: str
    count: int
    oldest: datetime
    example: str
    detail: str
    what_to_do: str


def summary_by_reason(rows: pa.Table) -> list[ReasonSummary]:
    """Open dead letters by reason, the most frequent first; pure."""
    import pyarrow.compute as pc

    found = []
    for reason, count in Counter(rows["reason"].to_pylist()).most_common():
        of_reason = rows.filter(pc.equal(rows["reason"], reason)).sort_by("first_failed_at")
        first = of_reason.slice(0, 1).to_pylist()[0]
        place = f"{first['kafka_topic']}[{first['kafka_partition']}]@{first['kafka_offset']}"
        known = WHAT_TO_DO.get(Reason(reason)) if reason in set(Reason) else None
        found.append(
            ReasonSummary(reason, count, first["first_failed_at"], place, first["detail"] or "", known or "Not a reason of this version.")
        )
    return found
