"""Messages for the stream's tests: good ones, ways to spoil them, and what the contracts' own models say of them."""

from __future__ import annotations

import json
import random
import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from pydantic import ValidationError

from crm_resources.contracts import contract_for
from crm_resources.contracts.entities import ENTITY_KEY_FIELDS, SCHEMA_VERSION, utc
from crm_resources.contracts.model import MAX_MESSAGE_BYTES

ARRIVED = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

Message = dict[str, Any]


def event_id(at: datetime, chooser: random.Random) -> str:
    """A time-ordered UUID (version 7) of a moment."""
    bits = (int(at.timestamp() * 1000) << 80) | (7 << 76) | (chooser.getrandbits(12) << 64) | (2 << 62) | chooser.getrandbits(62)
    return str(uuid.UUID(int=bits))


def good_message(entity: str, chooser: random.Random, at: datetime | None = None) -> Message:
    """A message the contract accepts, with optional fields absent, null or set."""
    at = at or ARRIVED - timedelta(seconds=chooser.uniform(0, 86_400))
    message: Message = {
        "event_id": event_id(at, chooser),
        "entity": entity,
        "entity_key": "",
        "sequence": chooser.choice([0, 1, chooser.randrange(2**40)]),
        "schema_version": 1,
        "event_time": utc(at),
        "source": "test",
        "run_id": "run-1",
    }
    customer, product = (
        f"C{chooser.randrange(500):05d}",
        chooser.choice([f"P{chooser.randrange(90)}", str(chooser.randrange(10_000, 99_999))]),
    )
    match entity:
        case "event":
            message |= {"event_type": chooser.choice(["view", "cart", "purchase"]), "visitor_id": f"v{chooser.randrange(999)}"}
            _maybe(message, chooser, customer_id=customer, product_id=product, page="/p/é", order_id="17", channel="web")
        case "order":
            lines = [_line(n + 1, product, chooser) for n in range(chooser.randrange(4))]
            total = sum((Decimal(x["unit_price"]) * x["quantity"] for x in lines), Decimal(0))
            message |= {"order_id": str(chooser.randrange(500_000, 600_000)), "status": "paid", "currency": "GBP", "channel": "web"}
            message |= {"amount": str(total), "lines": lines}
            _maybe(message, chooser, customer_id=customer, country="United Kingdom", cancels_order_id=None)
        case "product":
            message |= {"product_id": product, "name": 'Mug "blue"', "price": "3.50", "currency": "EUR", "active": chooser.random() < 0.9}
            _maybe(message, chooser, category="Kitchen", stock=chooser.randrange(-5, 500))
        case _:
            message |= {"customer_id": customer, "opted_out": False, "erased": chooser.random() < 0.1}
            _maybe(message, chooser, email="a@example.org", grade="gold", signed_up_at=utc(at), consent_email=True, country="Korea")
    message["entity_key"] = next(v for v in (message.get(f) for f in ENTITY_KEY_FIELDS[entity]) if v is not None)
    return message


def _line(number: int, product: str, chooser: random.Random) -> Message:
    price = Decimal(chooser.randrange(-500, 100_000)) / (10 ** chooser.randrange(5))
    line: Message = {"line_number": number, "product_id": product, "quantity": chooser.randrange(-20, 50), "unit_price": f"{price:f}"}
    _maybe(line, chooser, description="HEART {HOLDER}], \\", line_time="2011-12-09T12:50:00Z", source_line=chooser.randrange(10**6))
    return line


def _maybe(message: Message, chooser: random.Random, **fields: object) -> None:
    for name, value in fields.items():
        kind = chooser.random()
        if kind < 0.7:
            message[name] = value
        elif kind < 0.85:
            message[name] = None


ODD_VALUES: list[Any] = [
    None, "", "x", "x" * 201, "é" * 200, "x" * 2001, 0, -1, 1, 5, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 1.5, 1.0, True, False,
    [], [1], {}, {"a": 1},
    "0", "12", "12.5", "-0.0001", "+1.0000", "1.23450", "1.23456", "0.00000001", "12345678901", "1234567890.1234", "99999999999999.9999",
    "999999999999999", "0000000000000001.5", ".5", "5.", ".", "-", "1,5", "abc", "NaN", "Infinity",
    "2011-12-09T12:50:00.000000Z", "2011-12-09T12:50:00Z", "2011-12-09T12:50:00.5+01:00", "2011-12-09T12:50:00", "2011-02-30T12:50:00Z",
    "2011-12-09T25:50:00Z", "2011-12-09", "yesterday", "0000-01-01T00:00:00Z",
    "2011-12-09T12:50:00Z\n", "GBP\n", "gbp", "view", "order", "event",
    "a\u0000b", "a\u0001b", "emoji 😀", "line\nfeed", [None], [{"line_number": 1}],
]  # fmt: skip
"""Values put in the place of any field."""


def spoil(message: Message, chooser: random.Random) -> bytes:
    """A message after up to two random changes, as bytes; many of them no longer follow the contract."""
    message = json.loads(json.dumps(message))
    for _ in range(chooser.choice([0, 1, 1, 1, 2])):
        target = message
        if message.get("lines") and isinstance(message["lines"], list) and chooser.random() < 0.4 and isinstance(message["lines"][0], dict):
            target = chooser.choice([x for x in message["lines"] if isinstance(x, dict)])
        fields = list(target) + [c.name for c in _columns(message) if c.name not in target and target is message]
        name = chooser.choice(fields)
        kind = chooser.random()
        if kind < 0.2:
            target.pop(name, None)
        elif kind < 0.3:
            target[name] = None
        elif kind < 0.35:
            target[f"{name}_new"] = chooser.choice(ODD_VALUES)
        else:
            target[name] = chooser.choice(ODD_VALUES)
    raw = json.dumps(message, ensure_ascii=chooser.random() < 0.3, separators=chooser.choice([(",", ":"), (", ", ": ")])).encode()
    return raw if chooser.random() < 0.9 else chooser.choice(BYTE_CHANGES)(raw)


def _columns(message: Message) -> Any:
    try:
        return contract_for(str(message.get("entity"))).columns
    except KeyError:
        return ()


BYTE_CHANGES: list[Callable[[bytes], bytes]] = [
    lambda raw: raw[:-1],
    lambda raw: raw[: len(raw) // 2],
    lambda raw: raw + b" ",
    lambda raw: b"\n " + raw + b"\n",
    lambda raw: raw + b"x",
    lambda raw: raw + raw,
    lambda raw: raw + b"," + raw,
    lambda raw: raw + b"]",
    lambda raw: b"[" + raw + b"]",
    lambda raw: raw.replace(b"e", b"\xff", 1),
    lambda raw: raw.replace(b'"', b"'"),
    lambda raw: raw.replace(b'"test"', b'"\\ud800"'),
    lambda raw: raw.replace(b'"test"', b'"\\ud83d\\ude00"'),
    lambda raw: raw.replace(b'"test"', b'"a\\u00e9"'),
    lambda raw: raw.replace(b'"test"', b"test"),
    lambda raw: raw.replace(b'"test"', b"NaN"),
    lambda raw: raw.replace(b'"run_id"', b'"run_id":"a","run_id"'),
    lambda raw: raw.replace(b'"run_id"', b'"deep":' + b"[" * 10_000 + b"]" * 10_000 + b',"run_id"'),
    lambda raw: b"null",
    lambda raw: b"17",
    lambda raw: b'"text"',
    lambda raw: b"",
    lambda raw: b"\xef\xbb\xbf" + raw,
]


def model_accepts(entity: str, raw: bytes, *, tolerance: timedelta = timedelta(days=1)) -> bool:
    """The verdict of the contract's pydantic model, with the rules the stream adds written down a second time."""
    contract = contract_for(entity)
    if len(raw) > MAX_MESSAGE_BYTES:
        return False
    try:
        document = json.loads(raw.decode(), parse_constant=_no_constant)
        known = _known(document, contract.columns) if isinstance(document, dict) else document
        if (isinstance(document, dict) and len(known) != len(document)) or (isinstance(document, dict) and known != document):
            raw = json.dumps(known).encode()
        if _holds_nul(document) and not _holds_nul(known):
            return False  # the stream looks for NUL in the whole text, also where the contract knows no field
        message = contract.model.model_validate_json(raw, strict=True)
    except (ValidationError, ValueError, RecursionError):
        return False
    key = next((v for v in (getattr(message, f) for f in ENTITY_KEY_FIELDS[entity]) if v is not None), None)
    if message.schema_version > SCHEMA_VERSION or message.entity_key != key or message.event_time > ARRIVED + tolerance:
        return False
    return _narrow(known, contract.columns)


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _holds_nul(value: Any) -> bool:
    """Whether a text within a JSON value holds the NUL character."""
    if isinstance(value, dict):
        return any(_holds_nul(part) for pair in value.items() for part in pair)
    if isinstance(value, list):
        return any(map(_holds_nul, value))
    return isinstance(value, str) and "\0" in value


def _known(document: Message, columns: Any) -> Message:
    """The document without the fields the contract does not know."""
    items = {c.name: c.items for c in columns}
    return {
        name: [_known(i, items[name]) if isinstance(i, dict) else i for i in value] if items[name] and isinstance(value, list) else value
        for name, value in document.items()
        if name in items
    }


_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)")
_MONEY = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)")


def _narrow(document: Message, columns: Any) -> bool:
    """Times and money are spelled as the contracts say, where pydantic takes more spellings."""
    for c in columns:
        value = document.get(c.name)
        if value is None:
            continue
        if c.type == "timestamp" and not _TIME.fullmatch(str(value)):
            return False
        if c.type == "decimal" and not _MONEY.fullmatch(str(value)):
            return False
        if c.type == "list" and not all(_narrow(item, c.items) for item in value):
            return False
    return True
