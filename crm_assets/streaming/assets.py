"""The stream as an asset: materializing applies and verifies it, jobs stop it, catch up, and rebuild silver.

Belongs here: what Dagster does with the stream. Not here: the stream itself (`driver`, `ingest`, `refine`), or how a
process is started (`crm_resources.stream_launcher`).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta

import dagster as dg

from crm_assets.conventions import LAKE_STORE_KEY, OWNERS, STREAM_KEY, Group, topic_key
from crm_assets.streaming.health import CHECKS, Facts
from crm_assets.streaming.progress import StreamProgress
from crm_resources.contracts import contracts
from crm_resources.dagster_resources import SettingsResource, StreamLauncherResource
from crm_resources.kafka import Lag
from crm_resources.settings import Settings
from crm_resources.stream_launcher import ALIVE, StreamError, StreamLauncher, StreamStatus

REPORT_EVERY = timedelta(seconds=60)
"""Progress is reported at most this often."""

_FRESH = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=24), warn_window=timedelta(hours=6))


@dg.asset(
    key=STREAM_KEY,
    deps=[LAKE_STORE_KEY, *(topic_key(c.plural) for c in contracts())],
    group_name=Group.STREAMING.value,
    kinds={"spark"},
    owners=OWNERS,
    description=(
        "The endless Spark job: `ingest` captures raw records in bronze, `refine` turns bronze into silver. Materializing starts it "
        "or adopts the one that runs, waits until both queries make progress, and ends; the stream outlives the run. Cancelling the run "
        "stops the stream again; so does the job `stop_stream`, and nothing else."
    ),
    freshness_policy=_FRESH,
    check_specs=[dg.AssetCheckSpec("running", asset=STREAM_KEY, description=CHECKS["running"])],
)
def stream(
    context: dg.AssetExecutionContext, settings: SettingsResource, stream_launcher: StreamLauncherResource
) -> Iterator[dg.MaterializeResult[None]]:
    """Apply (start or adopt), verify, report."""
    loaded = settings.load()
    launcher = stream_launcher.launcher(loaded)
    try:
        progress = bring_up(loaded, launcher)
    except dg.DagsterExecutionInterruptedError:
        # A signal reaches the run for many reasons: a restart of Dagster, a machine going down. Only a cancel means the stream.
        run = context.instance.get_run_by_id(context.run.run_id)
        if run is not None and run.status is dg.DagsterRunStatus.CANCELING:
            context.log.info("the run is cancelled, so the stream is stopped")
            launcher.stop(wait=False)
        raise
    context.log.info("both queries run, pid %s", progress.pid)
    yield dg.MaterializeResult(
        metadata={"driver_started_at": progress.started_at, "checkpoint": loaded.checkpoint_root, **_figures(progress)},
        check_results=[dg.AssetCheckResult(check_name="running", passed=True, metadata={"pid": progress.pid})],
    )


def bring_up(settings: Settings, launcher: StreamLauncher) -> StreamProgress:
    """Start or adopt the driver, and wait until both queries make progress, however long it takes while the driver works.

    Args:
        settings: data set.
        launcher: starts it.

    Raises:
        dg.Failure: it did not come up, with the driver's state, on one line. Not worth another try: it ended, or gave no sign of life.
    """
    from crm_assets.streaming.progress import StreamNotRunning, milestones, running

    found: list[StreamProgress] = []

    def reports(status: StreamStatus) -> bool:
        progress = running(settings, status.pid)
        found[:] = [progress] if progress is not None else []
        return progress is not None

    try:
        launcher.apply()
        launcher.verify(reports, lambda: milestones(settings))
    except StreamNotRunning as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    except StreamError as error:
        raise dg.Failure(f"{error}. {settled(settings)}", allow_retries=False) from error
    return found[0]


def settled(settings: Settings) -> str:
    """What the driver said last of its queries, for a person who waits for it."""
    from crm_assets.streaming.progress import read_progress

    progress = read_progress(settings)
    if progress is None:
        return "Its driver has not reported yet"
    told = ", ".join(f"{name} is {q.state}" + (f" ({q.error})" if q.error else "") for name, q in progress.queries.items())
    return f"Its driver (process {progress.pid}) said at {progress.heartbeat_at}: {told}"


def _figures(progress: StreamProgress) -> dict[str, str | int | float]:
    figures: dict[str, str | int | float] = {"pid": progress.pid}
    for name, query in progress.queries.items():
        figures |= {
            f"{name}_query_id": query.query_id,
            f"{name}_batch_id": -1 if query.batch_id is None else query.batch_id,
            f"{name}_rows": query.rows,
            f"{name}_rows_per_second": round(query.rows_per_second, 1),
        }
    return figures


@dataclass(frozen=True)
class Reported:
    """What the sensor remembers between two looks.

    Attributes:
        at: when progress was reported last, in seconds since 1970.
        mark: how far the stream was then.
        checks: verdict of each check then.
        ledger: rows out of books, and up to which version of the ledger they are counted.
    """

    at: float = 0.0
    mark: str = ""
    checks: dict[str, bool] = field(default_factory=dict)
    ledger: tuple[int, int] = (-1, 0)


def due(before: Reported, mark: str, checks: Mapping[str, bool], now: datetime) -> tuple[bool, list[str]]:
    """Whether progress is to be reported now, and which checks; pure.

    Progress when there is some, at most once a minute; checks with it, and at once when their verdict changed.
    """
    moved = bool(mark) and mark != before.mark and now.timestamp() - before.at >= REPORT_EVERY.total_seconds()
    return moved, [name for name, passed in checks.items() if moved or before.checks.get(name) != passed]


def stream_sensor() -> dg.SensorDefinition:
    """Reports the stream's progress and its checks."""

    @dg.sensor(
        name="stream_health",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Reports the stream's progress as materializations, at most one a minute, and its checks when they change.",
    )
    def stream_health(
        context: dg.SensorEvaluationContext, settings: SettingsResource, stream_launcher: StreamLauncherResource
    ) -> dg.SensorResult | dg.SkipReason:
        from crm_assets.streaming.health import LedgerCount, count_ledger, verdicts

        loaded, now = settings.load(), datetime.now(UTC)
        before = Reported(**json.loads(context.cursor)) if context.cursor and context.cursor.startswith("{") else Reported()
        ledger = count_ledger(loaded, LedgerCount(*before.ledger))
        facts = _facts(loaded, stream_launcher.launcher(loaded), ledger.rows)
        judged = verdicts(facts, loaded, now)
        mark = json.dumps([[q.query_id, q.batch_id, q.rows] for q in facts.progress.queries.values()]) if facts.progress else ""
        passed = {v.name: v.passed for v in judged}
        moved, names = due(before, mark, passed, now)
        events: list[dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation] = [
            dg.AssetCheckEvaluation(asset_key=STREAM_KEY, check_name=v.name, passed=v.passed, metadata={"reason": v.reason, **v.figures})
            for v in judged
            if v.name in names
        ]
        if moved and facts.progress is not None:
            events.append(dg.AssetMaterialization(STREAM_KEY, metadata=_figures(facts.progress)))
        at, told = (now.timestamp(), mark) if moved else (before.at, before.mark)
        cursor = json.dumps(asdict(Reported(at, told, passed, (ledger.version, ledger.rows))))
        if not events:
            context.update_cursor(cursor)
            return dg.SkipReason("nothing has changed")
        return dg.SensorResult(asset_events=events, cursor=cursor)

    return stream_health


def _facts(settings: Settings, launcher: StreamLauncher, rows_out_of_books: int) -> Facts:
    """Ask everybody who knows something of the stream; who does not answer is told as such."""
    from crm_assets.streaming.progress import read_progress
    from crm_resources.group_offsets import bronze_group, silver_group
    from crm_resources.kafka import KafkaUnavailableError, TopicError, group_lag

    try:
        alive = launcher.status().state in ALIVE
    except StreamError:
        alive = False
    lags: tuple[Lag, ...] = ()
    error: str | None = None
    try:
        lags = tuple(group_lag(settings, group(settings), wait_seconds=5) for group in (bronze_group, silver_group))
    except (KafkaUnavailableError, TopicError) as unknown:
        error = str(unknown)
    return Facts(alive, read_progress(settings), lags, error, rows_out_of_books)


@dg.multi_asset_check(
    specs=[dg.AssetCheckSpec(name, asset=STREAM_KEY, description=text) for name, text in CHECKS.items() if name != "running"],
    name="stream_checks",
)
def stream_checks(settings: SettingsResource, stream_launcher: StreamLauncherResource) -> Iterator[dg.AssetCheckResult]:
    """What the sensor reports by itself, on demand. `running` belongs to the asset."""
    from crm_assets.streaming.health import LedgerCount, count_ledger, verdicts

    loaded = settings.load()
    facts = _facts(loaded, stream_launcher.launcher(loaded), count_ledger(loaded, LedgerCount()).rows)
    for verdict in verdicts(facts, loaded, datetime.now(UTC)):
        if verdict.name != "running":
            yield dg.AssetCheckResult(
                asset_key=STREAM_KEY,
                check_name=verdict.name,
                passed=verdict.passed,
                metadata={"reason": verdict.reason, **verdict.figures},
            )


@dg.op(description="Ask the driver to finish its batches and end.")
def drain_and_stop(context: dg.OpExecutionContext, settings: SettingsResource, stream_launcher: StreamLauncherResource) -> None:
    """Stop the stream; the batch in hand is committed first."""
    status = stream_launcher.launcher(settings.load()).stop()
    context.log.info("stream is %s", status.state)


class ScaleConfig(dg.Config):
    """How many cores the stream's driver shall use."""

    cores: int


@dg.op(description="Have the driver use another number of cores: it finishes its batches, ends, and is started with them.")
def run_scale(
    context: dg.OpExecutionContext, config: ScaleConfig, settings: SettingsResource, stream_launcher: StreamLauncherResource
) -> None:
    """Scale the stream."""
    try:
        status = stream_launcher.launcher(settings.load()).scale(config.cores)
    except StreamError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    context.log.info("stream is %s with %s cores", status.state, config.cores)


@dg.job(name="scale_stream", description="Has the stream's driver use another number of cores.", executor_def=dg.in_process_executor)
def scale_stream() -> None:
    """Scale the stream."""
    run_scale()


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
asset_checks: list[dg.AssetChecksDefinition] = [stream_checks]
jobs: list[dg.JobDefinition] = [stop_stream, scale_stream, catch_up_job, rebuild_job]
sensors: list[dg.SensorDefinition] = [stream_sensor()]
