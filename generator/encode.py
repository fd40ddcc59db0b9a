"""Turns what happened in the shop into records of the contracts: ids, sequences, bytes, keys.

Belongs here: the envelope and the spelling on the wire. Not here: what happens (`synthetic`), or how it is sent (`delivery`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from random import Random
from typing import Any, NamedTuple

import orjson

from crm_resources.contracts.canonical import own_text, string_text
from crm_resources.contracts.entities import ENTITY_KEY_FIELDS, KAFKA_KEY_FIELDS, SCHEMA_VERSION
from generator.ids import uuid7
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
        self._random = random
        self._first = first_sequence
        self._keys: dict[str, dict[str, _Key]] = {entity: {} for entity in ENTITY_KEY_FIELDS}
        self._tail = f'"source":{_quoted(source)},"run_id":{_quoted(run_id)},'
        self._canonical_tail = f"{string_text(source)},{string_text(run_id)},"

    def encode(self, draft: Draft, at_us: int | None = None) -> Outgoing:
        """Bytes, key and ledger facts of a draft.

        The envelope is put together as text, for it is the same but for four values; the fields go through the JSON encoder.

        Args:
            draft: what happened.
            at_us: when it happened, instead of the draft's own time.
        """
        entity = draft.entity
        fields = draft.fields
        happened_us = draft.at_us if at_us is None else at_us
        entity_key = first_set(fields, ENTITY_KEY_FIELDS[entity])
        keys = self._keys[entity]
        key = keys.get(entity_key)
        if key is None:
            key = keys[entity_key] = _Key(entity, entity_key, 0 if entity == "order" else self._first)
        key.sequence = sequence = key.sequence + 1
        event_id = uuid7(happened_us // 1000, self._random)
        time = wire_time(happened_us)
        amount = None
        if draft.pence is not None:
            amount = pounds(draft.pence)
            fields = {**fields, "amount": amount}
        head = f'{{"event_id":"{event_id}",{key.text}{sequence},"schema_version":{SCHEMA_VERSION},"event_time":"{time}",{self._tail}'
        return Outgoing(
            key.plural,
            entity,
            key.kafka_key or first_set(fields, KAFKA_KEY_FIELDS[entity]).encode(),
            head.encode() + orjson.dumps(fields)[1:],
            event_id,
            entity_key,
            sequence,
            happened_us,
            Decimal(amount) if amount is not None else None,
            None,
            f"36:{event_id},{key.canonical}{sequence},{SCHEMA_VERSION},{time},{self._canonical_tail}{own_text(entity, fields)}",
        )


class _Key:
    """What is known of an entity key: its last sequence, and the part of the envelope that names it, in JSON and canonical."""

    __slots__ = ("canonical", "kafka_key", "plural", "sequence", "text")

    def __init__(self, entity: str, entity_key: str, sequence: int) -> None:
        self.sequence = sequence
        self.plural = f"{entity}s"
        # Orders are keyed by their customer, which is not part of what names them.
        self.kafka_key = entity_key.encode() if KAFKA_KEY_FIELDS[entity] == ENTITY_KEY_FIELDS[entity] else None
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
    return f"{_wire_second(second)}.{rest:06d}Z"


@lru_cache(maxsize=4096)
def _wire_second(seconds: int) -> str:
    """The part of a time down to the second, which many records share."""
    return (_EPOCH + timedelta(seconds=seconds)).isoformat()[:19]


def pounds(pence: int) -> str:
    """An amount of pence as a decimal string with two digits."""
    sign = "-" if pence < 0 else ""
    return f"{sign}{abs(pence) // 100}.{abs(pence) % 100:02d}"
