"""The stream as an asset: materializing applies and verifies it, jobs stop it, catch up, and rebuild silver.

Belongs here: what Dagster does with the stream. Not here: the stream itself (`driver`, `ingest`, `refine`), or how a
process is started (`crm_resources.stream_launcher`).
"""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime

import dagster as dg

from crm_assets.conventions import LAKE_STORE_KEY, OWNERS, STREAM_KEY, Group, topic_key
from crm_resources.contracts import contracts
from crm_resources.dagster_resources import SettingsResource, StreamLauncherResource
from crm_resources.stream_launcher import StreamState

VERIFY_SECONDS = 180
"""How long a started driver may take to both queries running; a cold JVM on two busy cores needs about a third of it."""


ALIVE = {StreamState.STARTING, StreamState.RUNNING, StreamState.RESTARTING}
"""States in which there is a driver, or will be one in a moment."""


@dg.asset(
    key=STREAM_KEY,
    deps=[LAKE_STORE_KEY, *(topic_key(c.plural) for c in contracts())],
    group_name=Group.STREAMING.value,
    kinds={"spark"},
    owners=OWNERS,
    description=(
        "The endless Spark job: `ingest` captures raw records in bronze, `refine` turns bronze into silver. Materializing starts it "
        "or adopts the one that runs, waits until both queries make progress, and ends; the stream outlives the run."
    ),
    check_specs=[dg.AssetCheckSpec("running", asset=STREAM_KEY, description="Both queries of the driver are active.")],
)
def stream(
    context: dg.AssetExecutionContext, settings: SettingsResource, stream_launcher: StreamLauncherResource
) -> Iterator[dg.MaterializeResult[None]]:
    """Apply (start or adopt), verify, report."""
    from crm_assets.streaming.progress import wait_until_running

    loaded = settings.load()
    launcher = stream_launcher.launcher(loaded)
    status = launcher.apply()
    context.log.info("stream is %s, pid %s", status.state, status.pid)
    progress = wait_until_running(loaded, pid=status.pid, timeout_seconds=VERIFY_SECONDS, alive=lambda: launcher.status().state in ALIVE)
    yield dg.MaterializeResult(
        metadata={
            "pid": status.pid or 0,
            "driver_started_at": progress.started_at,
            "checkpoint": loaded.checkpoint_root,
            **{f"{name}_query_id": query.query_id for name, query in progress.queries.items()},
            **{f"{name}_batch_id": query.batch_id if query.batch_id is not None else -1 for name, query in progress.queries.items()},
        },
        check_results=[dg.AssetCheckResult(check_name="running", passed=True, metadata={"pid": status.pid or 0})],
    )


def stream_sensor() -> dg.SensorDefinition:
    """Reports the stream's state as a check when it changed."""

    @dg.sensor(
        name="stream_health",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Looks whether the driver runs and makes progress, and reports a change of that as the check `running`.",
    )
    def stream_health(
        context: dg.SensorEvaluationContext, settings: SettingsResource, stream_launcher: StreamLauncherResource
    ) -> dg.SensorResult | dg.SkipReason:
        from crm_assets.streaming.progress import judge, read_progress

        loaded = settings.load()
        status = stream_launcher.launcher(loaded).status()
        health = judge(status.state in ALIVE, read_progress(loaded), datetime.now(UTC))
        state = f"{health.passed}:{health.reason}"
        if context.cursor == state:
            return dg.SkipReason(health.reason)
        return dg.SensorResult(
            asset_events=[
                dg.AssetCheckEvaluation(
                    asset_key=STREAM_KEY,
                    check_name="running",
                    passed=health.passed,
                    metadata={"reason": dg.MetadataValue.text(health.reason)},
                )
            ],
            cursor=state,
        )

    return stream_health


@dg.op(description="Ask the driver to finish its batches and end.")
def drain_and_stop(context: dg.OpExecutionContext, settings: SettingsResource, stream_launcher: StreamLauncherResource) -> None:
    """Stop the stream; the batch in hand is committed first."""
    status = stream_launcher.launcher(settings.load()).stop()
    context.log.info("stream is %s", status.state)


@dg.job(name="stop_stream", description="Stops the stream after its current batch.", executor_def=dg.in_process_executor)
def stop_stream() -> None:
    """Stop the stream."""
    drain_and_stop()


@dg.op(description="Run both steps once over everything that is waiting (availableNow). The stream must be stopped.")
def run_catch_up(context: dg.OpExecutionContext, settings: SettingsResource) -> None:
    """Catch up in batch mode under the lake's lock."""
    from crm_assets.streaming.catch_up import catch_up

    context.log.info("caught up: %s", catch_up(settings.load()))


@dg.job(
    name="catch_up",
    description="Processes what waits in Kafka and bronze, then ends. Refused while the stream holds the lake's lock.",
    executor_def=dg.in_process_executor,
)
def catch_up_job() -> None:
    """Catch up in batch mode."""
    run_catch_up()


@dg.op(description="Make silver anew from bronze beside the live tables, compare, swap. The stream must be stopped.")
def run_rebuild(context: dg.OpExecutionContext, settings: SettingsResource) -> None:
    """Rebuild silver under the lake's lock."""
    from crm_assets.streaming.rebuild import rebuild_silver

    result = rebuild_silver(settings.load())
    context.log.info("rebuilt: %s", asdict(result))


@dg.job(
    name="rebuild_silver",
    description="Rebuilds silver, dead letters and duplicates from bronze, compares them with the live tables, and swaps them in.",
    executor_def=dg.in_process_executor,
)
def rebuild_job() -> None:
    """Rebuild silver from bronze."""
    run_rebuild()


assets: list[dg.AssetsDefinition] = [stream]
jobs: list[dg.JobDefinition] = [stop_stream, catch_up_job, rebuild_job]
sensors: list[dg.SensorDefinition] = [stream_sensor()]
