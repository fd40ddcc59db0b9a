"""The embedded stack keeps its promises: nothing lost, nothing left running, faults mended or told."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from crm_resources.settings import REPOSITORY, Settings, load_settings
from crm_resources.stream_launcher import StreamState, SupervisedStream
from crm_resources.supervisor import SHARED_GROUP, ProcessState, Service, Supervisor
from deploy.local import dagster, jars, kafka, leftovers, postgres
from deploy.local.errors import StackError
from deploy.local.ports import LOOPBACK, Port, write_env
from deploy.local.stack import Stack
from tests.driver_process import wait_until


@pytest.fixture
def environ(stack_environ: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """As the session's, with a home of this test's own."""
    return {**stack_environ, "CRM_HOME": str(tmp_path / "home")}


@pytest.fixture
def own(environ: dict[str, str]) -> Iterator[Stack]:
    """A stack of this test's own, not yet up."""
    stack = Stack(load_settings(environ), environ=environ)
    try:
        yield stack
    finally:
        stack.down()


def command(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy.local", *arguments],
        env={**environ, "COLUMNS": "200"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


def pid_of(settings: Settings, service: Service) -> int:
    info = Supervisor(settings).process(service)
    assert info is not None
    return info.pid


def is_gone(pid: int) -> bool:
    import psutil

    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def query(settings: Settings, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
    from adbc_driver_postgresql import dbapi

    with dbapi.connect(postgres.server_dsn(settings, database), autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall()) if cursor.description else []


def put_record(settings: Settings, value: bytes) -> None:
    from confluent_kafka import Producer
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": settings.kafka_bootstrap})
    admin.create_topics([NewTopic("kept", 1, 1)])["kept"].result(30)
    producer = Producer({"bootstrap.servers": settings.kafka_bootstrap, "acks": "all"})
    producer.produce("kept", value)
    assert producer.flush(30) == 0


def first_record(settings: Settings) -> bytes | None:
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": settings.kafka_bootstrap, "group.id": "reader", "enable.auto.commit": False})
    consumer.assign([TopicPartition("kept", 0, 0)])
    try:
        message = consumer.poll(30)
        return message.value() if message is not None and message.error() is None else None
    finally:
        consumer.close()


def test_down_and_up_lose_nothing_and_down_leaves_nothing_running(own: Stack):
    own.up(environment=False)
    put_record(own.settings, b"still there")
    query(own.settings, "create table kept as select 42 as answer")
    ports_before = own.urls()

    assert own.down()

    assert leftovers.find(own.settings) == []
    assert own.status() == []
    assert not own.down()
    own.up(environment=False)
    assert own.urls() == ports_before
    assert first_record(own.settings) == b"still there"
    assert query(own.settings, "select answer from kept") == [(42,)]


def test_up_twice_is_a_no_op(stack_services: Stack):
    before = processes(stack_services)

    result = stack_services.up(environment=False)

    assert result.started == ()
    assert processes(stack_services) == before


def test_the_command_says_when_there_is_nothing_to_do(stack_services: Stack, stack_environ: dict[str, str]):
    done = command(stack_environ, "up", "--services-only")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing to do" in done.stdout
    assert stack_services.urls()["Kafka"] in done.stdout


def test_a_killed_service_comes_back_and_the_restart_is_counted(own: Stack):
    own.up(environment=False)
    settings = own.settings
    before = {service: pid_of(settings, service) for service in (Service.KAFKA, Service.POSTGRES)}

    for pid in before.values():
        os.kill(pid, signal.SIGKILL)

    dsn = postgres.server_dsn(settings, "postgres")
    port = int(settings.kafka_bootstrap.rpartition(":")[2])
    answers = {Service.KAFKA: lambda: kafka.answers(port), Service.POSTGRES: lambda: postgres.answers(dsn)}
    for service, pid in before.items():
        back = partial(lambda service, pid: pid_of(settings, service) not in {0, pid} and answers[service](), service, pid)
        wait_until(back, f"{service.value} comes back")
    # PostgreSQL may need a second try: it waits for the last of its old processes to go.
    assert all(status.restarts >= 1 for status in own.status())


def test_a_service_that_cannot_start_is_given_up_and_told_with_its_log(own: Stack, environ: dict[str, str]):
    own.up(environment=False)
    broken = kafka.folder(own.settings) / "server.properties"
    broken.write_text(broken.read_text().replace("process.roles=broker,controller", "process.roles=nonsense"))
    os.kill(pid_of(own.settings, Service.KAFKA), signal.SIGKILL)

    def given_up() -> bool:
        info = Supervisor(own.settings).process(Service.KAFKA)
        return info is not None and info.state is ProcessState.FATAL

    wait_until(given_up, "the supervisor gives up", 240)
    told = command(environ, "status")
    assert told.returncode == 1
    assert "FATAL" in told.stdout
    assert "nonsense" in told.stdout, "the reason stands in the last lines of the log"
    assert "Traceback" not in told.stdout + told.stderr

    assert "kafka" in own.up(environment=False).started, "`up` writes the configuration anew and tries again"


def test_a_taken_port_gives_way_to_the_next_free_one(own: Stack):
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        listener.listen()
        taken = listener.getsockname()[1]
        write_env(own.settings.home / "stack.env", {Port.POSTGRES.value: str(taken)}, "as if it had been ours before")

        result = own.up(environment=False)

    moved = {choice.port: choice for choice in result.moved}
    assert moved[Port.POSTGRES].wished == taken
    assert moved[Port.POSTGRES].number > taken
    assert own.settings.postgres_port == moved[Port.POSTGRES].number
    assert query(own.settings, "select 1") == [(1,)]


def test_what_a_killed_supervisor_left_behind_is_stopped_before_a_new_start(own: Stack):
    own.up(environment=False)
    put_record(own.settings, b"survives")
    supervisor = Supervisor(own.settings).pid()
    orphans = {pid_of(own.settings, service) for service in (Service.KAFKA, Service.POSTGRES)}
    assert supervisor is not None
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: is_gone(supervisor), "the supervisor dies")
    assert orphans <= {process.pid for process in leftovers.find(own.settings)}

    result = own.up(environment=False)

    assert set(result.started) == {"kafka", "postgres"}
    assert all(is_gone(pid) for pid in orphans)
    assert first_record(own.settings) == b"survives"


def test_a_given_server_replaces_the_embedded_one(stack_services: Stack, environ: dict[str, str]):
    dsn = postgres.server_dsn(stack_services.settings, "postgres")
    own = Stack(load_settings({**environ, "CRM_WAREHOUSE_DSN": dsn}), environ=environ)
    try:
        own.up(environment=False)
        assert [status.service for status in own.status()] == [Service.KAFKA]
        password = dsn.split("@")[0].rpartition(":")[2]
        assert not [path for path in (own.settings.home / "supervisor").rglob("*.conf") if password in path.read_text()]
    finally:
        own.down()


def test_a_server_that_does_not_answer_is_told_without_its_password(environ: dict[str, str]):
    silent = {**environ, "CRM_WAREHOUSE_DSN": "postgresql://u:hidden-word@127.0.0.1:1/x"}
    try:
        done = command(silent, "up")
    finally:
        command(silent, "down")

    assert done.returncode == 1
    assert "CRM_WAREHOUSE_DSN" in done.stdout
    assert "hidden-word" not in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.fixture
def broken_jars(environ: dict[str, str], jars_dir: Path, tmp_path: Path) -> dict[str, str]:
    """The fetched jars, one of them half downloaded, and a mirror that has nothing."""
    folder = tmp_path / "jars"
    for group, locked in jars.read_lock().items():
        (folder / group).mkdir(parents=True)
        for jar in locked:
            (folder / group / jar.file).symlink_to(jars_dir / group / jar.file)
    victim = folder / "spark" / jars.read_lock()["spark"][0].file
    content = victim.read_bytes()
    victim.unlink()
    victim.write_bytes(content[: len(content) // 2])
    mirror = tmp_path / "ivysettings.xml"
    mirror.write_text(
        '<ivysettings><settings defaultResolver="none"/><resolvers><filesystem name="none">'
        f'<artifact pattern="{tmp_path}/empty/[artifact].[ext]"/></filesystem></resolvers></ivysettings>'
    )
    return {**environ, "CRM_JARS_DIR": str(folder), "CRM_IVY_SETTINGS": str(mirror)}


def test_a_half_downloaded_jar_is_found(broken_jars: dict[str, str]):
    done = command(broken_jars, "doctor")

    assert done.returncode == 1
    assert f"{jars.read_lock()['spark'][0].file} is damaged" in done.stdout
    assert "make up" in done.stdout


def test_a_jar_that_cannot_be_fetched_is_named_on_one_line(broken_jars: dict[str, str]):
    done = command(broken_jars, "up")

    assert done.returncode == 1
    jar = jars.read_lock()["spark"][0]
    assert f"{jar.organisation}#{jar.module};{jar.revision}" in done.stdout
    assert "check the network" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_too_old_a_java_is_told_with_the_remedy(environ: dict[str, str], tmp_path: Path):
    old = tmp_path / "bin" / "java"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho 'openjdk version \"11.0.22\" 2024-01-16' >&2\n")
    old.chmod(0o755)

    done = command({**environ, "PATH": f"{old.parent}{os.pathsep}{environ['PATH']}"}, "up")

    assert done.returncode == 1
    assert f"{old} is Java 11" in done.stdout
    assert "install Java 17" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_wrong_setting_is_told_by_its_name(environ: dict[str, str]):
    done = command({**environ, "CRM_SPARK_CORES": "many"}, "up")

    assert done.returncode == 1
    assert "CRM_SPARK_CORES" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@dataclass(frozen=True)
class Beside:
    """A data set that came up beside the session's: what it started, and every service's process before and after."""

    stack: Stack
    started: tuple[str, ...]
    before: dict[tuple[str, Service], int | None]
    after: dict[tuple[str, Service], int | None]


def processes(stack: Stack) -> dict[tuple[str, Service], int | None]:
    return {(status.group, status.service): status.pid for status in stack.status()}


@pytest.fixture(scope="module")
def second(stack: Stack, stack_environ: dict[str, str]) -> Iterator[Beside]:
    """The session's stack with another data set up as well."""
    environ = {**stack_environ, "CRM_ENV": "second"}
    own = Stack(load_settings(environ), environ=environ)
    before = processes(stack)
    try:
        result = own.up()
        yield Beside(own, result.started, before, processes(stack))
    finally:
        own.down(only_environment=True)
    assert "second" not in {status.group for status in stack.status()}


def test_another_data_set_comes_up_beside_the_first_and_leaves_it_alone(stack: Stack, second: Beside):
    assert set(second.started) == {"code-server", "webserver", "daemon"}
    assert second.before.items() <= second.after.items()
    assert second.stack.urls()["Dagster"] != stack.urls()["Dagster"]
    assert query(stack.settings, "select count(*) from pg_database where datname in ('crm_second', 'dagster_second')") == [(2,)]


def test_a_data_set_is_up_with_its_definitions_loaded_and_its_stream_waiting(second: Beside):
    services = [status for status in second.stack.status() if status.group in {"second", SHARED_GROUP}]
    states = {status.service: status.state for status in services}

    assert states.pop(Service.STREAM) is ProcessState.STOPPED, "only its asset starts the stream"
    assert set(states) == set(Service) - {Service.STREAM, Service.MINIO}, "this lake is on the local disk"
    assert set(states.values()) == {ProcessState.RUNNING}
    webserver = next(status.port for status in services if status.service is Service.WEBSERVER)
    assert webserver is not None
    assert dagster.location(webserver) == (dagster.LocationState.LOADED, "")


def test_the_stream_is_started_adopted_and_drained(second: Beside):
    stream = SupervisedStream(second.stack.settings)
    started = stream.apply()
    try:
        assert started.pid is not None
        assert stream.apply().pid == started.pid, "a second apply adopts what runs"
        assert stream.is_wanted
    finally:
        stopped = stream.stop()
    assert stopped.state is StreamState.STOPPED
    assert not stream.is_wanted
    assert is_gone(started.pid)


def test_a_stack_that_is_down_says_so(environ: dict[str, str]):
    done = command(environ, "status")

    assert done.returncode == 0
    assert "make up" in done.stdout


def test_nothing_is_deleted_without_being_asked_twice(own: Stack, environ: dict[str, str]):
    own.up(environment=False)

    refused = command(environ, "clean")

    assert refused.returncode == 1
    assert "for good" in refused.stdout
    assert own.status(), "the stack still runs"
    done = command(environ, "clean", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(own.settings.home.iterdir()) == []


def test_a_data_set_with_the_name_of_a_folder_is_refused(environ: dict[str, str]):
    with pytest.raises(StackError, match="choose another name"):
        Stack(load_settings({**environ, "CRM_ENV": "kafka"})).up()
