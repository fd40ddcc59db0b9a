"""Upkeep of the lake as assets: each materialization is one round of compaction, vacuum or log checkpoints, with its figures.

Belongs here: asking whoever writes the lake to do it, waiting, reporting, and when it is done. Not here: the work
(`crm_assets.streaming.upkeep`). While the stream runs, its driver does the work between its batches; otherwise the run takes the lake's
lock and does it itself, without Spark.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
from pydantic import Field

from crm_assets.conventions import OWNERS, STREAM_KEY, Group
from crm_assets.streaming.requests import Request, RequestKind, RequestUnanswered, ask, wait_for_answer, withdraw
from crm_resources.dagster_resources import SettingsResource, StreamLauncherResource
from crm_resources.lake_lock import LakeLocked, lake_lock, lock_holder
from crm_resources.settings import Settings
from crm_resources.stream_launcher import ALIVE, StreamError, StreamLauncher

ANSWER_SECONDS = 1800
"""How long a run waits for the driver: several requests may be before it, and a backlog of small files takes minutes."""

NIGHT_HOUR = 3
"""Hour of the business day in which what needs doing once a day is done: hardly anybody shops, and yesterday is complete."""

COMPACTION_KEY = dg.AssetKey(["upkeep", "compaction"])
VACUUM_KEY = dg.AssetKey(["upkeep", "vacuum"])
CHECKPOINT_KEY = dg.AssetKey(["upkeep", "log_checkpoints"])


class CompactConfig(dg.Config):
    """From how many small files in a partition on it is compacted, and which tables (all by default)."""

    min_small_files: int = 16
    tables: list[str] = Field(default_factory=list)


class VacuumConfig(dg.Config):
    """Retention in days (the setting's when 0), and whether less than promised may be kept, or nothing be removed but only counted."""

    retention_days: float = 0
    unsafe: bool = False
    dry_run: bool = False


def carry_out(settings: Settings, launcher: StreamLauncher, request: Request) -> dict[str, Any]:
    """Have a request done by the stream's driver, or do it here when there is none.

    Args:
        settings: data set.
        launcher: knows whether there is a driver.
        request: the work.

    Returns:
        The figures of `crm_assets.streaming.upkeep.carry_out`.

    Raises:
        dg.Failure: it was refused, failed, or not answered; or another process writes the lake.
    """
    from crm_assets.streaming import upkeep

    if _has_driver(settings, launcher):
        ask(settings, request)
        try:
            given = wait_for_answer(settings, request.id, timeout_seconds=ANSWER_SECONDS, alive=lambda: _has_driver(settings, launcher))
        except RequestUnanswered as error:
            withdraw(settings, request.id)
            raise dg.Failure(str(error), allow_retries=False) from error
        if not given.ok:
            raise dg.Failure(f"the stream did not {request.kind}: {given.error}", allow_retries=False)
        return given.figures
    try:
        with lake_lock(settings, "upkeep"):
            return upkeep.carry_out(settings, None, None, request)
    except (LakeLocked, upkeep.UpkeepRefused) as error:
        raise dg.Failure(str(error), allow_retries=False) from error


def _has_driver(settings: Settings, launcher: StreamLauncher) -> bool:
    """Whether a driver runs, or will in a moment; one that somebody started by hand shows by the lake's lock."""
    try:
        if launcher.status().state in ALIVE:
            return True
    except StreamError:
        pass  # no supervisor, so no driver of its own
    holder = lock_holder(settings)
    return holder is not None and holder.role == "stream"


def summary(figures: Mapping[str, Any]) -> dict[str, Any]:
    """What one round did, as metadata of its materialization; pure. Bytes and files are sums over the tables."""
    tables: Sequence[Mapping[str, Any]] = figures["tables"]
    names = ("files_before", "files_after", "bytes_before", "bytes_after", "removed_files", "removed_bytes", "removed_log_files")
    columns = ("table", *names, "seconds", "pause_seconds")
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(t[c]) for c in columns) + " |" for t in tables]
    return {
        **{name: sum(t[name] for t in tables) for name in names},
        "seconds": figures["seconds"],
        "longest_pause_seconds": figures["longest_pause_seconds"],
        "dry_run": figures["dry_run"],
        "tables": dg.MetadataValue.md("\n".join(lines)),
    }


def _request(context: dg.AssetExecutionContext, kind: RequestKind, arguments: Mapping[str, Any]) -> Request:
    # By the run's id, so that a run that is tried again asks for the same thing, not for another.
    return Request(f"{kind}-{context.run.run_id}", kind, dict(arguments))


@dg.asset(
    key=COMPACTION_KEY,
    deps=[STREAM_KEY],
    group_name=Group.STREAMING.value,
    kinds={"deltalake"},
    owners=OWNERS,
    description=(
        "Small files of the lake's tables are merged into files of up to 32 MiB, in the order they were written. No row changes; readers "
        "by version, the stream among them, see nothing new."
    ),
)
def compaction(
    context: dg.AssetExecutionContext, config: CompactConfig, settings: SettingsResource, stream_launcher: StreamLauncherResource
) -> dg.MaterializeResult[None]:
    """Compact what has enough small files."""
    loaded = settings.load()
    arguments = {"min_small_files": config.min_small_files, "tables": config.tables}
    request = _request(context, RequestKind.COMPACT, arguments)
    return dg.MaterializeResult(metadata=summary(carry_out(loaded, stream_launcher.launcher(loaded), request)))


@dg.asset(
    key=VACUUM_KEY,
    deps=[STREAM_KEY],
    group_name=Group.STREAMING.value,
    kinds={"deltalake"},
    owners=OWNERS,
    description=(
        "Removes data files that left their table, or never belonged to it, and log entries, once they are older than CRM_RETENTION_DAYS. "
        "A table somebody reads from further back is left alone, and the check `nothing_skipped` fails."
    ),
    check_specs=[
        dg.AssetCheckSpec(
            "nothing_skipped", asset=VACUUM_KEY, description="No reader is so far behind that its table had to be left alone."
        )
    ],
)
def vacuum(
    context: dg.AssetExecutionContext, config: VacuumConfig, settings: SettingsResource, stream_launcher: StreamLauncherResource
) -> Iterator[dg.MaterializeResult[None]]:
    """Remove what nobody needs any more."""
    loaded = settings.load()
    arguments: dict[str, Any] = {"unsafe": config.unsafe, "dry_run": config.dry_run}
    if config.retention_days or config.unsafe:
        arguments["retention_days"] = config.retention_days
    figures = carry_out(loaded, stream_launcher.launcher(loaded), _request(context, RequestKind.VACUUM, arguments))
    for reason in figures["skipped"]:
        context.log.error("%s", reason)
    check = dg.AssetCheckResult(
        check_name="nothing_skipped", passed=not figures["skipped"], metadata={"reasons": "\n".join(figures["skipped"]) or "none"}
    )
    yield dg.MaterializeResult(metadata=summary(figures), check_results=[check])


@dg.asset(
    key=CHECKPOINT_KEY,
    deps=[STREAM_KEY],
    group_name=Group.STREAMING.value,
    kinds={"deltalake"},
    owners=OWNERS,
    description="A checkpoint in the log of each lake table, so that opening a table does not read hundreds of commits.",
)
def log_checkpoints(
    context: dg.AssetExecutionContext, settings: SettingsResource, stream_launcher: StreamLauncherResource
) -> dg.MaterializeResult[None]:
    """Write a checkpoint of each table's log."""
    loaded = settings.load()
    request = _request(context, RequestKind.CHECKPOINT, {})
    return dg.MaterializeResult(metadata=summary(carry_out(loaded, stream_launcher.launcher(loaded), request)))


compact_lake = dg.define_asset_job(
    "compact_lake",
    dg.AssetSelection.assets(COMPACTION_KEY),
    executor_def=dg.in_process_executor,
    description="Merges small files of the lake's tables.",
)
vacuum_lake = dg.define_asset_job(
    "vacuum_lake",
    dg.AssetSelection.assets(VACUUM_KEY),
    executor_def=dg.in_process_executor,
    description="Removes files and log entries older than the retention.",
)
checkpoint_lake = dg.define_asset_job(
    "checkpoint_lake",
    dg.AssetSelection.assets(CHECKPOINT_KEY),
    executor_def=dg.in_process_executor,
    description="Writes a checkpoint of each table's log.",
)


def is_night(moment: datetime, timezone: str) -> bool:
    """Whether a moment lies in the hour of the business day in which the daily upkeep is done; pure.

    Where the clock leaves that hour out in spring, that day goes without, which harms nothing.
    """
    return moment.astimezone(ZoneInfo(timezone)).hour == NIGHT_HOUR


@dg.schedule(
    job=compact_lake,
    name="compact_lake_hourly",
    cron_schedule="5 * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every hour what has gathered 16 small files; once a night, in business time, whatever can be merged.",
)
def compact_lake_hourly(context: dg.ScheduleEvaluationContext, settings: SettingsResource) -> dg.RunRequest:
    """Compact the last hour's files, at night all of yesterday's."""
    night = is_night(context.scheduled_execution_time, settings.load().business_timezone)
    config = CompactConfig(min_small_files=2) if night else CompactConfig()
    return dg.RunRequest(run_config=dg.RunConfig(ops={COMPACTION_KEY.to_python_identifier(): config}))


@dg.schedule(
    job=checkpoint_lake,
    name="checkpoint_lake_nightly",
    cron_schedule="20 * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="At 03:20 in business time.",
)
def checkpoint_lake_nightly(context: dg.ScheduleEvaluationContext, settings: SettingsResource) -> dg.RunRequest | dg.SkipReason:
    """Write checkpoints once a night."""
    return _at_night(context, settings)


@dg.schedule(
    job=vacuum_lake,
    name="vacuum_lake_nightly",
    cron_schedule="35 * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="At 03:35 in business time.",
)
def vacuum_lake_nightly(context: dg.ScheduleEvaluationContext, settings: SettingsResource) -> dg.RunRequest | dg.SkipReason:
    """Vacuum once a night."""
    return _at_night(context, settings)


def _at_night(context: dg.ScheduleEvaluationContext, settings: SettingsResource) -> dg.RunRequest | dg.SkipReason:
    timezone = settings.load().business_timezone
    if is_night(context.scheduled_execution_time, timezone):
        return dg.RunRequest()
    return dg.SkipReason(f"it is not between {NIGHT_HOUR}:00 and {NIGHT_HOUR + 1}:00 in {timezone}")


assets: list[dg.AssetsDefinition] = [compaction, vacuum, log_checkpoints]
jobs = [compact_lake, vacuum_lake, checkpoint_lake]
schedules = [compact_lake_hourly, checkpoint_lake_nightly, vacuum_lake_nightly]
