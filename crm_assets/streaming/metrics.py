"""Prometheus metrics of the stream's driver, served on loopback.

Counted from what the batches did and read from the board when somebody asks. Belongs here: names and meaning of the metrics. Not here:
rules and dashboards (`deploy/monitoring`). A driver that hangs reports nothing; lag is therefore measured outside it as well, from the
offsets its groups have committed.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from crm_assets.streaming.batch_ledger import Batch
from crm_assets.streaming.progress import QueryProgress, QueryState
from crm_resources.settings import Settings

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

LOG = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"

OUTCOMES = ("bronze", "silver", "dead_letters", "duplicates", "placed_before")

_SECONDS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60)


class StreamMetrics:
    """The metrics of one driver.

    Args:
        queries: state of both queries now, by name.
        memory: resident bytes of the driver's processes by name, e.g. `python`, `java`.
        now: current time, with a time zone.
    """

    def __init__(
        self,
        queries: Callable[[], Mapping[str, QueryProgress]],
        memory: Callable[[], Mapping[str, int]],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.registry = CollectorRegistry()
        self._rows = Counter("crm_stream_rows", "Rows written, by query and table.", ["query", "outcome"], registry=self.registry)
        self._read = Counter("crm_stream_records_read", "Records read, by query and topic.", ["query", "topic"], registry=self.registry)
        self._seconds = Histogram(
            "crm_stream_batch_seconds",
            "Time from a batch's begin to its last commit to a table.",
            ["query"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.registry.register(_BoardCollector(queries, memory, now))

    def noted(self, batch: Batch) -> None:
        """Count a batch that is done."""
        self._seconds.labels(batch.query).observe(batch.seconds)
        for r in batch.ranges:
            self._read.labels(batch.query, r.partition[0]).inc(r.rows_in)
            for outcome in OUTCOMES:
                self._rows.labels(batch.query, outcome).inc(getattr(r, f"rows_{outcome}") or 0)

    def serve(self, port: int) -> tuple[WSGIServer, str]:
        """Serve them on loopback until the server is shut down.

        Args:
            port: wanted port; 0, or one that is taken, means any free one.

        Returns:
            The server and its address.
        """
        from prometheus_client import start_http_server

        try:
            server, _ = start_http_server(port, LOOPBACK, self.registry)
        except OSError as error:
            LOG.warning("port %s for metrics is not to be had (%s); taking a free one", port, error)
            server, _ = start_http_server(0, LOOPBACK, self.registry)
        return server, f"http://{LOOPBACK}:{server.server_port}/metrics"


def announce(settings: Settings, url: str) -> None:
    """Write where the metrics are in the form of Prometheus' file-based discovery, to `<environment>/stream/metrics_targets.json`."""
    path = settings.environment_dir / "stream" / "metrics_targets.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    target = {"targets": [url.removeprefix("http://").removesuffix("/metrics")], "labels": {"job": "crm-stream", "env": settings.env}}
    path.write_text(json.dumps([target], indent=1) + "\n")


class _BoardCollector(Collector):
    """Gauges, made when they are asked for."""

    def __init__(
        self, queries: Callable[[], Mapping[str, QueryProgress]], memory: Callable[[], Mapping[str, int]], now: Callable[[], datetime]
    ) -> None:
        self._queries = queries
        self._memory = memory
        self._now = now

    def collect(self) -> Iterator[Metric]:
        found = self._queries()
        state = GaugeMetricFamily("crm_stream_state", "1 for the state a query is in.", labels=["query", "state"])
        lag = GaugeMetricFamily("crm_stream_lag_records", "Records that waited in Kafka when the last batch began.", labels=["query"])
        lag_bytes = GaugeMetricFamily("crm_stream_lag_bytes", "Bytes that waited in bronze when the last batch began.", labels=["query"])
        lag_seconds = GaugeMetricFamily(
            "crm_stream_lag_seconds", "Age of the newest record that is done while others wait, 0 when none does.", labels=["query"]
        )
        committed = GaugeMetricFamily("crm_stream_last_batch_timestamp_seconds", "When the last batch ended.", labels=["query"])
        rate = GaugeMetricFamily("crm_stream_rows_per_second", "Speed of the last batch.", labels=["query"])
        phase = GaugeMetricFamily("crm_stream_batch_phase_seconds", "Parts of the last batch by Spark's names.", labels=["query", "phase"])
        restarts = GaugeMetricFamily("crm_stream_query_restarts", "Times the query was started again after a failure.", labels=["query"])
        for name, query in found.items():
            for one in QueryState:
                state.add_metric([name, str(one)], float(query.state is one))
            if query.lag_records is not None:
                lag.add_metric([name], query.lag_records)
            if query.lag_bytes is not None:
                lag_bytes.add_metric([name], query.lag_bytes)
            seconds = lag_in_seconds(query, self._now())
            if seconds is not None:
                lag_seconds.add_metric([name], seconds)
            if query.committed_at is not None:
                committed.add_metric([name], datetime.fromisoformat(query.committed_at).timestamp())
            rate.add_metric([name], query.rows_per_second)
            restarts.add_metric([name], query.restarts)
            for part, milliseconds in query.durations_ms.items():
                phase.add_metric([name, part], milliseconds / 1000)
        memory = GaugeMetricFamily("crm_stream_memory_bytes", "Resident memory of the driver.", labels=["process"])
        for process, size in self._memory().items():
            memory.add_metric([process], size)
        yield from (state, lag, lag_bytes, lag_seconds, committed, rate, phase, restarts, memory)


def lag_in_seconds(query: QueryProgress, now: datetime) -> float | None:
    """Age of the newest record that is done while others wait, 0 when none does, `None` before the first batch; pure."""
    waits = query.lag_records if query.lag_records is not None else query.lag_bytes
    if waits is None or query.newest_record_at is None:
        return None
    return max(0.0, (now - datetime.fromisoformat(query.newest_record_at)).total_seconds()) if waits else 0.0


def driver_memory() -> dict[str, int]:
    """Resident bytes of this process and of its Java process."""
    import psutil

    from crm_resources.spark import java_pid

    found = {"python": os.getpid(), "java": java_pid()}
    sizes: dict[str, int] = {}
    for name, pid in found.items():
        try:
            if pid is not None:
                sizes[name] = int(psutil.Process(pid).memory_info().rss)
        except psutil.NoSuchProcess:
            continue
    return sizes
