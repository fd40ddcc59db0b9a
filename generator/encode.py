"""Turns what happened in the shop into records of the contracts: ids, sequences, bytes, keys.

Belongs here: the envelope and the spelling on the wire. Not here: what happens (`synthetic`), or how it is sent (`delivery`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any

import orjson

from crm_resources.contracts.entities import ENTITY_KEY_FIELDS, KAFKA_KEY_FIELDS, SCHEMA_VERSION
from generator.ids import uuid7
from generator.records import Outgoing

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Draft:
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
        self._run_id = run_id
        self._source = source
        self._random = random
        self._first = first_sequence
        self._sequences: dict[tuple[str, str], int] = {}

    def encode(self, draft: Draft) -> Outgoing:
        """Bytes, key and ledger facts of a draft."""
        entity = draft.entity
        fields = draft.fields
        entity_key = first_set(fields, ENTITY_KEY_FIELDS[entity])
        sequence = self._sequences.get((entity, entity_key), 0 if entity == "order" else self._first) + 1
        self._sequences[entity, entity_key] = sequence
        event_id = uuid7(draft.at_us // 1000, self._random)
        amount = pounds(draft.pence) if draft.pence is not None else None
        message = {
            "event_id": event_id,
            "entity": entity,
            "entity_key": entity_key,
            "sequence": sequence,
            "schema_version": SCHEMA_VERSION,
            "event_time": wire_time(draft.at_us),
            "source": self._source,
            "run_id": self._run_id,
            **fields,
        }
        if amount is not None:
            message["amount"] = amount
        return Outgoing(
            plural=f"{entity}s",
            entity=entity,
            key=first_set(fields, KAFKA_KEY_FIELDS[entity]).encode(),
            value=orjson.dumps(message),
            event_id=event_id,
            entity_key=entity_key,
            sequence=sequence,
            event_us=draft.at_us,
            amount=Decimal(amount) if amount is not None else None,
        )


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
    return (_EPOCH + timedelta(microseconds=microseconds)).isoformat(timespec="microseconds")[:26] + "Z"


def pounds(pence: int) -> str:
    """An amount of pence as a decimal string with two digits."""
    sign = "-" if pence < 0 else ""
    return f"{sign}{abs(pence) // 100}.{abs(pence) % 100:02d}"
