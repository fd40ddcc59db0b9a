"""The stream's process: `python -m crm_assets.streaming.driver`, one driver with the queries `ingest` and `refine`.

It takes the lake's lock, starts both queries, reports to `progress.json`, and ends on SIGTERM or SIGINT when the batches in
hand are committed. Belongs here: the life of the process. Not here: what the queries do.

- `ingest` fails: the driver ends with exit status 1, loudly; its supervisor starts it again.
- `refine` fails: `ingest` goes on capturing; `refine` is started again with back-off, `MAX_RESTARTS` times in a row, then it is
  reported as failed and stays down until the driver is started anew. Nothing is lost meanwhile: bronze waits.
- The Java process is in a session of its own, so a signal to the group does not reach it; it ends when this process is gone.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Any

from crm_assets.streaming.ingest import INGEST, TopicsMissing, start_ingest
from crm_assets.streaming.progress import QueryProgress, QueryState, StreamProgress, now_text, write_progress
from crm_assets.streaming.rebuild import finish_swap
from crm_assets.streaming.refine import REFINE, RefineStep, start_refine
from crm_assets.streaming.tables import CheckpointDamaged, live
from crm_resources.contracts.evolution import SchemaRefused
from crm_resources.lake_lock import LakeLocked, lake_lock
from crm_resources.lake_tables import TableAltered, create_table
from crm_resources.layout import BRONZE
from crm_resources.settings import Settings, load_settings
from crm_resources.spark import SparkJarsMissing, end_session, spark_session

if TYPE_CHECKING:
    from pyspark.sql import SparkSession
    from pyspark.sql.streaming.listener import StreamingQueryListener
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


class Board:
    """Latest state of both queries; filled by the listener's threads, written to the file by the main one."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._started_at = now_text()
        self._queries = {INGEST: QueryProgress(), REFINE: QueryProgress()}
        self.batches_ended = {INGEST: 0, REFINE: 0}

    def update(self, name: str, change: Callable[[QueryProgress], QueryProgress]) -> None:
        """Change the state of a query."""
        with self._lock:
            self._queries[name] = change(self._queries[name])

    def batch_ended(self, name: str, change: Callable[[QueryProgress], QueryProgress]) -> None:
        """Change the state of a query whose trigger ended."""
        self.update(name, change)
        self.batches_ended[name] += 1

    def query(self, name: str) -> QueryProgress:
        """State of a query."""
        with self._lock:
            return self._queries[name]

    def write(self) -> None:
        """Write the file, with a new sign of life."""
        with self._lock:
            queries = dict(self._queries)
        write_progress(self._settings, StreamProgress(os.getpid(), self._started_at, now_text(), queries))


def progressed(before: QueryProgress, event: dict[str, Any]) -> QueryProgress:
    """State of a query after a progress event of Spark; pure.

    Args:
        before: state until now.
        event: the event's JSON, as Spark documents it.
    """
    source = (event.get("sources") or [{}])[0]
    metrics = source.get("metrics") or {}
    durations = {str(k): int(v) for k, v in (event.get("durationMs") or {}).items()}
    rows = int(event.get("numInputRows") or 0)
    ended = "addBatch" in durations
    return replace(
        before,
        state=QueryState.RUNNING,
        query_id=str(event["id"]),
        run_id=str(event["runId"]),
        batch_id=int(event["batchId"]) if ended else before.batch_id,
        committed_at=now_text() if ended else before.committed_at,
        rows=before.rows + rows,
        rows_per_second=float(event.get("processedRowsPerSecond") or 0.0) if ended else before.rows_per_second,
        end_offsets=_as_json(source.get("endOffset")),
        latest_offsets=_as_json(source.get("latestOffset")),
        lag_records=_lag(_as_json(source.get("endOffset")), _as_json(source.get("latestOffset"))),
        lag_bytes=int(metrics["numBytesOutstanding"]) if "numBytesOutstanding" in metrics else None,
        durations_ms=durations if ended else before.durations_ms,
        error=None if ended else before.error,
    )


def _as_json(value: object) -> Any:  # noqa: ANN401 -- offsets are JSON of the source's own form
    return json.loads(value) if isinstance(value, str) else value


def _lag(end: object, latest: object) -> int | None:
    """Records between two Kafka offsets, `{topic: {partition: offset}}`; `None` for other sources."""
    if not isinstance(end, dict) or not isinstance(latest, dict) or not all(isinstance(v, dict) for v in latest.values()):
        return None
    return sum(int(o) - int(end.get(t, {}).get(p, 0)) for t, parts in latest.items() for p, o in parts.items())


def make_listener(board: Board) -> StreamingQueryListener:
    """Listener that keeps the board."""
    from pyspark.sql.streaming.listener import (
        QueryIdleEvent,
        QueryProgressEvent,
        QueryStartedEvent,
        QueryTerminatedEvent,
        StreamingQueryListener,
    )

    names: dict[str, str] = {}

    class Listener(StreamingQueryListener):
        def onQueryStarted(self, event: QueryStartedEvent) -> None:
            names[str(event.runId)] = str(event.name)
            board.update(str(event.name), lambda q: replace(q, query_id=str(event.id), run_id=str(event.runId)))

        def onQueryProgress(self, event: QueryProgressEvent) -> None:
            found = json.loads(event.progress.json)
            board.batch_ended(str(event.progress.name), lambda q: progressed(q, found))

        def onQueryIdle(self, event: QueryIdleEvent) -> None:
            name = names.get(str(event.runId))
            if name is not None:
                board.batch_ended(name, lambda q: replace(q, state=QueryState.RUNNING))

        def onQueryTerminated(self, event: QueryTerminatedEvent) -> None:
            LOG.info("query %s ended", names.get(str(event.runId), event.runId))

    return Listener()


class Driver:
    """Both queries and what happens when one ends.

    Args:
        settings: environment and limits.
        spark: session of this process.
    """

    def __init__(self, settings: Settings, spark: SparkSession) -> None:
        self._settings = settings
        self._spark = spark
        self._stop = threading.Event()
        self._board = Board(settings)
        self._failures = 0
        self._batch_at_failure: int | None = None
        self._retry_at = 0.0
        self._step: RefineStep | None = None
        self._refined_before = 0

    def ask_to_stop(self, number: int, _frame: FrameType | None) -> None:
        """Signal handler: end when the batches in hand are committed."""
        LOG.info("signal %s: stopping after the current batches", signal.Signals(number).name)
        self._stop.set()

    def run(self) -> int:
        """Run until a stop is asked for or `ingest` fails; returns the exit status."""
        self._spark.streams.addListener(make_listener(self._board))
        create_table(self._settings, BRONZE)
        ingest = start_ingest(self._spark, self._settings)
        refine = self._start_refine()
        while not self._stop.is_set():
            self._report_refined()
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
        self._report_refined()
        self._board.write()
        return 0

    def _report_refined(self) -> None:
        """Put the step's own count on the board: it reads bronze's files itself, so Spark's progress counts none of its records."""
        if self._step is None:
            return
        rows, speed = self._refined_before + self._step.total.read, self._step.rows_per_second
        self._board.update(REFINE, lambda q: replace(q, rows=rows, rows_per_second=speed))

    def _start_refine(self) -> StreamingQuery | None:
        try:
            if self._step is not None:
                self._refined_before += self._step.total.read
                self._step = None
            self._step = RefineStep(self._settings, live(self._settings))
            return start_refine(self._spark, self._settings, self._step)
        except (CheckpointDamaged, SchemaRefused, TableAltered) as error:
            message = str(error)
            self._board.update(REFINE, lambda q: replace(q, state=QueryState.FAILED, error=message))
            LOG.error("refine cannot start: %s", error)  # noqa: TRY400 -- the message says all
        except Exception as error:
            # Whatever keeps refine from starting must not stop the capture.
            LOG.exception("refine could not be started")
            self._refine_failed(f"{type(error).__name__}: {error}")
        return None

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


def main() -> int:
    """Run the driver of the data set the environment names."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("py4j").setLevel(logging.WARNING)
    settings = load_settings()
    try:
        with lake_lock(settings.lake_root, "stream"):
            finish_swap(settings)
            spark = spark_session(settings, f"crm-stream-{settings.env}")
            driver = Driver(settings, spark)
            signal.signal(signal.SIGTERM, driver.ask_to_stop)
            signal.signal(signal.SIGINT, driver.ask_to_stop)
            LOG.info("driver of %s started, lake %s", settings.env, settings.lake_root)
            try:
                return driver.run()
            finally:
                end_session(spark)
    except (LakeLocked, SparkJarsMissing, TopicsMissing, SchemaRefused, TableAltered, NotImplementedError) as error:
        LOG.error("%s", error)  # noqa: TRY400 -- the message says all
        return 2


if __name__ == "__main__":
    sys.exit(main())
