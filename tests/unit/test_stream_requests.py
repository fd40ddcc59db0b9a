"""Requests to the driver, its metrics, and the switches that crash it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from crm_assets.streaming.attendant import Attendant
from crm_assets.streaming.batch_ledger import Batch, BatchRange
from crm_assets.streaming.crash_points import CrashPoint, crash_points
from crm_assets.streaming.metrics import StreamMetrics, lag_in_seconds
from crm_assets.streaming.progress import QueryProgress, QueryState
from crm_assets.streaming.refine import StepClosed
from crm_assets.streaming.requests import (
    Request,
    RequestKind,
    RequestUnanswered,
    answer_to,
    ask,
    forget_answered,
    open_requests,
    wait_for_answer,
    withdraw,
)
from crm_resources.settings import Settings, load_settings

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    found = load_settings({"CRM_HOME": str(tmp_path)})
    Path(found.lake_root).mkdir(parents=True)
    return found


@contextmanager
def attending(settings: Settings, handler: Callable[..., dict[str, Any]]):
    step: Any = object()
    spark: Any = object()
    attendant = Attendant(settings, spark, lambda: step, {RequestKind.COMPACT: handler})
    attendant.start()
    try:
        yield
    finally:
        attendant.stop(30)


def wait(settings: Settings, request_id: str):
    return wait_for_answer(settings, request_id, timeout_seconds=30, alive=lambda: True, poll_seconds=0.05)


def test_a_request_is_carried_out_once_and_answered(settings: Settings) -> None:
    done: list[Request] = []

    def handler(_settings: Settings, _spark: object, _step: object, request: Request) -> dict[str, Any]:
        done.append(request)
        return {"files": 3}

    ask(settings, Request("a", RequestKind.COMPACT, {"table": "bronze"}))
    with attending(settings, handler):
        found = wait(settings, "a")
        ask(settings, Request("a", RequestKind.COMPACT, {"table": "another"}))
        ask(settings, Request("b", RequestKind.COMPACT))
        wait(settings, "b")

    assert (found.ok, found.figures) == (True, {"files": 3})
    assert [r.id for r in done] == ["a", "b"]
    assert done[0].arguments == {"table": "bronze"}
    assert open_requests(settings) == []


def test_old_answers_are_forgotten_and_open_requests_are_not(settings: Settings) -> None:
    with attending(settings, lambda *_: {}):
        ask(settings, Request("a", RequestKind.COMPACT))
        wait(settings, "a")
    ask(settings, Request("b", RequestKind.COMPACT))

    assert forget_answered(settings, datetime.now(UTC) - timedelta(hours=1)) == 0
    assert forget_answered(settings, datetime.now(UTC) + timedelta(hours=1)) == 1

    assert answer_to(settings, "a") is None
    assert [r.id for r in open_requests(settings)] == ["b"]


def test_a_failure_is_the_answer_and_the_next_request_is_served(settings: Settings) -> None:
    def handler(_settings: Settings, _spark: object, _step: object, request: Request) -> dict[str, Any]:
        if request.id == "a":
            raise ValueError("no such table")
        return {}

    with attending(settings, handler):
        for name in "ab":
            ask(settings, Request(name, RequestKind.COMPACT))
        assert wait(settings, "a").error == "ValueError: no such table"
        assert wait(settings, "b").ok


def test_a_kind_nobody_knows_is_answered(settings: Settings) -> None:
    with attending(settings, lambda *_: {}):
        ask(settings, Request("a", RequestKind.REPLAY))
        assert "does not know how to replay" in str(wait(settings, "a").error)


def test_a_request_cut_short_by_a_stop_stays_open(settings: Settings) -> None:
    begun = threading.Event()

    def handler(*_: object) -> dict[str, Any]:
        begun.set()
        raise StepClosed("the stream is stopping")

    ask(settings, Request("a", RequestKind.COMPACT))
    with attending(settings, handler):
        assert begun.wait(30)

    assert [r.id for r in open_requests(settings)] == ["a"]
    assert answer_to(settings, "a") is None


def test_without_a_driver_the_asker_is_told(settings: Settings) -> None:
    ask(settings, Request("a", RequestKind.COMPACT))

    with pytest.raises(RequestUnanswered, match="does not run"):
        wait_for_answer(settings, "a", timeout_seconds=30, alive=lambda: False)
    withdraw(settings, "a")

    assert open_requests(settings) == []


def test_crash_points_are_named_and_counted() -> None:
    assert crash_points({}).chosen is None
    found = crash_points({"CRM_CRASH_AT": "refine.between_tables:3"})
    assert (found.chosen, found.times) == (CrashPoint.REFINE_BETWEEN_TABLES, 3)
    found.passing(CrashPoint.REFINE_BETWEEN_TABLES)
    found.passing(CrashPoint.INGEST_AFTER_COMMIT)
    for wrong in ("nowhere", "refine.between_tables:x", "refine.between_tables:0"):
        with pytest.raises(ValueError, match="CRM_CRASH_AT"):
            crash_points({"CRM_CRASH_AT": wrong})


def test_lag_in_seconds_is_the_age_of_what_is_done_while_something_waits() -> None:
    assert lag_in_seconds(QueryProgress(), NOW) is None
    assert lag_in_seconds(QueryProgress(lag_records=0, newest_record_at="2026-02-28T23:59:00+00:00"), NOW) == 0
    assert lag_in_seconds(QueryProgress(lag_bytes=9, newest_record_at="2026-02-28T23:59:00+00:00"), NOW) == 60


def test_metrics_are_served_as_prometheus_reads_them() -> None:
    states = {"ingest": QueryProgress(state=QueryState.RUNNING, lag_records=4, newest_record_at="2026-02-28T23:59:30+00:00")}
    metrics = StreamMetrics(lambda: states, lambda: {"python": 100}, lambda: NOW)
    metrics.noted(Batch("ingest", "g", 0, (BatchRange(("demo.orders", 0), 0, 5, 5, rows_bronze=5),), None, 0.3, NOW))
    server, url = metrics.serve(0)
    try:
        with urlopen(url, timeout=10) as response:
            text = response.read().decode()
    finally:
        server.shutdown()

    samples = {(s.name, *sorted(s.labels.values())): s.value for f in text_string_to_metric_families(text) for s in f.samples}
    assert samples["crm_stream_rows_total", "bronze", "ingest"] == 5
    assert samples["crm_stream_records_read_total", "demo.orders", "ingest"] == 5
    assert samples["crm_stream_lag_records", "ingest"] == 4
    assert samples["crm_stream_lag_seconds", "ingest"] == 30
    assert samples["crm_stream_state", "ingest", "running"] == 1
    assert samples["crm_stream_batch_seconds_count", "ingest"] == 1
    assert samples["crm_stream_memory_bytes", "python"] == 100
