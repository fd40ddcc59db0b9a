"""Time travel: what was reported comes out again from silver's old versions, and what does not is found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg
import pyarrow as pa  # noqa: TID253 -- tests need not start fast
import pyarrow.parquet as pq  # noqa: TID253 -- tests need not start fast
import pytest
from adbc_driver_postgresql import dbapi  # noqa: TID253 -- tests need not start fast
from deltalake import DeltaTable  # noqa: TID253 -- tests need not start fast

from crm_assets.build import build_defs
from crm_assets.warehouse.load import load_all
from crm_assets.warehouse.mart_digests import digest_marts, mart_names
from crm_assets.warehouse.recorded_refresh import recorded_refresh, silver_versions
from crm_assets.warehouse.time_travel import check_reachable, find_destination, kept_databases, travel
from crm_assets.warehouse.travel_choice import TimeTravelError
from crm_resources import lake, refresh_reports, warehouse
from crm_resources.layout import SILVER
from crm_resources.refresh_reports import MartDigest, RefreshReport, TableVersion
from crm_resources.settings import REPOSITORY, Settings
from deploy.local.stack import Stack
from tests.oracle.lake_writer import append, event, order, product, profile
from tests.oracle.refresh import data_set, reported_refresh

FIRST_DAY, LATER_DAY = date(2026, 3, 10), date(2026, 3, 20)
BOUGHT = datetime(2026, 3, 8, 20, tzinfo=UTC)  # already 9 March in Seoul, where the first report was made
SEOUL = "Asia/Seoul"


@dataclass(frozen=True)
class History:
    """A data set with two reports; between them came late rows, a compaction, another as-of date and another time zone."""

    settings: Settings
    first: RefreshReport
    second: RefreshReport

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command, as a user runs it."""
        plain = {key: value for key, value in os.environ.items() if not key.startswith(("CRM_", "DAGSTER_"))}
        environ = plain | variables(self.settings) | {"COLUMNS": "200"}
        command = [sys.executable, "-m", "crm_assets.warehouse.time_travel_cli", *arguments]
        return subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=False)


def variables(settings: Settings) -> dict[str, str]:
    return {
        "CRM_HOME": str(settings.home),
        "CRM_ENV": settings.env,
        "CRM_AS_OF": str(settings.as_of),
        "CRM_BUSINESS_TIMEZONE": settings.business_timezone,
    }


def run_job(settings: Settings, job: str, config: dict[str, object] | None = None) -> dg.ExecuteInProcessResult:
    """A job of the code location, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables(settings).items():
            patch.setenv(name, value)
        return build_defs().resolve_job_def(job).execute_in_process(run_config=config, raise_on_error=False)


def some_orders(count: int, at: datetime, prefix: str = "o") -> list[dict[str, object]]:
    lines = [("A", 2, "1.50"), ("B", 1, "0.25")]
    return [order(f"{prefix}{n}", at + timedelta(minutes=n), lines, customer_id=f"c{n % 5}") for n in range(count)]


def delta(settings: Settings, plural: str = "orders") -> DeltaTable:
    return DeltaTable(settings.table_uri(SILVER[plural].path))


@pytest.fixture(scope="module")
def history(stack_services: Stack) -> History:
    then = data_set(stack_services.settings, "travel", as_of=FIRST_DAY, timezone=SEOUL)
    append(then, [*some_orders(12, BOUGHT), product("A", BOUGHT), profile("c0", BOUGHT), event("v", BOUGHT)])
    append(then, some_orders(4, BOUGHT, "p"))
    first = reported_refresh(then)

    now = data_set(stack_services.settings, "travel", as_of=LATER_DAY)
    wholly = order("o1", BOUGHT + timedelta(days=1), [("A", 2, "1.50"), ("B", 1, "0.25")], customer_id="c1", status="cancelled", sequence=2)
    partly = order("c-1", BOUGHT + timedelta(days=2), [("A", -1, "1.50")], customer_id="c2", status="cancelled", cancels_order_id="o2")
    append(now, [wholly, partly])
    delta(now).optimize.compact()
    # Late: dated before the first report's as-of date, and another state of what it showed.
    append(now, [*some_orders(3, BOUGHT - timedelta(days=3), "late"), profile("c0", BOUGHT, grade="gold", sequence=2)])
    assert run_job(now, "refresh").success
    second = refresh_reports.last_report_before(now, datetime.now(UTC))
    assert second is not None
    return History(now, first, second)


def test_a_report_comes_out_again_after_late_rows_a_compaction_and_other_settings(history: History):
    assert history.first.marts != history.second.marts, "the reports must differ, or finding the first one proves nothing"
    assert history.first.figures["net_amount_booked"] == "52.0000"
    live = (silver_versions(history.settings), digest_marts(history.settings))

    done = history.run("--report", str(history.first.refresh_id), "--keep")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "EQUAL" in done.stdout
    assert "Asia/Seoul" in done.stdout
    report = json.loads((history.settings.reports_dir / "time-travel.json").read_text())
    assert report["verdict"] == "pass"
    assert report["figures"]["equal_count"] == report["figures"]["compared_count"] == len(mart_names()) + 5
    assert (silver_versions(history.settings), digest_marts(history.settings)) == live, "the live database was touched"

    place = history.settings.model_copy(update={"env": f"travel_at_report_{history.first.refresh_id}"})
    assert kept_databases(history.settings) == [place.database]
    with dbapi.connect(warehouse.reader_uri(place), autocommit=True) as reader, reader.cursor() as cursor:
        cursor.execute("select count(*) from marts.fct_orders")
        assert cursor.fetchall() == [(16,)]


def test_a_number_altered_in_the_report_is_found_by_date_and_named(history: History):
    at = history.second.reported_at.date().isoformat()
    with altered_checksum(history, "rfm_scores"):
        done = history.run("--at", at)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "DIFFERENT: rfm_scores\n" in done.stdout
    assert json.loads((history.settings.reports_dir / "time-travel.json").read_text())["verdict"] == "fail"


def test_the_job_finds_a_silver_file_that_was_replaced(history: History):
    version = history.first.versions["orders"].version
    config = {"ops": {"reproduce_report": {"config": {"versions": f"orders={version}"}}}}
    with replaced_file(history.settings, version):
        result = run_job(history.settings, "time_travel", config)
    assert not result.success
    failure = result.failure_data_for_node("reproduce_report")
    assert failure is not None
    assert failure.user_failure_data is not None
    assert "fct_order_lines" in (failure.user_failure_data.description or "")
    assert "dim_products" not in (failure.user_failure_data.description or "")
    assert failure.user_failure_data.metadata["differing_count"].value > 0


def test_versions_at_which_nothing_was_reported_are_built_and_say_so(history: History):
    done = history.run("--versions", "orders=0", "--as-of", "2026-03-09")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing to compare" in done.stdout
    assert "orders 0" in done.stdout
    figures = json.loads((history.settings.reports_dir / "time-travel.json").read_text())["figures"]
    assert (figures["compared_count"], figures["silver_orders_version"]) == (0, 0)
    assert not [name for name in kept_databases(history.settings) if "versions" in name], "without --keep it is dropped"


def test_the_list_shows_the_last_report_of_each_day(history: History):
    done = history.run("--list")
    assert done.returncode == 0
    line = next(text for text in done.stdout.splitlines() if history.second.figures["net_amount_restated"] in text)
    assert "yes" in line


class TestOutOfReach:
    """One line that says what is possible, exit code 2, and nothing built."""

    def test_the_command_says_it_without_a_traceback(self, history: History):
        done = history.run("--at", "2999-01-01")
        assert done.returncode == 2
        assert "lies in the future" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize(
        ("asked", "said"),
        [
            ({"report_id": 999_999}, "there is no report 999999; the oldest report is .* LIST=1"),
            ({"at": "2020-01-01"}, "nothing was reported by 2020-01-01 that is still kept; the oldest report is"),
            ({"versions": "orders=999"}, "silver orders has no version 999 any more, or not yet"),
            ({}, "name one point"),
            ({"at": "2026-03-01", "report_id": 1}, "name one point"),
        ],
    )
    def test_what_is_possible_is_named(self, history: History, asked: dict[str, Any], said: str):
        with pytest.raises(TimeTravelError, match=said):
            travel(history.settings, find_destination(history.settings, now=datetime.now(UTC), **asked))

    def test_a_table_that_was_made_anew(self, history: History):
        versions = {**history.first.versions, "orders": TableVersion("another", history.first.versions["orders"].version)}
        with pytest.raises(TimeTravelError, match="silver orders was made anew since"):
            check_reachable(history.settings, versions)

    def test_a_vacuum_that_removed_the_files(self, history: History):
        folder = history.settings.environment_dir / "lake" / SILVER["orders"].path
        first = next(iter(lake.files_of(DeltaTable(folder, version=history.first.versions["orders"].version))))
        (folder / first.path).rename(folder / "vacuumed")
        try:
            with pytest.raises(TimeTravelError, match="1 of 2 files of silver orders at version 1 were removed by a vacuum"):
                check_reachable(history.settings, history.first.versions)
            check_reachable(history.settings, history.second.versions)
        finally:
            (folder / "vacuumed").rename(folder / first.path)

    def test_a_database_that_somebody_else_made_is_left_alone(self, history: History):
        destination = find_destination(history.settings, now=datetime.now(UTC), report_id=history.second.refresh_id)
        place = history.settings.model_copy(update={"env": destination.place})
        warehouse.create_database(place)
        try:
            with pytest.raises(TimeTravelError, match=f"{place.database} that no time travel of travel made"):
                travel(history.settings, destination)
            assert warehouse.fetch_rows(place, "select 1") == [(1,)]
        finally:
            with warehouse.connect_to_server(history.settings) as connection, connection.cursor() as cursor:
                cursor.execute(f"drop database {place.database}")


class TestWhatIsWrittenDown:
    @pytest.fixture
    def empty(self, stack_services: Stack, request: pytest.FixtureRequest) -> Settings:
        settings = data_set(stack_services.settings, f"reports_{request.node.session.items.index(request.node)}")
        warehouse.prepare(settings)
        return settings

    @staticmethod
    def report(settings: Settings, number: int, at: datetime, **versions: TableVersion) -> RefreshReport:
        report = RefreshReport(number, at, at.date(), "UTC", "m", versions, {"m": MartDigest(1, "00")}, {"orders": "1"})
        refresh_reports.record_report(settings, report)
        return report

    def test_a_report_is_read_as_it_was_written_and_chosen_by_time(self, empty: Settings):
        noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
        one = self.report(empty, 1, noon, orders=TableVersion("t", 3))
        two = self.report(empty, 2, noon + timedelta(hours=4), orders=TableVersion("t", 3), events=TableVersion("e", 0))
        assert refresh_reports.report_by_id(empty, 1) == one
        assert find_destination(empty, now=noon + timedelta(days=1), at="2026-03-01").report == two
        assert find_destination(empty, now=noon + timedelta(days=1), at="2026-03-01T12:00Z").report == one
        seoul = empty.model_copy(update={"business_timezone": SEOUL})
        assert find_destination(seoul, now=noon + timedelta(days=1), at="2026-03-01").report == one
        assert [(d.day, d.reports, d.last) for d in refresh_reports.reported_days(empty)] == [(noon.date(), 2, two)]
        assert len(refresh_reports.reported_days(seoul)) == 2

    def test_what_is_older_than_promised_is_purged(self, empty: Settings):
        now = datetime(2026, 3, 31, 12, tzinfo=UTC)
        for number, days in ((1, 31), (2, 30), (3, 0)):
            self.report(empty, number, now - timedelta(days=days))
        found = refresh_reports.oldest_report(empty)
        assert found is not None
        assert found.refresh_id == 2

    def test_the_oldest_version_needed_is_that_of_the_bookmark_or_a_kept_report_of_the_same_table(self, empty: Settings):
        assert refresh_reports.oldest_needed(empty, datetime.now(UTC)) == {}
        append(empty, [*some_orders(1, BOUGHT), event("v", BOUGHT)])
        append(empty, some_orders(1, BOUGHT, "p"))
        load_all(empty)
        marks = silver_versions(empty)
        assert refresh_reports.oldest_needed(empty, datetime.now(UTC)) == marks == {"orders": marks["orders"], "events": marks["events"]}
        assert marks["orders"].version == 1

        now = datetime(2026, 3, 31, 12, tzinfo=UTC)
        self.report(empty, 1, now - timedelta(days=29), orders=TableVersion(marks["orders"].table_id, 0), events=TableVersion("other", 0))
        assert refresh_reports.oldest_needed(empty, now)["orders"].version == 0
        assert refresh_reports.oldest_needed(empty, now)["events"] == marks["events"]
        assert refresh_reports.oldest_needed(empty, now + timedelta(days=2))["orders"].version == 1

    def test_a_refresh_that_mixes_states_has_no_report(self, empty: Settings):
        append(empty, some_orders(1, BOUGHT))
        load_all(empty)
        warnings: list[str] = []
        with recorded_refresh(empty, whole=False, warn=warnings.append):
            pass
        assert warnings == ["only a part of the models was built: time travel cannot go to this refresh"]
        assert refresh_reports.oldest_report(empty) is None
        assert warehouse.last_refresh_as_of(empty) is not None


@contextmanager
def altered_checksum(history: History, mart: str) -> Iterator[None]:
    """The second report with another checksum of a mart, inside the block."""
    change = f"marts = jsonb_set(marts, '{{{mart},checksum}}', to_jsonb(repeat('0', 32)))"
    with warehouse.connect(history.settings, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(f"create temporary table saved as select * from meta.refresh_reports where refresh_id = {history.second.refresh_id}")
        cursor.execute(f"update meta.refresh_reports set {change} where refresh_id = {history.second.refresh_id}")
        assert cursor.rowcount == 1
        try:
            yield
        finally:
            cursor.execute("update meta.refresh_reports as r set marts = s.marts from saved as s where r.refresh_id = s.refresh_id")


@contextmanager
def replaced_file(settings: Settings, version: int) -> Iterator[None]:
    """One data file of the orders, replaced inside the block by one with other quantities."""
    folder = settings.environment_dir / "lake" / SILVER["orders"].path
    path = folder / lake.files_of(DeltaTable(folder, version=version))[0].path
    original = path.read_bytes()
    table = pq.read_table(path)
    rows = table.to_pylist()
    for row in rows:
        for line in row["lines"]:
            line["quantity"] += 1
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    try:
        yield
    finally:
        path.write_bytes(original)
