"""Sends records through Kafka at their times and writes down what was acknowledged.

Belongs here: the producer's loop, its bounds, and the outcome of each record. Not here: what is sent or when (`pacing`), or the
ledger's form (`crm_resources.ledger`). Open loop: a record whose time has passed leaves at once and keeps its intended time. When
the producer's queue is full the loop waits, or sheds and counts where that is asked for. A record counts as acked when its ledger
row is on disk.
"""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from crm_resources import kafka
from crm_resources.layout import topic_name
from crm_resources.ledger import LedgerRow, LedgerWriter, ledger_dir, payload_md5
from crm_resources.settings import Settings
from generator.meter import Meter, Tally
from generator.pacing import AsFastAsPossible, Pace
from generator.records import Defect, Outgoing

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, KafkaException, Message, Producer

_POLL_EVERY = 200
_LONGEST_WAIT_SECONDS = 0.05
_SHORTEST_POLL_US = 2_000
_PROGRESS_EVERY_US = 100_000
_COLLECT_EVERY = 50_000
_REMEMBERED = 10_000
_FOREVER_US = 2**62


class WhenFull(StrEnum):
    """What happens to a record for which the producer's bounded queue has no room."""

    WAIT = "wait"
    """The loop waits; later records keep their intended times and leave late."""

    SHED = "shed"
    """The record is left out: counted, neither sent nor in the ledger."""


class DeliveryError(RuntimeError):
    """Kafka did not acknowledge everything; `outcome` says what was sent and acked up to then."""

    def __init__(self, message: str, outcome: Outcome) -> None:
        super().__init__(message)
        self.outcome = outcome


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Of the `offered` records, whose turn came, `acked` are durable in the ledger, `refused` were turned down for good (also in the
    ledger), `shed` were left out for want of room, and `unknown` were given up: they may or may not be in Kafka, and do not count as
    acked. Lateness is the delay of a record's hand-over behind its intended time; `interrupted` says that the person stopped it.
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
    shed: int = 0
    lateness_seconds_p99: float = 0.0

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
    delivery_timeout_seconds: float = kafka.DELIVERY_SECONDS,
    wait_seconds: float = 20,
    ledger_folder: Path | None = None,
    producer_options: Mapping[str, object] | None = None,
    when_full: WhenFull = WhenFull.WAIT,
    meter: Meter | None = None,
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
        when_full: what to do with a record for which the producer has no room.
        meter: measures the run; one of its own when omitted.

    Raises:
        KafkaUnavailableError: no broker at the start; nothing was sent.
        TopicError: a topic is absent; nothing was sent.
        LedgerError: the ledger cannot be written; what it lacks does not count as acked.
        DeliveryError: Kafka went away and records were given up.
    """
    from confluent_kafka import KafkaException

    topics = {plural: topic_name(settings.env, plural) for plural in plurals}
    kafka.require_topics(settings, topics, wait_seconds=wait_seconds)
    producer = kafka.producer(settings, producer_options, delivery_timeout_seconds=delivery_timeout_seconds)
    with LedgerWriter(ledger_folder or ledger_dir(settings.environment_dir), run_id) as ledger:
        run = _Run(
            topics, run_id, producer, ledger, pace or AsFastAsPossible(), progress, stop, when_full, meter or Meter(), KafkaException
        )
        thresholds = gc.get_threshold()
        # Records come and go without cycles: what is there already is not looked through again, and the rest seldom.
        gc.freeze()
        gc.set_threshold(_COLLECT_EVERY, *thresholds[1:])
        try:
            run.send_all(records)
        finally:
            gc.set_threshold(*thresholds)
            gc.unfreeze()
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
        when_full: WhenFull,
        meter: Meter,
        kafka_exception: type[KafkaException],
    ) -> None:
        self.producer = producer
        self.ledger = ledger
        self.pace = pace
        self.progress = progress
        self.run_id = run_id
        self.stop = stop
        self.when_full = when_full
        self.meter = meter
        self.interrupted = False
        self.topics = topics
        self.offered = 0
        self.shed = 0
        self.unknown = 0
        self.last_error = ""
        self.acked_by_topic: Counter[str] = Counter()
        self._refusal = kafka_exception
        self._shed_ids: dict[str, None] = {}
        # One rising clock for waiting and for the ledger's times: the wall clock may be set while the run lasts.
        self.clock_us = time.time_ns() // 1000 - time.monotonic_ns() // 1000
        self.started_us = self.now_us()
        self._progress_us = self.started_us
        meter.begin(self.started_us)

    def now_us(self) -> int:
        """Microseconds since 1970 UTC that never go back."""
        return time.monotonic_ns() // 1000 + self.clock_us

    def send_all(self, records: Iterable[Outgoing]) -> None:
        """Hand each record over at its time; ends early when asked to, and once records are being given up."""
        meter, topics, stop = self.meter, self.topics, self.stop
        due_seconds, produce, handed_over = self.pace.due_seconds, self.producer.produce, meter.handed_over
        for index, record in enumerate(records):
            if self.unknown:
                break
            due = due_seconds(index, record.event_us)
            now = time.monotonic_ns() // 1000 + self.clock_us
            intended_us = now if due is None else self.started_us + round(due * 1_000_000)
            meter.position_us = intended_us
            if intended_us > now:
                now = self._wait_until(intended_us)
            if stop():
                self.interrupted = True
                break
            tally = meter.due(record.entity, intended_us)
            self.offered += 1
            if self._shed_ids and self._stands_for_nothing(record):
                self._shed(record, tally)
                continue
            topic = topics[record.plural]
            flight = _InFlight(self, record, topic, intended_us, now, tally)
            try:
                produce(topic, record.value, record.key, on_delivery=flight)
                handed_over(now - intended_us)
            except BufferError:
                if not self._without_room(record, flight):
                    # Asked to stop while there was no room: the record was not given, so its turn does not count.
                    self.offered -= 1
                    tally.offered -= 1
                    self.interrupted = True
                    break
            except self._refusal as error:
                self._turned_down(flight, error)
            if index % _POLL_EVERY == 0:
                self._poll(0)
        if self.progress:
            self.progress(self.offered)

    def drain(self, seconds: float) -> None:
        """Wait until no record is under way; whatever is left after that is given up."""
        self.meter.position_us = _FOREVER_US
        deadline = time.monotonic() + seconds
        while len(self.producer) and time.monotonic() < deadline:
            self._poll(0.1)
        left = len(self.producer)
        if left:
            self.producer.purge(in_queue=True, in_flight=True, blocking=True)
            self.producer.poll(1)
        self.ledger.flush()
        self.meter.finish(self.now_us())

    def outcome(self) -> Outcome:
        """What became of the run."""
        lateness = self.meter.lateness.spread()
        return Outcome(
            run_id=self.run_id,
            offered=self.offered,
            acked=self.ledger.durable_acked,
            refused=self.ledger.durable_refused,
            unknown=self.unknown,
            seconds=(self.now_us() - self.started_us) / 1_000_000,
            lateness_seconds_max=lateness.max_seconds,
            acked_by_topic=dict(sorted(self.acked_by_topic.items())),
            ledger=self.ledger.path,
            interrupted=self.interrupted,
            shed=self.shed,
            lateness_seconds_p99=lateness.p99_seconds,
        )

    def _without_room(self, record: Outgoing, flight: _InFlight) -> bool:
        """Wait with a record until the producer has room, or shed it; False when asked to stop before there was any."""
        if self.when_full is WhenFull.SHED:
            self._poll(0)
            self._shed(record, flight.tally)
            return True
        # Back-pressure: the queue is bounded. Records given up by their timeout make room in the end.
        while not self.stop():
            self._poll(0.1)
            flight.sent_us = self.now_us()
            try:
                self.producer.produce(flight.topic, record.value, record.key, on_delivery=flight)
            except BufferError:
                continue
            except self._refusal as error:
                self._turned_down(flight, error)
                return True
            self.meter.handed_over(flight.sent_us - flight.intended_us)
            return True
        return False

    def _stands_for_nothing(self, record: Outgoing) -> bool:
        """Whether a record refers to one that was shed: a contradiction of it would be a good record itself."""
        if record.defect is Defect.CONFLICTING_DUPLICATE:
            return record.event_id in self._shed_ids
        self._shed_ids.pop(record.event_id, None)  # a resent record takes the place of the one that was left out
        return False

    def _turned_down(self, flight: _InFlight, error: KafkaException) -> None:
        if not _is_refusal(error.args[0]):
            raise error
        self.refused(flight)

    def _shed(self, record: Outgoing, tally: Tally) -> None:
        self.shed += 1
        tally.shed += 1
        self.meter.shed()
        self._shed_ids[record.event_id] = None
        if len(self._shed_ids) > _REMEMBERED:
            del self._shed_ids[next(iter(self._shed_ids))]

    def refused(self, flight: _InFlight) -> None:
        """Write down a record that was turned down for good."""
        flight.tally.refused += 1
        self.meter.refused()
        self.ledger.append(flight.row(None, None, None))

    def _wait_until(self, moment_us: int) -> int:
        """Wait for a time of the run's clock, or until the run is asked to stop; gives the time then."""
        while (left := moment_us - (now := self.now_us())) > 0 and not self.stop():
            if left < _SHORTEST_POLL_US:
                self._poll(0)
                time.sleep(left / 1_000_000)  # the producer's own wait counts in whole milliseconds
            else:
                self._poll(min(left / 1_000_000, _LONGEST_WAIT_SECONDS))
        self.meter.tick(now)  # the record belongs to the second that has just begun
        return now

    def _poll(self, seconds: float) -> None:
        self.producer.poll(seconds)
        self.ledger.tend()
        now = self.now_us()
        self.meter.tick(now, len(self.producer))
        if self.progress and now >= self._progress_us:
            self._progress_us = now + _PROGRESS_EVERY_US
            self.progress(self.offered)


class _InFlight:
    """What the ledger is to know of a record between hand-over and acknowledgement; calling it is the acknowledgement.

    The digests are taken at hand-over, when the bytes are at hand: tens of milliseconds later they have to be fetched from memory
    again, which takes longer than the digest. The record itself is let go.
    """

    __slots__ = ("defect", "intended_us", "named", "run", "sent_us", "tally", "topic", "typed_md5")

    def __init__(self, run: _Run, record: Outgoing, topic: str, intended_us: int, sent_us: int, tally: Tally) -> None:
        self.run = run
        self.topic = topic
        self.intended_us = intended_us
        self.sent_us = sent_us
        self.tally = tally
        self.named = (record.event_id, record.entity, record.entity_key, record.sequence, record.amount, payload_md5(record.value))
        self.defect = record.defect
        self.typed_md5 = record.typed_md5()

    def __call__(self, error: KafkaError | None, message: Message) -> None:
        run = self.run
        if error is None:
            now = time.monotonic_ns() // 1000 + run.clock_us
            run.ledger.append(self.row(message.partition(), message.offset(), now))
            run.acked_by_topic[self.topic] += 1
            self.tally.acked += 1
            run.meter.acked(now - self.intended_us)
        elif _is_refusal(error):
            run.refused(self)
        else:
            run.unknown += 1
            self.tally.unknown += 1
            run.last_error = error.str()

    def row(self, partition: int | None, offset: int | None, acked_us: int | None) -> LedgerRow:
        """The record's row in the ledger; one that was not acknowledged counts as refused."""
        defect = self.defect
        # By place and past the constructor, since this is done for every record; `LedgerRow` names the places.
        return tuple.__new__(
            LedgerRow,
            (
                *self.named,
                self.topic,
                partition,
                offset,
                self.intended_us,
                self.sent_us,
                acked_us,
                None if defect is None else defect.value,
                acked_us is None,
                self.typed_md5,
            ),
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
