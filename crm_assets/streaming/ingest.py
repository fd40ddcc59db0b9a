"""Step one, Kafka to bronze: raw bytes and coordinates, nothing parsed, so that nothing in a record can stop the capture.

Belongs here: the ingest query. Exactly-once comes from the checkpoint and Delta's own sink. Not here: what the bytes mean
(`transform`).
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from crm_assets.streaming.tables import ingest_checkpoint
from crm_resources.contracts import contracts
from crm_resources.lake import files_of, open_table, read_columns
from crm_resources.lake_tables import create_table, refuse_altered
from crm_resources.layout import BRONZE, topic_name
from crm_resources.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.streaming.query import StreamingQuery
    from pyspark.sql.streaming.readwriter import DataStreamWriter

LOG = logging.getLogger(__name__)

INGEST = "ingest"

EARLIEST = -2
"""How Spark's Kafka source spells the first offset that is still there."""


class TopicsMissing(RuntimeError):
    """Topics the stream reads do not exist."""


def topics(settings: Settings) -> list[str]:
    """Topics of the data set, one per contract."""
    return [topic_name(settings.env, c.plural) for c in contracts()]


def start_ingest(spark: SparkSession, settings: Settings) -> StreamingQuery:
    """Start the endless query Kafka → bronze.

    Raises:
        TopicsMissing: a topic does not exist.
        SchemaRefused, TableAltered: bronze is not as the product left it.
    """
    return _writer(spark, settings).trigger(processingTime=f"{int(settings.trigger_seconds * 1000)} milliseconds").start()


def drain_ingest(spark: SparkSession, settings: Settings) -> StreamingQuery:
    """Start the query for what is in Kafka now; it ends by itself.

    Raises:
        TopicsMissing: a topic does not exist.
        SchemaRefused, TableAltered: bronze is not as the product left it.
    """
    return _writer(spark, settings).trigger(availableNow=True).start()


def _writer(spark: SparkSession, settings: Settings) -> DataStreamWriter:
    refuse_altered(settings, [(BRONZE, BRONZE.path)])
    create_table(settings, BRONZE)
    spark.sparkContext.setLocalProperty("spark.scheduler.pool", INGEST)
    return (
        _bronze_rows(_kafka_rows(spark, settings), settings)
        .writeStream.format("delta")
        .queryName(INGEST)
        .outputMode("append")
        .partitionBy(*BRONZE.partition_by)
        .option("checkpointLocation", str(ingest_checkpoint(settings)))
        .option("path", settings.table_uri(BRONZE.path))
    )


def _kafka_rows(spark: SparkSession, settings: Settings) -> DataFrame:
    partitions = _partitions(settings)
    return (
        spark.readStream.format("kafka")
        .option("kafka.bootstrap.servers", settings.kafka_bootstrap)
        .option("subscribe", ",".join(topics(settings)))
        .option("startingOffsets", _starting_offsets(settings, partitions))
        .option("failOnDataLoss", "true")
        .option("maxOffsetsPerTrigger", str(settings.max_records_per_batch))
        .option("groupIdPrefix", f"crm-{settings.env}-ingest")
        .option("kafka.max.partition.fetch.bytes", str(9 * 1024 * 1024))
        .load()
    )


def _bronze_rows(records: DataFrame, settings: Settings) -> DataFrame:
    from pyspark.sql import functions as F

    now = F.current_timestamp()
    rows = records.select(
        F.col("partition").alias("kafka_partition"),
        F.col("offset").alias("kafka_offset"),
        F.col("timestamp").alias("kafka_timestamp"),
        now.alias("ingested_at"),
        F.col("key").alias("kafka_key"),
        "value",
        F.col("topic").alias("kafka_topic"),
        F.to_date(now).alias("ingest_date"),
    )
    # One task per core instead of one per Kafka partition: fewer files, fewer task starts.
    return rows.coalesce(settings.spark_cores)


def _partitions(settings: Settings) -> dict[str, list[int]]:
    """Partitions of the data set's topics as the brokers know them.

    Raises:
        TopicsMissing: a topic does not exist.
    """
    from confluent_kafka.admin import AdminClient

    wanted = topics(settings)
    metadata = AdminClient({"bootstrap.servers": settings.kafka_bootstrap}).list_topics(timeout=30).topics
    missing = [t for t in wanted if t not in metadata]
    if missing:
        raise TopicsMissing(
            f"no topic {', '.join(missing)} at {settings.kafka_bootstrap}: materialize the assets `topics/*` of the data set {settings.env}"
        )
    return {t: sorted(metadata[t].partitions) for t in wanted}


def _starting_offsets(settings: Settings, partitions: dict[str, list[int]]) -> str:
    """Where a new checkpoint begins: at the start of the topics, or behind what bronze holds already.

    Spark looks at it only when the checkpoint is new; then reading from the start would capture everything twice.
    """
    if (ingest_checkpoint(settings) / "offsets").exists():
        return "earliest"
    table = open_table(settings, BRONZE.path)
    held = [] if table is None else files_of(table)
    if not held:
        return "earliest"
    following: dict[tuple[str, int], int] = {}
    rows = read_columns(settings, BRONZE.path, held, ["kafka_topic", "kafka_partition", "kafka_offset"])
    for row in rows.group_by(["kafka_topic", "kafka_partition"]).aggregate([("kafka_offset", "max")]).to_pylist():
        following[row["kafka_topic"], row["kafka_partition"]] = row["kafka_offset_max"] + 1
    LOG.warning("the ingest checkpoint is new, bronze holds %s records: going on behind them", rows.num_rows)
    return json.dumps({t: {str(p): following.get((t, p), EARLIEST) for p in found} for t, found in partitions.items()})
