"""The stream's process: `python -m crm_assets.streaming.driver`, one driver with the queries `ingest` and `refine`.

It takes the lake's lock, starts both queries, reports to `progress.json`, and ends on SIGTERM or SIGINT when the batches in
hand are committed. Belongs here: the life of the process. Not here: what the queries do.

- `ingest` fails: the driver ends with exit status 1, loudly; its supervisor starts it again.
- `refine` fails: `ingest` goes on capturing; `refine` is started again with back-off, `MAX_RESTARTS` times in a row, then it is
  reported as failed and stays down until the driver is started anew. Nothing is lost meanwhile: bronze waits.
- The Java process is in a session of its own, so a signal to the group does not reach it; it ends when this process is gone.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING

from crm_assets.streaming.attendant import Attendant
from crm_assets.streaming.batch_ledger import Batch, BatchLedger
from crm_assets.streaming.board import Board, make_listener
from crm_assets.streaming.crash_points import CrashPoints, crash_points
from crm_assets.streaming.ingest import INGEST, IngestStep, start_ingest
from crm_assets.streaming.metrics import StreamMetrics, announce, driver_memory
from crm_assets.streaming.progress import QueryProgress, QueryState
from crm_assets.streaming.rebuild import finish_swap
from crm_assets.streaming.refine import REFINE, RefineStep, start_refine
from crm_assets.streaming.source_offsets import SourceLost, TopicsMissing
from crm_assets.streaming.tables import live
from crm_resources.contracts.evolution import SchemaRefused
from crm_resources.group_offsets import GroupOffsets, bronze_group, silver_group
from crm_resources.kafka import KafkaUnavailableError
from crm_resources.lake_lock import LakeLocked, LakeLockLost, lake_lock
from crm_resources.lake_tables import TableAltered
from crm_resources.object_store import ObjectStoreError
from crm_resources.settings import Settings, load_settings
from crm_resources.spark import SparkJarsMissing, end_session, kill_java, spark_session

if TYPE_CHECKING:
    from pyspark.sql import SparkSession
    from pyspark.sql.streaming.query import StreamingQuery

LOG = logging.getLogger(__name__)

TICK_SECONDS = 1.0

MAX_RESTARTS = 5
"""Failures of `refine` in a row, without a committed batch between them, before it stays down."""

LONGEST_PAUSE_SECONDS = 60.0

COMMIT_SECONDS = 5.0
"""How long Spark may take to note in its checkpoint that a batch is done, after the batch's own work has ended."""

STOP_SECONDS = 120.0
"""How long a batch in hand may take to end after a stop was asked for; then the query is interrupted, which loses nothing."""

EXIT_LOCK_LOST = 3
"""Exit status when the lake's lock was lost; the supervisor starts the driver again, which then waits for the lock or is refused."""


class Driver:
    """Both queries and what happens when one ends.

    Args:
        settings: environment and limits.
        spark: session of this process.
        crash: where to die, for tests.
        may_write: raises when the lake's lock is lost.
    """

    def __init__(
        self, settings: Settings, spark: SparkSession, crash: CrashPoints | None = None, may_write: Callable[[], None] = lambda: None
    ) -> None:
        self._settings = settings
        self._spark = spark
        self._may_write = may_write
        self._crash = crash or CrashPoints()
        self._stop = threading.Event()
        self._board = Board(settings)
        self._ledger = BatchLedger(settings)
        self._groups = {INGEST: GroupOffsets(settings, bronze_group(settings)), REFINE: GroupOffsets(settings, silver_group(settings))}
        self._metrics = StreamMetrics(self._board.queries, driver_memory)
        self._attendant = Attendant(settings, spark, lambda: self._step)
        self._failures = 0
        self._batch_at_failure: int | None = None
        self._retry_at = 0.0
        self._step: RefineStep | None = None

    def ask_to_stop(self, number: int, _frame: FrameType | None) -> None:
        """Signal handler: end when the batches in hand are committed."""
        LOG.info("signal %s: stopping after the current batches", signal.Signals(number).name)
        self._stop.set()

    def run(self) -> int:
        """Run until a stop is asked for or `ingest` fails; returns the exit status.

        Raises:
            TopicsMissing, SourceLost: Kafka does not hold what is to be read; nothing was begun.
        """
        self._spark.streams.addListener(make_listener(self._board))
        server, self._board.metrics_url = self._metrics.serve(self._settings.metrics_port)
        announce(self._settings, self._board.metrics_url)
        try:
            return self._run_queries()
        finally:
            self._board.metrics_url = None
            server.shutdown()
            for group in self._groups.values():
                group.close()

    def _run_queries(self) -> int:
        step = IngestStep(self._settings, self._ledger, noted=self._noted, passing=self._crash.passing, may_write=self._may_write)
        ingest = start_ingest(self._spark, self._settings, step)
        refine = self._start_refine()
        self._attendant.start()
        while not self._stop.is_set():
            self._board.write()
            if not ingest.isActive:
                return self._ingest_failed(ingest, refine)
            if refine is not None and not refine.isActive:
                self._refine_failed(_reason(refine))
                refine = None
            if refine is None and self._board.query(REFINE).state is QueryState.RETRYING and time.monotonic() >= self._retry_at:
                refine = self._start_refine()
            self._stop.wait(TICK_SECONDS)
        self._drain(ingest, refine)
        self._board.write()
        return 0

    def _noted(self, batch: Batch) -> None:
        """A batch is in its tables and in the ledger: tell everybody. Nothing here may fail, for the batch is done."""
        newest = None if batch.newest is None else batch.newest.isoformat()

        def counted(q: QueryProgress) -> QueryProgress:
            speed = batch.rows_in / max(batch.seconds, 1e-9)
            return replace(q, rows=q.rows + batch.rows_in, rows_per_second=speed, newest_record_at=newest or q.newest_record_at)

        self._board.update(batch.query, counted)
        self._metrics.noted(batch)
        self._groups[batch.query].commit(batch.ends)

    def _start_refine(self) -> StreamingQuery | None:
        if self._step is not None:
            self._step.close(STOP_SECONDS)  # a request may still be writing its tables
        self._step = None
        try:
            place, passing = live(self._settings), self._crash.passing
            step = RefineStep(self._settings, place, self._ledger, noted=self._noted, passing=passing, may_write=self._may_write)
            query = start_refine(self._spark, self._settings, step)
        except (SchemaRefused, TableAltered) as error:
            # Trying again changes nothing: somebody has to look at the table.
            refused = str(error)
            LOG.error("refine cannot start: %s", refused)  # noqa: TRY400 -- the message says all
            self._board.update(REFINE, lambda q: replace(q, state=QueryState.FAILED, error=refused))
            return None
        except Exception as error:
            # Whatever keeps refine from starting must not stop the capture.
            LOG.exception("refine could not be started")
            self._refine_failed(f"{type(error).__name__}: {error}")
            return None
        self._step = step
        return query

    def _refine_failed(self, reason: str) -> None:
        """Count the failure and choose the time of the next start."""
        done = self._board.query(REFINE).batch_id
        self._failures = self._failures + 1 if done == self._batch_at_failure else 1
        self._batch_at_failure = done
        short = reason.strip().splitlines()[0][:1000] if reason.strip() else "no reason given"
        if self._failures > MAX_RESTARTS:
            LOG.error(
                "refine failed %s times in a row and stays down; ingest goes on capturing. Last: %s. "
                "When the cause is removed, start the stream again",
                self._failures,
                reason,
            )
            self._board.update(REFINE, lambda q: replace(q, state=QueryState.FAILED, error=short))
            return
        pause = pause_seconds(self._failures)
        LOG.error("refine failed (%s of %s), next start in %.0f s: %s", self._failures, MAX_RESTARTS, pause, reason)
        self._retry_at = time.monotonic() + pause
        self._board.update(REFINE, lambda q: replace(q, state=QueryState.RETRYING, error=short, restarts=q.restarts + 1))

    def _ingest_failed(self, ingest: StreamingQuery, refine: StreamingQuery | None) -> int:
        reason = _reason(ingest)
        LOG.error("ingest failed, the driver ends: %s", reason)
        self._board.update(INGEST, lambda q: replace(q, state=QueryState.FAILED, error=reason.strip().splitlines()[0][:1000] or reason))
        self._drain(None, refine)
        self._board.write()
        return 1

    def _drain(self, ingest: StreamingQuery | None, refine: StreamingQuery | None) -> None:
        """Stop each query at the end of the batch it has in hand; both go on side by side until then."""
        deadline = time.monotonic() + STOP_SECONDS
        self._attendant.stop(0)
        waits = [
            threading.Thread(target=self._stop_query, args=(name, query, deadline))
            for name, query in ((INGEST, ingest), (REFINE, refine))
            if query
        ]
        for wait in waits:
            wait.start()
        while any(wait.is_alive() for wait in waits):
            self._board.write()
            waits[-1].join(TICK_SECONDS)
            waits[0].join(TICK_SECONDS)

    def _stop_query(self, name: str, query: StreamingQuery, deadline: float) -> None:
        """Wait for the end of the batch in hand, then stop the query. What is interrupted is begun anew at the next start."""
        in_hand = _last_batch(query)
        if name == REFINE and self._step is not None:
            self._step.close(max(0.0, deadline - time.monotonic()))
            deadline = min(deadline, time.monotonic() + COMMIT_SECONDS)
        while query.isActive and query.status["isTriggerActive"] and _last_batch(query) == in_hand and time.monotonic() < deadline:
            time.sleep(0.02)
        query.stop()
        self._board.update(name, lambda q: replace(q, state=QueryState.STOPPED))


def _last_batch(query: StreamingQuery) -> int | None:
    progress = query.lastProgress
    return None if progress is None else int(progress["batchId"])


def pause_seconds(failures: int) -> float:
    """Pause before the next start: 2, 4, 8 … seconds, at most `LONGEST_PAUSE_SECONDS`; pure."""
    return min(2.0**failures, LONGEST_PAUSE_SECONDS)


def _reason(query: StreamingQuery) -> str:
    error = query.exception()
    return "it ended without an error" if error is None else str(error)


def end_at_once(lost: LakeLockLost) -> None:
    """End both processes now: after the lock is lost nothing may be written, not even the rest of a batch."""
    LOG.error("the driver ends at once: %s", lost)
    kill_java()
    logging.shutdown()
    os._exit(EXIT_LOCK_LOST)


def main() -> int:
    """Run the driver of the data set the environment names."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("py4j").setLevel(logging.WARNING)
    try:
        settings, crash = load_settings(), crash_points()
    except ValueError as error:
        LOG.error("%s", error)  # noqa: TRY400 -- the message says all
        return 2
    try:
        with lake_lock(settings, "stream", end_at_once) as lock:
            finish_swap(settings, lock.check)
            spark = spark_session(settings, f"crm-stream-{settings.env}")
            driver = Driver(settings, spark, crash, lock.check)
            signal.signal(signal.SIGTERM, driver.ask_to_stop)
            signal.signal(signal.SIGINT, driver.ask_to_stop)
            LOG.info("driver of %s started, lake %s", settings.env, settings.lake_root)
            try:
                return driver.run()
            finally:
                end_session(spark)
    except (
        LakeLocked,
        SparkJarsMissing,
        TopicsMissing,
        SourceLost,
        KafkaUnavailableError,
        ObjectStoreError,
        SchemaRefused,
        TableAltered,
    ) as error:
        LOG.error("%s", error)  # noqa: TRY400 -- the message says all
        return 2


if __name__ == "__main__":
    sys.exit(main())
