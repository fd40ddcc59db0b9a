"""Contract → Arrow schema: what the generator writes and the warehouse load reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from crm_resources.contracts.model import Column, ColumnType

if TYPE_CHECKING:
    import pyarrow as pa


def arrow_schema(columns: Iterable[Column]) -> pa.Schema:
    """Arrow schema of the columns; times are microseconds in UTC, lists are lists of structs."""
    import pyarrow as pa

    return pa.schema([_field(c) for c in columns])


def _field(column: Column) -> pa.Field:
    import pyarrow as pa

    return pa.field(column.name, _type(column), nullable=column.nullable)


def _type(column: Column) -> pa.DataType:
    import pyarrow as pa

    match column.type:
        case ColumnType.STRING:
            return pa.string()
        case ColumnType.INT:
            return pa.int32()
        case ColumnType.LONG:
            return pa.int64()
        case ColumnType.BOOLEAN:
            return pa.bool_()
        case ColumnType.TIMESTAMP:
            return pa.timestamp("us", tz="UTC")
        case ColumnType.DATE:
            return pa.date32()
        case ColumnType.BINARY:
            return pa.binary()
        case ColumnType.DECIMAL:
            return pa.decimal128(column.precision or 38, column.scale or 0)
        case ColumnType.LIST:
            return pa.list_(pa.field("element", pa.struct([_field(c) for c in column.items]), nullable=True))
