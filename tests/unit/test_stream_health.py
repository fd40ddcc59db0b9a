"""The stream's checks, and when they and its progress are reported."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pyarrow as pa  # noqa: TID253 -- a test may load what it tests
import pytest

from crm_assets.lakehouse.health import MOST_SMALL_FILES
from crm_assets.lakehouse.health import judge as judge_table
from crm_assets.lakehouse.upkeep import is_night
from crm_assets.streaming.assets import Reported, due
from crm_assets.streaming.health import CHECKS, Facts, out_of_books, verdicts
from crm_assets.streaming.progress import QueryProgress, QueryState, StreamProgress
from crm_assets.streaming.upkeep import SMALL_BYTES, LogEntry, Reader, TableState
from crm_resources.kafka import Lag, PartitionLag
from crm_resources.lake import DataFile
from crm_resources.layout import SILVER
from crm_resources.settings import load_settings

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SETTINGS = load_settings({"CRM_MAX_LAG_RECORDS": "1000", "CRM_MAX_LAG_SECONDS": "60"})


def ago(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).isoformat()


def lag(records: int = 0, seconds: float = 0.0, lost: int = 0) -> Lag:
    return Lag("crm-test-silver", (PartitionLag("test.events", 0, records, seconds, lost),))


def query(**changes: object) -> QueryProgress:
    return replace(QueryProgress(QueryState.RUNNING, committed_at=ago(1)), **changes)  # type: ignore[arg-type] # fields by name


def facts(found: Lag | None = None, refine: QueryProgress | None = None, rows: int = 0) -> Facts:
    progress = StreamProgress(1, ago(3600), ago(1), {"ingest": query(), "refine": refine or query()})
    return Facts(True, progress, (found or lag(),), None, rows)


def failed(given: Facts) -> dict[str, str]:
    return {v.name: v.reason for v in verdicts(given, SETTINGS, NOW) if not v.passed}


def test_a_stream_that_does_what_it_should_passes_every_check() -> None:
    assert failed(facts()) == {}
    assert [v.name for v in verdicts(facts(), SETTINGS, NOW)] == list(CHECKS)
    assert failed(facts(lag(1000, 60.0))) == {}, "the limits themselves are within them"


@pytest.mark.parametrize(
    ("given", "check", "reason"),
    [
        (replace(facts(), alive=False), "running", "does not run"),
        (facts(lag(1001, 5)), "lag", "1001 records behind"),
        (facts(lag(3, 61)), "lag", "61 s old"),
        (facts(lag(lost=7)), "lag", "removed 7 records"),
        (replace(facts(), lags=(), lag_error="no broker"), "lag", "cannot be measured"),
        (facts(refine=query(state=QueryState.RETRYING, error="disk full")), "failed_batches", "refine: disk full"),
        (facts(rows=2), "books", "2 rows"),
        (facts(lag(3, 400), query(committed_at=ago(500))), "checkpoint_age", "refine has finished no batch for 500 s"),
    ],
)
def test_each_fault_fails_its_check_with_the_reason(given: Facts, check: str, reason: str) -> None:
    assert reason in failed(given)[check]


def test_a_quiet_shop_is_no_old_checkpoint() -> None:
    assert failed(facts(refine=query(committed_at=ago(50_000)))) == {}
    assert "checkpoint_age" not in failed(facts(lag(1, 2), query(committed_at=ago(50_000)))), "the record has only just come"


def test_rows_that_do_not_add_up_are_counted() -> None:
    good = {"query": "ingest", "rows_in": 5, "rows_bronze": 5}
    refined = {"query": "refine", "rows_in": 5, "rows_silver": 2, "rows_dead_letters": 1, "rows_duplicates": 1, "rows_placed_before": 1}
    rows = [good, {**good, "rows_bronze": 4}, refined, {**refined, "rows_silver": 3}]
    names = ("query", "rows_in", "rows_bronze", "rows_silver", "rows_dead_letters", "rows_duplicates", "rows_placed_before")

    assert out_of_books(pa.table({n: [r.get(n) for r in rows] for n in names})) == 2


def test_progress_is_reported_on_change_and_once_a_minute_checks_at_once() -> None:
    before = Reported(NOW.timestamp() - 30, "a", {"lag": True, "books": True})

    assert due(before, "b", {"lag": True, "books": True}, NOW) == (False, [])
    assert due(before, "b", {"lag": False, "books": True}, NOW) == (False, ["lag"])
    assert due(before, "b", {"lag": True, "books": True}, NOW + timedelta(seconds=30)) == (True, ["lag", "books"])
    assert due(before, "a", {"lag": True, "books": True}, NOW + timedelta(hours=9)) == (False, [])
    assert due(Reported(), "", {"lag": False}, NOW) == (False, ["lag"])


def test_the_night_is_that_of_the_business() -> None:
    evening = datetime(2026, 3, 1, 18, 35, tzinfo=UTC)

    assert is_night(evening, "Asia/Seoul")
    assert not is_night(evening, "UTC")


def test_each_lake_check_fails_for_its_reason() -> None:
    small = tuple(DataFile(str(n), 1, SMALL_BYTES - 1, None) for n in range(MOST_SMALL_FILES + 1))
    log = tuple(LogEntry(f"{n:020d}.json", n, NOW - timedelta(days=40 - n), 10) for n in range(40))
    month = timedelta(days=30)

    def failing(state: TableState) -> dict[str, bool]:
        return {v.name: v.serious for v in judge_table(state, month, NOW) if not v.passed}

    assert failing(TableState(SILVER["events"], small[1:], log, (Reader("load", 39),))) == {}
    assert failing(TableState(SILVER["events"], small, log)) == {"small_files": False}
    assert failing(TableState(SILVER["events"], (), log, (Reader("load", 20),))) == {"readers": False}, "it waits for 19 days"
    assert failing(TableState(SILVER["events"], (), log, (Reader("load", 5),))) == {"readers": True}
    long = tuple(LogEntry(f"{n:020d}.json", n, NOW, 10) for n in range(6 * SILVER["events"].checkpoint_interval))
    assert failing(TableState(SILVER["events"], (), long)) == {"growth": False}
