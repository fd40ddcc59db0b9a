"""A record on its way to Kafka, and the defects that may be ordered for it."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum


class Defect(StrEnum):
    """A fault put into a record on purpose; the ledger keeps it, so that the audit knows what was meant."""

    DUPLICATE = "duplicate"
    CONFLICTING_DUPLICATE = "conflicting_duplicate"
    CORRUPT_JSON = "corrupt_json"
    BAD_UTF8 = "bad_utf8"
    NULL_VALUE = "null_value"
    OVERSIZED = "oversized"
    UNKNOWN_VERSION = "unknown_version"
    FAR_FUTURE = "far_future"


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
