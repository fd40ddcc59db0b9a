"""What a record is: the same verdict as the contract's model, a reason for each refusal, and typed columns for the rest."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from crm_assets.streaming.transform import DETAIL, OK, REASON, Classifier, Limits, Screen
from crm_resources.contracts import Reason, contract_for, contracts
from crm_resources.contracts.entities import SCHEMA_VERSION, utc
from crm_resources.contracts.model import MAX_MESSAGE_BYTES
from tests.integration.stream.lake_fixtures import Lake, records
from tests.integration.stream.messages import ARRIVED, BYTE_CHANGES, Message, good_message, model_accepts, spoil

if TYPE_CHECKING:
    from pyspark.sql import Row

MESSAGES = 1500


def classified(lake: Lake, entity: str, values: list[bytes | None]) -> list[Row]:
    frame = Classifier(contract_for(entity), Limits())(lake.frame(records(entity, values)))
    return sorted(frame.collect(), key=lambda r: r.kafka_offset)


@pytest.mark.parametrize("entity", [c.entity for c in contracts()])
@pytest.mark.parametrize("seed", [1, 2])
def test_agrees_with_the_model_on_good_and_spoilt_messages(lake: Lake, entity: str, seed: int) -> None:
    chooser = random.Random(seed)
    values = [spoil(good_message(entity, chooser), chooser) for _ in range(MESSAGES)]
    values += [change(json.dumps(good_message(entity, chooser)).encode()) for change in BYTE_CHANGES]
    frame = lake.frame(records(entity, values))
    judged = Classifier(contract_for(entity), Limits())(frame)
    verdicts = {r.kafka_offset: r for r in judged.select("kafka_offset", REASON, DETAIL).collect()}
    passed = {r.kafka_offset for r in Screen(contract_for(entity), Limits())(frame).where(OK).select("kafka_offset").collect()}

    wrong = [(v[:400], verdicts[n]) for n, v in enumerate(values) if (verdicts[n].reason is None) != model_accepts(entity, v)]

    assert wrong == []
    assert {n for n in passed if verdicts[n].reason is not None} == set(), "the screen passed what the classification refuses"
    assert len(passed) > 0.9 * sum(r.reason is None for r in verdicts.values()), "the screen is of little use"
    assert {Reason.CORRUPT_JSON, Reason.MISSING_FIELD, Reason.INVALID_FIELD} <= set(Counter(r.reason for r in verdicts.values()))


def changed(entity: str, /, **fields: object) -> bytes:
    message = good_message(entity, random.Random(5), ARRIVED - timedelta(hours=1))
    return json.dumps({k: v for k, v in {**message, **fields}.items() if v != "absent"}).encode()


def order_line(**fields: object) -> dict[str, object]:
    line = {"line_number": 1, "product_id": "85123A", "quantity": 2, "unit_price": "2.55"}
    return {k: v for k, v in {**line, **fields}.items() if v != "absent"}


NEXT = SCHEMA_VERSION + 1

CASES: list[tuple[str, str, bytes | None, Reason, str]] = [
    ("null value", "event", None, Reason.NULL_VALUE, ""),
    ("above 1 MiB", "event", changed("event", page="x" * MAX_MESSAGE_BYTES), Reason.OVERSIZED, "bytes"),
    ("not UTF-8", "event", changed("event").replace(b"test", b"te\xffst"), Reason.INVALID_UTF8, ""),
    ("not JSON", "event", b"hello", Reason.CORRUPT_JSON, "hello"),
    ("empty", "event", b"", Reason.CORRUPT_JSON, ""),
    ("cut off", "event", changed("event")[:-5], Reason.CORRUPT_JSON, ""),
    ("trailing text", "event", changed("event") + b" x", Reason.CORRUPT_JSON, ""),
    ("two objects", "event", changed("event") + changed("event"), Reason.CORRUPT_JSON, ""),
    ("an array", "event", b"[" + changed("event") + b"]", Reason.CORRUPT_JSON, ""),
    ("nested 10,000 deep", "event", b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}", Reason.CORRUPT_JSON, ""),
    ("NaN amount", "order", changed("order", amount=float("nan")), Reason.CORRUPT_JSON, ""),
    ("entity of another topic", "event", changed("order"), Reason.UNKNOWN_ENTITY, "order"),
    ("unknown entity", "event", changed("event", entity="visit"), Reason.UNKNOWN_ENTITY, "visit"),
    ("unknown schema version", "event", changed("event", schema_version=NEXT), Reason.UNKNOWN_SCHEMA_VERSION, str(NEXT)),
    ("no event id", "event", changed("event", event_id="absent"), Reason.MISSING_FIELD, "event_id"),
    ("null where required", "profile", changed("profile", opted_out=None), Reason.MISSING_FIELD, "opted_out"),
    ("null identity", "event", changed("event", event_id=None), Reason.MISSING_FIELD, "event_id"),
    ("null key of an event", "event", changed("event", visitor_id=None), Reason.MISSING_FIELD, "visitor_id"),
    ("null key of an order", "order", changed("order", order_id=None), Reason.MISSING_FIELD, "order_id"),
    ("null key of a line", "order", changed("order", lines=[order_line(product_id=None)]), Reason.MISSING_FIELD, "lines.product_id"),
    ("null key of a product", "product", changed("product", product_id=None), Reason.MISSING_FIELD, "product_id"),
    ("null key of a profile", "profile", changed("profile", customer_id=None), Reason.MISSING_FIELD, "customer_id"),
    ("line without price", "order", changed("order", lines=[order_line(unit_price="absent")]), Reason.MISSING_FIELD, "lines.unit_price"),
    ("text for a number", "event", changed("event", sequence="17"), Reason.INVALID_FIELD, "sequence"),
    ("number for a text", "event", changed("event", customer_id=17), Reason.INVALID_FIELD, "customer_id"),
    ("fraction for an integer", "product", changed("product", stock=1.5), Reason.INVALID_FIELD, "stock"),
    ("text for a boolean", "profile", changed("profile", erased="true"), Reason.INVALID_FIELD, "erased"),
    ("not in the enumeration", "order", changed("order", status="lost"), Reason.INVALID_FIELD, "status: lost"),
    ("below the minimum", "event", changed("event", sequence=-1), Reason.INVALID_FIELD, "sequence"),
    ("too long", "event", changed("event", visitor_id="x" * 201), Reason.INVALID_FIELD, "visitor_id"),
    ("not the pattern", "product", changed("product", currency="eur"), Reason.INVALID_FIELD, "currency"),
    ("day that does not exist", "event", changed("event", event_time="2026-02-30T00:00:00Z"), Reason.INVALID_FIELD, "event_time"),
    ("time without zone", "event", changed("event", event_time="2026-02-01T00:00:00"), Reason.INVALID_FIELD, "event_time"),
    ("key of something else", "product", changed("product", entity_key="other"), Reason.INVALID_FIELD, "entity_key"),
    ("NUL in a text", "event", changed("event", page="a\0b"), Reason.INVALID_FIELD, "NUL"),
    ("price as exponent", "product", changed("product", price="1e3"), Reason.INVALID_FIELD, "price: 1e3"),
    ("price in words", "product", changed("product", price="free"), Reason.INVALID_FIELD, "price: free"),
    ("five decimals", "product", changed("product", price="1.00001"), Reason.TOO_MANY_DECIMALS, "price: 1.00001"),
    ("too many digits", "product", changed("product", price="12345678901"), Reason.TOO_MANY_DECIMALS, "price"),
    (
        "five decimals in a line",
        "order",
        changed("order", lines=[order_line(unit_price="1.00001")]),
        Reason.TOO_MANY_DECIMALS,
        "lines.unit_price",
    ),
    ("amount is not the sum", "order", changed("order", amount="5.11", lines=[order_line()]), Reason.AMOUNT_MISMATCH, "5.1100"),
    ("a year ahead", "event", changed("event", event_time=utc(ARRIVED + timedelta(days=365))), Reason.FUTURE_EVENT, "event_time"),
]


def test_every_refusal_has_its_reason_and_names_the_culprit(lake: Lake) -> None:
    wrong: list[str] = []
    for entity in sorted({c[1] for c in CASES}):
        cases = [c for c in CASES if c[1] == entity]
        for (name, _, _, reason, detail), row in zip(cases, classified(lake, entity, [c[2] for c in cases]), strict=True):
            if row.reason != reason or detail not in (row.detail or ""):
                wrong.append(f"{name}: {row.reason} ({row.detail}), expected {reason} ({detail})")
    assert wrong == []
    assert {c[3] for c in CASES} == set(Reason) - {Reason.CONFLICTING_DUPLICATE}


def test_a_good_order_is_typed_exactly(lake: Lake) -> None:
    value = changed("order", amount="5.1", event_time="2026-02-28T13:00:00.123456+01:00", lines=[order_line(unit_price="2.55000")])

    (row,) = classified(lake, "order", [value])

    assert row.reason is None
    assert row.amount == Decimal("5.1000")
    assert row.lines[0].unit_price == Decimal("2.5500")
    assert row.event_time.astimezone(UTC) == datetime(2026, 2, 28, 12, 0, 0, 123456, UTC)


@pytest.mark.parametrize(
    "spell",
    [
        pytest.param(lambda m: json.dumps({**m, "loyalty": {"points": 5}}), id="a field of a newer producer"),
        pytest.param(lambda m: json.dumps(m, indent=2), id="white space"),
        pytest.param(lambda m: json.dumps({**m, "source": "shop 😀"}), id="escaped emoji"),
        pytest.param(lambda m: json.dumps({**m, "source": "a\\u0000b"}), id="escaped backslash that looks like NUL"),
    ],
)
def test_odd_but_good_messages_are_accepted(lake: Lake, spell: Callable[[Message], str]) -> None:
    value = spell(good_message("event", random.Random(3), ARRIVED - timedelta(hours=1))).encode()

    (row,) = classified(lake, "event", [value])

    assert (row.reason, row.detail) == (None, None)
