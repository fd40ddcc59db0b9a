"""The supervisor that owns the stack's processes: its configuration, its own start and its end.

Belongs here: what the supervisor reads, and bringing it up and down. Not here: talking to it
(`crm_resources.supervisor`), or processes that outlived it (`leftovers`).
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from crm_resources.settings import REPOSITORY, Settings
from crm_resources.supervisor import OBJECT_STORE_GROUP, SHARED_GROUP, Service, Supervisor, socket_path
from crm_resources.waiting import wait_for
from deploy.local.errors import StackError

_LOG_BYTES = 10 * 2**20
_OLD_LOGS = 3


@dataclass(frozen=True)
class Program:
    """How the supervisor keeps one service.

    Attributes:
        service: which one.
        start_seconds: how long it must live to count as started; an earlier end is a failed start.
        start_retries: failed starts in a row (1, 2, 3… seconds apart) after which the supervisor gives up.
        stop_signal: how it is asked to end.
        stop_seconds: how long it may take for that before it is killed; a limit by the clock, for a stop must come to an end.
        stop_group: whether its children are signalled as well.
        autostart: whether it starts with the supervisor.
        always: whether an ordinary end (exit code 0) is also a reason to start it again.
    """

    service: Service
    start_seconds: int = 5
    start_retries: int = 4
    stop_signal: str = "TERM"
    stop_seconds: int = 30
    stop_group: bool = False
    autostart: bool = False
    always: bool = True


PROGRAMS: dict[Service, Program] = {
    program.service: program
    for program in (
        # What holds the data gets the time to write it out, which takes 3 s on an idle machine. Killed, it would lose nothing, but recover.
        Program(Service.KAFKA, start_seconds=10, stop_seconds=120, autostart=True),
        # INT is PostgreSQL's fast shutdown: sessions are ended, nothing is lost. TERM would wait for Dagster's sessions.
        Program(Service.POSTGRES, start_seconds=3, stop_signal="INT", stop_seconds=120, autostart=True),
        Program(Service.MINIO, start_seconds=3, stop_seconds=120),
        # Runs are children of the code server and must not outlive it unseen.
        Program(Service.CODE_SERVER, stop_group=True),
        Program(Service.WEBSERVER),
        Program(Service.DAEMON),
        # Only the Python process is signalled: the JVM below it must finish the batch. An end with code 0 is a drained stream.
        Program(Service.STREAM, start_seconds=15, stop_seconds=120, always=False),
    )
}


def folder(settings: Settings) -> Path:
    """Configuration, log and socket of the supervisor."""
    return settings.home / "supervisor"


def group_file(settings: Settings, group: str) -> Path:
    """Configuration of one group: the shared services, or a data set."""
    return folder(settings) / "groups" / f"{group}.conf"


def write_main(settings: Settings, socket: Path) -> Path:
    """Write the supervisor's own configuration; returns its path."""
    home = folder(settings)
    (home / "groups").mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    lines = [
        "; Written by the local stack at each start.",
        "[supervisord]",
        f"logfile={_literal(home / 'supervisord.log')}",
        "logfile_maxbytes=5MB",
        "logfile_backups=1",
        f"pidfile={_literal(home / 'supervisord.pid')}",
        f"childlogdir={_literal(home)}",
        f"directory={_literal(REPOSITORY)}",
        # Said on purpose, or it warns about it at each start.
        *(["user=root"] if os.geteuid() == 0 else []),
        "",
        "[unix_http_server]",
        f"file={_literal(socket)}",
        "chmod=0700",
        "",
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface",
        "",
        "[supervisorctl]",
        f"serverurl=unix://{_literal(socket)}",
        "",
        "[include]",
        "files = groups/*.conf",
    ]
    path = home / "supervisord.conf"
    path.write_text("\n".join(lines) + "\n")
    return path


def write_group(settings: Settings, group: str, services: Sequence[Service], environ: Mapping[str, str]) -> None:
    """Write the configuration of one group.

    Args:
        settings: names the home and the data set.
        group: its name.
        services: its programs.
        environ: variables its programs get beside the supervisor's own; nothing secret, the file is kept.
    """
    for service in services:
        service.log_file(settings).parent.mkdir(parents=True, exist_ok=True)
    priority = 1 if group in {SHARED_GROUP, OBJECT_STORE_GROUP} else 100
    text = "\n".join(_program(settings, group, PROGRAMS[service], environ) for service in services)
    names = ",".join(_section(group, service) for service in services)
    # The supervisor stops groups one after the other, highest number first: what holds data is the last to go.
    path = group_file(settings, group)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"[group:{group}]\nprograms={names}\npriority={priority}\n\n{text}")


def start(settings: Settings, socket: Path, environ: Mapping[str, str]) -> None:
    """Start the supervisor, which detaches itself; returns when it answers.

    Raises:
        StackError: it did not start.
    """
    conf = write_main(settings, socket)
    socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if socket.parent.stat().st_uid != os.geteuid():
        raise StackError(f"{socket.parent} belongs to somebody else", "set TMPDIR or CRM_HOME to a folder of your own")
    socket.parent.chmod(0o700)
    socket.unlink(missing_ok=True)
    run = subprocess.run(
        [sys.executable, "-m", "supervisor.supervisord", "-c", str(conf)],
        cwd=REPOSITORY,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    log = folder(settings) / "supervisord.log"
    if run.returncode != 0:
        reasons = [line for line in run.stdout.splitlines() if line.startswith("Error")] or run.stdout.strip().splitlines()[-1:]
        raise StackError(f"the supervisor did not start: {' '.join(reasons)}", f"see {log}")
    supervisor = Supervisor(settings)
    wait_for(
        lambda: supervisor.pid() is not None,
        lambda: log.stat().st_size if log.exists() else 0,
        lambda why: StackError(f"the supervisor does not answer: {why}", f"see {log}, then `make up` again"),
    )


def remove_socket(settings: Settings) -> None:
    """Remove the private folder the socket had when the home's own path was too long for one."""
    socket = socket_path(settings.home)
    if socket.parent != folder(settings) and socket.parent.exists():
        socket.unlink(missing_ok=True)
        socket.parent.rmdir()


def _program(settings: Settings, group: str, program: Program, environ: Mapping[str, str]) -> str:
    service = program.service
    command = shlex.join([sys.executable, "-m", "deploy.local.run", service.value])
    values = {
        "process_name": service.value,
        "command": _literal(command),
        "directory": _literal(REPOSITORY),
        "environment": ",".join(f'{key}="{_quoted(value)}"' for key, value in sorted(environ.items())),
        "autostart": program.autostart,
        "autorestart": True if program.always else "unexpected",
        "exitcodes": 0,
        "startsecs": program.start_seconds,
        "startretries": program.start_retries,
        "stopsignal": program.stop_signal,
        "stopwaitsecs": program.stop_seconds,
        "stopasgroup": program.stop_group,
        "killasgroup": True,
        "redirect_stderr": True,
        "stdout_logfile": _literal(service.log_file(settings)),
        "stdout_logfile_maxbytes": _LOG_BYTES,
        "stdout_logfile_backups": _OLD_LOGS,
    }
    body = "".join(f"{key}={str(value).lower() if isinstance(value, bool) else value}\n" for key, value in values.items())
    return f"[program:{_section(group, service)}]\n{body}"


def _section(group: str, service: Service) -> str:
    """Programs are named across groups, processes within theirs."""
    return f"{group}-{service.value}"


def _literal(value: object) -> str:
    """The supervisor expands `%(name)s` in every value."""
    return str(value).replace("%", "%%")


def _quoted(value: str) -> str:
    """The supervisor knows no escapes inside quotes, and strips quotes of both kinds from the ends."""
    if "\n" in value or '"' in value or value.strip("'") != value:
        raise StackError(f"the supervisor's configuration cannot hold the value {value!r}", "take quotes and line breaks out of it")
    return _literal(value)
