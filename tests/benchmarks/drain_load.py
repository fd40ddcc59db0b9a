"""Events for the drain benchmark: four entities, about 330 bytes each, 5 % sent twice. Quick to make, the same for one seed."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from crm_resources.kafka import ensure, producer
from crm_resources.layout import topic_name
from crm_resources.settings import Settings

DUPLICATES = 0.05
FROM_EARLIER_BATCH = 0.2
"""Share of the duplicates that repeat an event from well before the batch they arrive in."""

EARLIER = 600_000
"""How many events back an "earlier batch" reaches at most."""

MIX = (("events", 0.70), ("orders", 0.14), ("products", 0.06), ("profiles", 0.10))


@dataclass(frozen=True)
class Sent:
    """One record: plural of its entity, Kafka key, value."""

    plural: str
    key: str
    value: bytes


def records(count: int, start: datetime, seed: int = 7) -> Iterator[Sent]:
    """`count` records in the order they are sent, one per millisecond of event time from `start`.

    Args:
        count: records, resent ones included.
        start: event time of the first (UTC).
        seed: seed of the random choices.
    """
    chooser = random.Random(seed)
    recent: deque[Sent] = deque(maxlen=EARLIER // 20)
    plurals = chooser.choices([p for p, _ in MIX], [w for _, w in MIX], k=10_007)
    for n in range(count):
        if recent and chooser.random() < DUPLICATES:
            back = len(recent) - 1 if chooser.random() >= FROM_EARLIER_BATCH else chooser.randrange(max(1, len(recent) // 2))
            yield recent[back]
            continue
        at = start + timedelta(milliseconds=n)
        sent = _record(plurals[n % len(plurals)], n, at, chooser)
        if n % 20 == 0:
            recent.append(sent)
        yield sent


def preload(settings: Settings, count: int, start: datetime | None = None, seed: int = 7) -> dict[str, int]:
    """Create the topics and send the records; returns how many went to each topic.

    Raises:
        RuntimeError: Kafka did not take all of them.
    """
    ensure(settings)
    sender = producer(settings, {"linger.ms": 50, "compression.type": "lz4", "queue.buffering.max.messages": 500_000})
    sent: dict[str, int] = {}
    for record in records(count, start or datetime.now(UTC) - timedelta(milliseconds=count), seed):
        topic = topic_name(settings.env, record.plural)
        while True:
            try:
                sender.produce(topic, record.value, record.key)
                break
            except BufferError:
                sender.poll(0.1)
        sent[topic] = sent.get(topic, 0) + 1
    left = sender.flush(120)
    if left:
        raise RuntimeError(f"{left} records were not taken by Kafka")
    return sent


def _record(plural: str, n: int, at: datetime, chooser: random.Random) -> Sent:
    milliseconds = int(at.timestamp() * 1000)
    head = f"{milliseconds:012x}"
    tail = chooser.getrandbits(62) | (2 << 62)
    last = f"{tail:016x}"
    event_id = f"{head[:8]}-{head[8:]}-7{chooser.getrandbits(12):03x}-{last[:4]}-{last[4:]}"
    time = at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    customer = f"C{n * 7919 % 50_000:06d}"
    product = f"P{n * 104_729 % 4_000:05d}"
    envelope = f'"sequence":{n},"schema_version":1,"event_time":"{time}","source":"bench","run_id":"bench-drain-1"'
    match plural:
        case "events":
            key = customer
            body = (
                f'{{"event_id":"{event_id}","entity":"event","entity_key":"{customer}",{envelope},"event_type":"view",'
                f'"visitor_id":"V{n % 70_000:06d}","customer_id":"{customer}","session_id":"S{n // 10:09d}","product_id":"{product}",'
                f'"page":"/products/{product}","channel":"web"}}'
            )
        case "orders":
            key = customer
            price, quantity = Decimal(n % 9000 + 100) / 100, n % 5 + 1
            line = f'"product_id":"{product}","quantity":{quantity},"unit_price":"{price}"'
            lines = ",".join(f'{{"line_number":{i + 1},{line}}}' for i in range(2))
            body = (
                f'{{"event_id":"{event_id}","entity":"order","entity_key":"O{n:09d}",{envelope},"order_id":"O{n:09d}",'
                f'"customer_id":"{customer}","status":"paid","currency":"EUR","channel":"web","amount":"{price * quantity * 2}",'
                f'"lines":[{lines}]}}'
            )
        case "products":
            key = product
            body = (
                f'{{"event_id":"{event_id}","entity":"product","entity_key":"{product}",{envelope},"product_id":"{product}",'
                f'"name":"Product number {product}","category":"Kitchen","price":"{n % 500}.90","currency":"EUR","stock":{n % 300},'
                f'"active":true}}'
            )
        case _:
            key = customer
            body = (
                f'{{"event_id":"{event_id}","entity":"profile","entity_key":"{customer}",{envelope},"customer_id":"{customer}",'
                f'"email":"{customer}@example.org","country":"Germany","grade":"gold","consent_email":true,"opted_out":false,"erased":false}}'
            )
    return Sent(plural, key, body.encode())
