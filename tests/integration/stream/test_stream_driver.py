"""The driver on a real broker: it captures and refines, ends cleanly when asked, and loses nothing when it is killed."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import psutil  # noqa: TID253 -- a test may load what it tests with
import pytest

from crm_assets.streaming.catch_up import catch_up
from crm_assets.streaming.progress import QueryState, StreamProgress, read_progress, wait_until_running
from crm_assets.streaming.tables import refined_tables
from crm_resources.contracts import contract_for
from crm_resources.kafka import ensure, producer
from crm_resources.lake import row_count
from crm_resources.lake_lock import LakeLocked
from crm_resources.layout import BRONZE, topic_name
from crm_resources.settings import Settings, load_settings
from crm_resources.spark import use_object_store
from tests.integration.lakes import on_both_lakes
from tests.integration.stream.messages import good_message

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DEADLINE_SECONDS = 180

NUMBERS = itertools.count()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_SECONDS} s: {what}"
        time.sleep(0.2)


class DriverProcess:
    """A driver of one data set, and what its tables hold."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.environ = environ
        self.settings = load_settings(environ)
        self.process: subprocess.Popen[bytes] | None = None
        self.log = self.settings.home / f"{self.settings.env}-driver.log"
        self._output: IO[bytes] | None = None

    def start(self) -> StreamProgress:
        self._output = self.log.open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "crm_assets.streaming.driver"], env=self.environ, stdout=self._output, stderr=subprocess.STDOUT
        )
        return wait_until_running(
            self.settings, pid=self.process.pid, timeout_seconds=DEADLINE_SECONDS, alive=lambda: self.running.poll() is None
        )

    @property
    def running(self) -> subprocess.Popen[bytes]:
        assert self.process is not None
        return self.process

    def java(self) -> psutil.Process:
        return next(p for p in psutil.Process(self.running.pid).children(recursive=True) if "java" in p.name())

    def rows(self) -> dict[str, int]:
        return {t.name: row_count(self.settings, t.path) for t in (BRONZE, *refined_tables())}

    def placed(self) -> int:
        return sum(n for name, n in self.rows().items() if name != BRONZE.name)

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self._output is not None:
            self._output.close()


def send(settings: Settings, count: int, seed: int) -> None:
    """Send messages of all entities, one in fifty of them no JSON."""
    chooser = random.Random(seed)
    sender = producer(settings)
    for n in range(count):
        entity = chooser.choice(["event", "order", "product", "profile"])
        message = good_message(entity, chooser)
        value = b"no JSON" if n % 50 == 0 else json.dumps(message).encode()
        sender.produce(topic_name(settings.env, contract_for(entity).plural), value, message["entity_key"])
    assert sender.flush(60) == 0


@pytest.fixture
def driver(
    stack_services: object, stack_environ: dict[str, str], lake_kind: str, request: pytest.FixtureRequest
) -> Iterator[DriverProcess]:
    env = f"stream{next(NUMBERS)}"
    place = request.getfixturevalue("minio").variables(env) if lake_kind == "minio" else {}
    found = DriverProcess({**stack_environ, **place, "CRM_ENV": env})
    ensure(found.settings)
    yield found
    found.end()


def test_records_arrive_and_sigterm_ends_cleanly(driver: DriverProcess) -> None:
    driver.start()
    java = driver.java()
    assert os.getpgid(java.pid) != os.getpgid(driver.running.pid), "a signal to the group would hit Java in the middle of a batch"
    send(driver.settings, 400, seed=1)
    wait_until(lambda: driver.placed() == 400, "400 records have a place")
    wait_until(lambda: (read_progress(driver.settings) or never()).queries["ingest"].lag_records == 0, "no lag is reported")

    driver.running.send_signal(signal.SIGTERM)

    assert driver.running.wait(DEADLINE_SECONDS) == 0
    assert not java.is_running()
    assert driver.rows()["bronze"] == 400
    assert driver.rows()["dead_letters"] == 8
    progress = read_progress(driver.settings)
    assert progress is not None
    assert {q.state for q in progress.queries.values()} == {QueryState.STOPPED}


def never() -> StreamProgress:
    raise AssertionError("the driver has not reported")


@on_both_lakes
def test_killed_driver_leaves_no_java_and_goes_on_where_it_was(driver: DriverProcess) -> None:
    driver.start()
    java = driver.java()
    send(driver.settings, 300, seed=2)
    wait_until(lambda: driver.rows()["bronze"] > 0, "something is captured")

    driver.running.kill()
    driver.running.wait()
    wait_until(lambda: not java.is_running() or java.status() == psutil.STATUS_ZOMBIE, "Java ends when its parent is gone")
    send(driver.settings, 300, seed=3)
    driver.start()

    wait_until(lambda: driver.placed() == 600, "600 records have a place")
    assert driver.rows()["bronze"] == 600
    with pytest.raises(LakeLocked, match="stream"):
        catch_up(driver.settings)


def test_a_failing_refine_step_does_not_stop_the_capture(driver: DriverProcess) -> None:
    blocker = Path(driver.settings.table_uri("silver"))
    blocker.parent.mkdir(parents=True, exist_ok=True)
    blocker.write_text("a file where a folder should be")
    process = subprocess.Popen([sys.executable, "-m", "crm_assets.streaming.driver"], env=driver.environ, stderr=subprocess.DEVNULL)
    driver.process = process
    send(driver.settings, 100, seed=4)

    wait_until(lambda: row_count(driver.settings, BRONZE.path) == 100, "the records are captured")
    progress = read_progress(driver.settings)
    assert progress is not None
    assert progress.queries["refine"].state in {QueryState.RETRYING, QueryState.STARTING}

    blocker.unlink()

    wait_until(lambda: driver.placed() == 100, "refine has recovered by itself")


@on_both_lakes
def test_catch_up_gives_what_the_stream_gives(driver: DriverProcess, spark: SparkSession) -> None:
    from crm_assets.streaming.catch_up import run_both_steps

    use_object_store(spark, driver.settings)
    send(driver.settings, 200, seed=5)

    done = run_both_steps(spark, driver.settings)

    assert done.ingested == done.refined.read == 200
    assert driver.placed() == 200
    assert run_both_steps(spark, driver.settings).refined.read == 0
