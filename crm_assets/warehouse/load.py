"""Silver → raw: the rows a Delta table gained since the bookmark, into PostgreSQL, in one transaction with the bookmark.

Belongs here: reading by Delta version, splitting list columns into child tables, insert-if-new, moving the bookmark, and the way
back when the lake's history broke. Not here: which tables exist (`crm_resources.contracts`), how the log is read
(`crm_resources.lake`), or when a load runs (`crm_assets.monitoring.refresh`).

From the command line: `python -m crm_assets.warehouse.load` loads every entity; `--reset orders` loads one anew from the first
version, which is the remedy when its Delta table was rebuilt.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from crm_resources import lake, warehouse
from crm_resources.command_end import failed
from crm_resources.contracts import ChildTable, Column, Contract, contract_for, contracts
from crm_resources.contracts.derive_postgres import LOADED_AT, RAW_SCHEMA, RawTable, raw_tables
from crm_resources.contracts.evolution import SchemaRefused
from crm_resources.layout import SILVER, silver_columns
from crm_resources.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK_ROWS = 200_000
"""Rows that are in memory at once."""

CHUNK_ROWS_WITH_LISTS = 40_000
"""The same for entities with lists: an order of the real file has 21 lines on average, the longest over a thousand."""

ANALYZE_ROWS = 10_000
"""Rows from which a load refreshes the planner's statistics itself; dbt runs before PostgreSQL would get round to it."""

LOCK_SECONDS = 1800
"""How long a load waits for another load of the same entity, whose lock ends with it; only one that hangs holds on for so long."""


class LoadError(RuntimeError):
    """A load that cannot go on; the message names the entity and the remedy."""


@dataclass(frozen=True)
class LoadResult:
    """What one load of an entity did.

    `version` is the Delta version that raw stands at now, `None` while the silver table does not exist; `child_rows_inserted`
    counts the rows of the list fields' own tables.
    """

    entity: str
    rows_read: int
    rows_inserted: int
    child_rows_inserted: int
    version: int | None
    seconds: float


def load_all(settings: Settings, *, chunk_rows: int | None = None) -> list[LoadResult]:
    """Prepare the database and load every entity, one transaction each; see `load_entity`."""
    warehouse.prepare(settings)
    return [load_entity(settings, contract, chunk_rows=chunk_rows) for contract in contracts()]


def load_entity(settings: Settings, contract: Contract, *, to_version: int | None = None, chunk_rows: int | None = None) -> LoadResult:
    """Load what an entity's silver table gained since the bookmark, exactly once.

    Rows and bookmark are committed together; a second load at the same time waits for the first and then starts from its
    bookmark. The database must be prepared (`warehouse.prepare`).

    Args:
        settings: which data set.
        contract: the entity.
        to_version: Delta version to reach; the latest when omitted.
        chunk_rows: rows in memory at once; by default chosen by the entity.

    Raises:
        LoadError: the Delta table was made anew, lost versions or lost rows, or another load holds the entity for too long.
        crm_resources.warehouse.WarehouseError: no connection.
    """
    return _load(settings, contract, to_version, chunk_rows, reset=False)


def reset_entity(settings: Settings, contract: Contract, *, chunk_rows: int | None = None) -> LoadResult:
    """Empty an entity's raw tables and load it from the first version, in one transaction: the remedy for a broken history.

    Raises:
        LoadError: as for `load_entity`.
    """
    return _load(settings, contract, None, chunk_rows, reset=True)


def _load(settings: Settings, contract: Contract, to_version: int | None, chunk_rows: int | None, *, reset: bool) -> LoadResult:
    started, clock = datetime.now(UTC), time.monotonic()
    with warehouse.connect(settings) as connection, connection.cursor() as cursor:
        _lock(cursor, contract)
        if reset:
            for table in raw_tables(contract):
                cursor.execute(f"truncate {_name(table)}")
                cursor.execute("delete from meta.raw_rows where table_name = $1::text", (table.name,))
            cursor.execute("delete from meta.bookmarks where table_name = $1::text", (contract.plural,))
        mark = _bookmark(cursor, contract)
        changes = _changes(settings, contract, mark, to_version)
        if changes is None or (mark is not None and changes.to_version == mark.version):
            connection.commit()
            return LoadResult(contract.entity, 0, 0, 0, mark.version if mark else None, time.monotonic() - clock)
        read = 0
        inserted = Counter[str]()
        floor = _after_all_before(cursor, contract)
        size = chunk_rows or (CHUNK_ROWS_WITH_LISTS if contract.children else CHUNK_ROWS)
        parent, *children = raw_tables(contract)
        for batch in read_batches(settings, contract, changes.files, size):
            read += batch.num_rows
            inserted[parent.name] += _insert(cursor, parent, batch.select([c.name for c in parent.columns if c != LOADED_AT]), floor)
            for table, child in zip(children, contract.children, strict=True):
                inserted[table.name] += _insert(cursor, table, child_rows(batch, child), floor)
        for table in (parent, *children):
            _count(cursor, table, inserted[table.name])
            if inserted.total() >= ANALYZE_ROWS:
                cursor.execute(f"analyze {_name(table)}")
        _move_bookmark(cursor, contract, mark, changes, read, inserted[parent.name], started)
        connection.commit()
    children_inserted = inserted.total() - inserted[parent.name]
    return LoadResult(contract.entity, read, inserted[parent.name], children_inserted, changes.to_version, time.monotonic() - clock)


def read_batches(settings: Settings, contract: Contract, files: Sequence[lake.DataFile], size: int) -> Iterator[pa.RecordBatch]:
    """Rows of data files in the contract's Arrow types, at most `size` rows at a time; columns the file lacks are null."""
    import pyarrow.parquet as pq

    columns = silver_columns(contract)
    path = SILVER[contract.plural].path
    filesystem = lake.table_filesystem(settings, path)
    for file in files:
        with filesystem.open_input_file(lake.unquoted(file.path)) as stream:
            # Spark may write INT96 times, which overflow when read as nanoseconds.
            parquet = pq.ParquetFile(stream, coerce_int96_timestamp_unit="us")
            known = set(parquet.schema_arrow.names)
            for batch in parquet.iter_batches(batch_size=size, columns=[c.name for c in columns if c.name in known]):
                yield _conform(batch, columns)


def child_rows(batch: pa.RecordBatch, child: ChildTable) -> pa.RecordBatch:
    """One row per item of a list column, with the `event_id` of the row it belongs to; null lists and null items give none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lists = batch.column(child.field)
    items = pc.list_flatten(lists)
    event_ids = batch.column("event_id").take(pc.list_parent_indices(lists))
    rows = pa.RecordBatch.from_arrays(
        [event_ids, *(pc.struct_field(items, [c.name]) for c in child.columns)], names=["event_id", *(c.name for c in child.columns)]
    )
    return rows.filter(pc.is_valid(items)) if items.null_count else rows


def _conform(batch: pa.RecordBatch, columns: Sequence[Column]) -> pa.RecordBatch:
    import pyarrow as pa

    from crm_resources.contracts.derive_arrow import arrow_schema

    schema = arrow_schema(columns)
    arrays = [
        batch.column(field.name).cast(field.type) if field.name in batch.schema.names else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, names=schema.names)


def _after_all_before(cursor: Any, contract: Contract) -> datetime:  # noqa: ANN401 -- the driver carries no types
    """Time after which the rows of this load are dated: refreshes tell new rows by `loaded_at`, even when a clock was set back."""
    cursor.execute(
        "select greatest(clock_timestamp(), max(loaded_at) + interval '1 microsecond') "  # noqa: S608 -- names come from the contracts
        f"from {RAW_SCHEMA}.{contract.plural}"
    )
    moment: datetime = cursor.fetchall()[0][0]
    return moment


def _insert(cursor: Any, table: RawTable, rows: pa.RecordBatch, floor: datetime) -> int:  # noqa: ANN401 -- the driver carries no types
    """Copy rows to a temporary table and insert those whose key is new, dated now or `floor`; returns how many were."""
    if not rows.num_rows:
        return 0
    incoming = f"incoming_{table.name}"
    cursor.execute(f"drop table if exists pg_temp.{incoming}")
    cursor.adbc_ingest(incoming, rows, mode="create", temporary=True)
    columns = ", ".join(rows.schema.names)
    cursor.execute(
        f"insert into {_name(table)} ({columns}, {LOADED_AT.name}) "  # noqa: S608 -- names come from the contracts
        f"select {columns}, greatest(clock_timestamp(), timestamptz '{floor.isoformat()}') from pg_temp.{incoming} "
        f"on conflict ({', '.join(table.primary_key)}) do nothing"
    )
    return max(int(cursor.rowcount), 0)


def _count(cursor: Any, table: RawTable, inserted: int) -> None:  # noqa: ANN401 -- the driver carries no types
    """Note how many rows the table has; the first load that does finds them by counting."""
    cursor.execute(
        "update meta.raw_rows set row_count = row_count + $2::bigint where table_name = $1::text returning row_count",
        (table.name, inserted),
    )
    if cursor.fetchone() is None:
        cursor.execute(
            f"insert into meta.raw_rows (table_name, row_count) select $1::text, count(*) from {_name(table)}",  # noqa: S608 -- as above
            (table.name,),
        )


def _lock(cursor: Any, contract: Contract) -> None:  # noqa: ANN401 -- the driver carries no types
    from adbc_driver_manager import Error

    cursor.execute(f"set local lock_timeout = '{LOCK_SECONDS}s'")
    try:
        cursor.execute("select pg_advisory_xact_lock(hashtext('crm load'), hashtext($1::text))", (contract.plural,))
        cursor.fetchall()
    except Error as error:
        if error.sqlstate != "55P03":
            raise
        raise LoadError(
            f"another load of {contract.plural} has been running for more than {LOCK_SECONDS} s; look for it in the Dagster runs, "
            "or in pg_stat_activity, and start this one again when it has ended"
        ) from error


def _bookmark(cursor: Any, contract: Contract) -> warehouse.Bookmark | None:  # noqa: ANN401 -- the driver carries no types
    cursor.execute("select table_id, version, moved_at from meta.bookmarks where table_name = $1::text", (contract.plural,))
    row = cursor.fetchone()
    return None if row is None else warehouse.Bookmark(row[0], row[1], row[2])


def _changes(settings: Settings, contract: Contract, mark: warehouse.Bookmark | None, to_version: int | None) -> lake.FileChanges | None:
    try:
        return lake.added_files(
            settings,
            SILVER[contract.plural].path,
            mark.version if mark else None,
            to_version,
            expected_table_id=mark.table_id if mark else None,
        )
    except lake.LakeError as error:
        raise LoadError(
            f"cannot load {contract.plural} from its bookmark: {error}. Run `python -m crm_assets.warehouse.load --reset {contract.plural}`"
        ) from error


def _move_bookmark(
    cursor: Any,  # noqa: ANN401 -- the driver carries no types
    contract: Contract,
    mark: warehouse.Bookmark | None,
    changes: lake.FileChanges,
    read: int,
    inserted: int,
    started: datetime,
) -> None:
    cursor.execute(
        "insert into meta.bookmarks (table_name, table_id, version) values ($1::text, $2::text, $3::bigint) "
        "on conflict (table_name) do update set table_id = excluded.table_id, version = excluded.version, moved_at = clock_timestamp()",
        (contract.plural, changes.table_id, changes.to_version),
    )
    cursor.execute(
        "insert into meta.loads (table_name, table_id, from_version, to_version, rows_read, rows_inserted, started_at, finished_at) "
        "values ($1::text, $2::text, $3::bigint, $4::bigint, $5::bigint, $6::bigint, $7::timestamptz, clock_timestamp())",
        (contract.plural, changes.table_id, mark.version if mark else None, changes.to_version, read, inserted, started),
    )


def _name(table: RawTable) -> str:
    return f"{RAW_SCHEMA}.{table.name}"


def main() -> None:
    """Command line: load everything, or reset one entity."""
    import typer
    from rich.console import Console

    from crm_resources.settings import load_settings

    def run(reset: str = typer.Option("", help="Entity to load anew from its first version, e.g. orders.")) -> None:
        """Load silver into PostgreSQL."""
        settings = load_settings()
        try:
            if reset:
                warehouse.prepare(settings)
                results = [reset_entity(settings, contract_for(reset))]
            else:
                results = load_all(settings)
        except (LoadError, warehouse.WarehouseError, SchemaRefused, KeyError) as error:
            raise failed(error) from error
        for result in results:
            Console().print(
                f"{result.entity}: {result.rows_inserted:,} of {result.rows_read:,} rows new, "
                f"{result.child_rows_inserted:,} child rows, version {result.version}, {result.seconds:.1f} s"
            )

    typer.run(run)


if __name__ == "__main__":
    main()
