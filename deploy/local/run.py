"""Become one of the stack's programs: `python -m deploy.local.run kafka`. The supervisor starts everything through this.

Also runs a tool with a data set's environment: `python -m deploy.local.run dagster asset materialize …`.

Belongs here: what a program needs at its very start — its command, its environment with secrets read from files, the
note that it was started, and the limit on how often. Not here: configuration files, written beforehand by `stack`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from crm_resources.settings import REPOSITORY, Settings, load_settings
from crm_resources.supervisor import Service, Start, record_start, starts
from deploy.local import dagster, kafka, minio, postgres, secret_files
from deploy.local.errors import StackError
from deploy.local.ports import Port, read_env, recorded

RESTART_WINDOW_SECONDS = 600
MOST_STARTS = 12
"""In the window. The supervisor itself limits starts that fail at once; this limits programs that die a little later."""

MARK = "CRM_STACK_HOME"
"""In the environment of every process of a stack; its value is the home. By it `make down` finds what got lost."""


def main(arguments: Sequence[str]) -> int:
    """Replace this process by the program that is named.

    Args:
        arguments: a service of the stack; or a tool of this installation (`dagster`, `dg`, `dbt`) and its arguments, which
            then runs with the data set's environment.
    """
    name, *rest = arguments or ("",)
    settings = load_settings()
    try:
        argv = _service_command(Service(name), settings) if name in {s.value for s in Service} else _tool_command(name, rest)
        environ = environment_of(settings)
        if name == Service.MINIO.value:
            environ |= minio.server_environment(settings)
    except StackError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if name in {s.value for s in Service}:
        record_start(settings, Service(name))
        os.chdir(REPOSITORY)
        environ[MARK] = str(settings.home)
    os.execvpe(argv[0], argv, environ)  # noqa: S606 -- the point of this module: no shell, the same process


def _service_command(service: Service, settings: Settings) -> list[str]:
    if too_often(starts(settings, service), time.time()):
        raise StackError(
            f"{service.value} was started {MOST_STARTS} times within {RESTART_WINDOW_SECONDS // 60} minutes and ended each time",
            "its reason stands above; `make up` tries again",
        )
    return command(service, settings)


def _tool_command(name: str, arguments: Sequence[str]) -> list[str]:
    path = Path(sys.executable).with_name(name)
    if not name or not path.exists():
        services = ", ".join(s.value for s in Service)
        raise StackError(f"`{name}` is neither a service ({services}) nor a tool of this installation", "such as dagster, dg or dbt")
    return [str(path), *arguments]


def command(service: Service, settings: Settings) -> list[str]:
    """The command that becomes the service.

    Raises:
        StackError: a part of it is not installed.
    """
    ports = {name: int(number) for name, number in read_env(settings.environment_dir / "ports.env").items() if number.isdigit()}
    match service:
        case Service.KAFKA:
            return kafka.server_command(settings)
        case Service.POSTGRES:
            return postgres.server_command(settings)
        case Service.MINIO:
            return minio.server_command(settings, recorded(minio.folder(settings) / "ports.env", [Port.MINIO])[Port.MINIO])
        case Service.CODE_SERVER:
            return dagster.code_server_command(ports[Port.CODE_SERVER])
        case Service.WEBSERVER:
            return dagster.webserver_command(settings, ports[Port.WEBSERVER])
        case Service.DAEMON:
            return dagster.daemon_command(settings)
        case Service.STREAM:
            return [sys.executable, "-m", "crm_assets.streaming.driver"]


def environment_of(settings: Settings) -> dict[str, str]:
    """This process's environment, with what Dagster and the stream need to find their home and their servers."""
    kept = {variable: secret_files.read(settings.home, name) for variable, name in secret_files.KEPT.items()}
    given = {variable: value for variable, value in kept.items() if value is not None}
    if "CRM_WAREHOUSE_DSN" in given and settings.warehouse_dsn is None:
        settings = load_settings({**os.environ, **given})
    environ = {
        **dagster.PATIENCE,
        **os.environ,
        # Tools of this installation, dbt above all, are found whether or not the environment was activated.
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
        "CRM_HOME": str(settings.home),
        "CRM_ENV": settings.env,
        "DAGSTER_HOME": str(dagster.folder(settings)),
        dagster.STORAGE_VARIABLE: dagster.storage_url(postgres.server_dsn(settings, dagster.database(settings))),
        "DAGSTER_DISABLE_TELEMETRY": "yes",
        "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
        "PYTHONUNBUFFERED": "1",
        # Each Spark job and each run would otherwise start one thread per core in several libraries.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
    }
    return {**environ, **given}


def too_often(past: Sequence[Start], now: float) -> bool:
    """Whether the program had all its starts of the window.

    Args:
        past: its starts so far.
        now: seconds since 1970.
    """
    return sum(1 for start in past if now - start.at < RESTART_WINDOW_SECONDS) >= MOST_STARTS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
