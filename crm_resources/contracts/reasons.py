"""Why a record became a dead letter. The codes are stored; never rename one, only add."""

from enum import StrEnum


class Reason(StrEnum):
    """Reason codes of dead letters, in the order in which the refine step tests them."""

    NULL_VALUE = "null_value"
    OVERSIZED = "oversized"
    INVALID_UTF8 = "invalid_utf8"
    CORRUPT_JSON = "corrupt_json"
    UNKNOWN_ENTITY = "unknown_entity"
    UNKNOWN_SCHEMA_VERSION = "unknown_schema_version"
    MISSING_FIELD = "missing_field"
    INVALID_FIELD = "invalid_field"
    TOO_MANY_DECIMALS = "too_many_decimals"
    AMOUNT_MISMATCH = "amount_mismatch"
    FUTURE_EVENT = "future_event"
    CONFLICTING_DUPLICATE = "conflicting_duplicate"

    @property
    def description(self) -> str:
        """What the code means, for the person who reads the dead-letter table."""
        return _DESCRIPTIONS[self]


_DESCRIPTIONS = {
    Reason.NULL_VALUE: "The Kafka record has no value.",
    Reason.OVERSIZED: "The record is larger than the contract's 1 MiB.",
    Reason.INVALID_UTF8: "The bytes are not UTF-8 text.",
    Reason.CORRUPT_JSON: "The text is not one JSON object, or is nested too deeply.",
    Reason.UNKNOWN_ENTITY: "The record's entity is not the one that belongs to its topic.",
    Reason.UNKNOWN_SCHEMA_VERSION: "No contract with this schema version is known.",
    Reason.MISSING_FIELD: "A required field is absent or null; the detail names it.",
    Reason.INVALID_FIELD: "A field has the wrong type, range or value; the detail names it.",
    Reason.TOO_MANY_DECIMALS: "A money field has more than four decimals, or too many digits; the detail names it.",
    Reason.AMOUNT_MISMATCH: "The order's amount is not the sum of its lines.",
    Reason.FUTURE_EVENT: "The event time lies too far after the time of arrival.",
    Reason.CONFLICTING_DUPLICATE: "A record with this event id but another payload was accepted before.",
}
