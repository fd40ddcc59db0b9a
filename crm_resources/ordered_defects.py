"""The faults a generator can be asked for, and where a record with each of them is meant to end.

Generator and audit share this: the ledger keeps the name of the ordered defect, the audit asks whether the record went where it
belongs. Not here: how a record is broken (`generator.defects`).
"""

from __future__ import annotations

from enum import StrEnum

from crm_resources.contracts import Reason


class Expected(StrEnum):
    """What the platform is meant to make of a record."""

    ACCEPTED = "accepted"
    """It stands in silver: odd, but a true record."""

    DUPLICATE = "duplicate"
    """It stands once: in silver when it comes first, else among the dropped duplicates."""

    DEAD_LETTER = "dead_letter"
    """It stands among the dead letters, with a reason."""


class Defect(StrEnum):
    """A fault put into a record on purpose; the ledger keeps it, so that the audit knows what was meant."""

    DUPLICATE = "duplicate"
    CONFLICTING_DUPLICATE = "conflicting_duplicate"
    LATE = "late"
    OUT_OF_ORDER = "out_of_order"
    FAR_FUTURE = "far_future"
    CORRUPT_JSON = "corrupt_json"
    BAD_UTF8 = "bad_utf8"
    OVERSIZED = "oversized"
    NULL_VALUE = "null_value"
    UNKNOWN_VERSION = "unknown_version"
    UNKNOWN_REFERENCE = "unknown_reference"
    UNKNOWN_ENTITY = "unknown_entity"
    CLOCK_SKEW = "clock_skew"
    DST = "dst"
    DEEP_NESTING = "deep_nesting"
    NAN_AMOUNT = "nan_amount"

    @property
    def expected(self) -> Expected:
        """Where a record with this defect is meant to end."""
        if self is Defect.DUPLICATE:
            return Expected.DUPLICATE
        return Expected.DEAD_LETTER if self in _REASONS else Expected.ACCEPTED

    @property
    def reason(self) -> Reason | None:
        """The reason the dead letter is meant to carry; None for a record that is meant to be none."""
        return _REASONS.get(self)

    @property
    def additional(self) -> bool:
        """Whether the faulty record comes on top of a good one; otherwise it is a browsing event that is itself changed."""
        return self.expected is not Expected.ACCEPTED

    @property
    def breaks_order(self) -> bool:
        """Whether records with this defect may stand behind later ones of their key."""
        return self.additional or self is Defect.OUT_OF_ORDER

    @property
    def description(self) -> str:
        """What is wrong with the record, for the person who writes a scenario."""
        return _DESCRIPTIONS[self]


_REASONS = {
    Defect.CONFLICTING_DUPLICATE: Reason.CONFLICTING_DUPLICATE,
    Defect.FAR_FUTURE: Reason.FUTURE_EVENT,
    Defect.CORRUPT_JSON: Reason.CORRUPT_JSON,
    Defect.BAD_UTF8: Reason.INVALID_UTF8,
    Defect.OVERSIZED: Reason.OVERSIZED,
    Defect.NULL_VALUE: Reason.NULL_VALUE,
    Defect.UNKNOWN_VERSION: Reason.UNKNOWN_SCHEMA_VERSION,
    Defect.UNKNOWN_ENTITY: Reason.UNKNOWN_ENTITY,
    Defect.DEEP_NESTING: Reason.CORRUPT_JSON,
    Defect.NAN_AMOUNT: Reason.INVALID_FIELD,
}

_DESCRIPTIONS = {
    Defect.DUPLICATE: "A record sent a second time with the same bytes.",
    Defect.CONFLICTING_DUPLICATE: "A second record with the id of a good one and another payload.",
    Defect.LATE: "A browsing event that happened some time before it is sent; the delay is drawn from a log-normal distribution.",
    Defect.OUT_OF_ORDER: "A browsing event held back until later records, of its own key where there are any, have left.",
    Defect.FAR_FUTURE: "An event time ten years ahead.",
    Defect.CORRUPT_JSON: "A message cut off somewhere.",
    Defect.BAD_UTF8: "A text with bytes that are not UTF-8.",
    Defect.OVERSIZED: "A message above the contract's 1 MiB; Kafka still takes it.",
    Defect.NULL_VALUE: "A Kafka record without a value.",
    Defect.UNKNOWN_VERSION: "A schema version nobody knows.",
    Defect.UNKNOWN_REFERENCE: "A browsing event about a product that does not exist.",
    Defect.UNKNOWN_ENTITY: "An entity nobody knows, in the topic of another.",
    Defect.CLOCK_SKEW: "A browsing event from a device whose clock is wrong by up to an hour, before or behind.",
    Defect.DST: "A browsing event whose wall-clock time was read with the other half-year's offset: wrong by exactly one hour.",
    Defect.DEEP_NESTING: "A field nested 10,000 deep.",
    Defect.NAN_AMOUNT: "An order whose amount, or a product whose price, is not a number.",
}
