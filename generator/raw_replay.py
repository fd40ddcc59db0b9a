"""A public data set's file as records: one message a row, to a topic of its own.

Belongs here: what message a row becomes, and a file on its way to Kafka. Not here: reading (`raw_reader`), columns (`raw_formats`).

A message holds `event_id`, `event_time` (UTC, null where the format has none), `event_time_synthetic` where a part of the time is made
up, `row` (data rows from 1), and the file's columns by the file's names, as the text that stands there. The id derives from format, row
number and the row's text, not from the whole file: a repaired or longer copy of a file gives the rows it shares the same ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import orjson

from crm_resources.raw_topics import raw_plural
from generator.encode import wire_time
from generator.ids import derived_uuid, epoch_microseconds
from generator.pacing import Pace
from generator.raw_formats import BadCellError, RawFormat, UnknownHeaderError, detect
from generator.raw_reader import RawFileError, RawRow, RawTable
from generator.records import Outgoing

_NO_TIME = datetime(1970, 1, 1, tzinfo=UTC)
_SEPARATOR = "\x1f"


class RawRecord(Outgoing):
    """A row on its way to Kafka. It follows no contract, so it has no typed checksum."""

    __slots__ = ()

    def typed_md5(self) -> bytes | None:
        """Return None."""
        return None


@dataclass(frozen=True)
class InBatches:
    """Another pace in steps: the rows of a batch leave together, when the first of them is due."""

    pace: Pace
    size: int

    def due_seconds(self, index: int, event_us: int) -> float | None:
        """When the first row of the batch is due."""
        return self.pace.due_seconds(index - index % self.size, event_us)


class RawReplay:
    """A file being replayed. To be used as a context.

    `records` ends at the first bad row instead of raising, so that what was sent before it is still waited for; `problem` then says
    what is wrong. `rows` counts the rows given.

    Args:
        path: the file, plain or gzip.
        wanted: its format; told by the header when None.
        encoding: of its text.
        limit: stop after so many rows; all when None.

    Raises:
        RawFileError: the file cannot be opened, or its header is of no known format.
    """

    def __init__(self, path: Path, wanted: RawFormat | None = None, *, encoding: str = "utf-8", limit: int | None = None) -> None:
        self.path = path
        self.rows = 0
        self.problem: RawFileError | None = None
        self.limit = limit
        self.table = RawTable(path, encoding)
        try:
            self.format = detect(self.table.header, wanted)
        except UnknownHeaderError as error:
            self.table.close()
            raise RawFileError(path.name, 1, str(error), "see --format and docs/replaying.md") from error

    @property
    def plural(self) -> str:
        """What stands for an entity's plural in the topic's name."""
        return raw_plural(self.format.name)

    def records(self) -> Iterator[RawRecord]:
        """One record per row, in the order of the file."""
        make = _Maker(self.format, self.table)
        try:
            for row in islice(self.table.rows(), self.limit):
                record = make(row)
                self.rows += 1
                yield record
        except RawFileError as error:
            self.problem = error
            return
        if not self.rows:
            self.problem = RawFileError(self.path.name, None, "has a header but no rows", "fetch the file again")

    def __enter__(self) -> RawReplay:
        return self

    def __exit__(self, *_: object) -> None:
        self.table.close()


def check(path: Path, wanted: RawFormat | None = None, *, encoding: str = "utf-8", limit: int | None = None) -> int:
    """Read a file as a replay would and return its number of rows, at most `limit`.

    Raises:
        RawFileError: what a replay would stop at.
    """
    with RawReplay(path, wanted, encoding=encoding, limit=limit) as replay:
        for _ in replay.records():
            pass
        if replay.problem:
            raise replay.problem
        return replay.rows


class _Maker:
    """Makes the record of a row."""

    def __init__(self, wanted: RawFormat, table: RawTable) -> None:
        self._format = wanted
        self._file = table.name
        self._header = table.header
        self._places = wanted.places(table.header)
        self._plural = raw_plural(wanted.name)
        self._label = {"event_time_synthetic": wanted.synthetic} if wanted.synthetic else {}

    def __call__(self, row: RawRow) -> RawRecord:
        cells = row.cells
        places = self._places

        def cell(column: str) -> str:
            return cells[places[column]]

        try:
            at = self._format.event_time(cell)
            key = self._format.key(cell)
        except BadCellError as error:
            column = self._header[places[error.column]]
            raise RawFileError(self._file, row.line, str(error), "correct the line, or fetch the file again", column) from error
        event_id = derived_uuid(at or _NO_TIME, self._plural, f"{row.number}{_SEPARATOR}{_SEPARATOR.join(cells)}")
        event_us = epoch_microseconds(at) if at else 0
        message = {
            "event_id": event_id,
            "event_time": wire_time(event_us) if at else None,
            **self._label,
            "row": row.number,
            **dict(zip(self._header, cells, strict=True)),
        }
        return RawRecord(
            plural=self._plural,
            entity=self._plural,
            key=key.encode(),
            value=orjson.dumps(message),
            event_id=event_id,
            entity_key=key,
            sequence=row.number,
            event_us=event_us,
        )
