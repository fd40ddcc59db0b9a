"""Dagster of one data set: its instance file, its workspace file, its three commands, and whether they answer.

Belongs here: everything that knows Dagster's configuration. Not here: the assets, which are reached by module name only.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from enum import Enum, auto
from pathlib import Path
from typing import Any

import yaml

from crm_resources.settings import REPOSITORY, Settings
from deploy.local.errors import StackError
from deploy.local.ports import ANSWER_SECONDS, LOOPBACK, Port

DEFINITIONS = "crm_assets.definitions"
LOCATION = "crm"
"""As in the repository's `workspace.yaml`, so that addresses in the UI are the same either way."""
STORAGE_VARIABLE = "CRM_DAGSTER_STORAGE"
"""Carries the URI of Dagster's database, with its password, to Dagster's processes; never written to a file."""

PATIENCE = {
    # Of one call to the code server, in which sensors are evaluated; a tick that is cut off begins from nothing.
    "DAGSTER_GRPC_TIMEOUT_SECONDS": "300",
    # As it was: it follows the other one unless it is said.
    "DAGSTER_GRPC_SHUTDOWN_GRACE_PERIOD": "60",
    # The process that holds the code ends when the code server, starved itself, has not called for so long.
    "DAGSTER_GRPC_PROXY_HEARTBEAT_TTL_SECONDS": "120",
}
"""Variables of Dagster's own limits that are too short for a busy machine, in seconds; its other ones have no such trouble (0024)."""

_RELOAD_SECONDS = 60
"""Importing the code anew takes some seconds; who is not answered asks again."""

_LONGEST_REASON = 400
"""Characters."""

_MOST_RUNS = 4
"""Each run is a process of about 300 MiB."""

_LOCATION_QUERY = (
    "{ workspaceOrError { ... on Workspace { locationEntries { loadStatus locationOrLoadError { __typename "
    "... on PythonError { message causes { message } } } } } ... on PythonError { message causes { message } } } }"
)


def folder(settings: Settings) -> Path:
    """DAGSTER_HOME of the data set."""
    return settings.environment_dir / "dagster"


def workspace(settings: Settings) -> Path:
    """Workspace file that points at the data set's code server."""
    return folder(settings) / "workspace.yaml"


def database(settings: Settings) -> str:
    """Database of Dagster's storage."""
    return f"dagster_{settings.env}"


def storage_url(dsn: str) -> str:
    """The URI as Dagster's library wants it: with the driver named, for SQLAlchemy 2.1 has another default than the one installed."""
    return f"postgresql+psycopg2://{dsn.split('://', 1)[1]}"


def prepare(settings: Settings, ports: dict[Port, int]) -> None:
    """Write the instance and workspace files of the data set."""
    folder(settings).mkdir(parents=True, exist_ok=True)
    _write_yaml(folder(settings) / "dagster.yaml", instance_config(settings))
    server = {"host": LOOPBACK, "port": ports[Port.CODE_SERVER], "location_name": LOCATION}
    _write_yaml(workspace(settings), {"load_from": [{"grpc_server": server}]})


def instance_config(settings: Settings) -> dict[str, Any]:
    """What `dagster.yaml` says."""
    return {
        "storage": {"postgres": {"postgres_url": {"env": STORAGE_VARIABLE}}},
        "local_artifact_storage": {
            "module": "dagster.core.storage.root",
            "class": "LocalArtifactStorage",
            "config": {"base_dir": str(folder(settings))},
        },
        "compute_logs": {
            "module": "dagster.core.storage.local_compute_log_manager",
            "class": "LocalComputeLogManager",
            "config": {"base_dir": str(settings.environment_dir / "logs" / "runs")},
        },
        "run_coordinator": {
            "module": "dagster.core.run_coordinator",
            "class": "QueuedRunCoordinator",
            "config": {"dequeue_interval_seconds": 1},
        },
        "run_launcher": {"module": "dagster.core.launcher", "class": "DefaultRunLauncher"},
        "concurrency": {"runs": {"max_concurrent_runs": _MOST_RUNS}},
        "run_monitoring": {
            "enabled": True,
            # A run whose process dies is noticed by the code server at once; this is only for one nobody knows anything of.
            "start_timeout_seconds": 900,
            "cancel_timeout_seconds": 180,
            # A run that lost its process is not resumed in the middle; it fails, and is retried from the start if it may be.
            "max_resume_run_attempts": 0,
            "poll_interval_seconds": 20,
            "free_slots_after_run_end_seconds": 30,
        },
        "run_retries": {"enabled": True, "max_retries": 1, "retry_on_asset_or_op_failure": False},
        "sensors": {"use_threads": True, "num_workers": 4},
        "schedules": {"use_threads": True, "num_workers": 2},
        "backfills": {"use_threads": True, "num_workers": 2},
        "retention": {
            kind: {"purge_after_days": {"skipped": 1, "success": 7, "failure": 30, "started": 7}}
            for kind in ("schedule", "sensor", "auto_materialize")
        },
        "telemetry": {"enabled": False},
        "nux": {"enabled": False},
    }


def code_server_command(port: int) -> list[str]:
    """The command that becomes the code server."""
    return [
        _program("dagster"),
        *("code-server", "start", "-m", DEFINITIONS, "-d", str(REPOSITORY), "-h", LOOPBACK, "-p", str(port)),
        *("--location-name", LOCATION, "--use-python-environment-entry-point", "--log-level", "warning"),
    ]


def webserver_command(settings: Settings, port: int) -> list[str]:
    """The command that becomes the webserver."""
    return [_program("dagster-webserver"), "-h", LOOPBACK, "-p", str(port), "-w", str(workspace(settings))]


def daemon_command(settings: Settings) -> list[str]:
    """The command that becomes the daemon."""
    return [_program("dagster-daemon"), "run", "-w", str(workspace(settings))]


def make_storage(settings: Settings, environ: dict[str, str]) -> None:
    """Make Dagster's tables before three processes try to at once.

    Args:
        settings: the data set.
        environ: environment of its Dagster processes.

    Raises:
        StackError: Dagster could not make them.
    """
    made = subprocess.run(
        [_program("dagster"), "instance", "info"], env=environ, cwd=folder(settings), capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        last = (made.stderr or made.stdout).strip().splitlines()[-1:]
        raise StackError(f"Dagster could not make its tables in {database(settings)}: {' '.join(last)}", "see `make logs SERVICE=postgres`")


def webserver_answers(port: int) -> bool:
    """Whether the webserver answers."""
    return _request(port, "GET", "/server_info") is not None


class LocationState(Enum):
    """What the webserver knows of the code location."""

    LOADED = auto()
    LOADING = auto()
    FAILED = auto()


def location(port: int) -> tuple[LocationState, str]:
    """Whether the code location is loaded, and the reason when it is not.

    Args:
        port: the webserver's.
    """
    answer = _request(port, "POST", "/graphql", json.dumps({"query": _LOCATION_QUERY}))
    if answer is None:
        return LocationState.LOADING, "the webserver does not answer"
    workspace_or_error = answer["data"]["workspaceOrError"]
    if "message" in workspace_or_error:
        return LocationState.FAILED, _innermost(workspace_or_error)
    for entry in workspace_or_error["locationEntries"]:
        found = entry["locationOrLoadError"]
        if entry["loadStatus"] != "LOADED" or found is None:
            return LocationState.LOADING, "the code location is being loaded"
        if found["__typename"] == "PythonError":
            return LocationState.FAILED, _innermost(found)
    return LocationState.LOADED, ""


def reload_location(port: int) -> None:
    """Have the code server import the code anew and the webserver look again; returns when both have."""
    mutation = "mutation($name: String!) { reloadRepositoryLocation(repositoryLocationName: $name) { __typename } }"
    _request(port, "POST", "/graphql", json.dumps({"query": mutation, "variables": {"name": LOCATION}}))


def code_server_serves(port: int) -> bool:
    """Whether the code server says of itself that it serves."""
    import grpc  # type: ignore[import-untyped] # the package carries no types
    from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped] # the package carries no types

    try:
        with grpc.insecure_channel(f"{LOOPBACK}:{port}") as channel:
            request = health_pb2.HealthCheckRequest(service="DagsterApi")
            status = health_pb2_grpc.HealthStub(channel).Check(request, timeout=ANSWER_SECONDS).status
    except grpc.RpcError:
        return False
    return bool(status == health_pb2.HealthCheckResponse.SERVING)


def _request(port: int, method: str, path: str, body: str | None = None) -> dict[str, Any] | None:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=_RELOAD_SECONDS)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return dict(json.loads(content)) if response.status == http.client.OK else None


def _innermost(error: dict[str, Any]) -> str:
    """The message that started it all, on one line; the outer ones only say that something failed."""
    messages = [error["message"], *(cause["message"] for cause in error["causes"])]
    return " ".join(str(messages[-1]).split())[:_LONGEST_REASON]


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    path.write_text("# Written by the local stack at each start.\n" + yaml.safe_dump(content, sort_keys=False))
