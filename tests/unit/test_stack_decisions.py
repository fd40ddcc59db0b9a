"""What the local stack decides without any service: ports, versions, limits, and what it writes for others."""

from __future__ import annotations

import configparser
import json
import os
import shlex
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from supervisor.datatypes import dict_of_key_value_pairs
from typer.testing import CliRunner

from crm_resources.contracts.derive_files import fingerprint
from crm_resources.settings import Settings, load_settings
from crm_resources.supervisor import SHARED_GROUP, ProcessState, Service, Start, socket_path
from deploy.local import dagster, jars, kafka, ports, postgres, preflight, run, secret_files, supervisord
from deploy.local.__main__ import app
from deploy.local.errors import StackError
from deploy.local.jars import Jar, JarState
from deploy.local.ports import Port
from deploy.local.stack import RESERVED, ServiceStatus, Stack, has_screen, log_tail, serves_web_ui


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"CRM_HOME": str(tmp_path / "home"), "CRM_ENV": "shop"})


# -- ports -------------------------------------------------------------------------------------------------------------


@given(taken=st.sets(st.integers(19_000, 19_100)), reserved=st.sets(st.integers(19_000, 19_100)))
def test_each_port_is_free_its_own_and_the_lowest_possible(taken: set[int], reserved: set[int]):
    wishes = {Port.KAFKA: 19_000, Port.KAFKA_CONTROLLER: 19_001, Port.POSTGRES: 19_000}

    choices = ports.choose(wishes, lambda number: number not in taken, reserved)

    numbers = [choice.number for choice in choices]
    assert len(set(numbers)) == len(numbers)
    assert not set(numbers) & (taken | reserved)
    for place, choice in enumerate(choices):
        passed_over = set(range(choice.wished, choice.number))
        assert passed_over <= taken | reserved | set(numbers[:place])
        assert choice.moved == (choice.number != choice.wished)


def test_a_machine_without_a_free_port_is_told():
    with pytest.raises(StackError, match="no free port from 65000"):
        ports.choose({Port.KAFKA: 65_000}, lambda _: False)


def test_a_port_somebody_listens_on_is_not_free():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert not ports.is_free(listener.getsockname()[1])


def test_an_env_file_is_read_as_it_was_written(tmp_path: Path):
    ports.write_env(tmp_path / "stack.env", {Port.KAFKA.value: "1234", "CRM_OTHER": "x"}, "title")

    assert ports.recorded(tmp_path / "stack.env", (Port.KAFKA, Port.POSTGRES)) == {Port.KAFKA: 1234, Port.POSTGRES: 15_432}


# -- what the machine must have ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "major"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('openjdk version "21" 2023-09-19', 21),
        ('java version "1.8.0_392"', 8),
        ('openjdk version "25-ea" 2025-09-16', 25),
        ("no such thing", None),
    ],
)
def test_the_major_version_of_java_is_read(text: str, major: int | None):
    assert preflight.java_major(text) == major


def test_absent_java_names_the_remedy():
    finding = preflight.check_java("java-that-nobody-has")

    assert finding.problem is not None
    assert "install Java 17" in finding.problem.remedy


def test_too_little_disk_names_the_place_and_the_remedy(tmp_path: Path):
    finding = preflight.check_disk(tmp_path / "not" / "yet" / "there", least_gib=10**9)

    assert finding.problem is not None
    assert str(tmp_path) in finding.problem.problem
    assert "CRM_HOME" in finding.problem.remedy


# -- jars --------------------------------------------------------------------------------------------------------------


def test_every_locked_jar_has_coordinates_a_name_and_a_checksum():
    lock = jars.read_lock()

    assert set(lock) == set(jars.ROOTS) == {"kafka", "spark", "s3a"}
    for group in lock.values():
        assert len({jar.file for jar in group}) == len(group)
        for jar in group:
            assert jar.file.startswith(jar.module)
            assert jar.file.endswith(".jar")
            assert len(bytes.fromhex(jar.sha256)) == 32
    locked = {jar.coordinates for group in lock.values() for jar in group}
    assert {root.coordinates for group in jars.ROOTS.values() for root in group} <= locked


def test_a_missing_and_a_half_downloaded_jar_are_told_apart(tmp_path: Path):
    (tmp_path / "whole.jar").write_bytes(b"whole")
    (tmp_path / "half.jar").write_bytes(b"who")
    checksum = jars.sha256_of(tmp_path / "whole.jar")

    states = [jars.state_of(Jar("o", "m", "1", f"{name}.jar", checksum), tmp_path) for name in ("whole", "half", "absent")]

    assert states == [JarState.WHOLE, JarState.DAMAGED, JarState.MISSING]


def test_a_broken_lock_file_is_told(tmp_path: Path):
    (tmp_path / "lock.json").write_text('{"kafka": [{"organisation": "o"}]}')

    with pytest.raises(StackError, match="not a readable list of jars"):
        jars.read_lock(tmp_path / "lock.json")


# -- the limit on starts -----------------------------------------------------------------------------------------------


def _starts(moments: list[float]) -> list[Start]:
    return [Start(pid=number, created=moment, supervisor_pid=1, at=moment) for number, moment in enumerate(moments, start=2)]


def test_a_program_that_keeps_dying_is_given_up_and_later_has_a_new_chance():
    moments = [1000.0 + 20 * n for n in range(run.MOST_STARTS)]

    assert not run.too_often(_starts(moments[:-1]), moments[-1])
    assert run.too_often(_starts(moments), moments[-1] + 1)
    assert not run.too_often(_starts(moments), moments[0] + run.RESTART_WINDOW_SECONDS)


# -- what is written for others ----------------------------------------------------------------------------------------


def test_the_supervisor_reads_odd_values_as_they_were_meant(settings: Settings):
    odd = {"CRM_HOME": "/a b/it's, 100%/c\\d=e", "CRM_ENV": "shop"}

    supervisord.write_group(settings, "shop", (Service.STREAM,), odd)

    parser = configparser.RawConfigParser()
    parser.read(supervisord.group_file(settings, "shop"))
    section = dict(parser["program:shop-stream"])
    # The supervisor expands each value once and then takes it apart by shell rules.
    assert dict_of_key_value_pairs(section["environment"] % {}) == odd
    assert shlex.split(section["command"])[-2:] == ["deploy.local.run", "stream"]
    assert parser["group:shop"]["programs"] == "shop-stream"


@pytest.mark.parametrize("value", ['a"b', "a\nb", "'ab"])
def test_a_value_the_supervisor_cannot_hold_is_told(settings: Settings, value: str):
    with pytest.raises(StackError, match="cannot hold the value"):
        supervisord.write_group(settings, "shop", (Service.STREAM,), {"CRM_X": value})


def test_stopping_the_stream_signals_its_python_process_only(settings: Settings):
    supervisord.write_group(settings, "shop", (Service.STREAM,), {})

    parser = configparser.RawConfigParser()
    parser.read(supervisord.group_file(settings, "shop"))
    section = parser["program:shop-stream"]
    assert (section["stopsignal"], section["stopasgroup"], section["killasgroup"]) == ("TERM", "false", "true")
    assert section["autostart"] == "false"
    assert section["autorestart"] == "unexpected"


def test_kafka_and_postgres_are_the_last_to_stop(settings: Settings):
    supervisord.write_group(settings, SHARED_GROUP, (Service.KAFKA, Service.POSTGRES), {})
    supervisord.write_group(settings, "shop", (Service.DAEMON,), {})

    def priority(group: str) -> int:
        parser = configparser.RawConfigParser()
        parser.read(supervisord.group_file(settings, group))
        return int(parser[f"group:{group}"]["priority"])

    assert priority(SHARED_GROUP) < priority("shop")


def test_no_secret_reaches_a_configuration_file(settings: Settings):
    environ = {"CRM_WAREHOUSE_DSN": "postgresql://u:hidden@h/d", "CRM_API_TOKEN": "hidden", "CRM_TRIGGER_SECONDS": "1"}

    handed_on = Stack(settings, environ=environ)._process_environment()

    assert handed_on["CRM_TRIGGER_SECONDS"] == "1"
    assert "hidden" not in json.dumps(handed_on)
    assert "hidden" not in json.dumps(dagster.instance_config(settings))


def test_services_are_told_the_contracts_so_that_a_change_starts_them_anew(settings: Settings):
    handed_on = Stack(settings, environ={"CRM_CONTRACTS": "of a process that was started before"})._process_environment()

    assert handed_on["CRM_CONTRACTS"] == fingerprint()


def test_secrets_are_readable_by_their_owner_only(settings: Settings):
    first = secret_files.ensure(settings.home, secret_files.POSTGRES_PASSWORD)

    path = settings.home / "secrets" / secret_files.POSTGRES_PASSWORD
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert secret_files.ensure(settings.home, secret_files.POSTGRES_PASSWORD) == first
    assert len(first) >= 24


def test_everything_listens_on_the_loopback_only(settings: Settings):
    numbers = {**ports.DEFAULTS}
    text = kafka.server_properties(settings.home, numbers)

    listeners = dict(line.split("=", 1) for line in text.splitlines())["listeners"]
    assert all(listener.split("://")[1].startswith("127.0.0.1:") for listener in listeners.split(","))
    assert dagster.webserver_command(settings, 13_000)[1:3] == ["-h", "127.0.0.1"]
    assert "127.0.0.1" in dagster.code_server_command(14_000)


def test_kafka_takes_messages_of_eight_mebibytes_and_makes_no_topics_by_itself(settings: Settings):
    values = dict(line.split("=", 1) for line in kafka.server_properties(settings.home, {**ports.DEFAULTS}).splitlines())

    assert values["message.max.bytes"] == values["replica.fetch.max.bytes"] == str(8 * 2**20)
    assert values["auto.create.topics.enable"] == "false"
    assert int(values["offsets.retention.minutes"]) >= 365 * 24 * 60


def test_a_database_of_a_given_server_keeps_its_options(settings: Settings):
    given_server = load_settings(
        {"CRM_HOME": str(settings.home), "CRM_WAREHOUSE_DSN": "postgresql://u:p@db.example:6000/main?sslmode=require"}
    )

    assert postgres.server_dsn(given_server, "crm_demo") == "postgresql://u:p@db.example:6000/crm_demo?sslmode=require"
    assert postgres.maintenance_database(given_server) == "main"


def test_dagster_names_the_driver_that_is_installed():
    assert dagster.storage_url("postgresql://u:p@h:1/d") == "postgresql+psycopg2://u:p@h:1/d"
    assert dagster.storage_url("postgres://u:p@h:1/d") == "postgresql+psycopg2://u:p@h:1/d"


def test_the_socket_of_a_deep_home_is_short_enough_for_the_kernel(tmp_path: Path):
    deep = tmp_path / ("d" * 120)

    assert len(os.fsencode(socket_path(deep))) <= 100
    assert socket_path(deep) == socket_path(deep)
    assert socket_path(deep) != socket_path(tmp_path / ("e" * 120))


@pytest.mark.parametrize("name", sorted(name for name in RESERVED))
def test_a_data_set_cannot_take_a_folder_of_the_stack(tmp_path: Path, name: str):
    settings = load_settings({"CRM_HOME": str(tmp_path), "CRM_ENV": name})

    with pytest.raises(StackError, match="choose another name"):
        Stack(settings).up()


def test_the_end_of_a_log_is_shown(tmp_path: Path):
    log = tmp_path / "service.log"
    log.write_text("".join(f"line {n}\n" for n in range(100)))

    assert log_tail(log, 2) == "    line 98\n    line 99"
    assert "does not exist" in log_tail(tmp_path / "absent.log")


# -- open --------------------------------------------------------------------------------------------------------------


def webserver(group: str, state: ProcessState) -> ServiceStatus:
    return ServiceStatus(group, Service.WEBSERVER, state, 1, 1.0, 13000, 1.0, 0, "", Path("webserver.log"))


@pytest.mark.parametrize(
    ("services", "serves"),
    [
        ([], False),
        ([webserver("demo", ProcessState.RUNNING)], False),
        ([webserver("demo", ProcessState.RUNNING), webserver("shop", ProcessState.RUNNING)], True),
        ([webserver("shop", ProcessState.FATAL)], False),
    ],
    ids=["stack down", "only another data set", "both", "given up"],
)
def test_the_web_ui_is_that_of_the_data_set_asked_for(services: list[ServiceStatus], serves: bool):
    assert serves_web_ui(services, "shop") is serves


def test_open_without_a_stack_says_in_one_line_how_to_start_it(tmp_path: Path):
    done = CliRunner().invoke(app, ["open"], env={"CRM_HOME": str(tmp_path), "CRM_ENV": "shop"})

    assert done.exit_code == 1
    assert done.output == "error: the web UI of data set shop does not run; start it with `make up`\n"


def test_a_browser_is_started_only_where_it_has_a_screen():
    assert has_screen({"DISPLAY": ":0"})
    assert has_screen({"BROWSER": "firefox"})
    assert not has_screen({"DISPLAY": "", "TERM": "xterm"})
