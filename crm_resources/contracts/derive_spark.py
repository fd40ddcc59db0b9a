"""Contract → Spark types: the JSON form a message arrives in, and the typed form silver keeps.

Only data types are built here, no session: importing this module imports nothing of Spark.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from crm_resources.contracts.model import Column, ColumnType

if TYPE_CHECKING:
    from pyspark.sql.types import DataType, StructType


def silver_type(columns: Iterable[Column]) -> StructType:
    """Typed columns as silver stores them. All nullable: Delta on read reports them so, and the refine step has checked."""
    from pyspark.sql.types import StructField, StructType

    return StructType([StructField(c.name, _typed(c), True) for c in columns])


def wire_type(columns: Iterable[Column]) -> StructType:
    """What JSON can say: money and times are strings here, so that a wrong spelling can be told from an absent field."""
    from pyspark.sql.types import StructField, StructType

    return StructType([StructField(c.name, _wire(c), True) for c in columns])


def _typed(column: Column) -> DataType:
    from pyspark.sql import types as t

    match column.type:
        case ColumnType.STRING:
            return t.StringType()
        case ColumnType.INT:
            return t.IntegerType()
        case ColumnType.LONG:
            return t.LongType()
        case ColumnType.BOOLEAN:
            return t.BooleanType()
        case ColumnType.TIMESTAMP:
            return t.TimestampType()
        case ColumnType.DECIMAL:
            return t.DecimalType(column.precision or 38, column.scale or 0)
        case ColumnType.DATE:
            return t.DateType()
        case ColumnType.BINARY:
            return t.BinaryType()
        case ColumnType.LIST:
            return t.ArrayType(silver_type(column.items), True)


def _wire(column: Column) -> DataType:
    from pyspark.sql import types as t

    match column.type:
        case ColumnType.DECIMAL | ColumnType.TIMESTAMP:
            return t.StringType()
        case ColumnType.LIST:
            return t.ArrayType(wire_type(column.items), True)
        case _:
            return _typed(column)
