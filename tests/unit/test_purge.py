"""The purge of old runs, on an instance with runs that really took place: only old ones that ended go.

No postponed annotations here: Dagster reads the type of an op's context when the op is defined.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from crm_assets.monitoring import upkeep
from crm_assets.monitoring.upkeep import purge_runs


@dg.op(config_schema={"fail": bool})
def work(context: dg.OpExecutionContext) -> None:
    if context.op_config["fail"]:
        raise dg.Failure("as the test ordered")


@dg.job
def working() -> None:
    work()


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def ran(instance: dg.DagsterInstance, *, fail: bool = False) -> str:
    """A run that took place just now."""
    config = {"ops": {"work": {"config": {"fail": fail}}}}
    return working.execute_in_process(run_config=config, instance=instance, raise_on_error=False).run_id


def aged(instance: dg.DagsterInstance, run_id: str, days: float, status: dg.DagsterRunStatus | None = None) -> str:
    """The run as if it had been created so many days ago, with its events."""
    run = instance.get_run_by_id(run_id)
    assert run is not None
    instance.run_storage.delete_run(run_id)
    instance.run_storage.add_historical_run(run.with_status(status) if status else run, datetime.now(UTC) - timedelta(days=days))
    return run_id


def purge(instance: dg.DagsterInstance, **config: int) -> int:
    """Run the job and return how many runs it deleted."""
    ops = {"purge_old_runs": {"config": config}} if config else {}
    deleted: int = purge_runs.execute_in_process(run_config={"ops": ops}, instance=instance).output_for_node("purge_old_runs")
    return deleted


def left(instance: dg.DagsterInstance, *runs: str) -> list[str]:
    return [run for run in runs if instance.get_run_by_id(run) is not None]


def test_old_runs_that_ended_go_with_their_events_and_young_ones_stay(instance: dg.DagsterInstance) -> None:
    old = [aged(instance, ran(instance, fail=fail), 14.1) for fail in (False, True)]
    old.append(aged(instance, ran(instance), 400, dg.DagsterRunStatus.CANCELED))
    young = [aged(instance, ran(instance, fail=fail), 13.9) for fail in (False, True)]
    assert all(instance.all_logs(run) for run in old)

    assert purge(instance) == 3

    assert left(instance, *old, *young) == young
    assert not any(instance.all_logs(run) for run in old)
    assert all(instance.all_logs(run) for run in young)


# Not QUEUED: such a run cannot be made without a code location to launch it from.
@pytest.mark.parametrize("status", [dg.DagsterRunStatus(s) for s in ("NOT_STARTED", "STARTING", "STARTED", "CANCELING")])
def test_an_old_run_that_has_not_ended_stays(instance: dg.DagsterInstance, status: dg.DagsterRunStatus) -> None:
    run = aged(instance, ran(instance), 400, status)
    assert purge(instance) == 0
    assert left(instance, run) == [run]


def test_how_long_runs_are_kept_is_configured(instance: dg.DagsterInstance) -> None:
    runs = [aged(instance, ran(instance), days) for days in (1.5, 2.5)]
    assert purge(instance, keep_days=2) == 1
    assert left(instance, *runs) == runs[:1]


def test_more_runs_than_fit_a_page_all_go(instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "_PAGE", 2)
    runs = [aged(instance, ran(instance), 20) for _ in range(5)]
    assert purge(instance) == 5
    assert left(instance, *runs) == []


def test_what_a_sensor_reported_stays(instance: dg.DagsterInstance) -> None:
    aged(instance, ran(instance), 20)
    instance.report_runless_asset_event(dg.AssetMaterialization(dg.AssetKey(["silver", "orders"])))
    assert purge(instance) == 1
    assert instance.get_latest_materialization_event(dg.AssetKey(["silver", "orders"])) is not None
