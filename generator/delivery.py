"""Sends records through Kafka at their times and writes down what was acknowledged.

Belongs here: the producer's loop, its bounds, and the outcome of each record. Not here: what is sent or when (`pacing`), or the
ledger's form (`crm_resources.ledger`). Open loop: a record whose time has passed leaves at once and keeps its intended time. When
the producer's queue is full the loop waits; nothing is shed. A record counts as acked when its ledger row is on disk.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from crm_resources import kafka
from crm_resources.layout import topic_name
from crm_resources.ledger import LedgerRow, LedgerWriter, ledger_dir, payload_md5
from crm_resources.settings import Settings
from generator.pacing import AsFastAsPossible, Pace
from generator.records import Outgoing

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message, Producer

_POLL_EVERY = 200
_LONGEST_WAIT_SECONDS = 0.05


class DeliveryError(RuntimeError):
    """Kafka did not acknowledge everything; `outcome` says what was sent and acked up to then."""

    def __init__(self, message: str, outcome: Outcome) -> None:
        super().__init__(message)
        self.outcome = outcome


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    `offered` records were handed over, of which `acked` are durable in the ledger, `refused` were turned down for good (also in the
    ledger) and `unknown` were given up: they may or may not be in Kafka, and do not count as acked. `lateness_seconds_max` is the
    largest delay of a record behind its intended time; `interrupted` that the person stopped it.
    """

    run_id: str
    offered: int
    acked: int
    refused: int
    unknown: int
    seconds: float
    lateness_seconds_max: float
    acked_by_topic: dict[str, int]
    ledger: Path
    interrupted: bool = False

    @property
    def acked_per_second(self) -> float:
        """Acknowledged records a second over the whole run."""
        return self.acked / self.seconds if self.seconds > 0 else 0.0


def deliver(
    settings: Settings,
    run_id: str,
    records: Iterable[Outgoing],
    *,
    pace: Pace | None = None,
    plurals: Iterable[str] = ("events", "orders", "products", "profiles"),
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    delivery_timeout_seconds: float = 60,
    wait_seconds: float = 20,
    ledger_folder: Path | None = None,
    producer_options: Mapping[str, object] | None = None,
) -> Outcome:
    """Send records and return when each is acknowledged, refused or given up.

    Args:
        settings: where Kafka and the ledger are.
        run_id: run of the generator; names the ledger file.
        records: in sending order.
        pace: when each is meant to leave; as fast as possible when omitted.
        plurals: what the records are, by the part of their topic's name after the data set; these topics must exist.
        progress: called now and then with the number of records handed over so far.
        stop: asked before each record; once it says yes no further record leaves, and those under way are waited for.
        delivery_timeout_seconds: how long a record is tried before it is given up.
        wait_seconds: how long an unreachable broker is waited for at the start.
        ledger_folder: where the ledger is written; with the others of the data set, which the audit compares with the lake, when omitted.
        producer_options: librdkafka properties on top of the house's own.

    Raises:
        KafkaUnavailableError: no broker at the start; nothing was sent.
        TopicError: a topic is absent; nothing was sent.
        LedgerError: the ledger cannot be written; what it lacks does not count as acked.
        DeliveryError: Kafka went away and records were given up.
    """
    topics = {plural: topic_name(settings.env, plural) for plural in plurals}
    kafka.require_topics(settings, topics, wait_seconds=wait_seconds)
    producer = kafka.producer(settings, producer_options, delivery_timeout_seconds=delivery_timeout_seconds)
    with LedgerWriter(ledger_folder or ledger_dir(settings.environment_dir), run_id) as ledger:
        run = _Run(topics, run_id, producer, ledger, pace or AsFastAsPossible(), progress, stop)
        try:
            run.send_all(records)
        finally:
            # Also when the source of the records failed: what is under way is still acknowledged and written down.
            run.drain(min(10.0, delivery_timeout_seconds) if run.interrupted else delivery_timeout_seconds + 5)
    outcome = run.outcome()
    if outcome.unknown:
        raise DeliveryError(
            f"Kafka at {settings.kafka_bootstrap} did not acknowledge {outcome.unknown} of {outcome.offered} records within "
            f"{delivery_timeout_seconds:.0f} s ({run.last_error}); {outcome.acked} are acked and in {ledger.path}. "
            "See `make status`; when Kafka is back, run the same command again: records that did arrive are dropped as duplicates "
            "where their ids are the same (replay, send).",
            outcome,
        )
    return outcome


class _Run:
    """State of one run of the loop."""

    def __init__(
        self,
        topics: Mapping[str, str],
        run_id: str,
        producer: Producer,
        ledger: LedgerWriter,
        pace: Pace,
        progress: Callable[[int], None] | None,
        stop: Callable[[], bool],
    ) -> None:
        self.producer = producer
        self.ledger = ledger
        self.pace = pace
        self.progress = progress
        self.run_id = run_id
        self.stop = stop
        self.interrupted = False
        self.topics = topics
        self.offered = 0
        self.unknown = 0
        self.late_us = 0
        self.last_error = ""
        self.acked_by_topic: Counter[str] = Counter()
        self.started = time.monotonic()
        self.started_us = _now_us()

    def send_all(self, records: Iterable[Outgoing]) -> None:
        """Hand each record over at its time; ends early when asked to, and once records are being given up."""
        for index, record in enumerate(records):
            if self.unknown:
                break
            due = self.pace.due_seconds(index, record.event_us)
            if due is None:
                intended_us = _now_us()
            else:
                intended_us = self.started_us + round(due * 1_000_000)
                self._wait_until(self.started + due)
            if not self._hand_over(record, intended_us):
                self.interrupted = True
                break
            if index % _POLL_EVERY == 0:
                self._poll(0)
                if self.progress:
                    self.progress(self.offered)
        if self.progress:
            self.progress(self.offered)

    def drain(self, seconds: float) -> None:
        """Wait until no record is under way; whatever is left after that is given up."""
        deadline = time.monotonic() + seconds
        while len(self.producer) and time.monotonic() < deadline:
            self._poll(0.1)
        left = len(self.producer)
        if left:
            self.producer.purge(in_queue=True, in_flight=True, blocking=True)
            self.producer.poll(1)
        self.ledger.flush()

    def outcome(self) -> Outcome:
        """What became of the run."""
        return Outcome(
            run_id=self.run_id,
            offered=self.offered,
            acked=self.ledger.durable_acked,
            refused=self.ledger.durable_refused,
            unknown=self.unknown,
            seconds=time.monotonic() - self.started,
            lateness_seconds_max=self.late_us / 1_000_000,
            acked_by_topic=dict(sorted(self.acked_by_topic.items())),
            ledger=self.ledger.path,
            interrupted=self.interrupted,
        )

    def acked(self, flight: _InFlight, error: KafkaError | None, message: Message) -> None:
        """Take the outcome of one record from the producer."""
        if error is None:
            topic = message.topic() or ""
            self.ledger.append(flight.row(topic, message.partition(), message.offset(), _now_us(), refused=False))
            self.acked_by_topic[topic] += 1
        elif _is_refusal(error):
            self.ledger.append(flight.row(message.topic() or "", None, None, None, refused=True))
        else:
            self.unknown += 1
            self.last_error = error.str()

    def _hand_over(self, record: Outgoing, intended_us: int) -> bool:
        """Give a record to the producer; False, and it was not given, when the run was asked to stop."""
        from confluent_kafka import KafkaException

        topic = self.topics[record.plural]
        sent_us = _now_us()
        flight = _InFlight(self, record, intended_us, sent_us)
        while not self.stop():
            try:
                self.producer.produce(topic, value=record.value, key=record.key, on_delivery=flight)
            except BufferError:
                # Back-pressure: the queue is bounded, the loop waits. Records given up by their timeout make room in the end.
                self._poll(0.1)
                continue
            except KafkaException as error:
                cause = error.args[0]
                if not _is_refusal(cause):
                    raise
                self.ledger.append(flight.row(topic, None, None, None, refused=True))
            self.late_us = max(self.late_us, sent_us - intended_us)
            self.offered += 1
            return True
        return False

    def _wait_until(self, moment: float) -> None:
        while (left := moment - time.monotonic()) > 0 and not self.stop():
            self._poll(min(left, _LONGEST_WAIT_SECONDS))

    def _poll(self, seconds: float) -> None:
        self.producer.poll(seconds)
        self.ledger.tend()


class _InFlight:
    """A record between hand-over and acknowledgement; calling it is the acknowledgement."""

    __slots__ = ("intended_us", "record", "run", "sent_us")

    def __init__(self, run: _Run, record: Outgoing, intended_us: int, sent_us: int) -> None:
        self.run = run
        self.record = record
        self.intended_us = intended_us
        self.sent_us = sent_us

    def __call__(self, error: KafkaError | None, message: Message) -> None:
        self.run.acked(self, error, message)

    def row(self, topic: str, partition: int | None, offset: int | None, acked_us: int | None, *, refused: bool) -> LedgerRow:
        """The record's row in the ledger."""
        record = self.record
        return LedgerRow(
            event_id=record.event_id,
            entity=record.entity,
            entity_key=record.entity_key,
            sequence=record.sequence,
            amount=record.amount,
            payload_md5=payload_md5(record.value),
            topic=topic,
            partition=partition,
            offset=offset,
            intended_us=self.intended_us,
            sent_us=self.sent_us,
            acked_us=acked_us,
            defect=record.defect.value if record.defect else None,
            refused=refused,
            typed_md5=record.typed_md5(),
        )


def _is_refusal(error: KafkaError) -> bool:
    """Whether the record itself was turned down for good, as opposed to a broker that cannot be reached."""
    from confluent_kafka import KafkaError as Codes

    return error.code() in {
        Codes.MSG_SIZE_TOO_LARGE,
        Codes.INVALID_MSG,
        Codes.INVALID_RECORD,
        Codes.TOPIC_AUTHORIZATION_FAILED,
        Codes.POLICY_VIOLATION,
    }


def _now_us() -> int:
    return time.time_ns() // 1000
