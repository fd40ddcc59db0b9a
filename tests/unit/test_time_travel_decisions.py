"""Where a time travel goes, and what it says of two sets of figures: no service is needed for either."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm_assets.warehouse.mart_digests import mart_names, models_fingerprint
from crm_assets.warehouse.time_travel import Outcome, compare
from crm_assets.warehouse.travel_choice import TimeTravelError, end_of, place_of_versions, read_date, read_versions
from crm_resources.refresh_reports import MartDigest, RefreshReport

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
TABLES = ("events", "orders")


class TestThePointInTime:
    @pytest.mark.parametrize(
        ("at", "timezone", "end"),
        [
            ("2026-11-20", "UTC", "2026-11-21T00:00:00+00:00"),
            ("2026-11-20", "Asia/Seoul", "2026-11-20T15:00:00+00:00"),
            ("2026-11-20", "America/New_York", "2026-11-21T05:00:00+00:00"),
            # The clocks go forward: this business date has 23 hours; the one on which they go back has 25.
            ("2026-03-29", "Europe/London", "2026-03-29T23:00:00+00:00"),
            ("2026-10-25", "Europe/London", "2026-10-26T00:00:00+00:00"),
        ],
    )
    def test_a_date_ends_where_the_business_date_does(self, at: str, timezone: str, end: str):
        assert end_of(at, timezone, NOW) == datetime.fromisoformat(end)

    @pytest.mark.parametrize("at", ["2026-11-20T12:00Z", "2026-11-20T21:00+09:00", "2026-11-20T21:00"])
    def test_a_time_includes_itself_and_is_of_the_business_zone_without_an_offset(self, at: str):
        noon = datetime(2026, 11, 20, 12, tzinfo=UTC)
        assert end_of(at, "Asia/Seoul", NOW) == noon + timedelta(microseconds=1)

    def test_a_report_at_midnight_belongs_to_the_new_date(self):
        midnight = datetime(2026, 11, 20, tzinfo=ZoneInfo("Asia/Seoul"))
        assert not midnight < end_of("2026-11-19", "Asia/Seoul", NOW)
        assert midnight < end_of("2026-11-20", "Asia/Seoul", NOW)

    def test_today_is_no_future_though_it_goes_on(self):
        assert end_of("2026-11-21", "UTC", NOW) > NOW

    @pytest.mark.parametrize(("at", "timezone"), [("2026-11-22", "UTC"), ("2026-11-21T12:00:01Z", "UTC"), ("2026-11-22", "Asia/Seoul")])
    def test_the_future_is_refused_with_the_time_it_is(self, at: str, timezone: str):
        with pytest.raises(TimeTravelError, match="lies in the future: now is 2026-11-21"):
            end_of(at, timezone, NOW)

    @pytest.mark.parametrize("at", ["yesterday", "2026-02-30", "2026-11-20 25:00", "9999-12-31", "0001-01-01T00:00+09:00"])
    def test_what_is_no_time_is_refused_with_an_example(self, at: str):
        with pytest.raises(TimeTravelError, match="2026-11-20T12:00Z"):
            end_of(at, "Asia/Seoul", NOW)

    @given(
        day=st.dates(date(2000, 1, 1), date(2026, 11, 1)),
        timezone=st.sampled_from(["UTC", "Asia/Seoul", "Europe/London", "America/Sao_Paulo"]),
    )
    def test_every_date_ends_where_the_next_begins(self, day: date, timezone: str):
        last = end_of(day.isoformat(), timezone, NOW) - timedelta(microseconds=1)
        first = last + timedelta(microseconds=1)
        assert last.astimezone(ZoneInfo(timezone)).date() == day
        assert first.astimezone(ZoneInfo(timezone)).date() > day


class TestVersions:
    def test_each_table_has_its_version(self):
        assert read_versions("orders=12, events=0", TABLES) == {"orders": 12, "events": 0}

    @pytest.mark.parametrize("text", ["orders", "orders=", "orders=-1", "orders=x", "carts=1", "orders=1,orders=2", "orders=1,"])
    def test_what_cannot_be_read_is_named(self, text: str):
        with pytest.raises(TimeTravelError, match="Tables: events, orders"):
            read_versions(text, TABLES)

    def test_an_as_of_date_must_be_one(self):
        assert read_date("2026-03-01") == date(2026, 3, 1)
        with pytest.raises(TimeTravelError, match="AS_OF='today'"):
            read_date("today")

    def test_other_versions_and_other_dates_have_other_places(self):
        day = date(2026, 3, 1)
        places = {place_of_versions("demo", {"orders": n}, d) for n in (1, 2) for d in (day, day + timedelta(days=1))}
        assert len(places) == 4
        assert place_of_versions("demo", {"b": 1, "a": 2}, day) == place_of_versions("demo", {"a": 2, "b": 1}, day)


class TestTheComparison:
    @staticmethod
    def report(marts: dict[str, MartDigest], figures: dict[str, str]) -> RefreshReport:
        return RefreshReport(1, NOW, NOW.date(), "UTC", "m", {}, marts, figures)

    def test_the_same_content_is_equal_and_everything_else_is_named(self):
        then = self.report(
            {"a": MartDigest(1, "00"), "b": MartDigest(1, "00"), "gone": MartDigest(0, "00")}, {"orders": "1", "amount": "1.0"}
        )
        now = {"a": MartDigest(1, "00"), "b": MartDigest(1, "01"), "new": MartDigest(0, "00")}
        outcomes = {c.name: c.outcome for c in compare(then, now, {"orders": "1", "amount": "1.00"})}
        assert outcomes == {
            "orders": Outcome.EQUAL,
            "amount": Outcome.DIFFERENT,
            "a": Outcome.EQUAL,
            "b": Outcome.DIFFERENT,
            "gone": Outcome.ONLY_THEN,
            "new": Outcome.ONLY_NOW,
        }

    def test_without_a_report_nothing_is_equal_or_different(self):
        found = list(compare(None, {"a": MartDigest(1, "00")}, {"orders": "1"}))
        assert [(c.then, c.outcome) for c in found] == [(None, Outcome.NOT_REPORTED)] * 2


class TestWhatIsCompared:
    def test_marts_that_carry_state_of_earlier_runs_are_left_out(self):
        def node(
            name: str, materialized: str, schema: str = "marts", kind: str = "model", full_refresh: bool | None = None
        ) -> dict[str, object]:
            config = {"materialized": materialized, "full_refresh": full_refresh}
            return {"name": name, "schema": schema, "resource_type": kind, "config": config}

        nodes = [
            node("b", "table"),
            node("map", "seed", kind="seed"),
            node("facts", "incremental"),
            node("history", "incremental", full_refresh=False),
            node("old", "snapshot", kind="snapshot"),
            node("stg", "view", "staging"),
        ]
        assert mart_names({"nodes": {str(i): n for i, n in enumerate(nodes)}}) == ("b", "facts", "map")

    def test_the_fingerprint_follows_the_sql_and_the_variables(self, tmp_path: Path):
        (tmp_path / "dbt_project.yml").write_text("vars: {bands: 5}")
        (tmp_path / "models").mkdir()
        model = tmp_path / "models" / "a.sql"
        model.write_text("select 1")
        seen = [models_fingerprint(tmp_path)]
        model.write_text("select 2")
        seen.append(models_fingerprint(tmp_path))
        (tmp_path / "dbt_project.yml").write_text("vars: {bands: 4}")
        seen.append(models_fingerprint(tmp_path))
        model.rename(model.with_name("b.sql"))
        seen.append(models_fingerprint(tmp_path))
        assert len(set(seen)) == 4
        (tmp_path / "models" / "a.yml").write_text("described: anew")
        assert models_fingerprint(tmp_path) == seen[-1]
