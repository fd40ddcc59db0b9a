"""One run of the generator's benchmark in a process of its own: `python -m tests.benchmarks.generator_run <mode> --events N`.

Prints one line of JSON: events and seconds, from the first event that is made to the last acknowledgement.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from typing import Annotated, Any

import typer

from crm_resources import kafka
from crm_resources.layout import topic_name
from crm_resources.settings import Settings, load_settings
from generator.delivery import deliver
from generator.scenario import LiveScenario, Mix, Phase
from generator.schedule import Schedule
from generator.synthetic import Shop, ShopOptions
from generator.traffic import Traffic

CUSTOMERS, PRODUCTS = 5_000, 300
MIX = Mix(events=0.93, orders=0.04, products=0.005, profiles=0.025)
"""The mix of the spike."""


class Mode(StrEnum):
    """What is measured."""

    ENCODE = "encode_and_produce"
    """What happened is drawn before; encoded, produced, with callbacks and ledger. The generator's own promise."""

    GENERATOR = "generator"
    """Traffic as a scenario sends it: drawn, encoded, produced, with callbacks and ledger; one process, no pacing."""

    DELIVERY = "delivery"
    """The same records, encoded before: produced, with callbacks and ledger."""

    RAW = "raw"
    """The same bytes, encoded before: produced, without callbacks and ledger. What the producer and the broker can do at all."""

    FAKER = "faker"
    """An event as plain code makes it: the shopper, the product and the visit made up by Faker each time, `json.dumps`, produce, with a
    callback that counts; no ledger."""

    FAKER_SHORT = "faker_short"
    """The same with nothing but the fields of our own events: no shopper's name or address, no product's name, no browser."""


@dataclass(frozen=True)
class Measured:
    """One run; CPU seconds are those of this process, the broker's are not in them."""

    mode: Mode
    events: int
    seconds: float
    cpu_seconds: float

    @property
    def per_second(self) -> float:
        """Events a second."""
        return self.events / self.seconds


def main(
    mode: Annotated[Mode, typer.Argument(help="What to measure.")],
    events: Annotated[int, typer.Option(help="Events to send.")] = 500_000,
) -> None:
    """Run one mode and print its figures."""
    settings = load_settings()
    send = _MODES[mode](settings, events)
    cpu, started = time.process_time(), time.monotonic()
    send()
    seconds = time.monotonic() - started
    typer.echo(json.dumps(asdict(Measured(mode, events, seconds, time.process_time() - cpu))))


def _traffic(events: int) -> Traffic:
    now = datetime.now(UTC)
    phase = Phase(name="all", duration=events / 10_000, rate=10_000)
    scenario = LiveScenario(customers=CUSTOMERS, products=PRODUCTS, mix=MIX, phases=(phase,))
    return Traffic(scenario, Schedule(scenario), Shop(ShopOptions(customers=CUSTOMERS, products=PRODUCTS), now), now)


def _generator(settings: Settings, events: int) -> Callable[[], None]:
    traffic = _traffic(events)
    return lambda: _all_acked(settings, traffic.records(), events)


def _encode(settings: Settings, events: int) -> Callable[[], None]:
    traffic = _traffic(events)
    drawn = list(traffic.draws())
    return lambda: _all_acked(settings, (traffic.encode(d, at_us) for d, at_us in drawn), events)


def _delivery(settings: Settings, events: int) -> Callable[[], None]:
    records = list(_traffic(events).records())
    return lambda: _all_acked(settings, records, events)


def _all_acked(settings: Settings, records: Any, events: int) -> None:
    outcome = deliver(settings, f"bench-{time.time_ns()}", records)
    assert outcome.acked == events, outcome


def _raw(settings: Settings, events: int) -> Callable[[], None]:
    encoded = [(topic_name(settings.env, r.plural), r.value, r.key) for r in _traffic(events).records()]

    def send() -> None:
        producer = kafka.producer(settings)
        produce = producer.produce
        for topic, value, key in encoded:
            while True:
                try:
                    produce(topic, value, key)
                    break
                except BufferError:
                    producer.poll(0.01)
        assert producer.flush(60) == 0

    return send


def _faker(settings: Settings, events: int, *, short: bool = False) -> Callable[[], None]:
    from faker import Faker

    fake = Faker("en_GB")
    topic = topic_name(settings.env, "events")
    producer = kafka.producer(settings)
    producer.list_topics(topic, timeout=20)
    acked = 0

    def count(error: object, _message: object) -> None:
        nonlocal acked
        acked += error is None

    def visit(number: int) -> dict[str, Any]:
        customer = f"C{fake.random_int(1, CUSTOMERS):06d}"
        return {
            "event_id": fake.uuid4(),
            "entity": "event",
            "entity_key": customer,
            "sequence": number,
            "schema_version": 1,
            "event_time": fake.date_time_this_year(tzinfo=UTC).isoformat(),
            "source": "faker",
            "run_id": "bench",
            "event_type": fake.random_element(("view", "click", "search", "cart")),
            "visitor_id": fake.user_name(),
            "customer_id": customer,
            "session_id": fake.uuid4(),
            "product_id": f"P{fake.random_int(1, PRODUCTS):05d}",
            "order_id": None,
            "page": fake.uri_path(),
            "channel": fake.random_element(("web", "app", "mail")),
        }

    def shopper_and_product() -> dict[str, Any]:
        return {
            "name": fake.name(),
            "email": fake.email(),
            "phone": fake.phone_number(),
            "address": fake.address(),
            "country": fake.country(),
            "ip": fake.ipv4(),
            "user_agent": fake.user_agent(),
            "product": fake.catch_phrase(),
            "price": str(fake.pydecimal(left_digits=3, right_digits=2, positive=True)),
            "comment": fake.sentence(),
        }

    def send() -> None:
        for number in range(events):
            event = visit(number) if short else visit(number) | shopper_and_product()
            producer.produce(topic, json.dumps(event).encode(), event["entity_key"].encode(), on_delivery=count)
            producer.poll(0)
        assert producer.flush(60) == 0
        assert acked == events

    return send


_MODES: dict[Mode, Callable[[Settings, int], Callable[[], None]]] = {
    Mode.ENCODE: _encode,
    Mode.GENERATOR: _generator,
    Mode.DELIVERY: _delivery,
    Mode.RAW: _raw,
    Mode.FAKER: _faker,
    Mode.FAKER_SHORT: partial(_faker, short=True),
}

if __name__ == "__main__":
    typer.run(main)
