"""Which ports the services take, and where the choice is written down.

A port that was taken before is kept when it is free; a taken one gives way to the next free one. Belongs here: choosing
and recording. Not here: what listens on a port.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from deploy.local.errors import StackError

ANSWER_SECONDS = 10
"""Longest wait for one answer of a service: a starved one takes seconds. Without an answer we ask again, as long as it lives."""

CLAIM_SECONDS = 120
"""After that a service listens on its port, or never will."""

HIGHEST_PORT = 65_535
LOOPBACK = "127.0.0.1"


class Port(StrEnum):
    """Ports of the stack; the value is the variable they are written down under."""

    KAFKA = "CRM_KAFKA_PORT"
    KAFKA_CONTROLLER = "CRM_KAFKA_CONTROLLER_PORT"
    POSTGRES = "CRM_POSTGRES_PORT"
    MINIO = "CRM_MINIO_PORT"
    WEBSERVER = "CRM_WEBSERVER_PORT"
    CODE_SERVER = "CRM_CODE_SERVER_PORT"


DEFAULTS: dict[Port, int] = {
    Port.KAFKA: 19_092,
    Port.KAFKA_CONTROLLER: 19_093,
    Port.POSTGRES: 15_432,
    Port.MINIO: 19_000,
    Port.WEBSERVER: 13_000,
    Port.CODE_SERVER: 14_000,
}


@dataclass(frozen=True)
class Choice:
    """A port a service gets, and the one it would have had were that not taken."""

    port: Port
    number: int
    wished: int

    @property
    def moved(self) -> bool:
        """Whether the service had to give way."""
        return self.number != self.wished


@dataclass(frozen=True)
class Claim:
    """A port a stack has chosen and may not listen on yet; `at` is in seconds since 1970."""

    number: int
    home: str
    at: float


def choose(wishes: Mapping[Port, int], is_free: Callable[[int], bool], reserved: Iterable[int] = ()) -> list[Choice]:
    """Give each port its wish or the next free number above it, each number once.

    Args:
        wishes: the number each port would like.
        is_free: whether nothing listens on a number.
        reserved: numbers that belong to others although nothing listens there now.

    Raises:
        StackError: no free number is left above a wish.
    """
    given = set(reserved)
    choices = []
    for port, wished in wishes.items():
        number = next((n for n in range(wished, HIGHEST_PORT + 1) if n not in given and is_free(n)), None)
        if number is None:
            raise StackError(f"no free port from {wished} upwards for {port}", "stop what listens there")
        given.add(number)
        choices.append(Choice(port, number, wished))
    return choices


def take(home: Path, wishes: Mapping[Port, int], reserved: Iterable[int] = ()) -> list[Choice]:
    """Choose ports that are free, and note the claim for other stacks of this user that choose before ours listen.

    Args:
        home: whose ports they are.
        wishes: the number each port would like.
        reserved: numbers that belong to others although nothing listens there now.

    Raises:
        StackError: no free number is left above a wish.
    """
    register = Path(tempfile.gettempdir()) / f"crm-{os.getuid()}-ports.json"
    with register.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        try:
            noted = [Claim(**entry) for entry in json.loads(file.read() or "[]")]
        except (ValueError, TypeError):
            # A torn register is no reason not to start; it only saves a rare collision.
            noted = []
        others = [claim for claim in noted if claim.home != str(home) and 0 <= time.time() - claim.at < CLAIM_SECONDS]
        choices = choose(wishes, is_free, {*reserved, *(claim.number for claim in others)})
        mine = [Claim(choice.number, str(home), time.time()) for choice in choices]
        file.truncate(0)
        file.write(json.dumps([asdict(claim) for claim in (*others, *mine)]))
    return choices


def is_free(number: int) -> bool:
    """Whether nothing listens on this port of the loopback interface, nor on all interfaces."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Without this a port in TIME_WAIT would count as taken, and services would wander at each restart.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, number))
        except OSError:
            return False
    return True


def listens(pid: int, number: int) -> bool:
    """Whether this very process listens on the port; true also when the kernel does not let us look.

    In a container root may not look into PostgreSQL, which runs as nobody.
    """
    import psutil

    try:
        connections = psutil.Process(pid).net_connections("tcp")
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
    return any(connection.status == psutil.CONN_LISTEN and connection.laddr.port == number for connection in connections)


def read_env(path: Path) -> dict[str, str]:
    """Variables of an env file; empty when there is none."""
    from dotenv import dotenv_values

    return {key: value for key, value in dotenv_values(path).items() if value} if path.exists() else {}


def write_env(path: Path, values: Mapping[str, str], title: str) -> None:
    """Replace an env file whole, so that no reader sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = f"# {title}\n" + "".join(f"{key}={value}\n" for key, value in values.items())
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text)
    beside.replace(path)


def recorded(path: Path, ports: Iterable[Port]) -> dict[Port, int]:
    """Numbers written down in an env file, defaults for the rest."""
    values = read_env(path)
    return {port: int(values[port]) if values.get(port, "").isdigit() else DEFAULTS[port] for port in ports}
