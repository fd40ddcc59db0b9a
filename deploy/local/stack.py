"""The embedded stack as a whole: up, down, status. The order of things, and waiting until each answers.

Belongs here: what must be there before what. Not here: any service's own configuration (`kafka`, `postgres`, `dagster`,
`supervisord`), or how it is shown (`__main__`).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import SecretStr

from crm_resources import object_store
from crm_resources.contracts.derive_files import fingerprint
from crm_resources.contracts.evolution import SchemaRefused
from crm_resources.settings import Settings
from crm_resources.stream_launcher import SupervisedStream
from crm_resources.supervisor import (
    OBJECT_STORE_GROUP,
    SHARED_GROUP,
    ProcessInfo,
    ProcessState,
    Service,
    Supervisor,
    SupervisorError,
    read_starts,
    socket_path,
    starts_file,
)
from crm_resources.waiting import PATIENCE_SECONDS, ProcessLife, wait_for
from deploy.local import dagster, jars, kafka, lake_choice, leftovers, minio, ports, postgres, preflight, run, secret_files, supervisord
from deploy.local.errors import StackError
from deploy.local.lake_choice import LakeKind
from deploy.local.ports import LOOPBACK, Choice, Port
from deploy.local.reporter import Reporter

RESERVED = frozenset({"jars", "kafka", "logs", "minio", "postgres", "reports", "secrets", "supervisor", "tools"})
"""Folders below the home that are not data sets."""

SHARED_PORTS = (Port.KAFKA, Port.KAFKA_CONTROLLER, Port.POSTGRES)
OBJECT_STORE_PORTS = (Port.MINIO,)
ENVIRONMENT_PORTS = (Port.WEBSERVER, Port.CODE_SERVER)
_ODD_CHARACTERS = frozenset("%\"';\n")
"""The supervisor's configuration cannot hold them in a path, at least not in every place."""

_LISTENERS = {
    Port.KAFKA: Service.KAFKA,
    Port.KAFKA_CONTROLLER: Service.KAFKA,
    Port.POSTGRES: Service.POSTGRES,
    Port.MINIO: Service.MINIO,
    Port.WEBSERVER: Service.WEBSERVER,
    Port.CODE_SERVER: Service.CODE_SERVER,
}
ENVIRONMENT_SERVICES = (Service.CODE_SERVER, Service.WEBSERVER, Service.DAEMON, Service.STREAM)

STOP_PATIENCE_SECONDS = PATIENCE_SECONDS + max(program.stop_seconds for program in supervisord.PROGRAMS.values())
"""How long no further process may end while services stop: the supervisor kills each after its own limit, so there is always a next one."""

_SECRET_ENDINGS = ("_DSN", "_PASSWORD", "_SECRET", "_TOKEN", "_KEY", "_STORAGE", "_WEBHOOK_URL")
_OWN_VARIABLES = {
    "CRM_HOME",
    "CRM_ENV",
    "CRM_JARS_DIR",
    "CRM_KAFKA_BOOTSTRAP",
    "CRM_DEMO_STARTED",
    "CRM_SUPERVISOR_SOCKET",
    "CRM_CONTRACTS",
    run.MARK,
    *Port,
    # Kept in files, where the processes find them; a variable would go on counting after the file has changed.
    "CRM_LAKE_URI",
    "CRM_MINIO_BIN",
    *(f"CRM_{name.upper()}" for name in Settings.model_fields if name.startswith("s3_")),
}


@dataclass(frozen=True)
class UpResult:
    """What is up after `Stack.up`.

    Attributes:
        kafka: bootstrap address.
        postgres: host, port and database, without any secret; None when only the server is there.
        lake: root of the data set's lake.
        webserver: URL of the Dagster UI, None when no data set was asked for.
        started: services that were not running before; empty when there was nothing to do.
        moved: ports that had to give way to somebody else.
    """

    kafka: str
    postgres: str
    lake: str
    webserver: str | None
    started: tuple[str, ...]
    moved: tuple[Choice, ...]


@dataclass(frozen=True)
class ServiceStatus:
    """One service as `make status` shows it.

    Attributes:
        group: `shared-services`, or the data set.
        service: which one.
        state: the supervisor's word.
        pid: process id, None when there is none.
        uptime_seconds: since its last start, None when it does not run.
        port: where it listens, None when nowhere.
        memory_mib: resident memory of the process and all below it.
        restarts: how often it was started again.
        note: the supervisor's remark, such as an exit code.
        log: its log file.
    """

    group: str
    service: Service
    state: ProcessState
    pid: int | None
    uptime_seconds: float | None
    port: int | None
    memory_mib: float
    restarts: int
    note: str
    log: Path


class Stack:
    """The stack of one home, with the data set of the settings.

    As a context manager it is up inside the block and down after it.

    Args:
        settings: home and data set.
        reporter: told what happens.
        environ: variables that are handed on to the data set's processes; this process's own when omitted.
        java: the Java program.
        lake: what the data set's lake shall stand on; what it stood on before when omitted, else the local disk.
    """

    def __init__(
        self,
        settings: Settings,
        reporter: Reporter | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        java: str = "java",
        lake: LakeKind | None = None,
    ) -> None:
        self.settings = settings
        self._say = reporter or Reporter()
        self._environ = dict(os.environ if environ is None else environ)
        self._java = java
        self._lake = lake
        self._supervisor = Supervisor(settings)
        self._started: list[str] = []
        self._moved: list[Choice] = []

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.down()

    def up(self, environment: bool = True) -> UpResult:
        """Bring up what is not up; leave alone what is.

        Args:
            environment: also the data set's own services (Dagster, and the stream when it was running); else only Kafka
                and PostgreSQL.

        Raises:
            StackError: something is missing on this machine, or a service does not come up.
        """
        if self.settings.env in RESERVED:
            raise StackError(f"CRM_ENV={self.settings.env} is the name of a folder of the stack itself", "choose another name")
        odd = sorted(set(str(self.settings.home) + str(self.settings.jars_root)) & _ODD_CHARACTERS)
        if odd:
            raise StackError(f"the folder {self.settings.home} has {' '.join(odd)} in its path", "choose another with CRM_HOME")
        self._started, self._moved = [], []
        preflight.demand(preflight.check_java(self._java), preflight.check_disk(self.settings.home))
        self.settings.home.mkdir(parents=True, exist_ok=True)
        with self._alone():
            kind = self._choose_lake()
            self._fetch_jars(object_store=kind is not LakeKind.DISK)
            if kind is LakeKind.MINIO:
                self._build_minio()
            self._shared_up()
            if kind is LakeKind.MINIO:
                self._object_store_up()
            # What the shared services wrote down is part of the settings from here on.
            taken = {"kafka_bootstrap": kafka.bootstrap(self._numbers()[Port.KAFKA]), "postgres_port": self._numbers()[Port.POSTGRES]}
            self.settings = self.settings.model_copy(update=taken)
            if environment:
                self._start_environment()
            # Kafka takes longest of the shared services; nothing before this line needs it.
            self._await(Service.KAFKA, lambda: kafka.answers(self._numbers()[Port.KAFKA]), "Kafka")
            if environment:
                self._await_environment()
        return UpResult(
            kafka=kafka.bootstrap(self._numbers()[Port.KAFKA]),
            postgres=self._postgres_place(),
            lake=self.settings.lake_root,
            webserver=self._webserver_url() if environment else None,
            started=tuple(self._started),
            moved=tuple(self._moved),
        )

    def urls(self) -> dict[str, str]:
        """Where a person finds what is up, by name; no secrets."""
        return {
            "Dagster": self._webserver_url(),
            "Kafka": kafka.bootstrap(self._numbers()[Port.KAFKA]),
            "PostgreSQL": f"{self._postgres_place()}/{self.settings.database} (`make psql`)",
        }

    def down(self, *, only_environment: bool = False) -> bool:
        """Stop everything, the stream after its batch; returns whether anything was running.

        Args:
            only_environment: stop only this data set's services.

        Raises:
            StackError: something did not stop in time.
        """
        if not self.settings.home.exists():
            return False
        with self._alone():
            if only_environment:
                return self._environment_down()
            supervisor_pid = self._supervisor.pid()
            if supervisor_pid is not None:
                self._stop_supervisor(supervisor_pid)
            ran = bool(leftovers.stop(self.settings)) or supervisor_pid is not None
            supervisord.remove_socket(self.settings)
            return ran

    def status(self) -> list[ServiceStatus]:
        """Every service of every data set that is up; empty when the stack is down."""
        try:
            processes = self._supervisor.processes()
        except SupervisorError:
            return []
        first = (SHARED_GROUP, OBJECT_STORE_GROUP)
        return [self._status_of(i) for i in sorted(processes, key=lambda i: (first.index(i.group) if i.group in first else 2, i.group))]

    def web_ui(self) -> str:
        """Address of the data set's web UI.

        Raises:
            StackError: it does not run, or does not answer yet.
        """
        env = self.settings.env
        if not serves_web_ui(self.status(), env):
            raise StackError(f"the web UI of data set {env} does not run", "start it with `make up`")
        if not dagster.webserver_answers(self._numbers()[Port.WEBSERVER]):
            raise StackError(f"the web UI of data set {env} does not answer yet", "try again, or see `make logs SERVICE=webserver`")
        return self._webserver_url()

    # -- steps of up --------------------------------------------------------------------------------------------------

    def _choose_lake(self) -> LakeKind:
        """Settle where the lake is, and that it can be reached, before anything is touched; a lake on MinIO is reached later."""
        minio_uri = f"s3://{minio.BUCKET}/{self.settings.env}"
        choice = lake_choice.choose(
            self.settings.env,
            wish=self._lake,
            uri=lake_choice.process_wish(self._environ),
            recorded=lake_choice.read_choice(self.settings),
            holds_local_data=lake_choice.holds_local_data(self.settings),
            minio_uri=minio_uri,
        )
        self.settings = self.settings.model_copy(update={"lake_uri": choice.uri})
        if choice.kind is LakeKind.S3:
            try:
                object_store.demand_safe(object_store.ObjectStore(self.settings, attempts=1))
            except object_store.ObjectStoreError as error:
                raise StackError(str(error)) from error
        if choice.kind is LakeKind.S3 or (choice.kind is LakeKind.DISK and choice.uri is not None):
            lake_choice.record(self.settings, choice.kind)
        return choice.kind

    def _build_minio(self) -> None:
        if not minio.program(self.settings).is_file():
            self._say.note("MinIO is built once, from its pinned source; that takes two to four minutes")
        with self._say.long_step("making MinIO ready") as progress:
            minio.ensure_program(self.settings, progress=progress)

    def _object_store_up(self) -> None:
        """Bring MinIO up with its bucket, and write down that the data set's lake is there."""
        ports_file = minio.folder(self.settings) / "ports.env"
        minio.prepare(self.settings)
        number = self._take_ports(ports_file, OBJECT_STORE_PORTS)[Port.MINIO]
        ports.write_env(ports_file, {Port.MINIO.value: str(number)}, "Port of MinIO; written by the local stack.")
        environ = {"CRM_HOME": str(self.settings.home), "CRM_MINIO_BIN": str(minio.program(self.settings))}
        supervisord.write_group(self.settings, OBJECT_STORE_GROUP, (Service.MINIO,), environ)
        self._regroup(OBJECT_STORE_GROUP)
        self._start_absent((Service.MINIO,))
        self._await(Service.MINIO, lambda: minio.answers(number), "MinIO")
        reached = {
            "s3_endpoint": minio.endpoint(number),
            "s3_credentials_dir": minio.credentials_dir(self.settings),
            "s3_access_key": None,
            "s3_secret_key": None,
            "s3_path_style": True,
        }
        self.settings = self.settings.model_copy(update=reached)
        try:
            object_store.ObjectStore(self.settings).make_bucket()
        except object_store.ObjectStoreError as error:
            raise StackError(str(error), f"see {Service.MINIO.log_file(self.settings)}") from error
        lake_choice.record(self.settings, LakeKind.MINIO)

    def _fetch_jars(self, *, object_store: bool) -> None:
        lock = jars.needed(jars.read_lock(), object_store=object_store)
        with self._say.jars() as progress:
            fetched = jars.ensure(self.settings.jars_root, lock, java=self._java, progress=progress)
        if fetched:
            self._say.note(f"fetched {fetched} jars into {self.settings.jars_root}")

    def _shared_up(self) -> None:
        self._keep_secrets()
        services = (Service.KAFKA, Service.POSTGRES) if self._embeds_postgres else (Service.KAFKA,)
        environ = {"CRM_HOME": str(self.settings.home), "CRM_JARS_DIR": str(self.settings.jars_root)}
        fresh = self._supervisor.pid() is None
        if fresh:
            self._clear_the_past()
        numbers = self._take_ports(self._stack_file, SHARED_PORTS)
        with self._say.step("preparing the storage of Kafka and PostgreSQL") if fresh else nullcontext():
            kafka.prepare(self.settings, numbers, self._java)
            if self._embeds_postgres:
                postgres.prepare(self.settings, numbers[Port.POSTGRES])
        self._write_stack_file(numbers)
        supervisord.write_group(self.settings, SHARED_GROUP, services, environ)
        if fresh:
            plain = {key: value for key, value in self._environ.items() if not key.startswith(("CRM_", "DAGSTER_"))}
            supervisord.start(self.settings, socket_path(self.settings.home), plain)
            self._supervisor = Supervisor(self.settings)
            self._started += [service.value for service in services]
        else:
            self._regroup(SHARED_GROUP)
            self._start_absent(services)
        if self._embeds_postgres:
            dsn = postgres.server_dsn(self.settings, postgres.maintenance_database(self.settings), numbers[Port.POSTGRES])
            self._await(Service.POSTGRES, lambda: postgres.answers(dsn), "PostgreSQL")
            postgres.shorten_login(self.settings, dsn)
        else:
            silent = postgres.why_silent(postgres.server_dsn(self.settings, postgres.maintenance_database(self.settings)))
            if silent:
                raise StackError(f"the server of CRM_WAREHOUSE_DSN does not answer: {silent}", "correct the variable or start that server")

    def _start_environment(self) -> None:
        settings = self.settings
        numbers = self._take_ports(self._ports_file, ENVIRONMENT_PORTS)
        ports.write_env(
            self._ports_file,
            {**{p.value: str(n) for p, n in numbers.items()}, "CRM_WEBSERVER_URL": f"http://{LOOPBACK}:{numbers[Port.WEBSERVER]}"},
            f"Ports of data set {settings.env}; written by the local stack.",
        )
        maintenance = postgres.server_dsn(settings, postgres.maintenance_database(settings))
        fresh = postgres.ensure_database(maintenance, dagster.database(settings))
        if self._embeds_postgres:
            postgres.commit_without_waiting(maintenance, dagster.database(settings))
        postgres.ensure_database(maintenance, settings.database)
        self._prepare_warehouse()
        dagster.prepare(settings, numbers)
        environ = self._process_environment()
        supervisord.write_group(settings, settings.env, ENVIRONMENT_SERVICES, environ)
        if fresh:
            with self._say.step("making Dagster's tables"):
                dagster.make_storage(settings, run.environment_of(settings))
        self._regroup(settings.env)
        self._start_absent((Service.CODE_SERVER, Service.WEBSERVER, Service.DAEMON))

    def _await_environment(self) -> None:
        settings, numbers = self.settings, self._numbers()
        self._await(Service.CODE_SERVER, lambda: dagster.code_server_serves(numbers[Port.CODE_SERVER]), "the code server")
        self._await(Service.WEBSERVER, lambda: dagster.webserver_answers(numbers[Port.WEBSERVER]), "the Dagster webserver")
        self._await_definitions(numbers[Port.WEBSERVER])
        self._await(Service.DAEMON, lambda: self._is_running(Service.DAEMON), "the Dagster daemon")
        stream = SupervisedStream(settings)
        if stream.is_wanted and not self._is_up(Service.STREAM):
            stream.apply()
            self._started.append(Service.STREAM.value)

    def _prepare_warehouse(self) -> None:
        from crm_resources import warehouse

        with self._say.step(f"preparing database {self.settings.database}"):
            try:
                warehouse.prepare(self.settings)
            except SchemaRefused as error:
                raise StackError(f"the raw tables of {self.settings.database} were left as they are: {error}") from error

    def _await_definitions(self, webserver_port: int) -> None:
        """The code server serves although the code behind it cannot be imported; the webserver knows."""

        def settled() -> bool:
            return dagster.location(webserver_port)[0] is not dagster.LocationState.LOADING

        log = Service.CODE_SERVER.log_file(self.settings)

        def silent(why: str) -> StackError:
            return StackError(f"the code location is not loaded: {why}", f"see {log}, then `make up` again")

        signs = self._signs_of_life(Service.CODE_SERVER, Service.WEBSERVER)
        wait_for(settled, signs, silent, every_seconds=0.5)
        if dagster.location(webserver_port)[0] is dagster.LocationState.FAILED:
            # The code may have been mended since it was tried, or the webserver was quicker than the code server.
            dagster.reload_location(webserver_port)
            wait_for(settled, signs, silent, every_seconds=0.5)
        state, reason = dagster.location(webserver_port)
        if state is dagster.LocationState.FAILED:
            raise StackError(f"the code location {dagster.DEFINITIONS} does not load: {reason}", f"see {log}")

    def _regroup(self, group: str) -> None:
        """Have the supervisor take up a group that is new or has another configuration."""
        added, changed, _ = self._supervisor.reload()
        if group in changed:
            stream_ran = group == self.settings.env and self._is_up(Service.STREAM)
            self._say.note(f"the configuration of {group} has changed; its services start again")
            self._stop_group(group)
            self._supervisor.remove_group(group)
            if stream_ran:
                self._started.append(Service.STREAM.value)
        if group in (*added, *changed):
            self._supervisor.add_group(group)

    def _start_absent(self, services: Sequence[Service]) -> None:
        for service in services:
            if self._is_up(service):
                continue
            info = self._supervisor.process(service)
            if info is not None and info.state is ProcessState.BACKOFF:
                continue
            # Whoever says `up` wants a fresh try, whatever happened before.
            starts_file(self.settings, service).unlink(missing_ok=True)
            self._supervisor.start(service)
            self._started.append(service.value)

    def _await(self, service: Service, ready: Callable[[], bool], name: str) -> None:
        def ready_or_lost() -> bool:
            info = self._supervisor.process(service)
            if info is not None and info.state in {ProcessState.FATAL, ProcessState.EXITED, ProcessState.STOPPED}:
                raise StackError(f"{name} does not start; its log ends with:\n{log_tail(service.log_file(self.settings))}")
            if info is None or not info.state.is_up:
                return False
            port = self._port_of(service, self.settings)
            # Without a look at who listens, another stack's service on the same port would be taken for ours.
            return (port is None or ports.listens(info.pid, port)) and ready()

        def silent(why: str) -> StackError:
            return StackError(f"{name} does not answer: {why}", f"see {service.log_file(self.settings)}, then `make up` again")

        with self._say.step(f"starting {name}") if service.value in self._started else nullcontext():
            wait_for(ready_or_lost, self._signs_of_life(service), silent)

    def _signs_of_life(self, *services: Service) -> Callable[[], Hashable | None]:
        """What gives the sign of life of services: it changes while one of them works, and is None once one ends again and again."""
        lives = {service: ProcessLife() for service in services}

        def sign() -> Hashable | None:
            infos = {service: self._supervisor.process(service) for service in services}
            found = [(info.state if info else None, lives[service](info.pid if info else None)) for service, info in infos.items()]
            return None if any(life is None for _, life in found) else tuple(found)

        return sign

    def _clear_the_past(self) -> None:
        """Without a supervisor nobody keeps what may still run from an earlier one; two Kafkas on one folder would be a disaster."""
        ended = leftovers.stop(self.settings)
        if ended:
            self._say.note(f"the supervisor had been killed; stopped what it left: {', '.join(ended)}")
        for file in (supervisord.folder(self.settings) / "groups").glob("*.conf"):
            file.unlink()

    def _take_ports(self, file: Path, names: Sequence[Port]) -> dict[Port, int]:
        """Ports of what is up stay; the others are recorded ones that are free, or the next free ones."""
        wishes = ports.recorded(file, names)
        kept = {port: number for port, number in wishes.items() if self._is_up(_LISTENERS[port])}
        elsewhere = [path for path in (self._stack_file, *self.settings.home.glob("*/ports.env")) if path != file]
        reserved = {int(value) for path in elsewhere for value in ports.read_env(path).values() if value.isdigit()} | set(kept.values())
        absent = {port: number for port, number in wishes.items() if port not in kept}
        choices = ports.take(self.settings.home, absent, reserved)
        for choice in choices:
            if choice.moved and choice.wished not in reserved:
                self._say.note(f"port {choice.wished} is taken; {choice.port.value} is {choice.number}")
                self._moved.append(choice)
        return kept | {choice.port: choice.number for choice in choices}

    def _write_stack_file(self, numbers: Mapping[Port, int]) -> None:
        values = {port.value: str(number) for port, number in numbers.items()}
        values["CRM_KAFKA_BOOTSTRAP"] = kafka.bootstrap(numbers[Port.KAFKA])
        values["CRM_SUPERVISOR_SOCKET"] = str(socket_path(self.settings.home))
        ports.write_env(self._stack_file, values, "What the local stack took; written at each start.")

    def _keep_secrets(self) -> None:
        """Keep the secrets of the caller's environment for the services; the key of the pseudonyms is made up where none was ever given."""
        for variable, name in secret_files.KEPT.items():
            value: SecretStr | None = getattr(self.settings, variable.removeprefix("CRM_").lower())
            if value is not None:
                secret_files.write(self.settings.home, name, value.get_secret_value())
            elif name == secret_files.PSEUDONYM_KEY:
                secret_files.ensure(self.settings.home, name)
            else:
                secret_files.forget(self.settings.home, name)

    def _process_environment(self) -> dict[str, str]:
        """What the data set's processes are told: who they are, and the caller's own `CRM_*` wishes, without secrets."""
        wishes = {
            key: value
            for key, value in self._environ.items()
            if key.startswith("CRM_") and value and key not in _OWN_VARIABLES and not key.endswith(_SECRET_ENDINGS)
        }
        return {
            **wishes,
            "CRM_HOME": str(self.settings.home),
            "CRM_ENV": self.settings.env,
            "CRM_JARS_DIR": str(self.settings.jars_root),
            # Read by nobody: a group whose configuration changed is started anew, and its processes must know the contracts of today.
            "CRM_CONTRACTS": fingerprint(),
        }

    # -- steps of down ------------------------------------------------------------------------------------------------

    def _environment_down(self) -> bool:
        if self._supervisor.pid() is None or self.settings.env not in {info.group for info in self._supervisor.processes()}:
            return False
        self._stop_group(self.settings.env)
        self._supervisor.remove_group(self.settings.env)
        supervisord.group_file(self.settings, self.settings.env).unlink(missing_ok=True)
        return True

    def _stop_group(self, group: str) -> None:
        members = [info for info in self._supervisor.processes() if info.group == group]
        with self._say.step(f"stopping {group}"):
            for info in members:
                self._supervisor.stop_address(f"{group}:{info.name}")
            left = partial(self._pids_of, group)
            wait_for(
                lambda: not left(),
                left,
                lambda why: StackError(f"services of {group} do not stop: {why}", "see `make status`"),
                patience_seconds=STOP_PATIENCE_SECONDS,
            )

    def _pids_of(self, group: str) -> tuple[int, ...]:
        return tuple(info.pid for info in self._supervisor.processes() if info.group == group and info.pid)

    def _stop_supervisor(self, pid: int) -> None:
        import psutil

        try:
            process = psutil.Process(pid)
        except psutil.NoSuchProcess:
            return
        with self._say.step("stopping every service"):
            # An answer may be lost when it goes down at once; whether it ended is seen below.
            with suppress(SupervisorError):
                self._supervisor.shutdown()
            log = supervisord.folder(self.settings) / "supervisord.log"

            def left() -> tuple[int, ...]:
                with suppress(psutil.NoSuchProcess):
                    return tuple(child.pid for child in process.children())
                return ()

            wait_for(
                lambda: not psutil.wait_procs([process], timeout=0)[1],
                left,
                lambda why: StackError(f"the stack does not stop: {why}", f"see {log}, then `make down` again"),
                patience_seconds=STOP_PATIENCE_SECONDS,
            )

    # -- small questions ----------------------------------------------------------------------------------------------

    def _is_up(self, service: Service) -> bool:
        try:
            info = self._supervisor.process(service)
        except SupervisorError:
            return False
        return info is not None and info.state.is_up

    def _is_running(self, service: Service) -> bool:
        info = self._supervisor.process(service)
        return info is not None and info.state is ProcessState.RUNNING

    def _status_of(self, info: ProcessInfo) -> ServiceStatus:
        service = Service(info.name)
        shared = (SHARED_GROUP, OBJECT_STORE_GROUP, self.settings.env)
        settings = self.settings if info.group in shared else self.settings.model_copy(update={"env": info.group})
        file = starts_file(settings, service)
        up = info.state.is_up and info.started is not None
        return ServiceStatus(
            group=info.group,
            service=service,
            state=info.state,
            pid=info.pid or None,
            uptime_seconds=(datetime.now(UTC) - info.started).total_seconds() if up and info.started else None,
            port=self._port_of(service, settings),
            memory_mib=memory_mib(info.pid) if info.pid else 0.0,
            restarts=max(0, len(read_starts(file)) - 1) if file.exists() else 0,
            note=info.note,
            log=service.log_file(settings),
        )

    def _numbers(self) -> dict[Port, int]:
        return ports.recorded(self._stack_file, SHARED_PORTS) | ports.recorded(self._ports_file, ENVIRONMENT_PORTS)

    def _webserver_url(self) -> str:
        return f"http://{LOOPBACK}:{self._numbers()[Port.WEBSERVER]}"

    def _postgres_place(self) -> str:
        return f"{LOOPBACK}:{self._numbers()[Port.POSTGRES]}" if self._embeds_postgres else "the server of CRM_WAREHOUSE_DSN"

    def _port_of(self, service: Service, settings: Settings) -> int | None:
        shared = ports.recorded(self._stack_file, SHARED_PORTS)
        own = ports.recorded(settings.environment_dir / "ports.env", ENVIRONMENT_PORTS)
        numbers = {
            Service.KAFKA: shared[Port.KAFKA],
            Service.POSTGRES: shared[Port.POSTGRES],
            Service.MINIO: ports.recorded(minio.folder(settings) / "ports.env", OBJECT_STORE_PORTS)[Port.MINIO],
            Service.WEBSERVER: own[Port.WEBSERVER],
            Service.CODE_SERVER: own[Port.CODE_SERVER],
        }
        return numbers.get(service)

    @property
    def _embeds_postgres(self) -> bool:
        return self.settings.warehouse_dsn is None

    @property
    def _stack_file(self) -> Path:
        return self.settings.home / "stack.env"

    @property
    def _ports_file(self) -> Path:
        return self.settings.environment_dir / "ports.env"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One `up` or `down` of a home at a time; a second one waits."""
        with (self.settings.home / ".lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._say.note("another command is starting or stopping this stack; waiting for it")
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def memory_mib(pid: int) -> float:
    """Resident memory of a process and all below it, in MiB; 0 when it is gone."""
    import psutil

    total = 0
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    for member in family:
        with suppress(psutil.NoSuchProcess):
            total += member.memory_info().rss
    return round(total / 2**20, 1)


def serves_web_ui(services: Sequence[ServiceStatus], environment: str) -> bool:
    """Whether the webserver of a data set runs.

    Args:
        services: those of every data set that is up.
        environment: the data set.
    """
    running = {service.group for service in services if service.service is Service.WEBSERVER and service.state is ProcessState.RUNNING}
    return environment in running


def has_screen(environ: Mapping[str, str]) -> bool:
    """Whether a browser would have a screen. Without one, a browser for the terminal would take the terminal over.

    Args:
        environ: variables of the process; `BROWSER` names a program of the user's own choice.
    """
    return any(environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))


def log_tail(path: Path, lines: int = 15) -> str:
    """Last lines of a log, indented for the reader."""
    if not path.exists():
        return f"    ({path} does not exist)"
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - 32_768))
        text = log.read().decode(errors="replace")
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:])
