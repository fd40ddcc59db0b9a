"""The refresh sensor's decision: when it asks for a run, when it waits, and what it says."""

from datetime import UTC, date, datetime, timedelta
from uuid import uuid4

import dagster as dg
import pytest
from dagster._core.events import StepSuccessData
from hypothesis import given
from hypothesis import strategies as st

from crm_assets.monitoring.refresh import (
    EVERYTHING_JOB,
    FIRST_BACK_OFF,
    LOAD_STEP,
    LONGEST_BACK_OFF,
    REFRESH_JOB,
    RefreshState,
    _recent_runs,
    back_off,
    business_date,
    decide_refresh,
)
from crm_resources.change_marks import Scope

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


CHANGES = Scope({"orders": NOW}, "only what new rows touch")
EVERYTHING = Scope(None, "the models have changed")


def state(**changes) -> RefreshState:
    base = {
        "versions": {"orders": 3},
        "bookmarks": {"orders": 3},
        "in_flight": False,
        "failures": 0,
        "last_failure_at": None,
        "scope": CHANGES,
    }
    return RefreshState(**{**base, **changes})


def test_nothing_new_means_no_run():
    assert decide_refresh(state(), NOW).job is None


def test_a_new_silver_version_asks_for_a_run_and_names_the_table():
    decision = decide_refresh(state(versions={"orders": 4}), NOW)
    assert decision.job == REFRESH_JOB
    assert "orders" in decision.reason


def test_version_zero_is_new_to_an_empty_warehouse():
    assert decide_refresh(state(versions={"orders": 0}, bookmarks={}), NOW).job == REFRESH_JOB


def test_one_refresh_at_a_time():
    assert decide_refresh(state(versions={"orders": 4}, in_flight=True), NOW).job is None


def test_what_no_new_row_tells_asks_for_everything_with_all_tests():
    decision = decide_refresh(state(scope=EVERYTHING), NOW)
    assert decision.job == EVERYTHING_JOB
    assert "builds everything: the models have changed" in decision.reason
    assert "builds everything" not in decide_refresh(state(versions={"orders": 4}), NOW).reason


def test_an_empty_lake_never_refreshes():
    assert decide_refresh(state(versions={}, bookmarks={}, scope=EVERYTHING), NOW).job is None


def test_failures_back_off_and_then_try_again():
    failing = state(versions={"orders": 4}, failures=3, last_failure_at=NOW)
    assert decide_refresh(failing, NOW + timedelta(seconds=79)).job is None
    assert decide_refresh(failing, NOW + timedelta(seconds=80)).job == REFRESH_JOB


@given(st.integers(min_value=1, max_value=60))
def test_back_off_grows_and_is_bounded(failures):
    assert FIRST_BACK_OFF <= back_off(failures) <= LONGEST_BACK_OFF
    assert back_off(failures) <= back_off(failures + 1)


def test_business_date_is_the_shop_s_day_not_utc_s():
    just_past_midnight_in_seoul = datetime(2026, 3, 1, 15, 30, tzinfo=UTC)
    assert business_date(just_past_midnight_in_seoul, "Asia/Seoul", None) == date(2026, 3, 2)
    assert business_date(just_past_midnight_in_seoul, "Asia/Seoul", date(2011, 12, 10)) == date(2011, 12, 10)


def run_of(instance: dg.DagsterInstance, job: str, *steps_ended: str, finished: bool = False) -> None:
    """A run of the job of which some steps have ended."""
    status = dg.DagsterRunStatus.SUCCESS if finished else dg.DagsterRunStatus.STARTED
    run = instance.add_run(dg.DagsterRun(job_name=job, run_id=str(uuid4()), status=status))
    for step in steps_ended:
        for kind, data in ((dg.DagsterEventType.STEP_START, None), (dg.DagsterEventType.STEP_SUCCESS, StepSuccessData(duration_ms=1.0))):
            instance.report_dagster_event(dg.DagsterEvent(kind.value, job, step_key=step, event_specific_data=data), run.run_id)


@pytest.mark.parametrize(
    ("runs", "waits"),
    [
        ([], False),
        ([(REFRESH_JOB, LOAD_STEP, "dbt_models", True)], False),
        ([(REFRESH_JOB, False)], True),
        ([(REFRESH_JOB, LOAD_STEP, False)], False),
        ([(REFRESH_JOB, LOAD_STEP, False), (REFRESH_JOB, False)], True),
        ([(EVERYTHING_JOB, LOAD_STEP, False)], True),
    ],
    ids=["none", "ended", "loading", "at its models", "one waits already", "builds everything"],
)
def test_the_next_refresh_starts_while_the_last_one_is_at_its_models(runs, waits: bool):
    with dg.DagsterInstance.ephemeral() as instance:
        for job, *steps, finished in runs:
            run_of(instance, job, *steps, finished=finished)
        in_flight, failures, _ = _recent_runs(instance)
    assert in_flight is waits
    assert failures == 0
