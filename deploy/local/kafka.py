"""Apache Kafka as one KRaft node: its files, its command, and whether it answers.

Belongs here: everything that knows Kafka's configuration. Not here: topics (`crm_resources.kafka` declares them).
"""

from __future__ import annotations

import base64
import subprocess
import uuid
from pathlib import Path

from crm_resources.settings import Settings
from deploy.local.errors import StackError
from deploy.local.ports import ANSWER_SECONDS, LOOPBACK, Port

LARGEST_MESSAGE_BYTES = 8 * 2**20
HEAP_OPTIONS = ("-Xms256m", "-Xmx640m")
"""Measured: one node with a few dozen partitions and 100,000 records/s stays below 400 MiB of heap."""

_LOGGING = """\
# Kafka's log goes to the console; the supervisor writes and rotates the file.
status = warn
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = [%d] %p %m (%c{1})%n
rootLogger.level = INFO
rootLogger.appenderRef.console.ref = console
logger.request.name = kafka.request.logger
logger.request.level = WARN
logger.loader.name = org.apache.kafka.storage.internals.log
logger.loader.level = WARN
logger.controller.name = org.apache.kafka.controller
logger.controller.level = WARN
"""


def folder(settings: Settings) -> Path:
    """Kafka's configuration and data."""
    return settings.home / "kafka"


def bootstrap(port: int) -> str:
    """Address clients are given."""
    return f"{LOOPBACK}:{port}"


def prepare(settings: Settings, ports: dict[Port, int], java: str = "java") -> None:
    """Write the configuration, and format the storage the first time.

    Raises:
        StackError: formatting failed.
    """
    home = folder(settings)
    home.mkdir(parents=True, exist_ok=True)
    (home / "server.properties").write_text(server_properties(home, ports))
    (home / "log4j2.properties").write_text(_LOGGING)
    if (home / "data" / "meta.properties").exists():
        return
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    if cluster_id.startswith("-"):
        # The tool would take it for an option.
        cluster_id = "A" + cluster_id[1:]
    run = subprocess.run(
        [*java_command(settings, java), "kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(home / "server.properties")],
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode != 0:
        last = (run.stdout + run.stderr).strip().splitlines()[-1:]
        raise StackError(f"Kafka could not format {home / 'data'}: {' '.join(last)}", f"if nothing in it is needed, delete {home}")


def server_properties(home: Path, ports: dict[Port, int]) -> str:
    """The node's configuration."""
    values = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{LOOPBACK}:{ports[Port.KAFKA_CONTROLLER]}",
        "listeners": f"PLAINTEXT://{LOOPBACK}:{ports[Port.KAFKA]},CONTROLLER://{LOOPBACK}:{ports[Port.KAFKA_CONTROLLER]}",
        "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{ports[Port.KAFKA]}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": str(home / "data"),
        # Topics are declared as assets; one that appears by a typing error would hide the error.
        "auto.create.topics.enable": "false",
        "message.max.bytes": str(LARGEST_MESSAGE_BYTES),
        "replica.fetch.max.bytes": str(LARGEST_MESSAGE_BYTES),
        # Offsets of an idle group would be forgotten after 7 days; a stream that rests must find its place.
        "offsets.retention.minutes": str(365 * 24 * 60),
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "8",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "4",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "group.initial.rebalance.delay.ms": "0",
        "num.partitions": "4",
        "num.network.threads": "2",
        "num.io.threads": "4",
        "log.segment.bytes": str(256 * 2**20),
        # A preallocated index of 10 MiB per segment is much for a laptop with hundreds of segments.
        "log.index.size.max.bytes": str(2 * 2**20),
    }
    return "".join(f"{key}={value}\n" for key, value in values.items())


def java_command(settings: Settings, java: str = "java") -> list[str]:
    """How Java is called for one of Kafka's programs; the main class follows."""
    return [
        java,
        *HEAP_OPTIONS,
        "-XX:+UseG1GC",
        "-XX:+ExitOnOutOfMemoryError",
        f"-Dlog4j2.configurationFile={folder(settings) / 'log4j2.properties'}",
        "-cp",
        str(settings.jars_root / "kafka" / "*"),
    ]


def server_command(settings: Settings, java: str = "java") -> list[str]:
    """The command that becomes the broker."""
    return [*java_command(settings, java), "kafka.Kafka", str(folder(settings) / "server.properties")]


def answers(port: int) -> bool:
    """Whether the broker answers a request for metadata."""
    import logging

    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    quiet = logging.getLogger("deploy.local.kafka.probe")
    quiet.addHandler(logging.NullHandler())
    quiet.propagate = False
    try:
        options: dict[str, str | int | float | bool] = {"bootstrap.servers": bootstrap(port), "socket.timeout.ms": ANSWER_SECONDS * 1000}
        metadata = AdminClient(options, logger=quiet).list_topics(timeout=ANSWER_SECONDS)
    except KafkaException:
        return False
    return bool(metadata.brokers)
