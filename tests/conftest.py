"""What tests of all kinds share: the real stack, started once per session when a test first asks for it, and the real data.

The session's stack has a home of its own, ports that are free, and the data set `test`. Only the fetched jars are shared
with the checkout's own stack.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from crm_resources.settings import REPOSITORY, Settings, load_settings
from deploy.local import jars
from deploy.local import minio as minio_service
from deploy.local.demo import marts_backlog, stream_backlog
from deploy.local.lake_choice import LakeKind
from deploy.local.stack import Stack
from tests import suite_report

ENVIRONMENT = "test"


OF_DAGSTER = ("browser/test_ui.py", "integration/test_pipeline.py", "test_stream_outlives_dagster.py", "integration/test_local_stack.py")
"""Modules that need Dagster's services and data in the marts, which takes longer than most of their tests. They run first."""

_DAGSTER_IS_UP = pytest.StashKey[Stack]()
"""The stack of this process whose Dagster services run, kept in the configuration."""


def _place(module: str) -> int:
    """Where a module stands among those that need Dagster; behind all of them when it needs none."""
    return next((place for place, name in enumerate(OF_DAGSTER) if module.endswith(name)), len(OF_DAGSTER))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the modules that need Dagster first, so that its services need not run beside the rest."""
    items.sort(key=lambda item: _place(item.path.as_posix()))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Stop Dagster's services and the stream once no test needs them: idle, they take a third of a core."""
    running = item.config.stash.get(_DAGSTER_IS_UP, None)
    if running is not None and _place(item.path.as_posix()) == len(OF_DAGSTER):
        del item.config.stash[_DAGSTER_IS_UP]
        running.down(only_environment=True)


class ByModule(LoadScopeScheduling):
    """Tests of a module stay in one process, all that run Spark or Dagster in the same one; each process has a stack of its own.

    Two Sparks on two cores are slower side by side than one after the other.
    """

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        heavy = module.endswith(OF_DAGSTER) or "/stream/" in module or "/faults/" in module
        return "spark and dagster" if heavy else module


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByModule:
    """Who gives the tests to the processes, where there are several."""
    return ByModule(config, log)


def pytest_configure(config: pytest.Config) -> None:
    """A run of the whole suite leaves a report."""
    suite_report.register(config)


@pytest.fixture(scope="session")
def jars_dir() -> Path:
    """Folder of the fetched Java libraries, fetched when they are absent."""
    folder = Path(os.environ.get("CRM_JARS_DIR") or REPOSITORY / ".crm" / "jars")
    jars.ensure(folder, jars.read_lock())
    return folder


@pytest.fixture(scope="session")
def stack_environ(tmp_path_factory: pytest.TempPathFactory, jars_dir: Path) -> dict[str, str]:
    """Variables for a process that shall work with the session's stack: the session's home and data set, nothing of the caller's."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("CRM_", "DAGSTER_"))}
    return {
        **plain,
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), plain.get("PATH", os.defpath))),
        "CRM_HOME": str(tmp_path_factory.mktemp("stack")),
        "CRM_ENV": ENVIRONMENT,
        "CRM_JARS_DIR": str(jars_dir),
        "CRM_DRIVER_MEMORY": "1g",
        "CRM_TRIGGER_SECONDS": "1",
        "CRM_MAX_TRIGGER_DELAY_SECONDS": "0",
        # These processes end long before Java's second compiler, which takes the cores the tests run on, has paid for itself.
        "JDK_JAVA_OPTIONS": "-XX:TieredStopAtLevel=1",
    }


@pytest.fixture(scope="session")
def _session_stack(stack_environ: dict[str, str]) -> Iterator[Stack]:
    stack = Stack(load_settings(stack_environ), environ=stack_environ)
    try:
        yield stack
    finally:
        stack.down()


@pytest.fixture(scope="session")
def stack_services(_session_stack: Stack) -> Stack:
    """The session's Kafka and PostgreSQL, without Dagster; `stack_services.settings` knows their ports."""
    _session_stack.up(environment=False)
    return _session_stack


@dataclass(frozen=True)
class MinioServer:
    """The session's MinIO; every data set may have its lake on it."""

    endpoint: str
    credentials_dir: Path

    def variables(self, env: str) -> dict[str, str]:
        """What a process is told whose lake is there."""
        return {
            "CRM_LAKE_URI": f"s3://{minio_service.BUCKET}/{env}",
            "CRM_S3_ENDPOINT": self.endpoint,
            "CRM_S3_CREDENTIALS_DIR": str(self.credentials_dir),
        }

    def lake_of(self, settings: Settings) -> Settings:
        """Settings of a data set whose lake is there."""
        place = {
            "lake_uri": f"s3://{minio_service.BUCKET}/{settings.env}",
            "s3_endpoint": self.endpoint,
            "s3_credentials_dir": self.credentials_dir,
        }
        return settings.model_copy(update=place)


@pytest.fixture(scope="session")
def minio_program() -> Path:
    """MinIO as the product builds it, into the checkout's own tools when `CRM_MINIO_BIN` names none."""
    own = {key: os.environ[key] for key in ("CRM_MINIO_BIN",) if key in os.environ}
    settings = load_settings({"CRM_HOME": str(REPOSITORY / ".crm"), **own})
    try:
        minio_service.ensure_program(settings)
    except minio_service.GoMissingError as error:
        pytest.skip(f"MINIO ABSENT: {error}")
    return minio_service.program(settings)


@pytest.fixture(scope="session")
def minio(stack_services: Stack, stack_environ: dict[str, str], minio_program: Path) -> MinioServer:
    """The session's MinIO, brought up beside its Kafka as `LAKE=minio make up` does for a data set."""
    environ = {**stack_environ, "CRM_ENV": "on_minio", "CRM_MINIO_BIN": str(minio_program)}
    stack = Stack(load_settings(environ), environ=environ, lake=LakeKind.MINIO)
    stack.up(environment=False)
    found = load_settings(environ)
    assert found.s3_endpoint is not None
    assert found.s3_credentials_dir is not None
    return MinioServer(found.s3_endpoint, found.s3_credentials_dir)


@pytest.fixture(scope="session")
def stack(stack_services: Stack, pytestconfig: pytest.Config) -> Stack:
    """The session's whole stack, with Dagster's three services for the data set `test`."""
    stack_services.up()
    pytestconfig.stash[_DAGSTER_IS_UP] = stack_services
    return stack_services


@dataclass(frozen=True)
class Pipeline:
    """A stack through which data has gone: where it is, and how to run one of its commands."""

    settings: Settings
    environ: dict[str, str]
    url: str

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of this installation as a user would, with the data set's environment."""
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=REPOSITORY, env=self.environ, capture_output=True, text=True, check=False
        )
        if check:
            assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
        return done

    def dagster(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the Dagster command line on this code location."""
        return self.run("deploy.local.run", "dagster", *arguments, check=check)

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """Answer of the webserver's GraphQL interface to a query."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.load(answer)
        assert "errors" not in found, found
        return dict(found["data"])

    def settle(self, seconds: float = 300) -> None:
        """Wait until everything in Kafka is refined, loaded, and in the marts."""
        for backlog in (stream_backlog, marts_backlog):
            deadline = time.monotonic() + seconds
            while (left := backlog(self.settings)) is not None:
                assert time.monotonic() < deadline, left
                time.sleep(0.5)


@pytest.fixture(scope="session")
def pipeline(stack: Stack, stack_environ: dict[str, str]) -> Pipeline:
    """The session's stack with topics, stream and a small made-up shop all the way in the marts."""
    url = stack.up().webserver
    assert url is not None
    running = Pipeline(load_settings(stack_environ), stack_environ, url)
    select = "group:infrastructure or group:ingestion or group:streaming"
    running.dagster("asset", "materialize", "--select", select, "-m", "crm_assets.definitions")
    sizes = ("--customers", "120", "--products", "40", "--orders", "300", "--events", "1500")
    running.run("generator", "synthetic", "--env", ENVIRONMENT, *sizes, "--duplicates", "0.05", "--broken", "0.02")
    running.settle()
    return running


@pytest.fixture
def settings(stack_services: Stack) -> Settings:
    """Settings of the session's data set, with the ports its services took."""
    return stack_services.settings


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real data sets beside the checkout; a test that needs it is skipped where it is absent."""
    folder = Path(os.environ.get("CRM_SHARED_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"REAL DATA ABSENT: {folder} does not exist; name it with CRM_SHARED_DATA")
    return folder
