"""One measured run of the drain benchmark, in a process of its own: `python -m tests.benchmarks.drain_run MODE ROWS`.

Each mode first drains the small data set `benchwarm`, so that Java has compiled what it will run, then the data set `bench`
from its start into empty tables. The clock runs from the first trigger of the measured drain to its last commit. Prints one
line of JSON.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from crm_assets.streaming.ingest import start_ingest, topics
from crm_assets.streaming.refine import RefineStep, start_refine
from crm_assets.streaming.tables import live
from crm_resources.contracts import Contract, contracts
from crm_resources.contracts.derive_spark import silver_type
from crm_resources.kafka import consumer, offsets
from crm_resources.lake_tables import create_table
from crm_resources.layout import BRONZE, SILVER, silver_columns, topic_name
from crm_resources.settings import Settings, load_settings
from crm_resources.spark import spark_conf, spark_session
from tests.process_usage import ProcessUsage

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession
    from pyspark.sql.streaming.query import StreamingQuery


class Mode(StrEnum):
    """What is measured."""

    RAW = "raw"
    INGEST = "ingest"
    BOTH = "both"
    HISTORY = "history"
    QUICKSTART = "quickstart"
    PLAIN = "plain"


WARM = "benchwarm"


@dataclass(frozen=True)
class Measured:
    """Result of a run: rows, seconds from first trigger to last commit, CPU seconds of Java and Python, most memory at once."""

    mode: Mode
    rows: int
    seconds: float
    cpu_seconds: float
    peak_rss_mib: float

    @property
    def rows_per_second(self) -> float:
        """Rows by the clock of the run."""
        return self.rows / self.seconds


def main(
    mode: Annotated[Mode, typer.Argument(help="What to measure.")],
    history_rows: Annotated[int, typer.Option(help="Rows of history for the mode `history`.")] = 10_000_000,
) -> None:
    """Run one mode and print its figures."""
    settings = load_settings()
    warm = settings.model_copy(update={"env": WARM})
    with ProcessUsage(os.getpid()) as usage:
        drain = _DRAINS[mode]
        drain(warm, min(history_rows, 100_000))
        before = usage.cpu_seconds
        rows, seconds = drain(settings, history_rows)
        cpu = usage.cpu_seconds - before
    typer.echo(json.dumps(asdict(Measured(mode, rows, seconds, cpu, usage.peak_mib))))


def waiting(settings: Settings) -> int:
    """Records in the topics of a data set."""
    return sum(high - low for topic in topics(settings) for low, high in offsets(settings, topic).values())


def drain_raw(settings: Settings, _history: int) -> tuple[int, float]:
    """A plain consumer that reads everything and looks at nothing."""
    rows, wanted = 0, waiting(settings)
    client = consumer(settings, f"raw-{time.time_ns()}", {"auto.offset.reset": "earliest", "enable.auto.commit": False})
    client.subscribe(topics(settings))
    started = 0.0
    while rows < wanted:
        found = client.consume(10_000, 1.0)
        if found and not started:
            started = time.monotonic()
        rows += sum(1 for m in found if m.error() is None)
    seconds = time.monotonic() - started
    client.close()
    return rows, seconds


def drain_ingest(settings: Settings, _history: int) -> tuple[int, float]:
    """The ingest query alone, into bronze."""
    spark, wanted = spark_session(settings, "bench"), waiting(settings)
    query = start_ingest(spark, settings)
    span = _until(query, lambda: _rows(query) >= wanted)
    query.stop()
    return wanted, span()


def drain_both(settings: Settings, history: int, *, with_history: bool = False) -> tuple[int, float]:
    """Both queries at once, through to silver."""
    spark, wanted = spark_session(settings, "bench"), waiting(settings)
    create_table(settings, BRONZE)
    step = RefineStep(settings, live(settings))
    if with_history:
        write_history(spark, settings, history)
        step = RefineStep(settings, live(settings))
    ingest = start_ingest(spark, settings)
    refine = start_refine(spark, settings, step)
    _until(refine, lambda: step.total.read >= wanted, also=ingest)
    first, last = span(ingest), span(refine)
    ingest.stop()
    refine.stop()
    return wanted, last[1] - first[0]


def drain_history(settings: Settings, history: int) -> tuple[int, float]:
    """Both queries at once into silver tables that hold many older rows."""
    return drain_both(settings, history, with_history=True)


def drain_quickstart(settings: Settings, _history: int) -> tuple[int, float]:
    """Spark as its guides show it: a query per topic, `from_json`, Delta, default settings; nothing kept raw, checked or deduplicated."""
    spark, wanted = default_session(settings), waiting(settings)
    queries = [
        topic_stream(spark, settings, contract)
        .select(read_json(contract).alias("data"))
        .select("data.*")
        .writeStream.format("delta")
        .option("checkpointLocation", f"{settings.checkpoint_root}/quickstart-{contract.plural}")
        .trigger(availableNow=True)
        .start(settings.table_uri(f"quickstart/{contract.plural}"))
        for contract in contracts()
    ]
    return wanted, _whole(queries)


def drain_plain(settings: Settings, _history: int) -> tuple[int, float]:
    """The quick-start code with what this platform promises added as one would write it: raw copy, duplicates of any age, dead letters.

    In batches, as an endless stream has them: one batch of everything would have no history to look at.
    """
    spark, wanted = default_session(settings), waiting(settings)
    queries = [
        topic_stream(spark, settings, contract, max_records=settings.max_records_per_batch)
        .writeStream.foreachBatch(_plain_step(settings, contract))
        .option("checkpointLocation", f"{settings.checkpoint_root}/plain-{contract.plural}")
        .trigger(availableNow=True)
        .start()
        for contract in contracts()
    ]
    return wanted, _whole(queries)


def _plain_step(settings: Settings, contract: Contract) -> Callable[[DataFrame, int], None]:
    """What the plain code does with a batch."""
    from delta.tables import DeltaTable
    from pyspark.sql import functions as F

    raw, silver, dead = (settings.table_uri(f"plain/{kind}/{contract.plural}") for kind in ("raw", "silver", "dead"))
    where = ("topic", "partition", "offset", "timestamp")

    def step(batch: DataFrame, _batch_id: int) -> None:
        spark = batch.sparkSession
        batch.persist()
        batch.select(*where, "key", "value").write.format("delta").mode("append").save(raw)
        parsed = batch.select(*where, "value", read_json(contract).alias("data")).persist()
        readable = F.col("data.event_id").isNotNull()
        parsed.where(~readable).select(*where, "value").write.format("delta").mode("append").save(dead)
        good = parsed.where(readable).select("data.*", *where).dropDuplicates(["event_id"])
        if DeltaTable.isDeltaTable(spark, silver):
            good = good.join(spark.read.format("delta").load(silver).select("event_id"), "event_id", "left_anti")
        good.write.format("delta").mode("append").save(silver)
        parsed.unpersist()
        batch.unpersist()

    return step


def default_session(settings: Settings) -> SparkSession:
    """Spark with its own defaults, but for where it finds Delta, and how much memory it has."""
    from pyspark.sql import SparkSession

    ours = spark_conf(settings, "quickstart")
    kept = (
        "spark.jars",
        "spark.master",
        "spark.driver.memory",
        "spark.sql.extensions",
        "spark.sql.catalog.spark_catalog",
        "spark.ui.enabled",
    )
    builder = SparkSession.builder.config("spark.local.dir", ours["spark.local.dir"])
    for name in (*kept, *(name for name in ours if name.startswith("spark.hadoop.fs."))):
        builder = builder.config(name, ours[name])
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    return spark


def topic_stream(spark: SparkSession, settings: Settings, contract: Contract, max_records: int | None = None) -> DataFrame:
    """The stream of an entity's topic, from its start."""
    reader = (
        spark.readStream.format("kafka")
        .option("kafka.bootstrap.servers", settings.kafka_bootstrap)
        .option("subscribe", topic_name(settings.env, contract.plural))
        .option("startingOffsets", "earliest")
    )
    return (reader if max_records is None else reader.option("maxOffsetsPerTrigger", str(max_records))).load()


def read_json(contract: Contract) -> Column:
    """The message as typed columns."""
    from pyspark.sql import functions as F

    return F.from_json(F.col("value").cast("string"), silver_type(contract.columns))


def _whole(queries: list[StreamingQuery]) -> float:
    """Seconds from the first trigger of any query to the last commit of all."""
    for query in queries:
        query.awaitTermination()
        error = query.exception()
        if error is not None:
            raise error
    spans = [span(q) for q in queries]
    return max(s[1] for s in spans) - min(s[0] for s in spans)


def write_history(spark: SparkSession, settings: Settings, rows: int) -> None:
    """Fill the silver tables with older rows: time-ordered ids as ever, a file per 250,000 rows, the days before the drain."""
    from pyspark.sql import functions as F

    shares = {"event": 0.70, "order": 0.14, "product": 0.06, "profile": 0.10}
    begin = int(time.time() * 1000) - 30 * 86_400_000
    for contract in contracts():
        count = int(rows * shares[contract.entity])
        if not count:
            continue
        stamp = F.lit(begin) + F.col("id")
        head = F.lpad(F.lower(F.hex(stamp)), 12, "0")
        tail = F.lpad(F.lower(F.hex(F.xxhash64("id"))), 16, "0")
        event_id = F.concat_ws(
            "-", F.left(head, F.lit(8)), F.right(head, F.lit(4)), F.lit("7000"), F.left(tail, F.lit(4)), F.right(tail, F.lit(12))
        )
        set_columns = {
            "event_id": event_id,
            "entity": F.lit(contract.entity),
            "sequence": F.col("id"),
            "event_time": F.timestamp_millis(stamp),
            "payload_hash": F.xxhash64("id"),
            "kafka_topic": F.lit(topic_name(settings.env, contract.plural)),
            "kafka_partition": F.lit(-1),
            "kafka_offset": F.col("id"),
        }
        columns = [
            set_columns.get(f.name, F.lit(None)).cast(f.dataType).alias(f.name) for f in silver_type(silver_columns(contract)).fields
        ]
        frame = spark.range(0, count, 1, max(1, count // 250_000)).select(*columns)
        frame.write.format("delta").mode("append").save(settings.table_uri(SILVER[contract.plural].path))


def _rows(query: StreamingQuery) -> int:
    return sum(int(p["numInputRows"]) for p in query.recentProgress)


def _until(query: StreamingQuery, done: Callable[[], bool], also: StreamingQuery | None = None) -> Callable[[], float]:
    """Wait until `done`, and for the progress of the batch that did it."""
    while not done():
        for q in (query, also):
            error = q.exception() if q is not None else None
            if error is not None:
                raise error
        time.sleep(0.05)
    time.sleep(1.0)
    return lambda: span(query)[1] - span(query)[0]


def span(query: StreamingQuery) -> tuple[float, float]:
    """Start of the first trigger that made a batch and end of the last, in seconds since 1970."""
    batches = [p for p in query.recentProgress if "addBatch" in p["durationMs"]]
    begins = [datetime.fromisoformat(str(p["timestamp"])).timestamp() for p in batches]
    return begins[0], begins[-1] + int(batches[-1]["durationMs"]["triggerExecution"]) / 1000


_DRAINS: dict[Mode, Callable[[Settings, int], tuple[int, float]]] = {
    Mode.RAW: drain_raw,
    Mode.INGEST: drain_ingest,
    Mode.BOTH: drain_both,
    Mode.HISTORY: drain_history,
    Mode.QUICKSTART: drain_quickstart,
    Mode.PLAIN: drain_plain,
}

if __name__ == "__main__":
    typer.run(main)
