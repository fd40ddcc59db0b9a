"""Reading the lake without Spark: versions, row counts, which files a version added, and columns of given files.

Belongs here: what the warehouse load, the audit, the asset metadata and the check against history read, on a local disk and on an object
store alike, and the small files beside the tables. Not here: any write to a table (the stream's driver is the only writer of its
tables), or what is made of the rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crm_resources.contracts import contracts
from crm_resources.layout import BRONZE, DEAD_LETTERS, DUPLICATES, REPLAYS, SILVER, topic_name
from crm_resources.object_store import ObjectStore, arrow_filesystem, storage_options
from crm_resources.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable
    from pyarrow.fs import FileSystem


class LakeError(RuntimeError):
    """What stands in the lake is not what the reader's bookmark says; the message names the remedy."""


class TableRecreated(LakeError):
    """The table has another id than the bookmark: it was rebuilt or made anew, and its versions started over."""


class VersionMissing(LakeError):
    """A commit between bookmark and target is gone (log clean-up) or not there yet."""


class RowsRemoved(LakeError):
    """A commit took rows away, which an append-only reader cannot follow."""


@dataclass(frozen=True)
class DataFile:
    """One data file of a table.

    `path` is relative to the table, `version` the commit that added it (`None` when taken from a snapshot), `minimum` and
    `maximum` hold the statistics of the indexed columns as the log spells them.
    """

    path: str
    rows: int
    size_bytes: int
    version: int | None
    partition: dict[str, str | None] = field(default_factory=dict)
    minimum: dict[str, Any] = field(default_factory=dict)
    maximum: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FileChanges:
    """Files that hold the rows added after `after_version` (all rows when `None`) up to and including `to_version`."""

    table_id: str
    after_version: int | None
    to_version: int
    files: tuple[DataFile, ...]

    @property
    def rows(self) -> int:
        """Rows in all the files."""
        return sum(f.rows for f in self.files)


@dataclass(frozen=True)
class Commit:
    """What one entry of a Delta log says, as far as the product reads it.

    `operation` is the writer's own word for it; `restored_version` is set where it made the table what an earlier version was.
    """

    version: int
    added: tuple[DataFile, ...]
    removed: tuple[str, ...]
    transactions: dict[str, int]
    operation: str = ""
    restored_version: int | None = None


def open_table(settings: Settings, path: str) -> DeltaTable | None:
    """Table at a path below the lake's root, `None` while it does not exist."""
    from deltalake import DeltaTable

    uri, options = settings.table_uri(path), storage_options(settings)
    return DeltaTable(uri, storage_options=options) if DeltaTable.is_deltatable(uri, options) else None


def table_version(settings: Settings, path: str) -> int | None:
    """Latest version, `None` while the table does not exist."""
    table = open_table(settings, path)
    return None if table is None else int(table.version())


def table_id(settings: Settings, path: str) -> str | None:
    """Id the table got when it was made; a rebuilt table has another one. `None` while it does not exist."""
    table = open_table(settings, path)
    return None if table is None else str(table.metadata().id)


def row_count(settings: Settings, path: str) -> int:
    """Rows of the latest version by the statistics of its files, 0 while the table does not exist."""
    table = open_table(settings, path)
    return 0 if table is None else sum(f.rows for f in files_of(table))


def files_of(table: DeltaTable) -> list[DataFile]:
    """Files of the version the table is open at."""
    import pyarrow as pa

    actions = pa.table(table.get_add_actions(flatten=False)).to_pylist()
    return [
        DataFile(
            path=str(a["path"]),
            rows=int(a.get("num_records") or 0),
            size_bytes=int(a["size_bytes"]),
            version=None,
            partition={k: None if v is None else str(v) for k, v in (a.get("partition_values") or a.get("partition") or {}).items()},
            minimum=dict(a.get("min") or {}),
            maximum=dict(a.get("max") or {}),
        )
        for a in actions
    ]


def read_commit(settings: Settings, path: str, version: int) -> Commit | None:
    """One commit of the table's log, `None` when there is no such file."""
    from pyarrow.fs import FileType

    filesystem = table_filesystem(settings, path)
    name = f"_delta_log/{version:020d}.json"
    if filesystem.get_file_info(name).type != FileType.File:
        return None
    with filesystem.open_input_file(name) as stream:
        return parse_commit(version, stream.read().decode())


def parse_commit(version: int, text: str) -> Commit:
    """Read the actions of a commit; files and removals count only with `dataChange=true`."""
    added: list[DataFile] = []
    removed: list[str] = []
    transactions: dict[str, int] = {}
    info: dict[str, Any] = {}
    for line in text.splitlines():
        action = json.loads(line) if line.strip() else {}
        if (add := action.get("add")) and add.get("dataChange", True):
            added.append(_data_file(add, version))
        elif (remove := action.get("remove")) and remove.get("dataChange", True):
            removed.append(str(remove["path"]))
        elif txn := action.get("txn"):
            transactions[txn["appId"]] = int(txn["version"])
        info = action.get("commitInfo") or info
    operation = str(info.get("operation", ""))
    restored = (info.get("operationParameters") or {}).get("version") if operation == "RESTORE" else None
    return Commit(version, tuple(added), tuple(removed), transactions, operation, None if restored is None else int(restored))


def added_files(
    settings: Settings,
    path: str,
    after_version: int | None,
    to_version: int | None = None,
    expected_table_id: str | None = None,
) -> FileChanges | None:
    """Files a reader with a bookmark has to read to reach a version.

    Args:
        settings: where the lake is.
        path: table below the lake's root.
        after_version: bookmark, the last version already read; `None` reads the snapshot of `to_version` as a whole.
        to_version: version to reach; the latest when omitted.
        expected_table_id: id of the table at the bookmark.

    Returns:
        The changes (no files when nothing was added), or `None` while the table does not exist.

    Raises:
        TableRecreated: the table has another id than at the bookmark.
        VersionMissing: a commit in the range is not there.
        RowsRemoved: a commit in the range removed rows.
    """
    table = open_table(settings, path)
    if table is None:
        if after_version is not None:
            raise TableRecreated(f"{settings.table_uri(path)} is gone, but version {after_version} of it was read before; {_RELOAD}")
        return None
    found_id, latest = str(table.metadata().id), int(table.version())
    target = latest if to_version is None else to_version
    if expected_table_id is not None and found_id != expected_table_id:
        raise TableRecreated(f"{settings.table_uri(path)} is table {found_id}, the bookmark speaks of {expected_table_id}; {_RELOAD}")
    if target > latest or (after_version is not None and after_version > latest):
        raise VersionMissing(
            f"{settings.table_uri(path)} is at version {latest}, but version {max(target, after_version or 0)} was asked for: "
            f"the table was restored from an older copy; {_RELOAD}"
        )
    if after_version is None:
        if target != latest:
            _load_as_version(settings, path, table, target)
        return FileChanges(found_id, None, target, tuple(files_of(table)))
    files: list[DataFile] = []
    for version in range(after_version + 1, target + 1):
        commit = read_commit(settings, path, version)
        if commit is None:
            raise VersionMissing(
                f"version {version} of {settings.table_uri(path)} is no longer in its log (bookmark {after_version}, target {target}); "
                f"{_RELOAD}"
            )
        if commit.removed:
            raise RowsRemoved(
                f"version {version} of {settings.table_uri(path)} removed {len(commit.removed)} files with their rows; {_RELOAD}"
            )
        files.extend(commit.added)
    return FileChanges(found_id, after_version, target, tuple(files))


def _load_as_version(settings: Settings, path: str, table: DeltaTable, version: int) -> None:
    from deltalake.exceptions import DeltaError

    try:
        table.load_as_version(version)
    except DeltaError as error:
        raise VersionMissing(f"version {version} of {settings.table_uri(path)} cannot be put together from its log any more") from error


def read_columns(settings: Settings, path: str, files: Iterable[DataFile], columns: Sequence[str]) -> pa.Table:
    """Columns of the given files as one Arrow table; partition columns come from the files' partition values, as strings.

    A column that a file lacks, because the table gained it later, is null.

    Args:
        settings: where the lake is.
        path: table below the lake's root.
        files: files of that table.
        columns: names in the order wanted.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    filesystem = table_filesystem(settings, path)
    chunks: list[pa.Table] = []
    for file in files:
        stored = [c for c in columns if c not in file.partition]
        part = pq.ParquetFile(filesystem.open_input_file(unquoted(file.path))).read(columns=stored)
        for name in columns:
            if name in file.partition:
                part = part.append_column(name, pa.array([file.partition[name]] * part.num_rows, pa.string()))
            elif name not in part.schema.names:
                part = part.append_column(name, pa.nulls(part.num_rows))
        chunks.append(part.select(list(columns)))
    if not chunks:
        return pa.table({name: pa.array([], pa.null()) for name in columns})
    return pa.concat_tables(chunks, promote_options="permissive")


def read_table(settings: Settings, path: str, columns: Sequence[str]) -> pa.Table:
    """Columns of all rows of the latest version, as `read_columns` gives them; no rows while the table does not exist.

    Args:
        settings: where the lake is.
        path: table below the lake's root.
        columns: names in the order wanted.
    """
    table = open_table(settings, path)
    return read_columns(settings, path, [] if table is None else files_of(table), columns)


def iter_batches(
    settings: Settings, path: str, files: Iterable[DataFile], schema: pa.Schema, batch_rows: int = 100_000
) -> Iterator[pa.RecordBatch]:
    """Rows of the given files piece by piece, so that memory does not grow with the files.

    Args:
        settings: where the lake is.
        path: table below the lake's root.
        files: files of that table.
        schema: columns wanted, in the types wanted; partition columns come from the files' partition values, and a column
            that a file lacks is null.
        batch_rows: most rows of a batch.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    filesystem = table_filesystem(settings, path)
    for file in files:
        with filesystem.open_input_file(unquoted(file.path)) as stream:
            # Spark may write INT96 times, which overflow when read as nanoseconds.
            parquet = pq.ParquetFile(stream, coerce_int96_timestamp_unit="us", pre_buffer=False)
            stored = set(parquet.schema_arrow.names)
            names = [name for name in schema.names if name in stored and name not in file.partition]
            for batch in parquet.iter_batches(batch_size=batch_rows, columns=names, use_threads=False):
                arrays = [
                    batch.column(wanted.name).cast(wanted.type)
                    if wanted.name in names
                    else pa.repeat(pa.scalar(file.partition.get(wanted.name), pa.string()), batch.num_rows).cast(wanted.type)
                    for wanted in schema
                ]
                yield pa.RecordBatch.from_arrays(arrays, schema=pa.schema([pa.field(f.name, f.type) for f in schema]))


@dataclass(frozen=True)
class StreamCounts:
    """Records in Kafka, in bronze, and refined (silver, open dead letters, dropped duplicates).

    `backfilled` of those in bronze did not come through Kafka; `silver` is part of `refined`.
    """

    kafka: int
    bronze: int
    backfilled: int
    refined: int
    silver: int

    @property
    def settled(self) -> bool:
        """Whether the stream has refined everything that was ever written to the topics, or straight to bronze."""
        return self.kafka + self.backfilled == self.bronze == self.refined

    def __str__(self) -> str:
        """What there is, for a person who waits."""
        return f"{self.kafka:,} records in Kafka, {self.bronze:,} rows in bronze, {self.refined:,} refined"


def stream_counts(settings: Settings) -> StreamCounts:
    """How far the stream has come, cheaply: the topics' offsets and the statistics of the tables' files.

    Raises:
        crm_resources.kafka.KafkaUnavailableError: Kafka does not answer.
        crm_resources.kafka.TopicError: a topic is absent.
    """
    from crm_resources import kafka

    written = sum(high for c in contracts() for _, high in kafka.offsets(settings, topic_name(settings.env, c.plural)).values())
    silver = sum(row_count(settings, table.path) for table in SILVER.values())
    # Each replayed attempt has a row in the replay ledger, and is no longer open.
    open_letters = row_count(settings, DEAD_LETTERS.path) - row_count(settings, REPLAYS.path)
    refined = silver + open_letters + row_count(settings, DUPLICATES.path)
    return StreamCounts(written, row_count(settings, BRONZE.path), backfilled_rows(settings), refined, silver)


def backfilled_rows(settings: Settings) -> int:
    """Rows of bronze that did not come through Kafka: their partitions are negative."""
    import pyarrow.compute as pc

    table = open_table(settings, BRONZE.path)
    count = 0
    for file in files_of(table) if table is not None else ():
        lowest, highest = file.minimum.get("kafka_partition"), file.maximum.get("kafka_partition")
        if highest is not None and highest < 0:
            count += file.rows
        elif lowest is None or lowest < 0:  # a compacted file may hold both
            partitions = read_columns(settings, BRONZE.path, [file], ["kafka_partition"])["kafka_partition"]
            count += int(pc.sum(pc.less(partitions, 0)).as_py() or 0)
    return count


def unquoted(path: str) -> str:
    """Path of a data file as the file system knows it; the log writes it as a URI."""
    from urllib.parse import unquote

    return unquote(path)


def table_filesystem(settings: Settings, path: str) -> FileSystem:
    """File system whose root is the table's folder."""
    from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

    if settings.lake_on_object_store:
        return arrow_filesystem(settings, path)
    return SubTreeFileSystem(str(Path(settings.table_uri(path))), LocalFileSystem(use_mmap=True))


def lake_filesystem(settings: Settings) -> FileSystem:
    """File system whose root is the lake's root: for the few small files beside the tables."""
    return table_filesystem(settings, "")


def write_whole(settings: Settings, path: str, content: bytes) -> None:
    """Write a small file below the lake's root so that a reader sees all of it or nothing.

    On a local disk it is written beside and renamed; on an object store one PUT is whole already, and a renaming would be a copy.

    Args:
        settings: where the lake is.
        path: path below the lake's root; its folder is made where there are folders.
        content: the whole file.
    """
    if settings.lake_on_object_store:
        ObjectStore(settings).put(path, content)
        return
    target = Path(settings.lake_root) / path
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f"{target.name}.tmp")
    draft.write_bytes(content)
    draft.replace(target)


_RELOAD = "load this table anew from its first version (reset its bookmark), rows that are already there are skipped by their event_id"


def _data_file(add: dict[str, Any], version: int) -> DataFile:
    stats = json.loads(add["stats"]) if add.get("stats") else {}
    return DataFile(
        path=str(add["path"]),
        rows=int(stats.get("numRecords", 0)),
        size_bytes=int(add["size"]),
        version=version,
        partition=dict(add.get("partitionValues") or {}),
        minimum=dict(stats.get("minValues") or {}),
        maximum=dict(stats.get("maxValues") or {}),
    )
