"""The contracts and everything derived from them."""

import json
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import ValidationError

from crm_resources.contracts import ColumnType, Order, contract_for, contracts
from crm_resources.contracts.derive_arrow import arrow_schema
from crm_resources.contracts.derive_files import stale_files, write_files
from crm_resources.contracts.derive_postgres import create_table_sql, raw_tables
from crm_resources.contracts.derive_spark import silver_type, wire_type
from crm_resources.contracts.entities import kafka_key
from crm_resources.layout import silver_columns

NO_NUL = r"^[^\u0000]*$"
ORDER = {
    "event_id": "018f0000-0000-7000-8000-000000000001",
    "entity": "order",
    "entity_key": "A1",
    "sequence": 1,
    "schema_version": 1,
    "event_time": "2026-01-02T03:04:05.000006Z",
    "source": "shop",
    "run_id": "r1",
    "order_id": "A1",
    "customer_id": "C1",
    "status": "placed",
    "currency": "GBP",
    "channel": "web",
    "amount": "5.5000",
    "lines": [{"line_number": 1, "product_id": "P1", "quantity": 2, "unit_price": "2.75"}],
}


STALE = stale_files()
"""Told when tests are collected: commands that tests run may bring the files up to date."""


def test_generated_files_are_not_stale():
    assert STALE == [], "run `make contracts` and commit what it wrote"


def test_a_stale_file_is_noticed_and_mended(tmp_path: Path):
    written = write_files(tmp_path)
    assert stale_files(tmp_path) == []
    (tmp_path / written[0]).write_text("{}")
    assert stale_files(tmp_path) == [written[0]]


@pytest.mark.parametrize("contract", contracts(), ids=lambda c: c.entity)
def test_all_derivations_name_the_same_columns(contract):
    names = [c.name for c in contract.columns]
    assert list(arrow_schema(contract.columns).names) == names
    assert silver_type(contract.columns).names == names
    assert wire_type(contract.columns).names == names
    assert list(contract.model.model_json_schema()["properties"]) == names
    parent, *children = raw_tables(contract)
    lists = {child.field for child in contract.children}
    assert [c.name for c in parent.columns if c.name in names] == [n for n in names if n not in lists]
    assert len(children) == len(lists)
    assert create_table_sql(parent).count("\n") == len(parent.columns) + 2


def test_silver_is_the_contract_and_where_the_record_came_from():
    columns = [c.name for c in silver_columns(contract_for("order"))]
    assert columns[0] == "event_id", "statistics are kept for the first columns; the check against history lives on them"
    assert columns[-5:] == ["kafka_topic", "kafka_partition", "kafka_offset", "kafka_timestamp", "ingested_at"]


def test_every_field_is_described():
    undescribed = [
        f"{contract.entity}.{column.name}"
        for contract in contracts()
        for column in (*contract.columns, *(i for c in contract.columns for i in c.items))
        if not column.description
    ]
    assert undescribed == []


@pytest.mark.parametrize("field", ["source", "channel", "customer_id"])
def test_no_text_holds_the_nul_character_which_the_warehouse_cannot_store(field):
    with pytest.raises(ValidationError, match=r"holds the NUL character \(\\u0000\), which no text may; leave it out"):
        Order.model_validate_json(json.dumps({**ORDER, field: "a\0b"}))


def test_the_nul_character_is_refused_in_the_lines_of_an_order():
    with pytest.raises(ValidationError, match=r"lines\.0\.description\s.*NUL"):
        Order.model_validate_json(json.dumps({**ORDER, "lines": [{**ORDER["lines"][0], "description": "\0"}]}))


def test_every_free_text_says_so_in_its_json_schema():
    free = [c for contract in contracts() for c in contract.columns if c.type is ColumnType.STRING and not c.allowed and not c.pattern]
    assert len(free) > 20
    assert {c.name for c in free if not _refuses_nul(c.name)} == set()


def _refuses_nul(name):
    schemas = [contract.model.model_json_schema()["properties"].get(name, {}) for contract in contracts()]
    return all(s.get("pattern") == NO_NUL or s["anyOf"][0].get("pattern") == NO_NUL for s in schemas if s)


def test_an_order_keeps_its_decimals():
    order = Order.model_validate_json(json.dumps(ORDER))
    assert order.amount == Decimal("5.5000")
    assert kafka_key(order) == b"C1"


def test_a_guest_s_order_is_keyed_by_its_number():
    assert kafka_key(Order.model_validate({**ORDER, "customer_id": None})) == b"A1"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"amount": "5.51"}, "amount"),
        ({"amount": "5.50001"}, "amount"),
        ({"currency": "gbp"}, "currency"),
        ({"event_time": "2026-01-02T03:04:05"}, "event_time"),
        ({"status": "lost"}, "status"),
        ({"event_id": "1"}, "event_id"),
        ({"colour": "red"}, "colour"),
        ({"lines": [{"line_number": 0, "product_id": "P1", "quantity": 2, "unit_price": "2.75"}]}, "line_number"),
    ],
)
def test_a_bad_order_is_refused_and_the_field_is_named(change, field):
    with pytest.raises(ValidationError) as refused:
        Order.model_validate_json(json.dumps({**ORDER, **change}))
    assert field in str(refused.value)


def test_an_unknown_entity_is_named_with_the_known_ones():
    with pytest.raises(KeyError, match=r"event, order, product, profile"):
        contract_for("invoice")
