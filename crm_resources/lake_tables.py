"""Makes the lake's tables as `layout` declares them and appends to them, with delta-rs: no Spark has to run for that.

Belongs here: schema, partitions and properties of a table before its first row, and the one way rows get into it. Not here: which tables
there are (`layout`), reading them (`lake`), or what is written to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from crm_resources.contracts.derive_arrow import arrow_schema
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
    """Make a table where it does not exist, bring its properties to their declaration, and open it.

    Args:
        settings: where the lake is.
        table: its declaration.
        path: another path below the lake's root, for a copy that is built beside the live table.
    """
    from deltalake import DeltaTable

    wanted = table_properties(table, settings.history_days)
    made = DeltaTable.create(
        settings.table_uri(path or table.path),
        schema=table_schema(table),
        mode="ignore",
        partition_by=list(table.partition_by),
        configuration=wanted,
        storage_options=storage_options(settings),
    )
    found = made.metadata().configuration
    changed = {name: value for name, value in wanted.items() if found.get(name) != value}
    if changed:
        made.alter.set_table_properties(changed)
    return made


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
