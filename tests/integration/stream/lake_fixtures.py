"""A lake filled by hand: records go to bronze as if captured, the refine step runs on them, tables come back as rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa  # noqa: TID253 -- a test may load what it tests with

from crm_assets.streaming.dead_letters import read_replays
from crm_assets.streaming.refine import RefineStep, drain_refine
from crm_assets.streaming.tables import live, refined_tables
from crm_resources.contracts import contract_for
from crm_resources.contracts.derive_spark import silver_type
from crm_resources.lake import files_of, lake_filesystem, open_table, read_columns
from crm_resources.lake_tables import create_table, table_schema
from crm_resources.layout import BATCHES, BRONZE, REPLAYS, topic_name
from crm_resources.settings import Settings
from tests.integration.stream.messages import ARRIVED, Message

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


@dataclass(frozen=True)
class Record:
    """A Kafka record as bronze keeps it."""

    entity: str
    value: bytes | None
    offset: int
    partition: int = 0


def records(entity: str, values: Iterable[Message | bytes | None], *, first_offset: int = 0, partition: int = 0) -> list[Record]:
    """Records with consecutive offsets."""
    return [Record(entity, json.dumps(v).encode() if isinstance(v, dict) else v, first_offset + n, partition) for n, v in enumerate(values)]


class Lake:
    """Bronze and the refined tables of one test."""

    def __init__(self, spark: SparkSession, settings: Settings) -> None:
        self.spark = spark
        self.settings = settings

    def frame(self, captured: Sequence[Record]) -> DataFrame:
        """The records as rows of bronze."""
        rows = [(r.partition, r.offset, ARRIVED, ARRIVED, b"key", r.value, self.topic(r.entity), ARRIVED.date()) for r in captured]
        schema = table_schema(BRONZE).remove_metadata()
        columns = [pa.array([row[n] for row in rows], field.type) for n, field in enumerate(schema)]
        return self.spark.createDataFrame(pa.table(columns, schema=schema), silver_type(BRONZE.columns))

    def topic(self, entity: str) -> str:
        return topic_name(self.settings.env, contract_for(entity).plural)

    def capture(self, captured: Sequence[Record]) -> None:
        """Append the records to bronze in one commit."""
        create_table(self.settings, BRONZE)
        self.frame(captured).coalesce(1).write.format("delta").mode("append").save(self.settings.spark_uri(BRONZE.path))

    def refine(self) -> RefineStep:
        """Refine what bronze holds beyond the checkpoint; returns the step with its counts."""
        step = RefineStep(self.settings, live(self.settings))
        query = drain_refine(self.spark, self.settings, step)
        query.awaitTermination()
        error = query.exception()
        if error is not None:
            raise error
        return step

    def files(self, path: str) -> list[str]:
        """Files of a folder below the lake's root, or the file itself."""
        from pyarrow.fs import FileSelector, FileType

        filesystem = lake_filesystem(self.settings)
        if filesystem.get_file_info(path).type == FileType.File:
            return [path]
        found = filesystem.get_file_info(FileSelector(path, allow_not_found=True, recursive=True))
        return [f.path for f in found if f.type == FileType.File]

    def remove(self, path: str) -> None:
        """Delete a folder below the lake's root."""
        lake_filesystem(self.settings).delete_dir(path)

    def rows(self, table: str, *columns: str) -> list[dict[str, Any]]:
        """Columns of a refined table, in no order."""
        found = next(t for t in refined_tables() if t.name == table)
        opened = open_table(self.settings, found.path)
        return [] if opened is None else read_columns(self.settings, found.path, files_of(opened), columns).to_pylist()

    def ledger(self) -> list[dict[str, Any]]:
        """The replay ledger, in no order."""
        return read_replays(self.settings, [c.name for c in REPLAYS.columns]).to_pylist()

    def batches(self) -> list[dict[str, Any]]:
        """The batch ledger."""
        opened = open_table(self.settings, BATCHES.path)
        columns = [c.name for c in BATCHES.columns]
        return [] if opened is None else read_columns(self.settings, BATCHES.path, files_of(opened), columns).to_pylist()

    def places(self) -> list[tuple[str, int, int]]:
        """Coordinates of every row of every refined table: the books close when each of bronze is here once."""
        position = ("kafka_topic", "kafka_partition", "kafka_offset")
        return sorted(tuple(r[c] for c in position) for t in refined_tables() for r in self.rows(t.name, *position))  # type: ignore[misc] # three columns

    def coordinates(self, captured: Iterable[Record]) -> list[tuple[str, int, int]]:
        """Coordinates of records, as `places` gives them."""
        return sorted((self.topic(r.entity), r.partition, r.offset) for r in captured)
