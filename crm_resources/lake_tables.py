"""Makes the lake's tables as `layout` declares them and appends to them, with delta-rs: no Spark has to run for that.

Belongs here: schema, partitions and properties of a table before its first row, bringing a table that exists up to a declaration that has
grown, refusing one that somebody else has changed, and the one way rows get into it. Not here: which tables there are (`layout`),
reading them (`lake`), what may change (`contracts.evolution`), or what is written to them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from crm_resources.contracts import Column, ColumnType
from crm_resources.contracts.derive_arrow import arrow_schema
from crm_resources.contracts.evolution import SchemaChanges, SchemaRefused, TableColumn, compare_table, declared_columns
from crm_resources.lake import Commit, LakeError, open_table, read_commit
from crm_resources.layout import LakeTable
from crm_resources.object_store import storage_options
from crm_resources.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable


def table_properties(table: LakeTable, history_days: int) -> dict[str, str]:
    """The Delta properties of a table; pure.

    Args:
        table: its declaration.
        history_days: how long log entries and files that are no longer current are kept.
    """
    retention = f"interval {history_days} days"
    return {
        "delta.dataSkippingStatsColumns": ",".join(table.statistics),
        "delta.checkpointInterval": str(table.checkpoint_interval),
        "delta.logRetentionDuration": retention,
        "delta.deletedFileRetentionDuration": retention,
        # A writer would clean the log up by age alone, past the bookmark of a load; upkeep looks at the bookmarks first.
        "delta.enableExpiredLogCleanup": "false",
    }


def table_schema(table: LakeTable) -> pa.Schema:
    """Columns of a table as it stores them: described, and all nullable, for the stream has checked before it writes."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field(field.name, field.type, nullable=True, metadata={"comment": column.description})
            for field, column in zip(arrow_schema(table.columns), table.columns, strict=True)
        ]
    )


def create_table(settings: Settings, table: LakeTable, path: str | None = None) -> DeltaTable:
    """Make a table where it does not exist, bring its properties and added columns to its declaration where it does, and open it.

    The caller is the lake's only writer.

    Args:
        settings: where the lake is.
        table: its declaration.
        path: another path below the lake's root, for a copy that is built beside the live table.

    Raises:
        SchemaRefused: the table differs from its declaration in another way; nothing is changed.
    """
    from deltalake import DeltaTable, Schema

    wanted = table_properties(table, settings.history_days)
    opened = DeltaTable.create(
        settings.table_uri(path or table.path),
        schema=table_schema(table),
        mode="ignore",
        partition_by=list(table.partition_by),
        configuration=wanted,
        storage_options=storage_options(settings),
    )
    changes = stored_changes(table, opened)
    if changes.refused:
        raise SchemaRefused(changes.refused)
    if changes.add:
        # A column whose items have grown is given as a whole; Delta adds what it lacks.
        grown = {name.partition(".")[0] for name in changes.add}
        opened.alter.add_columns([f for f in Schema.from_arrow(table_schema(table)).fields if f.name in grown])
    found = opened.metadata().configuration
    outdated = {name: value for name, value in wanted.items() if found.get(name) != value}
    if outdated:
        opened.alter.set_table_properties(outdated)
    return opened


def stored_changes(table: LakeTable, opened: DeltaTable) -> SchemaChanges:
    """How a table's stored schema differs from its declaration."""
    stored = _stored_columns(json.loads(opened.schema().to_json())["fields"])
    return compare_table(table.name, declared_columns(table.columns, _delta_type), stored)


def refuse_altered(settings: Settings, tables: Iterable[tuple[LakeTable, str]]) -> None:
    """Refuse tables that do not follow their declarations or that somebody else has written to, before any of them is touched.

    Looks at each table's schema, and at the commits since the last one of the product's own: every writer of the product looks before it
    writes, so what lies further back has been looked at.

    Args:
        settings: where the lake is.
        tables: declarations with their paths below the lake's root; those that do not exist are passed over.

    Raises:
        SchemaRefused: stored columns that cannot be brought to the declaration, of all tables at once.
        TableAltered: rows were changed by hand.
    """
    found = [(table, path, opened) for table, path in tables if (opened := open_table(settings, path)) is not None]
    refused = [refusal for table, _, opened in found for refusal in stored_changes(table, opened).refused]
    if refused:
        raise SchemaRefused(refused)
    for table, path, opened in found:
        _refuse_foreign_commits(settings, table, path, int(opened.version()))


class TableAltered(LakeError):
    """Somebody else than the product changed a table's rows; the message names table, version, operation and remedy."""


_OWN_TRANSACTION = re.compile(r"(ingest|refine|rebuild|replay|backfill)-.+|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""Names of the Delta transactions that the product's writers put on their commits; a bare UUID is the query id of Spark's own sink."""


def _refuse_foreign_commits(settings: Settings, table: LakeTable, path: str, latest: int) -> None:
    """Go back from the latest version to the last commit of the product's own, past commits that change no rows.

    A restore makes the table what it was at the version it names, so the way goes on from there.
    """
    version, foreign = latest, list[Commit]()
    while version >= 0:
        commit = read_commit(settings, path, version)
        if commit is None or any(_OWN_TRANSACTION.fullmatch(name) for name in commit.transactions):
            break
        if commit.restored_version is not None:
            version = commit.restored_version
            continue
        if commit.added or commit.removed:
            foreign.append(commit)
        version -= 1
    if not foreign:
        return
    uri, changed = settings.table_uri(path), [f"{c.version} ({c.operation or 'no operation named'})" for c in reversed(foreign)]
    good = foreign[-1].version - 1
    raise TableAltered(
        f"{table.name} was changed by hand: {'versions' if len(changed) > 1 else 'version'} {', '.join(changed)} of {uri} changed rows "
        "without a transaction of the product. Only the stream writes this table. With the stream stopped, "
        + (f"take that back by `DeltaTable({uri!r}).restore({good})`" if good >= 0 else "move the folder away")
        + ", then start the stream again; silver, dead letters and duplicates can also be made anew from bronze by the job rebuild_silver"
    )


def _stored_columns(fields: Iterable[Mapping[str, Any]], prefix: str = "") -> list[TableColumn]:
    """Columns as Delta's own JSON spells them. All are nullable there, so it says nothing of that."""
    found = []
    for field in fields:
        name, kind = f"{prefix}{field['name']}", field["type"]
        nested = isinstance(kind, dict)
        found.append(TableColumn(name, kind["type"] if nested else kind, None))
        element = kind.get("elementType") if nested else None
        if isinstance(element, dict):
            found.extend(_stored_columns(element.get("fields", ()), f"{name}."))
    return found


def _delta_type(column: Column) -> str:
    match column.type:
        case ColumnType.INT:
            return "integer"
        case ColumnType.LIST:
            return "array"
        case ColumnType.DECIMAL:
            return f"decimal({column.precision or 38},{column.scale or 0})"
        case _:
            return column.type.value


def last_transaction(table: DeltaTable, application: str) -> int:
    """Number of the last Delta transaction of that name in the open table, -1 before the first."""
    found = table.transaction_version(application)
    return -1 if found is None else int(found)


def append_rows(
    table: DeltaTable, rows: pa.Table, *, application: str, version: int, plain_columns: Sequence[str] = (), retries: int = 0
) -> None:
    """Append rows in one commit that carries a Delta transaction. Whether that transaction was there before is the caller's question.

    Args:
        table: the open table; it stands at the new version afterwards.
        rows: rows in the table's columns and types.
        application: name of the transaction, with the checkpoint's generation or the run in it.
        version: number of the transaction.
        plain_columns: columns whose values hardly repeat, which are written without a dictionary.
        retries: how often to try again when another commit came first; 0 where the caller is the only writer and wants to know.
    """
    from deltalake import ColumnProperties, CommitProperties, Transaction, WriterProperties, write_deltalake

    write_deltalake(
        table,
        rows,
        mode="append",
        writer_properties=WriterProperties(
            compression="ZSTD",
            compression_level=1,
            column_properties={name: ColumnProperties(dictionary_enabled=False) for name in plain_columns} or None,
        ),
        commit_properties=CommitProperties(app_transactions=[Transaction(application, version)], max_commit_retries=retries),
    )
