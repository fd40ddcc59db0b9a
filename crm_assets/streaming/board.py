"""What the driver knows about its two queries, put together from Spark's events and the steps' own counts.

Belongs here: keeping and writing that state. Not here: its form on disk (`progress`), or acting on it (`driver`).
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from crm_assets.streaming.ingest import INGEST
from crm_assets.streaming.progress import QueryProgress, QueryState, StreamProgress, now_text, write_progress
from crm_assets.streaming.refine import REFINE
from crm_resources.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql.streaming.listener import StreamingQueryListener

LOG = logging.getLogger(__name__)


class Board:
    """Latest state of both queries; filled by the listener's threads, written to the file by the main one."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._started_at = now_text()
        self._queries = {INGEST: QueryProgress(), REFINE: QueryProgress()}
        self.metrics_url: str | None = None

    def update(self, name: str, change: Callable[[QueryProgress], QueryProgress]) -> None:
        """Change the state of a query."""
        with self._lock:
            self._queries[name] = change(self._queries[name])

    def query(self, name: str) -> QueryProgress:
        """State of a query."""
        with self._lock:
            return self._queries[name]

    def queries(self) -> dict[str, QueryProgress]:
        """State of both queries, by name."""
        with self._lock:
            return dict(self._queries)

    def write(self) -> None:
        """Write the file, with a new sign of life."""
        write_progress(self._settings, StreamProgress(os.getpid(), self._started_at, now_text(), self.queries(), self.metrics_url))


def progressed(before: QueryProgress, event: dict[str, Any]) -> QueryProgress:
    """State of a query after a progress event of Spark; pure.

    Args:
        before: state until now.
        event: the event's JSON, as Spark documents it.
    """
    source = (event.get("sources") or [{}])[0]
    metrics = source.get("metrics") or {}
    durations = {str(k): int(v) for k, v in (event.get("durationMs") or {}).items()}
    ended = "addBatch" in durations
    return replace(
        before,
        state=QueryState.RUNNING,
        query_id=str(event["id"]),
        run_id=str(event["runId"]),
        batch_id=int(event["batchId"]) if ended else before.batch_id,
        committed_at=now_text() if ended else before.committed_at,
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
            board.update(str(event.progress.name), lambda q: progressed(q, found))

        def onQueryIdle(self, event: QueryIdleEvent) -> None:
            name = names.get(str(event.runId))
            if name is not None:
                board.update(name, lambda q: replace(q, state=QueryState.RUNNING))

        def onQueryTerminated(self, event: QueryTerminatedEvent) -> None:
            LOG.info("query %s ended", names.get(str(event.runId), event.runId))

    return Listener()
