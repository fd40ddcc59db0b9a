"""The ledger: what a producer got acknowledged, written down before it counts.

Belongs here: schema, writer and reader of the files `<home>/<env>/ledger/<run_id>-<n>.arrows`. Not here: sending
(`generator.delivery`), or comparing the ledger with the lake (`crm_assets.monitoring.audit`).

Each file is an Arrow IPC stream. Rows are collected in columns, written as one batch and forced to disk; after kill -9 a
file is readable up to its last whole batch, and a row that is not readable was never counted as acknowledged.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    import pyarrow as pa

NO_DIGEST = bytes(16)
"""Digest of a record without a value; it adds nothing to a checksum."""


class LedgerError(RuntimeError):
    """A ledger cannot be written or read; the message names the file."""


def ledger_schema() -> pa.Schema:
    """Columns of the ledger.

    Times are microseconds in UTC; a refused row has neither partition, offset nor `acked_at`. `payload_md5` is that of the bytes,
    `typed_md5` that of the canonical text (`contracts.canonical`), null where the record is meant to become a dead letter. Files of
    older generators lack the last column; it reads as null.
    """
    import pyarrow as pa

    moment = pa.timestamp("us", tz="UTC")
    return pa.schema(
        [
            pa.field("run_id", pa.string(), nullable=False),
            pa.field("event_id", pa.string(), nullable=False),
            pa.field("entity", pa.string(), nullable=False),
            pa.field("entity_key", pa.string(), nullable=False),
            pa.field("sequence", pa.int64(), nullable=False),
            pa.field("amount", pa.decimal128(18, 4)),
            pa.field("payload_md5", pa.binary(16), nullable=False),
            pa.field("topic", pa.string(), nullable=False),
            pa.field("partition", pa.int32()),
            pa.field("offset", pa.int64()),
            pa.field("intended_at", moment, nullable=False),
            pa.field("sent_at", moment, nullable=False),
            pa.field("acked_at", moment),
            pa.field("defect", pa.string()),
            pa.field("refused", pa.bool_(), nullable=False),
            pa.field("typed_md5", pa.binary(16)),
        ]
    )


def payload_md5(value: bytes | None) -> bytes:
    """Digest of a record's raw bytes, 16 bytes; `NO_DIGEST` for a record without a value."""
    return NO_DIGEST if value is None else hashlib.md5(value, usedforsecurity=False).digest()


def ledger_dir(environment_dir: Path) -> Path:
    """Folder of the ledgers of an environment."""
    return environment_dir / "ledger"


class LedgerRow(NamedTuple):
    """One acknowledged or refused event, in the order of the schema. Times in microseconds since 1970 UTC; see `ledger_schema`."""

    event_id: str
    entity: str
    entity_key: str
    sequence: int
    amount: Decimal | None
    payload_md5: bytes
    topic: str
    partition: int | None
    offset: int | None
    intended_us: int
    sent_us: int
    acked_us: int | None
    defect: str | None
    refused: bool
    typed_md5: bytes | None = None


class LedgerWriter:
    """Appends rows of one run to a file of its own; `durable_acked` and `durable_refused` count what is safely on disk.

    Not for use by several threads at once.

    Args:
        directory: folder of the ledgers, made when absent.
        run_id: run of the producer.
        batch_rows: rows that make a batch.
        max_age_seconds: a smaller batch is written when its oldest row is this old (see `tend`).
        clock: seconds, rising.
    """

    def __init__(
        self,
        directory: Path,
        run_id: str,
        *,
        batch_rows: int = 10_000,
        max_age_seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        import pyarrow as pa

        self.run_id = run_id
        self.durable_acked = 0
        self.durable_refused = 0
        self._batch_rows = batch_rows
        self._max_age = max_age_seconds
        self._clock = clock
        self._oldest = 0.0
        self._rows: list[LedgerRow] = []
        self._broken = ""
        self._schema = ledger_schema()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self.path, descriptor = _create(directory, run_id)
        except OSError as error:
            raise LedgerError(f"cannot create a ledger in {directory}: {error.strerror}") from error
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        self._stream = pa.ipc.new_stream(self._file, self._schema)
        os.fsync(descriptor)
        _sync_directory(directory)

    def append(self, row: LedgerRow) -> None:
        """Take a row; it becomes durable with its batch."""
        rows = self._rows
        if not rows:
            self._oldest = self._clock()
        rows.append(row)
        if len(rows) >= self._batch_rows:
            self.flush()

    def tend(self) -> None:
        """Write the pending batch when it has grown old; to be called now and then while events flow."""
        if self._rows and self._clock() - self._oldest >= self._max_age:
            self.flush()

    def flush(self) -> None:
        """Write the pending rows as a batch and force them to disk.

        Raises:
            LedgerError: the disk refused, now or before; the pending rows do not count.
        """
        import pyarrow as pa

        count = len(self._rows)
        if not count:
            return
        if self._broken:
            # What follows a torn batch could not be read back, so it must not count either.
            raise LedgerError(self._broken)
        columns = zip(*self._rows, strict=True)
        arrays = [pa.repeat(pa.scalar(self.run_id), count)]
        arrays += [pa.array(column, field.type) for field, column in zip(list(self._schema)[1:], columns, strict=True)]
        self._write(pa.record_batch(arrays, schema=self._schema), sum(row.refused for row in self._rows))
        self._rows = []

    def append_batch(self, batch: pa.RecordBatch) -> None:
        """Take acknowledged rows that come as a batch in the ledger's schema; durable when this returns.

        Raises:
            LedgerError: the disk refused, now or before; the rows do not count.
        """
        self.flush()
        if self._broken:
            raise LedgerError(self._broken)
        self._write(batch, 0)

    def _write(self, batch: pa.RecordBatch, refused: int) -> None:
        try:
            self._stream.write_batch(batch)
            os.fsync(self._file.fileno())
        except OSError as error:
            self._broken = f"cannot write the ledger {self.path}: {error.strerror or error}; {batch.num_rows} events do not count as acked"
            raise LedgerError(self._broken) from error
        self.durable_refused += refused
        self.durable_acked += batch.num_rows - refused

    def close(self) -> None:
        """Write what is pending and end the file.

        Raises:
            LedgerError: the disk refused; the pending rows do not count.
        """
        if self._file.closed:
            return
        try:
            self.flush()
            self._stream.close()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def publish_ledger(path: Path, directory: Path, run_id: str) -> Path:
    """Move a finished ledger that was written elsewhere on the same disk among the ledgers; returns its place.

    Args:
        path: the file.
        directory: folder of the ledgers.
        run_id: run of its rows.

    Raises:
        LedgerError: the disk refused.
    """
    try:
        while True:
            number = max((_number_of(p) for p in ledger_files(directory, run_id)), default=0) + 1
            target = directory / f"{_file_stem(run_id)}-{number}.arrows"
            try:
                target.hardlink_to(path)
            except FileExistsError:
                continue
            break
        path.unlink()
        _sync_directory(directory)
    except OSError as error:
        raise LedgerError(f"cannot move the ledger {path} to {directory}: {error.strerror}") from error
    return target


def ledger_files(directory: Path, run_id: str | None = None) -> list[Path]:
    """Ledger files of an environment, or of one of its runs, in the order they were begun."""
    if not directory.is_dir():
        return []
    files = [p for p in directory.iterdir() if _FILE.fullmatch(p.name) and (run_id is None or _run_of(p) == _file_stem(run_id))]
    return sorted(files, key=lambda p: (_run_of(p), _number_of(p)))


def ledger_runs(directory: Path) -> list[str]:
    """Runs with a ledger in the folder, as their files spell them."""
    return sorted({_run_of(path) for path in ledger_files(directory)})


def read_ledger(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Batches of one ledger file up to the last whole one.

    Args:
        path: a ledger file, perhaps cut off by a crash, perhaps of an older generator.
        columns: only these; all when omitted. A column the file is too old to have is null.

    Raises:
        LedgerError: the file has content that is no ledger.
    """
    import pyarrow as pa

    with path.open("rb") as file:
        head = file.read(_LONGEST_BEGINNING)  # looked at first: a writer may add to the file while it is being opened
        file.seek(0)
        try:
            stream = pa.ipc.open_stream(file)
        except (pa.ArrowInvalid, OSError) as error:
            if _only_a_beginning(head):
                return
            raise LedgerError(f"{path} is no ledger: {error}") from error
        newest = ledger_schema()
        if stream.schema.names not in (newest.names, newest.names[:-1]):
            raise LedgerError(f"{path} is a stream of other columns: {', '.join(stream.schema.names)}")
        while True:
            try:
                batch = stream.read_next_batch()
            except StopIteration:
                return
            except (pa.ArrowInvalid, OSError):
                return  # the tail of a killed writer: rows that never counted
            yield _with_columns(batch, newest.names if columns is None else columns, newest)


_LONGEST_BEGINNING = 4096
"""Bytes; the message that holds the schema is shorter."""

_FILE = re.compile(r"(?P<run>.+)-(?P<number>\d+)\.arrows")


def _create(directory: Path, run_id: str) -> tuple[Path, int]:
    number = max((_number_of(p) for p in ledger_files(directory, run_id)), default=0)
    while True:
        number += 1
        path = directory / f"{_file_stem(run_id)}-{number}.arrows"
        try:
            # Exclusive: two producers of the same run never share a file.
            return path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            continue


def _file_stem(run_id: str) -> str:
    """Run id with whatever a file name should not hold replaced."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", run_id)[:120]


def _run_of(path: Path) -> str:
    found = _FILE.fullmatch(path.name)
    return found["run"] if found else ""


def _number_of(path: Path) -> int:
    found = _FILE.fullmatch(path.name)
    return int(found["number"]) if found else 0


def _with_columns(batch: pa.RecordBatch, columns: Sequence[str], schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    if set(columns) <= set(batch.schema.names):
        return batch.select(list(columns))
    arrays = [batch.column(name) if name in batch.schema.names else pa.nulls(batch.num_rows, schema.field(name).type) for name in columns]
    return pa.RecordBatch.from_arrays(arrays, names=list(columns))


def _only_a_beginning(head: bytes) -> bool:
    """Whether the file is what a writer killed before its first whole message leaves: nothing, or the start of a schema."""
    marker = b"\xff\xff\xff\xff"
    return len(head) < _LONGEST_BEGINNING and head[: len(marker)] == marker[: len(head)]


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
