"""Upkeep of Dagster's own records: old runs are purged by a scheduled job; ticks by the instance's retention."""

from datetime import UTC, datetime, timedelta

import dagster as dg

_PAGE = 200


class PurgeConfig(dg.Config):
    """How much history to keep."""

    keep_days: int = 14


@dg.op(description="Delete finished runs older than `keep_days`, a page at a time. Materializations reported by sensors stay.")
def purge_old_runs(context: dg.OpExecutionContext, config: PurgeConfig) -> int:
    """Delete finished runs older than the limit; returns how many."""
    horizon = datetime.now(UTC) - timedelta(days=config.keep_days)
    finished = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
    deleted = 0
    while True:
        records = context.instance.get_run_records(dg.RunsFilter(statuses=finished, created_before=horizon), limit=_PAGE, ascending=True)
        if not records:
            break
        for record in records:
            context.instance.delete_run(record.dagster_run.run_id)
        deleted += len(records)
    context.log.info("deleted %d runs from before %s", deleted, horizon.date())
    return deleted


@dg.job(name="purge_runs", description="Deletes finished runs older than 14 days.", executor_def=dg.in_process_executor)
def purge_runs() -> None:
    """Purge old runs."""
    purge_old_runs()


purge_schedule = dg.ScheduleDefinition(
    name="purge_runs_daily",
    job=purge_runs,
    cron_schedule="40 3 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every night at 03:40 UTC.",
)
