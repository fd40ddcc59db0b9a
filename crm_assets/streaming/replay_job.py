"""The Dagster job `replay_dead_letters`: asks the stream's driver for a replay, waits for its end, and shows what it came to.

Belongs here: config, waiting, reporting. Not here: the replay (`replay`). A run that is killed leaves the replay to the driver, which
finishes it; a run with the same config launched meanwhile adopts it, one launched later finds only what is open then.
"""

from datetime import datetime

import dagster as dg
from pydantic import Field

from crm_assets.streaming.replay_request import RECORDS_PER_SECOND
from crm_resources.dagster_resources import SettingsResource, StreamLauncherResource


class ReplayConfig(dg.Config):
    """Which open dead letters to try again; what is left empty does not restrict."""

    reasons: list[str] = Field(default=[], description="Reason codes, e.g. `future_event`.")
    failed_from: str | None = Field(default=None, description="Latest refusal not before this time, e.g. `2026-03-01T00:00:00Z`.")
    failed_before: str | None = Field(default=None, description="Latest refusal before this time.")
    event_ids: list[str] = Field(default=[], description="Event ids; records that could not be read that far have none.")
    coordinates: list[str] = Field(default=[], description="Kafka coordinates, e.g. `demo.orders[3]@1234`.")
    dry_run: bool = Field(default=True, description="Judge and count, write nothing.")
    records_per_second: float = Field(default=RECORDS_PER_SECOND, description="Most records tried in a second, on average.")
    timeout_seconds: float = Field(
        default=3600.0, gt=0, description="How long the run waits; the driver goes on with the replay after that."
    )


@dg.op(description="Ask the stream's driver to try open dead letters again, wait for its answer, and report it.")
def ask_driver_to_replay(
    context: dg.OpExecutionContext, config: ReplayConfig, settings: SettingsResource, stream_launcher: StreamLauncherResource
) -> None:
    """Check the config, ask, wait, report."""
    from crm_assets.streaming.replay_request import ReplayInvalid, outcome_rows, replay_and_wait, replay_arguments
    from crm_assets.streaming.requests import RequestUnanswered
    from crm_resources.stream_launcher import ALIVE

    given = config.model_dump(exclude={"timeout_seconds"})
    try:
        arguments = replay_arguments(given)
    except ReplayInvalid as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    loaded = settings.load()
    launcher = stream_launcher.launcher(loaded)
    try:
        answer = replay_and_wait(
            loaded,
            f"replay-{context.run_id}",
            arguments,
            timeout_seconds=config.timeout_seconds,
            alive=lambda: launcher.status().state in ALIVE,
        )
    except RequestUnanswered as error:
        raise dg.Failure(str(error)) from error
    if not answer.ok:
        raise dg.Failure(f"the driver could not carry the replay out: {answer.error}", allow_retries=False)
    seconds = (datetime.fromisoformat(answer.ended_at) - datetime.fromisoformat(answer.started_at)).total_seconds()
    rows = outcome_rows(answer.figures)
    context.log.info(
        "%s records%s", answer.figures["selected"], ", a dry run: nothing was written" if arguments.dry_run else " tried again"
    )
    context.add_output_metadata(
        {
            "dry_run": arguments.dry_run,
            "selected_rows": answer.figures["selected"],
            "seconds": seconds,
            **{f"{outcome}_rows": count for outcome, count in answer.figures["totals"].items()},
            "outcomes": dg.MetadataValue.table(
                [dg.TableRecord({"reason": reason, "outcome": outcome, "records": count}) for reason, outcome, count in rows]
            ),
        }
        if rows
        else {"dry_run": arguments.dry_run, "selected_rows": 0, "seconds": seconds}
    )


@dg.job(
    name="replay_dead_letters",
    description=(
        "Tries open dead letters again, inside the stream's driver: what is good now goes to silver, what fails again returns with its "
        "next attempt. A dry run unless `dry_run` is false. The stream must run."
    ),
    executor_def=dg.in_process_executor,
)
def replay_dead_letters() -> None:
    """Replay dead letters."""
    ask_driver_to_replay()
