"""What a run of the stream's asset does to the stream: it brings it up and leaves it alone, unless the run is cancelled."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from crm_assets.build import build_defs
from crm_assets.conventions import STREAM_KEY
from crm_assets.lakehouse.upkeep import compact_lake_hourly
from crm_assets.streaming.assets import bring_up
from crm_assets.streaming.progress import QueryProgress, QueryState, StreamProgress, milestones, now_text, write_progress
from crm_resources.dagster_resources import SettingsResource, StreamLauncherResource
from crm_resources.settings import Settings, load_settings
from crm_resources.stream_launcher import StreamError, StreamState, StreamStatus


class Launcher:
    """A driver that comes up when it is told to, in place of a supervised process."""

    def __init__(self, on_verify: Callable[[], None] = lambda: None) -> None:
        self.state = StreamState.STOPPED
        self.on_verify = on_verify
        self.stops = 0

    def status(self) -> StreamStatus:
        return StreamStatus(self.state, os.getpid(), None, 0, Path("driver.log"))

    def apply(self) -> StreamStatus:
        self.state = StreamState.RUNNING
        return self.status()

    def verify(self, reports: Callable[[StreamStatus], bool], milestones: Callable[[], Hashable]) -> StreamStatus:
        self.on_verify()
        if not reports(self.status()):
            raise StreamError(f"the stream did not report that it works: nothing has moved, {milestones()}")
        return self.status()

    def scale(self, cores: int) -> StreamStatus:
        raise StreamError("not here")

    def stop(self, *, wait: bool = True) -> StreamStatus:
        self.stops += 1
        self.state = StreamState.STOPPED
        return self.status()


@pytest.fixture
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("CRM_HOME", str(tmp_path))
    monkeypatch.setenv("CRM_ENV", "test")
    return load_settings()


def say(settings: Settings, refine: QueryState, error: str | None = None) -> None:
    queries = {"ingest": QueryProgress(QueryState.RUNNING), "refine": QueryProgress(refine, error=error)}
    write_progress(settings, StreamProgress(os.getpid(), now_text(), now_text(), queries))


def test_a_driver_that_gives_no_sign_of_life_fails_the_run_on_one_line_and_is_left_alone(own_settings: Settings) -> None:
    launcher = Launcher()
    say(own_settings, QueryState.STARTING)

    with pytest.raises(dg.Failure) as failure:
        bring_up(own_settings, launcher)

    told = str(failure.value.description)
    assert "nothing has moved" in told
    assert "refine is starting" in told
    assert "\n" not in told
    assert (launcher.state, launcher.stops) == (StreamState.RUNNING, 0)


def test_a_query_that_runs_and_a_heartbeat_are_no_sign_that_the_other_query_comes_up(own_settings: Settings) -> None:
    def seen(ingest_batch: int, refine: QueryProgress) -> object:
        queries = {"ingest": QueryProgress(QueryState.RUNNING, batch_id=ingest_batch), "refine": refine}
        write_progress(own_settings, StreamProgress(os.getpid(), now_text(), now_text(), queries))
        return milestones(own_settings)

    before = seen(1, QueryProgress())

    assert seen(2, QueryProgress()) == before
    assert seen(2, QueryProgress(run_id="r")) != before
    assert seen(2, QueryProgress(QueryState.RETRYING, restarts=1)) != before


def test_a_query_that_failed_for_good_is_told_at_once_and_not_tried_again(own_settings: Settings) -> None:
    say(own_settings, QueryState.FAILED, "disk full")

    with pytest.raises(dg.Failure) as failure:
        bring_up(own_settings, Launcher())

    assert "refine: disk full" in str(failure.value.description)


@pytest.mark.parametrize(("cancelled", "stops"), [(True, 1), (False, 0)])
def test_a_cancelled_run_stops_the_stream_and_a_signal_to_the_run_does_not(
    own_settings: Settings, monkeypatch: pytest.MonkeyPatch, *, cancelled: bool, stops: int
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:

        def interrupt() -> None:
            (run,) = instance.get_runs()
            if cancelled:
                instance.report_run_canceling(run)
            raise dg.DagsterExecutionInterruptedError

        launcher = Launcher(interrupt)
        monkeypatch.setattr(StreamLauncherResource, "launcher", lambda _self, _settings: launcher)
        job = build_defs().resolve_implicit_global_asset_job_def()

        with pytest.raises(dg.DagsterExecutionInterruptedError):
            job.execute_in_process(instance=instance, asset_selection=[STREAM_KEY])

    assert launcher.stops == stops


@pytest.mark.parametrize(("hour", "least"), [(2, 16), (3, 2)])
def test_the_hourly_compaction_asks_for_more_at_night_and_its_run_takes_the_configuration(
    own_settings: Settings, hour: int, least: int
) -> None:
    context = dg.build_schedule_context(
        scheduled_execution_time=datetime(2026, 3, 1, hour, 5, tzinfo=UTC), resources={"settings": SettingsResource()}
    )

    asked = compact_lake_hourly(context)

    assert isinstance(asked, dg.RunRequest)
    assert asked.run_config["ops"]["upkeep__compaction"]["config"]["min_small_files"] == least
    dg.validate_run_config(build_defs().resolve_job_def("compact_lake"), asked.run_config)
