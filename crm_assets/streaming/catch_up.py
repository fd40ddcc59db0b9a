"""The two steps in batch mode: everything that waits in Kafka and bronze now, on the stream's own checkpoints, then the end.

Runs only while it holds the lake's lock, so never beside the stream. Batch and stream give the same tables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crm_assets.streaming.ingest import IngestStep, drain_ingest
from crm_assets.streaming.rebuild import finish_swap
from crm_assets.streaming.refine import BatchCounts, RefineStep, drain_refine
from crm_assets.streaming.tables import live
from crm_resources.lake_lock import lake_lock
from crm_resources.settings import Settings
from crm_resources.spark import end_session, kill_java, spark_session

if TYPE_CHECKING:
    from pyspark.sql import SparkSession
    from pyspark.sql.streaming.query import StreamingQuery


@dataclass(frozen=True)
class CaughtUp:
    """What a catch-up did: records captured in bronze, and the places of the records refined."""

    ingested: int
    refined: BatchCounts


class CatchUpFailed(RuntimeError):
    """A step ended with an error; what it had committed stays, the next run goes on from there."""


def catch_up(settings: Settings) -> CaughtUp:
    """Process what waits, in a Spark session of its own that ends with it.

    Raises:
        LakeLocked: the stream or another run writes this lake.
        LakeLockLost: the lock on an object store could not be kept; what is committed stays.
        ObjectStoreError: the object store cannot hold this lake, or does not answer.
        TopicsMissing: a topic does not exist.
        CatchUpFailed: a step failed.
    """
    with lake_lock(settings, "catch_up", lambda _lost: kill_java()) as lock:
        spark = spark_session(settings, f"crm-catch-up-{settings.env}")
        try:
            return run_both_steps(spark, settings, lock.check)
        finally:
            end_session(spark)


def run_both_steps(spark: SparkSession, settings: Settings, may_write: Callable[[], None] = lambda: None) -> CaughtUp:
    """Both steps once, one after the other; the caller holds the lock."""
    finish_swap(settings, may_write)
    ingested = _finish(drain_ingest(spark, settings, IngestStep(settings, may_write=may_write)))
    step = RefineStep(settings, live(settings), may_write=may_write)
    _finish(drain_refine(spark, settings, step))
    return CaughtUp(ingested, step.total)


def _finish(query: StreamingQuery) -> int:
    """Wait for a query that ends by itself; returns the rows it read."""
    query.awaitTermination()
    error = query.exception()
    if error is not None:
        raise CatchUpFailed(f"{query.name} failed: {error}")
    return sum(int(p["numInputRows"]) for p in query.recentProgress)
