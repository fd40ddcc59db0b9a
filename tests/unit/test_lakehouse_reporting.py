"""When a lake table's growth is reported."""

from datetime import UTC, datetime, timedelta

from crm_assets.lakehouse.assets import REPORT_EVERY, Reported, due_tables

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def seen(version: int, ago: timedelta) -> dict[str, Reported]:
    return {"bronze": Reported(version, (NOW - ago).timestamp())}


def test_a_table_seen_for_the_first_time_is_reported():
    assert due_tables({}, {"bronze": 0}, NOW) == ["bronze"]


def test_an_unchanged_table_is_never_reported_again():
    assert due_tables(seen(4, timedelta(days=1)), {"bronze": 4}, NOW) == []


def test_growth_is_reported_at_most_once_a_minute():
    assert due_tables(seen(4, REPORT_EVERY / 2), {"bronze": 9}, NOW) == []
    assert due_tables(seen(4, REPORT_EVERY), {"bronze": 9}, NOW) == ["bronze"]


def test_a_table_made_anew_is_reported_though_its_version_is_lower():
    assert due_tables(seen(40, REPORT_EVERY), {"bronze": 0}, NOW) == ["bronze"]
