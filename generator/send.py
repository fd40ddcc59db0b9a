"""A shop's own records: every line of a JSON Lines file is checked against its contract before the first one is sent.

What the platform can tell by itself may be left out of a record: `entity` (when it is given for the whole file), `schema_version`,
`entity_key`, `source`, `run_id` and `event_id`. Ids that are left out derive from the record, so the same file sent twice gives
exact duplicates, which the platform drops.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from crm_resources.contracts import ENTITIES, Envelope, Order, contract_for
from crm_resources.contracts.entities import ENTITY_KEY_FIELDS, SCHEMA_VERSION, kafka_key, utc
from crm_resources.contracts.model import MAX_MESSAGE_BYTES, known_fields, version_needed
from generator.errors import BadInputError, Problem
from generator.ids import derived_uuid, epoch_microseconds
from generator.records import Outgoing

_MOST_PROBLEMS = 1_000
_REMEDIES = {
    "missing": "is missing",
    "extra_forbidden": "is no field of this contract; remove it or correct its name",
    "decimal_max_places": "has more than 4 decimals; round it",
    "timezone_aware": "has no time zone; write it in UTC, e.g. 2026-01-31T10:15:00.000000Z",
    "datetime_from_date_parsing": "is no time; write e.g. 2026-01-31T10:15:00.000000Z",
    "datetime_parsing": "is no time; write e.g. 2026-01-31T10:15:00.000000Z",
    "decimal_parsing": 'is no amount; write a string such as "12.50"',
    "decimal_type": 'is no amount; write a string such as "12.50"',
}


@dataclass(frozen=True)
class CheckedFile:
    """Records of a file that all follow their contracts."""

    path: Path
    run_id: str
    records: tuple[Outgoing, ...]


def check_file(path: Path, entity: str | None = None, latest: datetime | None = None) -> CheckedFile:
    """Read and check a JSON Lines file.

    Args:
        path: one JSON object a line; empty lines are skipped.
        entity: entity (or its plural) of records that do not say it themselves.
        latest: event times after it are refused; none are when omitted.

    Raises:
        BadInputError: any record is bad; lists line, field and remedy of each.
    """
    name = path.name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInputError(str(path), [Problem(None, None, f"cannot be read: {error.strerror}")]) from error
    if not content.strip():
        raise BadInputError(name, [Problem(None, None, "is empty")])
    default = None
    if entity is not None:
        try:
            default = contract_for(entity).entity
        except KeyError as error:
            raise BadInputError(name, [Problem(None, "--entity", str(error.args[0]))]) from error
    run_id = f"send-{hashlib.sha256(content).hexdigest()[:16]}"
    problems: list[Problem] = []
    records: list[Outgoing] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        checked = check_record(line, number, default, run_id, latest)
        if isinstance(checked, Outgoing):
            first = seen.setdefault(checked.event_id, number)
            if first == number:
                records.append(checked)
            else:
                problems.append(
                    Problem(number, "event_id", f"{checked.event_id} is already that of line {first}; each record needs its own")
                )
        else:
            problems.extend(checked)
            if len(problems) >= _MOST_PROBLEMS:
                break
    if problems:
        raise BadInputError(name, problems)
    return CheckedFile(path, run_id, tuple(records))


def check_record(line: bytes, number: int, entity: str | None, run_id: str, latest: datetime | None = None) -> Outgoing | list[Problem]:
    """The record of one line, or what is wrong with it.

    Args:
        line: a JSON object.
        number: of the line, from 1.
        entity: of a record that does not say it itself.
        run_id: of a record that does not say it itself.
        latest: event times after it are refused; none are when omitted.
    """
    try:
        given = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return [Problem(number, None, f"is no JSON: {error.msg} at column {error.colno}")]
    if not isinstance(given, dict):
        return [Problem(number, None, f"is no JSON object but a {type(given).__name__}")]
    kind = given.get("entity", entity)
    if kind not in ENTITIES:
        known = ", ".join(ENTITIES)
        return [Problem(number, "entity", f"{kind!r} is no entity; known are {known}; or say it for the whole file with --entity")]
    record = _completed(given, kind, run_id)
    try:
        message = ENTITIES[kind].model_validate_json(orjson.dumps(record), strict=True)
    except ValidationError as error:
        return [_problem(number, dict(e)) for e in error.errors()]
    if message.schema_version > SCHEMA_VERSION:
        known = "1" if SCHEMA_VERSION == 1 else f"1 to {SCHEMA_VERSION}"
        return [Problem(number, "schema_version", f"{message.schema_version} is not known here; this platform takes {known}")]
    if latest is not None and message.event_time > latest:
        return [Problem(number, "event_time", f"{utc(message.event_time)} lies too far in the future; the stream would set it aside")]
    expected_key = _entity_key(record, kind)
    if message.entity_key != expected_key:
        return [Problem(number, "entity_key", f"{message.entity_key!r} is not {expected_key!r}, which the record's own fields say")]
    value = wire_bytes(message)
    if len(value) > MAX_MESSAGE_BYTES:
        return [Problem(number, None, f"is {len(value)} bytes long, more than the {MAX_MESSAGE_BYTES} a record may have")]
    return Outgoing(
        plural=contract_for(kind).plural,
        entity=kind,
        key=kafka_key(message),
        value=value,
        event_id=message.event_id,
        entity_key=message.entity_key,
        sequence=message.sequence,
        event_us=epoch_microseconds(message.event_time),
        amount=message.amount if isinstance(message, Order) else None,
    )


def wire_bytes(message: Envelope) -> bytes:
    """A message in the one spelling of the wire: the fields of its schema version in contract order, money as strings, times in UTC."""
    fields = known_fields(contract_for(message.entity).columns, message.model_dump(mode="python"), message.schema_version)
    return orjson.dumps(_spelled(fields))


def _spelled(value: Any) -> Any:  # noqa: ANN401 -- a JSON value
    if isinstance(value, datetime):
        return utc(value)
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, dict):
        return {k: _spelled(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_spelled(v) for v in value]
    return value


def _completed(given: Mapping[str, Any], kind: str, run_id: str) -> dict[str, Any]:
    """The record with what the platform can tell by itself filled in."""
    version = version_needed(contract_for(kind).columns, given)
    record: dict[str, Any] = {"entity": kind, "schema_version": version, "source": "send", "run_id": run_id} | dict(given)
    if "entity_key" not in record and (key := _entity_key(record, kind)) is not None:
        record["entity_key"] = key
    if "event_id" not in record:
        try:
            moment = datetime.fromisoformat(str(record.get("event_time"))).astimezone(UTC)
        except ValueError:
            moment = datetime.fromtimestamp(0, UTC)  # the contract names the bad time; the id does not matter then
        facts = {k: v for k, v in record.items() if k not in ("run_id", "source")}
        record["event_id"] = derived_uuid(moment, "send", orjson.dumps(facts, option=orjson.OPT_SORT_KEYS).decode())
    return record


def _entity_key(record: Mapping[str, Any], kind: str) -> str | None:
    for name in ENTITY_KEY_FIELDS[kind]:
        value = record.get(name)
        if value is not None:
            return str(value)
    return None


def _problem(number: int, error: Mapping[str, Any]) -> Problem:
    where = ".".join(str(part) for part in error["loc"]) or None
    text = _REMEDIES.get(error["type"]) or str(error["msg"]).removeprefix("Value error, ")
    given = error.get("input")
    shown = f"{given!r} " if error["type"] != "missing" and isinstance(given, str | int | float | bool) else ""
    return Problem(number, where, f"{shown[:80]}{text}")
