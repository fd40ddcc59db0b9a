"""The Spark session of this product: which jars, how much memory, and the settings that measurements asked for.

Belongs here: making and ending the session. Not here: what is computed with it (`crm_assets.streaming`).
"""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from crm_resources.object_store import spark_options
from crm_resources.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

LOG = logging.getLogger(__name__)

UNIQUE_COLUMNS = ("kafka_offset", "kafka_timestamp", "value")

CHECKPOINTING = "org.apache.spark.sql.execution.streaming.checkpointing"

REQUIRED_JARS = {"spark": ("delta-spark", "delta-storage", "spark-sql-kafka", "kafka-clients"), "s3a": ("hadoop-aws", "s3-2", "auth-2")}
"""Libraries by folder that are looked for at the start; the folder `s3a` only for a lake on an object store."""


class SparkJarsMissing(RuntimeError):
    """The Java libraries of the driver are not where they should be."""


def spark_conf(settings: Settings, app_name: str) -> dict[str, str]:
    """Every Spark setting the product sets, as plain text; pure but for looking which jars are there.

    Raises:
        SparkJarsMissing: a library is absent from `<jars>/spark` or `<jars>/s3a`.
    """
    jars = [jar for group in REQUIRED_JARS if group != "s3a" or settings.lake_on_object_store for jar in _jars(settings.jars_root / group)]
    scratch = settings.environment_dir / "spark"
    return {
        "spark.app.name": app_name,
        "spark.master": f"local[{settings.spark_cores}]",
        "spark.jars": ",".join(str(j) for j in jars),
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.memory": settings.driver_memory,
        "spark.driver.extraJavaOptions": "-XX:+UseParallelGC -XX:-UsePerfData -XX:+ExitOnOutOfMemoryError -Djava.net.preferIPv4Stack=true",
        # A refine batch comes to Python as a whole; its size is bounded by the batch, not by Spark's default of 1 GiB.
        "spark.driver.maxResultSize": "0",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "WARN",
        "spark.local.dir": str(scratch / "local"),
        "spark.sql.warehouse.dir": str(scratch / "warehouse"),
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        # Frozen in a checkpoint at its first start; 200, the default, was measured 20 times slower on small batches.
        "spark.sql.shuffle.partitions": str(2 * settings.spark_cores),
        # Delta's default of 50 more than halves the speed of Kafka → bronze: each commit replays the log in 50 tasks.
        "spark.databricks.delta.snapshotPartitions": "2",
        "spark.databricks.delta.stalenessLimit": "0",
        # A whole event id fits into the statistics, so that ranges of ids are compared exactly.
        "spark.databricks.delta.properties.defaults.dataSkippingStringPrefixLength": "36",
        "spark.databricks.io.skipping.stringPrefixLength": "36",
        # A task that writes several partitions keeps a file open for each instead of sorting its rows by partition.
        "spark.sql.maxConcurrentOutputFileWriters": "32",
        "spark.sql.parquet.compression.codec": "zstd",
        "spark.hadoop.parquet.compression.codec.zstd.level": "1",
        # A check of Spark's own optimizer, made after each of its rules.
        "spark.sql.lightweightPlanChangeValidation": "false",
        # The line of Python behind each column, for error messages: more than half of what it takes to build an expression.
        "spark.python.sql.dataFrameDebugging.enabled": "false",
        # Columns whose values hardly repeat: to look for repetitions costs time and saves no space.
        **{f"spark.hadoop.parquet.enable.dictionary#{name}": "false" for name in UNIQUE_COLUMNS},
        "spark.sql.adaptive.enabled": "false",
        # Java does not compile methods above 8000 bytes of code; Spark then has to split its code instead of fusing it.
        "spark.sql.codegen.hugeMethodLimit": "8000",
        # The last of two fields with one name counts, as it does for `from_json` and for the contracts' models.
        "spark.sql.variant.allowDuplicateKeys": "true",
        "spark.sql.streaming.minBatchesToRetain": "20",
        "spark.sql.streaming.metricsEnabled": "false",
        # What Spark takes by itself starts a process, `readlink`, for each file of a checkpoint, several times per batch.
        "spark.sql.streaming.checkpointFileManagerClass": f"{CHECKPOINTING}.FileSystemBasedCheckpointFileManager",
        "spark.scheduler.mode": "FAIR",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.cleaner.periodicGC.interval": "5min",
    }


def _jars(folder: Path) -> list[Path]:
    """Libraries of a folder.

    Raises:
        SparkJarsMissing: one is absent.
    """
    jars = sorted(folder.glob("*.jar")) if folder.is_dir() else []
    missing = [name for name in REQUIRED_JARS[folder.name] if not any(j.name.startswith(name) for j in jars)]
    if missing:
        raise SparkJarsMissing(
            f"{folder} lacks {', '.join(missing)}: fetch the Java libraries with `make jars`, or point CRM_JARS_DIR to them"
        )
    return jars


def use_object_store(spark: SparkSession, settings: Settings) -> None:
    """Tell a session where the lake's object store is; nothing to tell for a lake on a local disk.

    Set inside the Java process: the options of a session stand on its command line, where everybody on the machine can read them.

    Args:
        spark: a session that was made with the libraries for object stores.
        settings: where the lake is.

    Raises:
        crm_resources.object_store.ObjectStoreError: the settings do not go together.
    """
    hadoop = spark.sparkContext._jsc.hadoopConfiguration()
    for name, value in spark_options(settings).items():
        hadoop.set(name, value)


def spark_session(settings: Settings, app_name: str) -> SparkSession:
    """Start the session of this process, or return the one that runs.

    The Java process gets a session of its own: a signal to the group of the Python process (Ctrl-C, `kill -- -pid`) does
    not reach it, so that a batch in hand can end. It ends by itself when the Python process is gone.

    Args:
        settings: cores, memory and folders.
        app_name: name in Spark's own messages.

    Raises:
        SparkJarsMissing: a library is absent.
        crm_resources.object_store.ObjectStoreError: the settings of the lake's object store do not go together.
    """
    from pyspark import SparkConf, SparkContext
    from pyspark.java_gateway import launch_gateway
    from pyspark.sql import SparkSession

    active = SparkSession.getActiveSession()
    if active is not None:
        use_object_store(active, settings)
        return active
    values = spark_conf(settings, app_name)
    (settings.environment_dir / "spark" / "local").mkdir(parents=True, exist_ok=True)
    conf = SparkConf(loadDefaults=False).setAll(list(values.items()))
    gateway = None
    if SparkContext._gateway is None:
        gateway = launch_gateway(conf, popen_kwargs={"start_new_session": True})  # type: ignore[no-untyped-call] # pyspark leaves it untyped
    context = SparkContext.getOrCreate(conf) if gateway is None else SparkContext(gateway=gateway, conf=conf)
    context.setLogLevel("WARN")
    session = SparkSession(context)
    use_object_store(session, settings)
    return session


def java_pid() -> int | None:
    """Process id of the Java process behind this session, `None` when none runs."""
    from pyspark import SparkContext

    process = getattr(SparkContext._gateway, "proc", None)
    return None if process is None else int(process.pid)


def kill_java() -> None:
    """End the Java process at once, in the middle of whatever it does. For when it must not write any more."""
    pid = java_pid()
    if pid is not None:
        os.kill(pid, signal.SIGKILL)


def end_session(spark: SparkSession) -> None:
    """Stop Spark and wait until its Java process is gone.

    Args:
        spark: the session `spark_session` gave.
    """
    from pyspark import SparkContext

    spark.stop()
    gateway = SparkContext._gateway
    if gateway is not None:
        gateway.shutdown()
        process = getattr(gateway, "proc", None)
        if process is not None:
            process.stdin.close()
            process.wait(timeout=60)
        SparkContext._gateway = None
        SparkContext._jvm = None
