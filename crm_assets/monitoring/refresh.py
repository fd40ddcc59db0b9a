"""When the marts are refreshed: a pure decision, and the sensor that carries it out.

Belongs here: comparing silver versions with the loader's bookmarks, one run at a time, back-off after failures, and the
turn of the business date. Not here: loading or dbt (`crm_assets.warehouse`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import dagster as dg

from crm_resources.change_marks import Scope
from crm_resources.contracts import contracts
from crm_resources.dagster_resources import SettingsResource
from crm_resources.layout import SILVER
from crm_resources.settings import Settings

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

REFRESH_JOB = "refresh"
EVERYTHING_JOB = "refresh_everything"
"""Builds and tests every row, whatever has changed."""

LOAD_STEP = "load_raw"
EVERYTHING_TAG = "crm/everything"
"""Tag of a run; `true` has it build and test every row, whatever has changed."""

FIRST_BACK_OFF = timedelta(seconds=20)
LONGEST_BACK_OFF = timedelta(minutes=10)
_LOOK_BACK_RUNS = 8  # enough failures in a row to reach the longest back-off


@dataclass(frozen=True)
class RefreshState:
    """What the decision looks at.

    `versions` and `bookmarks` are Delta versions by plural; `in_flight` says that one more refresh would be one too many; `scope` is
    what a refresh would build now; failures are counted since the last success.
    """

    versions: Mapping[str, int]
    bookmarks: Mapping[str, int]
    in_flight: bool
    failures: int
    last_failure_at: datetime | None
    scope: Scope


@dataclass(frozen=True)
class RefreshDecision:
    """Which job to run now, if any, and why, for the person who reads the tick."""

    job: str | None
    reason: str


def decide_refresh(state: RefreshState, now: datetime) -> RefreshDecision:
    """Refresh when silver is ahead of a bookmark, or the marts stand on another date or other SQL; one at a time, with back-off."""
    behind = sorted(name for name, version in state.versions.items() if state.bookmarks.get(name, -1) < version)
    everything = bool(state.versions) and state.scope.whole
    if not behind and not everything:
        return RefreshDecision(None, "marts are up to date")
    if state.in_flight:
        return RefreshDecision(None, "a refresh is under way")
    if state.failures and state.last_failure_at is not None:
        again_at = state.last_failure_at + back_off(state.failures)
        if now < again_at:
            return RefreshDecision(None, f"{state.failures} failed in a row; next try at {again_at:%H:%M:%S} UTC")
    why = [f"new versions of {', '.join(behind)}"] if behind else []
    if everything:
        why.append(f"builds everything: {state.scope.reason}")
    return RefreshDecision(EVERYTHING_JOB if everything else REFRESH_JOB, "; ".join(why))


def back_off(failures: int) -> timedelta:
    """Wait after the given number of failures in a row: doubling from 20 s, at most 10 minutes."""
    doublings = min(failures - 1, 16)  # beyond that the bound holds anyway, and a power of two could overflow
    return min(FIRST_BACK_OFF * (1 << doublings), LONGEST_BACK_OFF)


def business_date(now: datetime, timezone: str, as_of: date | None) -> date:
    """The date the marts should show: the fixed as-of date of a replayed file, or today in the business time zone."""
    return as_of or now.astimezone(ZoneInfo(timezone)).date()


def refresh_sensor(jobs: Sequence["dg.JobDefinition | UnresolvedAssetJobDefinition"]) -> dg.SensorDefinition:
    """The sensor over the two jobs it may ask for, `REFRESH_JOB` and `EVERYTHING_JOB`."""

    @dg.sensor(
        name="refresh_marts",
        jobs=jobs,
        minimum_interval_seconds=5,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Sees new silver versions and asks for one load and one dbt invocation; one at a time, the next one waiting behind it.",
    )
    def refresh_marts(context: dg.SensorEvaluationContext, settings: SettingsResource) -> dg.SensorResult | dg.SkipReason:
        decision = decide_refresh(_state(context.instance, settings.load()), datetime.now(UTC))
        if decision.job is None:
            return dg.SkipReason(decision.reason)
        return dg.SensorResult(run_requests=[dg.RunRequest(job_name=decision.job, tags={"crm/why": decision.reason[:250]})])

    return refresh_marts


def _state(instance: dg.DagsterInstance, settings: Settings) -> RefreshState:
    from crm_assets.warehouse.mart_digests import models_fingerprint
    from crm_resources import change_marks, lake, warehouse

    as_of = business_date(datetime.now(UTC), settings.business_timezone, settings.as_of)
    found = {c.plural: lake.table_version(settings, SILVER[c.plural].path) for c in contracts()}
    in_flight, failures, last_failure_at = _recent_runs(instance)
    return RefreshState(
        versions={name: version for name, version in found.items() if version is not None},
        bookmarks={name: mark.version for name, mark in warehouse.bookmarks(settings).items()},
        in_flight=in_flight,
        failures=failures,
        last_failure_at=last_failure_at,
        scope=change_marks.planned_scope(settings, as_of=as_of, models=models_fingerprint()),
    )


nightly_refresh = dg.ScheduleDefinition(
    name="refresh_everything_nightly",
    job_name=EVERYTHING_JOB,
    cron_schedule="20 2 * * *",
    tags={"crm/why": "every night: everything is built anew and every row tested"},
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every night at 02:20 UTC: builds all marts from the first row and runs the tests that read whole tables.",
)


def _recent_runs(instance: dg.DagsterInstance) -> tuple[bool, int, datetime | None]:
    """Whether another refresh has to wait, failures since the last success, and when the latest failed."""
    filters = [dg.RunsFilter(job_name=job) for job in (REFRESH_JOB, EVERYTHING_JOB)]
    found = [record for wanted in filters for record in instance.get_run_records(wanted, limit=_LOOK_BACK_RUNS)]
    records = sorted(found, key=lambda r: r.storage_id, reverse=True)[:_LOOK_BACK_RUNS]
    unfinished = [record.dagster_run for record in records if not record.dagster_run.is_finished]
    if unfinished and not (len(unfinished) == 1 and _lets_another_start(instance, unfinished[0])):
        return True, 0, None
    failures = 0
    last: datetime | None = None
    for record in (record for record in records if record.dagster_run.is_finished):
        if record.dagster_run.status is not dg.DagsterRunStatus.FAILURE:
            break
        failures += 1
        if last is None and record.end_time:
            last = datetime.fromtimestamp(record.end_time, UTC)
    return False, failures, last


def _lets_another_start(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether the refresh has loaded what there was and is at its models, which will not take long.

    The next one begins as a process of its own in this time, a third of a refresh, and waits with its load until this one has ended
    (`crm_resources.change_marks.only_refresh`).
    """
    if run.job_name != REFRESH_JOB:
        return False
    return any(step.status is not None and step.status.value == "SUCCESS" for step in instance.get_run_step_stats(run.run_id, [LOAD_STEP]))
