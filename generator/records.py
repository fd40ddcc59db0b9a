"""A record on its way to Kafka."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from hashlib import md5

import orjson

from crm_resources.contracts.canonical import message_digest
from crm_resources.ordered_defects import Defect, Expected

__all__ = ["Defect", "Outgoing"]


@dataclass(slots=True)
class Outgoing:
    """One Kafka record and what the ledger is to know of it. Not to be changed; not frozen, for that costs a microsecond per record.

    `event_us` is the event time in microseconds since 1970 UTC; `value` is None for a tombstone. For a record that is broken
    on purpose the other fields describe the event it was made from. `canonical` is the message's canonical text where the encoder
    knows it; a record with a defect does not use it.
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
    canonical: str | None = None

    def typed_md5(self) -> bytes | None:
        """Typed checksum of the message as it is sent; None where it is meant to become a dead letter, or follows no contract."""
        if self.defect is None:
            if self.canonical is not None:
                return md5(self.canonical.encode(), usedforsecurity=False).digest()
        elif self.defect.expected is Expected.DEAD_LETTER:
            return None
        if self.value is None:
            return None
        try:
            return message_digest(self.entity, orjson.loads(self.value))
        except (ValueError, TypeError, ArithmeticError, AttributeError, KeyError):
            return None  # asked for when Kafka has answered: whatever the bytes are, they must get into the ledger
