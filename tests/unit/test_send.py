"""A shop's own records: all of a file is checked before any of it leaves."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from crm_resources.contracts import ENTITIES
from generator.cli import app
from generator.errors import BadInputError
from generator.send import check_file

ORDER: dict[str, Any] = {
    "event_id": "019a0000-0000-7000-8000-000000000001",
    "entity": "order",
    "entity_key": "O-1",
    "sequence": 1,
    "schema_version": 1,
    "event_time": "2026-01-31T10:15:00.000000Z",
    "source": "shop",
    "run_id": "shop-1",
    "order_id": "O-1",
    "customer_id": "C-1",
    "status": "placed",
    "currency": "GBP",
    "channel": "web",
    "amount": "25.50",
    "lines": [{"line_number": 1, "product_id": "P-1", "quantity": 2, "unit_price": "12.75"}],
}


def changed(**fields: Any) -> dict[str, Any]:
    return {k: v for k, v in (ORDER | fields).items() if v is not ...}


def written(tmp_path: Path, *records: dict[str, Any] | bytes) -> Path:
    path = tmp_path / "orders.jsonl"
    path.write_bytes(b"\n".join(r if isinstance(r, bytes) else orjson.dumps(r) for r in records) + b"\n")
    return path


def test_a_good_record_is_keyed_and_spelled_by_its_contract(tmp_path: Path) -> None:
    (record,) = check_file(written(tmp_path, changed(event_time="2026-01-31T11:15:00+01:00"))).records
    assert (record.key, record.plural, record.entity_key) == (b"C-1", "orders", "O-1")
    message = orjson.loads(record.value or b"")
    assert list(message) == list(ENTITIES["order"].model_fields)
    assert message["event_time"] == "2026-01-31T10:15:00.000000Z"
    assert message["amount"] == "25.50"
    assert message["lines"][0]["unit_price"] == "12.75"


def test_what_the_platform_can_tell_by_itself_may_be_left_out(tmp_path: Path) -> None:
    short = changed(event_id=..., entity=..., entity_key=..., schema_version=..., source=..., run_id=...)
    checked = check_file(written(tmp_path, short), "orders")
    again = check_file(written(tmp_path, short), "order")
    message = ENTITIES["order"].model_validate_json(checked.records[0].value or b"")
    assert (message.entity_key, message.schema_version, message.run_id) == ("O-1", 1, checked.run_id)
    assert again.records == checked.records


def test_a_guest_order_is_keyed_by_its_number(tmp_path: Path) -> None:
    (record,) = check_file(written(tmp_path, changed(customer_id=...))).records
    assert record.key == b"O-1"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (changed(sequence=...), "orders.jsonl:1: sequence: is missing"),
        (changed(colour="red"), "orders.jsonl:1: colour: 'red' is no field of this contract"),
        (changed(amount="25.51"), "orders.jsonl:1: amount 25.51 is not the sum of the lines, 25.50"),
        (changed(amount="25.50001"), "orders.jsonl:1: amount: '25.50001' has more than 4 decimals"),
        (changed(amount="NaN"), "orders.jsonl:1: amount: 'NaN' "),
        (changed(status="lost"), "orders.jsonl:1: status: 'lost' "),
        (changed(event_time="2026-01-31T10:15:00"), "orders.jsonl:1: event_time: '2026-01-31T10:15:00' has no time zone"),
        (changed(event_time="yesterday"), "orders.jsonl:1: event_time: 'yesterday' is no time"),
        (changed(event_time="2036-01-31T10:15:00Z"), "orders.jsonl:1: event_time: 2036-01-31T10:15:00.000000Z lies too far in the future"),
        (changed(sequence="1"), "orders.jsonl:1: sequence: '1' "),
        (changed(channel="a\0b"), r"orders.jsonl:1: channel: 'a\x00b' holds the NUL character (\u0000), which no text may; leave it out"),
        (changed(entity="invoice"), "orders.jsonl:1: entity: 'invoice' is no entity; known are event, order, product, profile"),
        (changed(entity_key="O-2"), "orders.jsonl:1: entity_key: 'O-2' is not 'O-1'"),
        (changed(schema_version=9), "orders.jsonl:1: schema_version: 9 is not known"),
        (changed(lines=[{"line_number": 1, "product_id": "P", "quantity": 1}]), "orders.jsonl:1: lines.0.unit_price: is missing"),
        (b"{'a': 1}", "orders.jsonl:1: is no JSON: "),
        (b"[1]", "orders.jsonl:1: is no JSON object but a list"),
        (b"\xff\xfe", "orders.jsonl:1: is no JSON: "),
    ],
)
def test_a_bad_record_is_named_by_line_and_field(tmp_path: Path, record: dict[str, Any] | bytes, message: str) -> None:
    with pytest.raises(BadInputError) as caught:
        check_file(written(tmp_path, record), latest=datetime(2026, 2, 1, tzinfo=UTC))
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith("Nothing was sent.")


def test_all_bad_records_are_told_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, ORDER, changed(status="lost"), b"", b"no", changed(event_id=ORDER["event_id"]))
    with pytest.raises(BadInputError) as caught:
        check_file(path)
    assert [p.line for p in caught.value.problems] == [2, 4, 5]
    assert "already that of line 1" in str(caught.value)


def test_a_long_list_of_faults_is_cut(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="and 5 more"):
        check_file(written(tmp_path, *[b"no"] * 25))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"orders\.jsonl: is empty"):
        check_file(written(tmp_path, b""))


def test_an_unknown_entity_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no entity 'invoices'; known: event, order, product, profile"):
        check_file(written(tmp_path, ORDER), "invoices")


def test_one_bad_record_and_the_command_sends_none(tmp_path: Path) -> None:
    path = written(tmp_path, ORDER, changed(status="lost"))
    outcome = CliRunner().invoke(app, ["send", str(path)], env={"CRM_HOME": str(tmp_path / "home"), "CRM_KAFKA_BOOTSTRAP": "127.0.0.1:1"})
    assert outcome.exit_code == 2
    assert "orders.jsonl:2: status: 'lost'" in outcome.stderr
    assert not (tmp_path / "home").exists()


def test_checking_needs_no_kafka(tmp_path: Path) -> None:
    outcome = CliRunner().invoke(app, ["send", str(written(tmp_path, ORDER)), "--check-only"], env={"CRM_KAFKA_BOOTSTRAP": "127.0.0.1:1"})
    assert outcome.exit_code == 0
    assert "1 records, all follow their contracts" in outcome.output
