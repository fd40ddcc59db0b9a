"""The stream goes on without Dagster, is maintained while it runs, and is given other cores; only a stop ends it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil  # noqa: TID253 -- looks at the processes from outside
import pytest

from crm_assets.streaming.requests import FOLDER
from crm_resources import kafka, lake
from crm_resources.layout import BRONZE, DEAD_LETTERS, topic_name
from crm_resources.stream_launcher import SupervisedStream
from crm_resources.supervisor import Service, Supervisor
from deploy.local import dagster
from tests.conftest import Pipeline
from tests.driver_process import wait_until

pytestmark = pytest.mark.integration

LAUNCH = """mutation ($selection: [AssetKeyInput!]!) { launchRun(executionParams: {
  selector: {repositoryLocationName: "crm", repositoryName: "__repository__", jobName: "__ASSET_JOB", assetSelection: $selection}
}) { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""

STATUS = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"


def commands_below(pid: int) -> list[str]:
    """Command lines of a process's descendants; one that ends meanwhile has none."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # a zombie is one as well
            found.append(" ".join(process.cmdline()))
    return found


def state_of(pipeline: Pipeline, run_id: str) -> str:
    return str(pipeline.ask(STATUS, id=run_id)["runOrError"]["status"])


def pid_of(pipeline: Pipeline, service: Service) -> int:
    info = Supervisor(pipeline.settings).process(service)
    return info.pid if info is not None else 0


def came_back(pipeline: Pipeline, service: Service, killed: int) -> bool:
    return pid_of(pipeline, service) not in (0, killed)


def reaches_the_lake(pipeline: Pipeline, value: bytes) -> None:
    """One more record, of no use to anybody, is captured and ends as a dead letter."""
    before = [lake.row_count(pipeline.settings, table.path) for table in (BRONZE, DEAD_LETTERS)]
    producer = kafka.producer(pipeline.settings)
    producer.produce(topic_name(pipeline.settings.env, "orders"), key=b"alive", value=value)
    assert producer.flush(30) == 0
    wait_until(
        lambda: [lake.row_count(pipeline.settings, table.path) for table in (BRONZE, DEAD_LETTERS)] == [n + 1 for n in before],
        "the record is in bronze and among the dead letters",
    )


@pytest.fixture
def driver(pipeline: Pipeline) -> Iterator[int]:
    """Process of the running stream, which is the same afterwards."""
    before = SupervisedStream(pipeline.settings).status()
    assert before.pid is not None
    yield before.pid
    after = SupervisedStream(pipeline.settings).status()
    assert (after.pid, after.restarts) == (before.pid, before.restarts)


def test_the_stream_outlives_a_killed_run_a_killed_daemon_and_a_killed_webserver(pipeline: Pipeline, driver: int):
    server = psutil.Process(pid_of(pipeline, Service.CODE_SERVER))
    others = {p.pid for p in server.children(recursive=True)}
    launched = pipeline.ask(LAUNCH, selection=[{"path": ["stream", "driver"]}])["launchRun"]
    run_id = launched["run"]["runId"]

    wait_until(lambda: state_of(pipeline, run_id) == "STARTED", "the run that applies the stream has begun")
    mine = [p for p in server.children(recursive=True) if p.pid not in others]
    assert mine
    for process in mine:
        os.kill(process.pid, signal.SIGKILL)
    daemon, webserver = pid_of(pipeline, Service.DAEMON), pid_of(pipeline, Service.WEBSERVER)
    for pid in (daemon, webserver):
        os.kill(pid, signal.SIGKILL)

    reaches_the_lake(pipeline, b"without Dagster")

    wait_until(lambda: came_back(pipeline, Service.DAEMON, daemon), "the daemon is back")
    wait_until(lambda: came_back(pipeline, Service.WEBSERVER, webserver), "the webserver is back")
    port = int(pipeline.url.rsplit(":", 1)[1])
    wait_until(lambda: dagster.location(port)[0] is dagster.LocationState.LOADED, "the webserver answers")
    wait_until(lambda: state_of(pipeline, run_id) == "FAILURE", "the killed run is not stuck")


def test_upkeep_is_done_by_the_driver_while_it_runs(pipeline: Pipeline, driver: int):
    folder = Path(pipeline.settings.lake_root) / FOLDER
    for job, kind in (("compact_lake", "compact"), ("vacuum_lake", "vacuum"), ("checkpoint_lake", "checkpoint")):
        before = set(folder.glob(f"{kind}-*.answer.json"))
        pipeline.dagster("job", "execute", "-j", job, "-m", "crm_assets.definitions")
        (answer,) = set(folder.glob(f"{kind}-*.answer.json")) - before
        assert json.loads(answer.read_text())["ok"]
    reaches_the_lake(pipeline, b"after upkeep")


def test_the_stream_is_given_other_cores_and_goes_on_where_it_was(pipeline: Pipeline, tmp_path: Path):
    stream = SupervisedStream(pipeline.settings)
    config = tmp_path / "cores.yaml"
    for cores in (1, pipeline.settings.spark_cores):
        config.write_text(json.dumps({"ops": {"run_scale": {"config": {"cores": cores}}}}))  # JSON is YAML
        pipeline.dagster("job", "execute", "-j", "scale_stream", "-m", "crm_assets.definitions", "-c", str(config))
        reaches_the_lake(pipeline, f"with {cores} cores".encode())
        status = stream.status()
        assert status.pid is not None
        assert any(f"local[{cores}]" in command for command in commands_below(status.pid)), commands_below(status.pid)
    pipeline.settle()
