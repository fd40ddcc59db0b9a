"""A record on its way to Kafka."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

import orjson

from crm_resources.contracts.canonical import message_digest
from crm_resources.ordered_defects import Defect, Expected

__all__ = ["Defect", "Outgoing"]


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One Kafka record and what the ledger is to know of it.

    `event_us` is the event time in microseconds since 1970 UTC; `value` is None for a tombstone. For a record that is broken
    on purpose the other fields describe the event it was made from.
    """

    plural: str
    entity: str
    key: bytes
    value: bytes | None
    event_id: str
    entity_key: str
    sequence: int
    event_us: int
    amount: Decimal | None = None
    defect: Defect | None = None

    def typed_md5(self) -> bytes | None:
        """Typed checksum of the message as it is sent; None where it is meant to become a dead letter."""
        if self.value is None or (self.defect is not None and self.defect.expected is Expected.DEAD_LETTER):
            return None
        return message_digest(self.entity, orjson.loads(self.value))
