"""What a refresh builds: only what new rows touch while nothing else has changed, everything otherwise."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest

from crm_resources.change_marks import Basis, ChangeMarks, decide_scope

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
BASIS = Basis(date(2026, 3, 1), "UTC", "abc", {"orders": 1, "events": 2})
KEPT = ChangeMarks(BASIS, {"orders": NOON, "events": NOON})


def test_the_first_refresh_builds_everything():
    assert decide_scope(None, KEPT).whole


def test_where_only_rows_were_added_the_next_refresh_goes_on_from_the_marks():
    later = replace(KEPT, loaded_at={"orders": NOON + timedelta(seconds=1), "events": NOON, "profiles": NOON})
    scope = decide_scope(KEPT, later)
    assert scope.since is not None
    assert (scope.since["orders"], scope.since["events"]) == (NOON, NOON)
    assert scope.since["profiles"] < scope.since["orders"], "of a table that was empty every row is new"
    assert set(scope.since) == {"orders", "events", "products", "profiles"}


@pytest.mark.parametrize(
    ("now", "why"),
    [
        (replace(KEPT, basis=replace(BASIS, as_of=date(2026, 3, 2))), "first refresh of 2026-03-02"),
        (replace(KEPT, basis=replace(BASIS, business_timezone="Asia/Seoul")), "Asia/Seoul"),
        (replace(KEPT, basis=replace(BASIS, models="abd")), "models have changed"),
        (replace(KEPT, basis=replace(BASIS, first_loads={"orders": 9, "events": 2})), "raw orders was emptied"),
        (replace(KEPT, loaded_at={"orders": NOON}), "raw events was emptied"),
        (replace(KEPT, loaded_at={"orders": NOON - timedelta(seconds=1), "events": NOON}), "raw orders was emptied"),
    ],
    ids=["date", "time zone", "models", "reset", "truncated", "rows removed"],
)
def test_a_change_that_no_row_shows_builds_everything(now: ChangeMarks, why: str):
    scope = decide_scope(KEPT, now)
    assert scope.whole
    assert why in scope.reason
