"""Client of the local supervisor: state of its processes, start, stop, and the records it keeps about starts.

Belongs here: speaking XML-RPC to the supervisor over its private socket. Not here: its configuration and its own start
and stop (`deploy.local`), or what a process means to the platform (`stream_launcher`).
"""

from __future__ import annotations

import http.client
import json
import os
import tempfile
import xmlrpc.client
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import Enum, StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Any

from crm_resources.settings import Settings

SHARED_GROUP = "shared-services"
"""Supervisor group of the services all data sets share; no data set can bear this name."""

OBJECT_STORE_GROUP = "object-store"
"""Group of the object store, which may be wanted later than the rest: adding it to theirs would start them all again."""

_LONGEST_SOCKET_PATH = 90
"""Bytes. The kernel takes 107; the supervisor appends its process id while it makes the socket."""

_ALREADY_STARTED, _NOT_RUNNING, _BAD_NAME, _SHUTDOWN_STATE = 60, 70, 10, 6


class ProcessState(StrEnum):
    """States of a supervised process, in the supervisor's own words."""

    STOPPED = "STOPPED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    BACKOFF = "BACKOFF"
    STOPPING = "STOPPING"
    EXITED = "EXITED"
    FATAL = "FATAL"
    UNKNOWN = "UNKNOWN"

    @property
    def is_up(self) -> bool:
        """Whether a process exists now that is meant to stay."""
        return self in {ProcessState.RUNNING, ProcessState.STARTING}


class Service(Enum):
    """Programs the supervisor may run. The value is the name in its configuration and in `make logs`."""

    KAFKA = "kafka"
    POSTGRES = "postgres"
    MINIO = "minio"
    CODE_SERVER = "code-server"
    WEBSERVER = "webserver"
    DAEMON = "daemon"
    STREAM = "stream"

    @property
    def is_shared(self) -> bool:
        """Whether one process serves all data sets."""
        return self in {Service.KAFKA, Service.POSTGRES, Service.MINIO}

    def group(self, environment: str) -> str:
        """Supervisor group the program belongs to."""
        if self is Service.MINIO:
            return OBJECT_STORE_GROUP
        return SHARED_GROUP if self.is_shared else environment

    def address(self, environment: str) -> str:
        """`group:name`, as the supervisor wants it."""
        return f"{self.group(environment)}:{self.value}"

    def log_file(self, settings: Settings) -> Path:
        """Where its output goes."""
        return (settings.home if self.is_shared else settings.environment_dir) / "logs" / f"{self.value}.log"


class SupervisorError(RuntimeError):
    """The supervisor did not answer, or refused; the message says what to do."""


@dataclass(frozen=True)
class ProcessInfo:
    """What the supervisor says about one process. `pid` is 0 when there is none; times are UTC."""

    group: str
    name: str
    state: ProcessState
    pid: int
    started: datetime | None
    stopped: datetime | None
    exit_status: int
    note: str


@dataclass(frozen=True)
class Start:
    """One start of a program: the process, when the kernel made it (seconds since 1970), and its supervisor."""

    pid: int
    created: float
    supervisor_pid: int
    at: float


class Supervisor:
    """The supervisor of one home. Cheap to make; each call opens its own connection.

    Args:
        settings: names the home whose supervisor is meant.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.socket = socket_path(settings.home)

    def pid(self) -> int | None:
        """Process id of the supervisor, None when none answers."""
        try:
            with self._rpc() as rpc:
                return int(rpc.supervisor.getPID())
        except SupervisorError:
            return None

    def processes(self) -> list[ProcessInfo]:
        """All processes it knows, of all data sets.

        Raises:
            SupervisorError: it does not answer.
        """
        with self._rpc() as rpc:
            return [_info(entry) for entry in rpc.supervisor.getAllProcessInfo()]

    def process(self, service: Service) -> ProcessInfo | None:
        """One process of the settings' data set; None when the supervisor does not know it.

        Raises:
            SupervisorError: it does not answer.
        """
        with self._rpc() as rpc:
            try:
                return _info(rpc.supervisor.getProcessInfo(service.address(self._settings.env)))
            except xmlrpc.client.Fault as fault:
                if fault.faultCode == _BAD_NAME:
                    return None
                raise

    def start(self, service: Service) -> None:
        """Ask for a start and return at once; a running process is left alone.

        Raises:
            SupervisorError: it does not answer or does not know the service.
        """
        self._tell("startProcess", service.address(self._settings.env), _ALREADY_STARTED)

    def stop(self, service: Service) -> None:
        """Ask for a stop and return at once; the supervisor waits for the process as its configuration says.

        Raises:
            SupervisorError: it does not answer or does not know the service.
        """
        self.stop_address(service.address(self._settings.env))

    def stop_address(self, address: str) -> None:
        """As `stop`, for any `group:name`."""
        self._tell("stopProcess", address, _NOT_RUNNING)

    def reload(self) -> tuple[list[str], list[str], list[str]]:
        """Have it read its configuration; returns groups that are new, changed and gone. Nothing is started or stopped.

        Raises:
            SupervisorError: it does not answer or the configuration is wrong.
        """
        with self._rpc() as rpc:
            added, changed, removed = rpc.supervisor.reloadConfig()[0]
            return list(added), list(changed), list(removed)

    def add_group(self, group: str) -> None:
        """Take up a group of the configuration that was read last; its programs start as they say themselves."""
        with self._rpc() as rpc:
            rpc.supervisor.addProcessGroup(group)

    def remove_group(self, group: str) -> None:
        """Forget a group whose processes have stopped."""
        with self._rpc() as rpc:
            rpc.supervisor.removeProcessGroup(group)

    def shutdown(self) -> None:
        """Have it stop every process, then itself; returns at once."""
        with self._rpc() as rpc:
            try:
                rpc.supervisor.shutdown()
            except xmlrpc.client.Fault as fault:
                if fault.faultCode != _SHUTDOWN_STATE:
                    raise

    def _tell(self, method: str, address: str, fine: int) -> None:
        with self._rpc() as rpc:
            try:
                getattr(rpc.supervisor, method)(address, False)
            except xmlrpc.client.Fault as fault:
                if fault.faultCode != fine:
                    raise SupervisorError(f"the supervisor refused {method} for {address}: {fault.faultString}") from fault

    @contextmanager
    def _rpc(self) -> Iterator[Any]:
        from supervisor.xmlrpc import SupervisorTransport

        transport = SupervisorTransport(None, None, f"unix://{self.socket}")
        try:
            # The host is never looked up: the transport speaks to the socket.
            with xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport) as proxy:
                yield proxy
        except xmlrpc.client.Fault as fault:
            raise SupervisorError(f"the supervisor refused: {fault.faultString}; see {self._settings.home / 'supervisor'}") from fault
        except (OSError, http.client.HTTPException, xmlrpc.client.ProtocolError) as error:
            raise SupervisorError(f"no supervisor answers at {self.socket} ({error}); start the stack with `make up`") from error


def socket_path(home: Path) -> Path:
    """Where the supervisor of a home listens: below the home, or in a private folder when that path is too long.

    The kernel limits the path of a socket to 107 bytes.
    """
    direct = home / "supervisor" / "supervisor.sock"
    if len(os.fsencode(direct)) <= _LONGEST_SOCKET_PATH:
        return direct
    chosen = _recorded_socket(home)
    if chosen is not None:
        return chosen
    digest = sha256(os.fsencode(home)).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"crm-{os.getuid()}-{digest}" / "supervisor.sock"


def record_start(settings: Settings, service: Service) -> None:
    """Note that this very process is about to become the service. Called by the launcher before it does."""
    import psutil

    me = psutil.Process()
    path = starts_file(settings, service)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as out:
        out.write(json.dumps(asdict(Start(me.pid, me.create_time(), me.ppid(), datetime.now(UTC).timestamp()))) + "\n")


def starts(settings: Settings, service: Service) -> list[Start]:
    """Starts of the service since `make up` last gave it a fresh count, oldest first."""
    path = starts_file(settings, service)
    return read_starts(path) if path.exists() else []


def read_starts(path: Path) -> list[Start]:
    """Starts noted in a file; a line that is being written is left out."""
    return [Start(**json.loads(line)) for line in path.read_text().splitlines() if line.endswith("}")]


def starts_file(settings: Settings, service: Service) -> Path:
    """Where starts of the service are noted."""
    return settings.home / "supervisor" / "starts" / f"{service.group(settings.env)}.{service.value}.jsonl"


def _recorded_socket(home: Path) -> Path | None:
    from dotenv import dotenv_values

    path = home / "stack.env"
    value = dotenv_values(path).get("CRM_SUPERVISOR_SOCKET") if path.exists() else None
    return Path(value) if value else None


def _info(entry: dict[str, Any]) -> ProcessInfo:
    def moment(key: str) -> datetime | None:
        return datetime.fromtimestamp(entry[key], UTC) if entry[key] else None

    return ProcessInfo(
        group=entry["group"],
        name=entry["name"],
        state=ProcessState(entry["statename"]),
        pid=entry["pid"],
        started=moment("start"),
        stopped=moment("stop"),
        exit_status=entry["exitstatus"],
        note=entry["spawnerr"] or entry["description"],
    )
