"""What the stream tells about itself: one JSON file, written by the driver, read by everybody else.

Belongs here: the file's form, writing it atomically, reading it, and judging it. Not here: the listener that fills it (`driver`).
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from crm_resources.settings import Settings
from crm_resources.waiting import PATIENCE_SECONDS

STALE_SECONDS = PATIENCE_SECONDS
"""A heartbeat older than this means that the driver hangs or is gone; it writes one every second or two, except while it starts a query."""


class QueryState(StrEnum):
    """What a query of the driver is doing."""

    STARTING = "starting"
    RUNNING = "running"
    RETRYING = "retrying"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True)
class QueryProgress:
    """State of one query.

    Attributes:
        query_id: id that lives as long as the checkpoint.
        run_id: id of this start of the query.
        batch_id: last batch that was committed in this run, None before the first.
        committed_at: when that batch ended (ISO 8601, UTC).
        newest_record_at: Kafka's time of the newest record that is done (ISO 8601, UTC).
        rows: records of all batches of this driver's life.
        rows_per_second: speed of the last batch that held records.
        end_offsets: where the source was read to, as its own JSON: offsets per partition for Kafka, a version for Delta.
        latest_offsets: where the source ended when the last batch began.
        lag_records: records that wait in Kafka; None where the source counts otherwise.
        lag_bytes: bytes that wait in bronze; None for Kafka.
        durations_ms: how long the parts of the last batch took.
        restarts: how often the query was started again after a failure.
        error: last failure, None when there was none.
    """

    state: QueryState = QueryState.STARTING
    query_id: str = ""
    run_id: str = ""
    batch_id: int | None = None
    committed_at: str | None = None
    newest_record_at: str | None = None
    rows: int = 0
    rows_per_second: float = 0.0
    end_offsets: Any = None
    latest_offsets: Any = None
    lag_records: int | None = None
    lag_bytes: int | None = None
    durations_ms: dict[str, int] = field(default_factory=dict)
    restarts: int = 0
    error: str | None = None


@dataclass(frozen=True)
class StreamProgress:
    """State of the driver: its process, its last sign of life, its queries (`ingest`, `refine`), where its Prometheus metrics are."""

    pid: int
    started_at: str
    heartbeat_at: str
    queries: dict[str, QueryProgress]
    metrics_url: str | None = None


@dataclass(frozen=True)
class Health:
    """Whether the stream does what it should, and why not."""

    passed: bool
    reason: str


class StreamNotRunning(RuntimeError):
    """The stream did not come up; the message says what its driver said last."""


def progress_path(settings: Settings) -> Path:
    """File the driver writes."""
    return settings.environment_dir / "stream" / "progress.json"


def write_progress(settings: Settings, progress: StreamProgress) -> None:
    """Replace the file in one step, so that a reader never sees half of it."""
    path = progress_path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(json.dumps(asdict(progress), indent=1) + "\n")
    draft.replace(path)


def read_progress(settings: Settings) -> StreamProgress | None:
    """What the driver wrote last, `None` when it never did."""
    path = progress_path(settings)
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    queries = {name: QueryProgress(**{**q, "state": QueryState(q["state"])}) for name, q in found["queries"].items()}
    return StreamProgress(int(found["pid"]), found["started_at"], found["heartbeat_at"], queries, found.get("metrics_url"))


def judge(alive: bool, progress: StreamProgress | None, now: datetime) -> Health:
    """Whether the stream is healthy; pure.

    Args:
        alive: whether the driver's process exists.
        progress: what it wrote last.
        now: current time, with a time zone.
    """
    if not alive:
        return Health(False, "the driver does not run")
    if progress is None:
        return Health(False, "the driver has not reported yet")
    silent = (now - datetime.fromisoformat(progress.heartbeat_at)).total_seconds()
    if silent > STALE_SECONDS:
        return Health(False, f"no sign of life for more than {STALE_SECONDS:.0f} s")
    for name, query in progress.queries.items():
        if query.state is not QueryState.RUNNING:
            return Health(False, f"{name} is {query.state}" + (f": {query.error}" if query.error else ""))
    return Health(True, "both queries run")


def running(settings: Settings, pid: int | None) -> StreamProgress | None:
    """What a driver reported, if both its queries have gone through a first trigger; `None` while they have not.

    Args:
        settings: data set of the stream.
        pid: process id the report has to come from; None takes any.

    Raises:
        StreamNotRunning: a query failed for good.
    """
    progress = read_progress(settings)
    if progress is None or (pid is not None and progress.pid != pid):
        return None
    failed = [f"{name}: {q.error}" for name, q in progress.queries.items() if q.state is QueryState.FAILED]
    if failed:
        raise StreamNotRunning(f"the stream's driver reports a failed query; {'; '.join(failed)}")
    return progress if all(q.state is QueryState.RUNNING for q in progress.queries.values()) else None


def milestones(settings: Settings) -> tuple[tuple[str, QueryState, str, int | None, int], ...]:
    """How far the queries that do not run yet have come.

    Those that run are left out, and so is the heartbeat: both move for ever, also while another query never comes up.
    """
    progress = read_progress(settings)
    queries = progress.queries.items() if progress is not None else ()
    return tuple((name, q.state, q.run_id, q.batch_id, q.restarts) for name, q in queries if q.state is not QueryState.RUNNING)


def now_text() -> str:
    """Current time as the progress file spells it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
