"""Time travel as a Dagster job: the same as the command, with the comparison in the run's metadata.

Belongs here: config, metadata, and how a difference fails the run. Not here: the journey itself (`time_travel`).
"""

from datetime import UTC, datetime

import dagster as dg

from crm_resources.dagster_resources import SettingsResource


class TimeTravelConfig(dg.Config):
    """Where to go: one of `at` (date or time), `report_id` (0 for none) and `versions` (with `as_of` if wanted)."""

    at: str = ""
    report_id: int = 0
    versions: str = ""
    as_of: str = ""
    keep: bool = False


@dg.op(description="Builds the marts of an earlier point in a database of its own and compares them with what was reported then.")
def reproduce_report(context: dg.OpExecutionContext, config: TimeTravelConfig, settings: SettingsResource) -> None:
    """Travel; the run fails when something differs, or the point cannot be reached."""
    from crm_assets.warehouse.time_travel import find_destination, travel
    from crm_assets.warehouse.travel_choice import TimeTravelError
    from crm_resources.lake import LakeError
    from crm_resources.report import write_report

    loaded = settings.load()
    started = datetime.now(UTC)
    try:
        destination = find_destination(
            loaded,
            now=started,
            at=config.at,
            report_id=config.report_id or None,
            versions=config.versions,
            as_of=config.as_of,
        )
        journey = travel(loaded, destination, keep=config.keep)
    except (TimeTravelError, LakeError) as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    write_report(loaded.reports_dir, "time-travel", journey.verdict, journey.figures(), started=started)
    rows = ["| figure or mart | reported then | reproduced now | |", "|---|---|---|---|"]
    rows += [f"| {c.name} | {c.then or ''} | {c.now or ''} | {c.outcome} |" for c in journey.comparisons]
    metadata: dict[str, float | str | dg.MarkdownMetadataValue] = {
        **journey.figures(),
        "as_of": destination.as_of.isoformat(),
        "business_timezone": destination.business_timezone,
        "reported_at": destination.report.reported_at.isoformat() if destination.report else "nothing was reported at this point",
        "database": journey.database if journey.kept else "dropped",
        "comparison": dg.MetadataValue.md("\n".join(rows)),
    }
    if journey.differing:
        changed = "; the models have changed since that report" if journey.models_changed else ""
        raise dg.Failure(
            f"not as reported: {', '.join(c.name for c in journey.differing)}{changed}", metadata=metadata, allow_retries=False
        )
    context.add_output_metadata(metadata)


@dg.job(
    name="time_travel",
    description="Reproduces the marts of an earlier date, report or silver version, and compares them with what was reported then.",
    executor_def=dg.in_process_executor,
)
def time_travel_job() -> None:
    """Travel in time."""
    reproduce_report()
