"""Makes the lake's tables as `layout` declares them, with delta-rs: no Spark has to run for a table to exist.

Belongs here: schema, partitions and properties of a table before its first row. Not here: which tables there are (`layout`), reading them
(`lake`), or what is written to them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crm_resources.contracts.derive_arrow import arrow_schema
from crm_resources.layout import LakeTable
from crm_resources.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable

RETENTION = "interval 30 days"
"""How long the Delta logs and files that are no longer current are kept: a load may lag behind by that much."""


def table_properties(table: LakeTable) -> dict[str, str]:
    """The Delta properties of a table; pure."""
    return {
        "delta.dataSkippingStatsColumns": ",".join(table.statistics),
        "delta.checkpointInterval": str(table.checkpoint_interval),
        "delta.logRetentionDuration": RETENTION,
        "delta.deletedFileRetentionDuration": RETENTION,
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
    """Make a table where it does not exist, and open it.

    Args:
        settings: where the lake is.
        table: its declaration.
        path: another path below the lake's root, for a copy that is built beside the live table.
    """
    from deltalake import DeltaTable

    return DeltaTable.create(
        settings.table_uri(path or table.path),
        schema=table_schema(table),
        mode="ignore",
        partition_by=list(table.partition_by),
        configuration=table_properties(table),
    )
