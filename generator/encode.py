"""Turns what happened in the shop into records of the contracts: ids, sequences, bytes, keys.

Belongs here: the envelope and the spelling on the wire. Not here: what happens (`synthetic`), or how it is sent (`delivery`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any, NamedTuple

import orjson

from crm_resources.contracts.canonical import NULL, own_text, string_text
from crm_resources.contracts.entities import ENTITY_KEY_FIELDS, KAFKA_KEY_FIELDS, SCHEMA_VERSION
from generator.ids import Uuid7s
from generator.records import Outgoing

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Draft(NamedTuple):
    """Something that happened: the entity's own fields in `fields`, without the envelope.

    `at_us` in microseconds since 1970 UTC; `pence` is the amount of an order.
    """

    at_us: int
    entity: str
    fields: Mapping[str, Any]
    pence: int | None = None


class Piece(NamedTuple):
    """Neighbouring fields of a record in contract order, spelled as JSON without braces and as canonical text."""

    wire: str
    canonical: str


class Step(NamedTuple):
    """A browsing event in pieces that are made once and used again: what was done, by whom, to what and where.

    The fast way of a `Draft`; the record is the same.
    """

    customer_id: str
    what: Piece
    who: Piece
    about: Piece


def joined(first: Piece, second: Piece) -> Piece:
    """Two neighbouring pieces as one."""
    return Piece(f"{first.wire},{second.wire}", f"{first.canonical},{second.canonical}")


def text_piece(fields: Mapping[str, str | None]) -> Piece:
    """A piece of fields that are texts or null."""
    wire = orjson.dumps(fields).decode()[1:-1]
    return Piece(wire, ",".join([NULL if value is None else string_text(value) for value in fields.values()]))


class Encoder:
    """Gives drafts their envelope; keeps the last sequence of each key.

    Args:
        run_id: run of the generator.
        source: system that is played.
        random: seeded source of the ids' randomness.
        first_sequence: sequences of products, profiles and events begin above it, so that a later run over the same
            customers goes on rising; orders begin at 1, for their numbers are the run's own.
    """

    def __init__(self, run_id: str, source: str, random: Random, first_sequence: int) -> None:
        self._ids = Uuid7s(random)
        self._first = first_sequence
        self._keys: dict[str, dict[str, _Key]] = {entity: {} for entity in ENTITY_KEY_FIELDS}
        self._second = -1
        self._second_text = ""
        self._event_keys = self._keys["event"]
        self._tail = f'"source":{_quoted(source)},"run_id":{_quoted(run_id)},'
        self._canonical_tail = f"{string_text(source)},{string_text(run_id)},"

    def encode(self, draft: Draft, at_us: int | None = None) -> Outgoing:
        """Bytes, key and ledger facts of a draft.

        Args:
            draft: what happened.
            at_us: when it happened, instead of the draft's own time.
        """
        entity = draft.entity
        fields = draft.fields
        key = self._key(entity, first_set(fields, ENTITY_KEY_FIELDS[entity]))
        kafka_key = key.kafka_key or first_set(fields, KAFKA_KEY_FIELDS[entity]).encode()
        amount = None
        if draft.pence is not None:
            text = pounds(draft.pence)
            fields = {**fields, "amount": text}
            amount = Decimal(text)
        own = orjson.dumps(fields)[1:-1].decode()
        return self._record(key, kafka_key, own, own_text(entity, fields), draft.at_us if at_us is None else at_us, amount)

    def encode_step(self, step: Step, at_us: int) -> Outgoing:
        """The record of a browsing event.

        Args:
            step: what happened.
            at_us: when, in microseconds since 1970 UTC.
        """
        customer_id, what, who, about = step
        key = self._event_keys.get(customer_id) or self._key("event", customer_id)
        return self._record(key, key.kafka_key, f"{what[0]},{who[0]},{about[0]}", f"{what[1]},{who[1]},{about[1]}", at_us, None)

    def _key(self, entity: str, entity_key: str) -> _Key:
        keys = self._keys[entity]
        key = keys.get(entity_key)
        if key is None:
            key = keys[entity_key] = _Key(entity, entity_key, 0 if entity == "order" else self._first)
        return key

    def _record(self, key: _Key, kafka_key: bytes, own: str, canonical: str, at_us: int, amount: Decimal | None) -> Outgoing:
        """The record of a key with its own fields, as JSON and as canonical text; the envelope is the same but for three values."""
        key.sequence = sequence = key.sequence + 1
        event_id = self._ids.at(at_us // 1000)
        second, rest = divmod(at_us, 1_000_000)
        if second != self._second:
            self._second, self._second_text = second, wire_time(at_us)[:19]
        time = f"{self._second_text}.{rest:06d}Z"
        wire = f'{{"event_id":"{event_id}",{key.text}{sequence},"schema_version":{SCHEMA_VERSION},"event_time":"{time}",{self._tail}{own}}}'
        return Outgoing(
            key.plural,
            key.entity,
            kafka_key,
            wire.encode(),
            event_id,
            key.entity_key,
            sequence,
            at_us,
            amount,
            None,
            f"36:{event_id},{key.canonical}{sequence},{SCHEMA_VERSION},{time},{self._canonical_tail}{canonical}",
        )


class _Key:
    """What is known of an entity key: its last sequence, and the part of the envelope that names it, in JSON and canonical."""

    __slots__ = ("canonical", "entity", "entity_key", "kafka_key", "plural", "sequence", "text")

    def __init__(self, entity: str, entity_key: str, sequence: int) -> None:
        self.sequence = sequence
        self.entity = entity
        self.entity_key = entity_key
        self.plural = f"{entity}s"
        # Orders are keyed by their customer, which is not part of what names them.
        self.kafka_key = entity_key.encode() if KAFKA_KEY_FIELDS[entity] == ENTITY_KEY_FIELDS[entity] else b""
        self.text = f'"entity":"{entity}","entity_key":{_quoted(entity_key)},"sequence":'
        self.canonical = f"{string_text(entity)},{string_text(entity_key)},"


def _quoted(text: str) -> str:
    return orjson.dumps(text).decode()


def first_set(fields: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The first of the named fields that is not null.

    Raises:
        ValueError: all of them are.
    """
    for name in names:
        value = fields.get(name)
        if value is not None:
            return str(value)
    raise ValueError(f"none of {', '.join(names)} is set")


def wire_time(microseconds: int) -> str:
    """A time as the contracts spell it, e.g. `2011-12-09T12:50:00.000000Z`."""
    second, rest = divmod(microseconds, 1_000_000)
    return f"{(_EPOCH + timedelta(seconds=second)).isoformat()[:19]}.{rest:06d}Z"


def pounds(pence: int) -> str:
    """An amount of pence as a decimal string with two digits."""
    sign = "-" if pence < 0 else ""
    return f"{sign}{abs(pence) // 100}.{abs(pence) % 100:02d}"
