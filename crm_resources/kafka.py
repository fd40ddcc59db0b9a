"""Kafka as the platform uses it: the topics it wants, how they are brought about, and clients with the house's options.

Belongs here: `TopicSpec` and the desired topics of an environment, the protocol observe → plan → apply → verify, offsets,
producer and consumer configuration, and errors that say what to do. Not here: what a message contains (`contracts`), or
who sends it (`generator`). `plan` is pure; everything else talks to one cluster.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tenacity import Retrying, retry_if_exception, retry_if_exception_type, retry_if_result, stop_after_delay, wait_exponential, wait_fixed

from crm_resources.contracts import contracts
from crm_resources.layout import topic_name
from crm_resources.settings import Profile, Settings

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Producer
    from confluent_kafka.admin import AdminClient

log = logging.getLogger(__name__)
client_log = logging.getLogger(f"{__name__}.client")
"""What librdkafka says by itself, most of it about attempts it goes on to repeat."""

MAX_TOPIC_MESSAGE_BYTES = 8 * 1024 * 1024
"""Largest record a topic takes: eight times what a contract accepts, so that an oversized message can be kept as a dead letter."""

RETENTION_MS = 30 * 24 * 3600 * 1000
"""A month: an outage of the stream shorter than this loses nothing."""

_LOCAL_PARTITIONS = {"events": 4, "orders": 4, "products": 2, "profiles": 2}
# Twelve readers in all on two cores: enough to keep both busy, few enough that a small micro-batch is not all task start-up.
_CLUSTER_PARTITIONS = {"events": 12, "orders": 6, "products": 3, "profiles": 3}


REQUEST_SECONDS = 30.0
"""How long one request may take, which is Kafka's own default."""

DELIVERY_SECONDS = 300.0
"""How long a record is tried before it is given up, which is librdkafka's own default: longer than a killed broker takes to come back."""


class KafkaUnavailableError(RuntimeError):
    """No broker answered within the bounded wait."""


class TopicError(RuntimeError):
    """A topic cannot be brought to its declaration; the message names topic, reason and remedy."""


@dataclass(frozen=True)
class TopicSpec:
    """Desired state of one topic.

    `retention_ms` in milliseconds, `max_message_bytes` in bytes of one record batch.
    """

    name: str
    plural: str
    partitions: int
    retention_ms: int
    max_message_bytes: int
    min_insync_replicas: int
    replication_factor: int

    @property
    def config(self) -> dict[str, str]:
        """The topic configuration this declaration stands for, in Kafka's own names."""
        return {
            "cleanup.policy": "delete",  # current state is derived downstream, never read from compaction
            "retention.ms": str(self.retention_ms),
            "max.message.bytes": str(self.max_message_bytes),
            "min.insync.replicas": str(self.min_insync_replicas),
        }


@dataclass(frozen=True)
class Cluster:
    """Who answers: the cluster's id, its brokers as `host:port`, and how many topics it holds."""

    cluster_id: str
    brokers: tuple[str, ...]
    topics: int


@dataclass(frozen=True)
class ObservedTopic:
    """What the cluster says of one topic; `config` holds at least the keys a specification declares."""

    name: str
    partitions: int
    replication_factor: int
    config: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ConfigChange:
    """One configuration entry that differs from its declaration."""

    topic: str
    key: str
    observed: str | None
    desired: str


@dataclass(frozen=True)
class PartitionGrowth:
    """Partitions to be added to a topic."""

    topic: str
    observed: int
    desired: int


@dataclass(frozen=True)
class BlockedChange:
    """A difference that will not be applied, with the reason and what to do about it."""

    topic: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class TopicPlan:
    """Typed difference between the desired and the observed topics."""

    create: tuple[TopicSpec, ...] = ()
    alter: tuple[ConfigChange, ...] = ()
    grow: tuple[PartitionGrowth, ...] = ()
    blocked: tuple[BlockedChange, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether the topics are as declared."""
        return not (self.create or self.alter or self.grow or self.blocked)

    def describe(self) -> list[str]:
        """One line per difference, for a person."""
        lines = [f"create {s.name} with {s.partitions} partitions, replication {s.replication_factor}" for s in self.create]
        lines += [f"alter {c.topic}: {c.key} {c.observed} -> {c.desired}" for c in self.alter]
        lines += [f"grow {g.topic}: {g.observed} -> {g.desired} partitions" for g in self.grow]
        lines += [f"blocked {b.topic}: {b.reason}; {b.remedy}" for b in self.blocked]
        return lines


def topic_specs(settings: Settings) -> tuple[TopicSpec, ...]:
    """Desired topics of the settings' environment, one per entity, in the order of the contracts."""
    local = settings.profile is Profile.LOCAL
    partitions = _LOCAL_PARTITIONS if local else _CLUSTER_PARTITIONS
    return tuple(
        TopicSpec(
            name=topic_name(settings.env, contract.plural),
            plural=contract.plural,
            partitions=partitions[contract.plural],
            retention_ms=RETENTION_MS,
            max_message_bytes=MAX_TOPIC_MESSAGE_BYTES,
            min_insync_replicas=1 if local else 2,
            replication_factor=1 if local else 3,
        )
        for contract in contracts()
    )


def plan(desired: Iterable[TopicSpec], observed: Mapping[str, ObservedTopic], *, allow_more_partitions: bool = False) -> TopicPlan:
    """Difference between what is declared and what is there.

    Args:
        desired: declarations; topics that are not declared are left alone.
        observed: topics of the cluster by name.
        allow_more_partitions: partitions may be added although keys in flight then change partition, which breaks the
            order per key for them.
    """
    create: list[TopicSpec] = []
    alter: list[ConfigChange] = []
    grow: list[PartitionGrowth] = []
    blocked: list[BlockedChange] = []
    for spec in desired:
        found = observed.get(spec.name)
        if found is None:
            create.append(spec)
            continue
        alter.extend(
            ConfigChange(spec.name, key, found.config.get(key), value)
            for key, value in spec.config.items()
            if found.config.get(key) != value
        )
        if found.partitions < spec.partitions:
            if allow_more_partitions:
                grow.append(PartitionGrowth(spec.name, found.partitions, spec.partitions))
            else:
                blocked.append(
                    BlockedChange(
                        spec.name,
                        f"has {found.partitions} partitions, declared are {spec.partitions}; adding some breaks the order per key",
                        "stop the producers and let the stream drain, then apply with allow_more_partitions",
                    )
                )
        elif found.partitions > spec.partitions:
            blocked.append(
                BlockedChange(
                    spec.name,
                    f"has {found.partitions} partitions, declared are {spec.partitions}; Kafka cannot remove partitions",
                    f"declare {found.partitions} partitions, or move the data to a topic with another name",
                )
            )
        if found.replication_factor != spec.replication_factor:
            blocked.append(
                BlockedChange(
                    spec.name,
                    f"has replication factor {found.replication_factor}, declared is {spec.replication_factor}",
                    "reassign its replicas with kafka-reassign-partitions, then apply again",
                )
            )
    return TopicPlan(tuple(create), tuple(alter), tuple(grow), tuple(blocked))


def observe(settings: Settings, names: Sequence[str] | None = None, *, wait_seconds: float = 20) -> dict[str, ObservedTopic]:
    """Topics of the cluster that are named and exist.

    Args:
        settings: where Kafka is.
        names: topics to look at; those of the environment when omitted.
        wait_seconds: how long an unreachable broker is tried again.

    Raises:
        KafkaUnavailableError: no broker answered in time.
    """
    api = _admin_api()
    wanted = list(names) if names is not None else [spec.name for spec in topic_specs(settings)]
    client = admin(settings)
    metadata = _metadata(client, settings, wait_seconds)
    present = [name for name in wanted if name in metadata.topics]
    if not present:
        return {}
    resources = [api.ConfigResource(api.ResourceType.TOPIC, name) for name in present]
    configs: dict[str, dict[str, str]] = {}
    for resource, future in client.describe_configs(resources, request_timeout=REQUEST_SECONDS).items():
        configs[resource.name] = {
            entry.name: str(entry.value) for entry in _result(future, f"read the configuration of {resource.name}").values()
        }
    observed = {}
    for name in present:
        partitions = metadata.topics[name].partitions
        replicas = min((len(p.replicas) for p in partitions.values()), default=0)
        observed[name] = ObservedTopic(name, len(partitions), replicas, configs[name])
    return observed


def apply(settings: Settings, changes: TopicPlan) -> None:
    """Bring a plan about; an empty one does nothing.

    Raises:
        TopicError: the plan holds a blocked change, or the cluster refused one; nothing is applied in the first case.
    """
    from confluent_kafka import KafkaError

    if changes.blocked:
        raise TopicError(
            "topics cannot be brought to their declaration:\n" + "\n".join(f"- {b.topic} {b.reason}; {b.remedy}" for b in changes.blocked)
        )
    api = _admin_api()
    client = admin(settings)
    if changes.create:
        topics = [
            api.NewTopic(s.name, num_partitions=s.partitions, replication_factor=s.replication_factor, config=s.config)
            for s in changes.create
        ]
        for name, future in client.create_topics(topics, operation_timeout=REQUEST_SECONDS, request_timeout=REQUEST_SECONDS + 10).items():
            # Another run may have created it since the plan was made; the verification that follows compares it.
            _result(future, f"create topic {name}", accept=KafkaError.TOPIC_ALREADY_EXISTS)
    if changes.alter:
        by_topic: dict[str, list[ConfigChange]] = {}
        for change in changes.alter:
            by_topic.setdefault(change.topic, []).append(change)
        resources = [
            api.ConfigResource(
                api.ResourceType.TOPIC,
                topic,
                incremental_configs=[api.ConfigEntry(c.key, c.desired, incremental_operation=api.AlterConfigOpType.SET) for c in wanted],
            )
            for topic, wanted in by_topic.items()
        ]
        for resource, future in client.incremental_alter_configs(resources, request_timeout=REQUEST_SECONDS + 10).items():
            _result(future, f"alter the configuration of topic {resource.name}")
    if changes.grow:
        for name, future in client.create_partitions(
            [api.NewPartitions(g.topic, g.desired) for g in changes.grow], request_timeout=REQUEST_SECONDS + 10
        ).items():
            _result(future, f"add partitions to topic {name}")


def verify(
    settings: Settings, specs: Sequence[TopicSpec] | None = None, *, deadline_seconds: float = 60, wait_seconds: float = 20
) -> TopicPlan:
    """Observe again until the topics are as declared or the deadline passed, and return the difference that is left.

    Kafka's metadata follows a change with a delay, hence the wait.
    """
    wanted = tuple(specs if specs is not None else topic_specs(settings))

    def difference() -> TopicPlan:
        return plan(wanted, observe(settings, [s.name for s in wanted], wait_seconds=wait_seconds))

    retrying = Retrying(
        stop=stop_after_delay(deadline_seconds),
        wait=wait_fixed(0.3),
        retry=retry_if_result(lambda left: not left.is_empty and not left.blocked),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
    )
    left: TopicPlan = retrying(difference)
    return left


def ensure(settings: Settings, specs: Sequence[TopicSpec] | None = None) -> TopicPlan:
    """Observe, plan, apply and verify; returns the plan that was applied.

    Raises:
        KafkaUnavailableError: no broker answered.
        TopicError: a difference is blocked, was refused, or did not show within the deadline.
    """
    wanted = tuple(specs if specs is not None else topic_specs(settings))
    changes = plan(wanted, observe(settings, [s.name for s in wanted]))
    if changes.is_empty:
        return changes
    apply(settings, changes)
    left = verify(settings, wanted)
    if not left.is_empty:
        raise TopicError("the cluster took the changes but does not show them:\n" + "\n".join(f"- {line}" for line in left.describe()))
    return changes


def describe_cluster(settings: Settings, *, wait_seconds: float = 20) -> Cluster:
    """Ask the cluster who it is.

    Raises:
        KafkaUnavailableError: no broker answered.
    """
    metadata = _metadata(admin(settings), settings, wait_seconds)
    brokers = tuple(f"{b.host}:{b.port}" for b in metadata.brokers.values())
    return Cluster(metadata.cluster_id, brokers, len(metadata.topics))


def offsets(settings: Settings, topic: str, *, wait_seconds: float = 20) -> dict[int, tuple[int, int]]:
    """First and next offset of each partition: `{partition: (low, high)}`; `high - low` records can be read.

    Raises:
        KafkaUnavailableError: no broker answered.
        TopicError: there is no such topic.
    """
    from confluent_kafka import TopicPartition

    client = admin(settings)
    metadata = _metadata(client, settings, wait_seconds)
    if topic not in metadata.topics:
        raise TopicError(f"Kafka at {settings.kafka_bootstrap} has no topic {topic}; materialize the assets of the group `ingestion` first")
    partitions = sorted(metadata.topics[topic].partitions)

    def ask(spec: Any) -> dict[int, int]:  # noqa: ANN401 -- confluent_kafka is untyped
        futures = client.list_offsets({TopicPartition(topic, p): spec for p in partitions}, request_timeout=REQUEST_SECONDS)
        return {tp.partition: int(_result(future, f"read the offsets of {topic}").offset) for tp, future in futures.items()}

    # The brokers know of a topic before the one that leads a partition has taken it on.
    retrying = Retrying(
        stop=stop_after_delay(wait_seconds),
        wait=wait_exponential(multiplier=0.1, max=1),
        retry=retry_if_exception(_is_moving),
        reraise=True,
    )
    low, high = retrying(ask, _admin_api().OffsetSpec.earliest()), retrying(ask, _admin_api().OffsetSpec.latest())
    return {p: (low[p], high[p]) for p in partitions}


def _is_moving(error: BaseException) -> bool:
    """Whether Kafka refused because a partition's leader is only being found, which passes."""
    from confluent_kafka import KafkaError, KafkaException

    cause = error.__cause__
    moving = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.UNKNOWN_TOPIC_OR_PART)
    return isinstance(error, TopicError) and isinstance(cause, KafkaException) and cause.args[0].code() in moving


@dataclass(frozen=True)
class PartitionLag:
    """How far a consumer group is behind in one partition.

    `records` between its committed offset and the partition's end; `seconds` is the age of the first of them, 0 when there is none.
    `lost` counts records that were removed by retention before the group had them.
    """

    topic: str
    partition: int
    records: int
    seconds: float
    lost: int = 0


@dataclass(frozen=True)
class Lag:
    """How far a consumer group is behind."""

    group: str
    partitions: tuple[PartitionLag, ...]

    @property
    def records(self) -> int:
        """Records of all partitions that wait."""
        return sum(p.records for p in self.partitions)

    @property
    def seconds(self) -> float:
        """Age of the oldest record that waits."""
        return max((p.seconds for p in self.partitions), default=0.0)

    @property
    def lost(self) -> int:
        """Records that retention removed before the group had them."""
        return sum(p.lost for p in self.partitions)


Partition = tuple[str, int]
"""Topic and partition."""


def lag_of(
    group: str,
    ends: Mapping[Partition, tuple[int, int]],
    committed: Mapping[Partition, int],
    waiting_since: Mapping[Partition, float],
    now: float,
) -> Lag:
    """Lag of a group from offsets and times; pure.

    Args:
        group: its name.
        ends: first and next offset of each partition.
        committed: offset the group reads next, by partition; a partition without one has not been read at all.
        waiting_since: time of the first record behind that offset, in seconds since 1970, of partitions that have one.
        now: current time in seconds since 1970.
    """
    found = []
    for (topic, partition), (low, high) in sorted(ends.items()):
        position = committed.get((topic, partition), low)
        since = waiting_since.get((topic, partition))
        records = high - _first_waiting(position, low, high)
        seconds = max(0.0, now - since) if records and since is not None else 0.0
        found.append(PartitionLag(topic, partition, records, seconds, max(0, low - position)))
    return Lag(group, tuple(found))


def _first_waiting(position: int, low: int, high: int) -> int:
    """Offset of the first record a group has not read; the end where there is none."""
    # The offsets of a topic that was made anew end before the committed one: nothing of it has been read.
    return low if position > high else max(position, low)


def group_lag(settings: Settings, group: str, *, now: float | None = None, wait_seconds: float = 20) -> Lag:
    """Measure how far a group is behind in the data set's topics, by asking the brokers only.

    Of each partition with records that wait, the first of them is read for its time.

    Args:
        settings: where Kafka is.
        group: a consumer group, with or without members.
        now: current time in seconds since 1970.
        wait_seconds: how long an unreachable broker is tried again.

    Raises:
        KafkaUnavailableError: no broker answered.
        TopicError: a topic is absent.
    """
    ends: dict[Partition, tuple[int, int]] = {}
    for spec in topic_specs(settings):
        ends |= {(spec.name, p): o for p, o in offsets(settings, spec.name, wait_seconds=wait_seconds).items()}
    committed = committed_offsets(settings, group, ends)
    firsts = {p: _first_waiting(committed.get(p, low), low, high) for p, (low, high) in ends.items()}
    times = _record_times(settings, {p: first for p, first in firsts.items() if first < ends[p][1]})
    return lag_of(group, ends, committed, times, time.time() if now is None else now)


def committed_offsets(settings: Settings, group: str, partitions: Iterable[Partition]) -> dict[Partition, int]:
    """Offsets a group has committed; partitions without one are left out.

    Raises:
        KafkaUnavailableError: no broker answered.
    """
    from confluent_kafka import KafkaException, TopicPartition

    client = consumer(settings, group)
    try:
        found = client.committed([TopicPartition(t, p) for t, p in partitions], timeout=REQUEST_SECONDS)
    except KafkaException as error:
        raise KafkaUnavailableError(
            f"Kafka at {settings.kafka_bootstrap} did not tell the offsets of group {group} ({error.args[0].str()}). "
            "Is the stack up (`make status`, `make up`)?"
        ) from error
    finally:
        client.close()
    return {(tp.topic, tp.partition): int(tp.offset) for tp in found if tp.offset >= 0}


def _record_times(settings: Settings, positions: Mapping[Partition, int], seconds: float = REQUEST_SECONDS) -> dict[Partition, float]:
    """Time of the record at each position, in seconds since 1970.

    Raises:
        KafkaUnavailableError: the brokers did not give one in time.
    """
    from confluent_kafka import TopicPartition

    if not positions:
        return {}
    client = consumer(settings, f"crm-{settings.env}-lag", {"fetch.message.max.bytes": 16 * 1024, "queued.min.messages": 1})
    times: dict[Partition, float] = {}
    try:
        client.assign([TopicPartition(t, p, offset) for (t, p), offset in positions.items()])
        deadline = time.monotonic() + seconds
        while len(times) < len(positions) and time.monotonic() < deadline:
            message = client.poll(0.5)
            if message is None or message.error() is not None:
                continue
            key = (str(message.topic()), int(message.partition() or 0))
            if key not in times:
                times[key] = message.timestamp()[1] / 1000
                client.pause([TopicPartition(*key)])
    finally:
        client.close()
    silent = sorted(set(positions) - set(times))
    if silent:
        told = ", ".join(f"{topic}[{partition}] at offset {positions[topic, partition]}" for topic, partition in silent)
        raise KafkaUnavailableError(f"Kafka at {settings.kafka_bootstrap} did not give the record of {told} within {seconds:.0f} s")
    return times


def require_topics(settings: Settings, plurals: Iterable[str], *, wait_seconds: float = 20) -> None:
    """Make sure that Kafka answers and that the topics of these entities exist.

    Raises:
        KafkaUnavailableError: no broker answered.
        TopicError: a topic is absent; the message says how it comes about.
    """
    names = [topic_name(settings.env, plural) for plural in plurals]
    metadata = _metadata(admin(settings), settings, wait_seconds)
    absent = [name for name in names if name not in metadata.topics]
    if absent:
        raise TopicError(
            f"Kafka at {settings.kafka_bootstrap} has no topic {', '.join(absent)}; "
            f"materialize the assets of the group `ingestion` for CRM_ENV={settings.env} first"
        )


def admin(settings: Settings) -> AdminClient:
    """Admin client of the settings' cluster."""
    from confluent_kafka.admin import AdminClient

    return AdminClient(_common(settings), logger=client_log)


def producer(
    settings: Settings, overrides: Mapping[str, Any] | None = None, *, delivery_timeout_seconds: float = DELIVERY_SECONDS
) -> Producer:
    """Idempotent producer that keys as Java clients do.

    Args:
        settings: where Kafka is.
        overrides: librdkafka properties on top of the house's own.
        delivery_timeout_seconds: how long a message is tried before it is reported as not delivered.
    """
    from confluent_kafka import Producer

    return Producer(producer_config(settings, delivery_timeout_seconds) | dict(overrides or {}), logger=client_log)


def producer_config(settings: Settings, delivery_timeout_seconds: float = DELIVERY_SECONDS) -> dict[str, Any]:
    """The librdkafka properties of the house's producer."""
    return _common(settings) | {
        "enable.idempotence": True,
        "acks": "all",
        "compression.type": "lz4",
        "linger.ms": 20,
        "partitioner": "murmur2_random",  # Java's; librdkafka's own would place the same key elsewhere
        "message.max.bytes": MAX_TOPIC_MESSAGE_BYTES,
        "message.timeout.ms": int(delivery_timeout_seconds * 1000),
        "queue.buffering.max.messages": 100_000,
        "queue.buffering.max.kbytes": 256 * 1024,
        "topic.metadata.refresh.interval.ms": 60_000,  # learns added partitions within a minute instead of five
    }


def consumer(settings: Settings, group: str, overrides: Mapping[str, Any] | None = None) -> Consumer:
    """Consumer that starts at the earliest offset and commits only when told."""
    from confluent_kafka import Consumer

    config = _common(settings) | {
        "group.id": group,
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "fetch.message.max.bytes": MAX_TOPIC_MESSAGE_BYTES,
    }
    return Consumer(config | dict(overrides or {}), logger=client_log)


def _admin_api() -> Any:  # noqa: ANN401 -- the module's names are not exported in a way a type checker can follow
    import confluent_kafka.admin

    return confluent_kafka.admin


def _common(settings: Settings) -> dict[str, Any]:
    return {
        "bootstrap.servers": settings.kafka_bootstrap,
        "client.id": "crm",
        "reconnect.backoff.max.ms": 2000,
        "error_cb": _client_error,
    }


def _client_error(error: Any) -> None:  # noqa: ANN401 -- a KafkaError; its module is imported lazily
    client_log.info("%s", error)


def _metadata(client: AdminClient, settings: Settings, wait_seconds: float) -> Any:  # noqa: ANN401 -- confluent_kafka is untyped
    from confluent_kafka import KafkaException

    def warn(state: Any) -> None:  # noqa: ANN401 -- tenacity's RetryCallState
        if state.attempt_number == 1:
            log.warning("Kafka at %s does not answer yet; trying for %.0f s", settings.kafka_bootstrap, wait_seconds)

    retrying = Retrying(
        stop=stop_after_delay(wait_seconds),
        wait=wait_exponential(multiplier=0.25, max=2),
        retry=retry_if_exception_type(KafkaException),
        before_sleep=warn,
        reraise=True,
    )
    try:
        return retrying(client.list_topics, timeout=min(5.0, max(1.0, wait_seconds)))
    except KafkaException as error:
        raise KafkaUnavailableError(
            f"Kafka at {settings.kafka_bootstrap} did not answer within {wait_seconds:.0f} s ({error.args[0].str()}). "
            "Is the stack up (`make status`, `make up`)? For another cluster set CRM_KAFKA_BOOTSTRAP."
        ) from error


def _result(future: Any, action: str, accept: int | None = None) -> Any:  # noqa: ANN401 -- confluent_kafka is untyped
    from confluent_kafka import KafkaException

    try:
        return future.result()
    except KafkaException as error:
        cause = error.args[0]
        if accept is not None and cause.code() == accept:
            return None
        raise TopicError(f"Kafka refused to {action}: {cause.str()}") from error
