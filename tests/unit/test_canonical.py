"""The canonical text says the same from the message and from silver's columns, and different messages never share one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa  # noqa: TID253 -- every test here builds Arrow tables
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crm_resources.contracts import Column, ColumnType, Contract, Envelope, canonical, contract_for, contracts
from crm_resources.contracts.canonical import (
    column_digests,
    column_texts,
    digest_sql,
    message_digest,
    message_text,
    message_tokens,
    own_text,
)
from crm_resources.contracts.derive_arrow import arrow_schema
from tests.canonical_messages import messages, typed


def silver(contract: Contract, rows: list[dict[str, Any]]) -> pa.RecordBatch:
    table = pa.Table.from_pylist([typed(contract.columns, r) for r in rows], arrow_schema(contract.columns))
    (batch,) = table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], table.schema)]
    return batch


@pytest.mark.parametrize("contract", contracts(), ids=lambda c: c.entity)
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_message_and_silver_give_the_same_text(contract: Contract, data: st.DataObject) -> None:
    rows = data.draw(st.lists(messages(contract), min_size=1, max_size=4))
    batch = silver(contract, rows)
    assert column_texts(contract, batch) == [message_text(contract.entity, m) for m in rows]
    assert column_digests(contract, batch) == b"".join(message_digest(contract.entity, m) for m in rows)
    # Also of a slice, whose arrays begin somewhere in the middle.
    assert column_texts(contract, batch.slice(1)) == [message_text(contract.entity, m) for m in rows[1:]]


@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_different_messages_have_different_texts(data: st.DataObject) -> None:
    contract = contract_for(data.draw(st.sampled_from([c.entity for c in contracts()])))
    one, two = data.draw(messages(contract)), data.draw(messages(contract))
    name = data.draw(st.sampled_from([c.name for c in contract.columns]))
    same = {**one, name: two.get(name)}
    changed = typed(contract.columns, one) != typed(contract.columns, same)
    assert (message_text(contract.entity, one) != message_text(contract.entity, same)) is changed


ORDER = {
    "event_id": "0193f3a0-0000-7000-8000-000000000000",
    "entity": "order",
    "entity_key": "1",
    "sequence": 2,
    "schema_version": 1,
    "event_time": "2026-01-01T01:00:00.5+01:00",
    "source": "s",
    "run_id": "r",
    "order_id": "1",
    "status": "paid",
    "currency": "GBP",
    "channel": "",
    "country": "Åland 😀",
    "amount": "-0.0000",
    "lines": [
        {"line_number": 2, "product_id": "b", "quantity": -1, "unit_price": "1.5"},
        {"line_number": 1, "product_id": "a", "quantity": 1, "unit_price": "+1.50"},
    ],
}


def test_the_text_is_written_out() -> None:
    assert message_text("order", ORDER) == (
        "36:0193f3a0-0000-7000-8000-000000000000,5:order,1:1,2,1,2026-01-01T00:00:00.500000Z,1:s,1:r,1:1,~,4:paid,~,3:GBP,0:,7:Åland 😀,"
        "0.0000,2[1,1:a,~,1,1.5000,~,~;2,1:b,~,-1,1.5000,~,~]"
    )


def test_null_empty_and_a_text_that_looks_like_null_differ() -> None:
    texts = {message_text("order", ORDER | {"country": value}) for value in (None, "", "~", "1:~", ",")}
    assert len(texts) == 5


def test_many_lines_are_written_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    contract = contract_for("order")
    monkeypatch.setattr("crm_resources.contracts.canonical._MOST_ITEMS", 3)
    rows = [ORDER | {"order_id": str(n)} for n in range(5)]
    assert column_texts(contract, silver(contract, rows)) == [message_text("order", m) for m in rows]


def test_no_rows_give_no_digests() -> None:
    assert column_digests(contract_for("order"), silver(contract_for("order"), [])) == b""


def test_digest_is_the_md5_of_the_text() -> None:
    assert message_digest("order", ORDER) == hashlib.md5(message_text("order", ORDER).encode(), usedforsecurity=False).digest()


@pytest.mark.parametrize("contract", contracts(), ids=lambda c: c.entity)
def test_the_query_names_each_field(contract: Contract) -> None:
    query = digest_sql(contract, ("event_id",))
    for column in contract.columns:
        names = [i.name for i in column.items] if column.type is ColumnType.LIST else [column.name]
        assert all(name in query for name in names)


def test_silver_types_have_a_text() -> None:
    rows = [{"active": True, "price": Decimal("1"), "event_time": datetime.fromisoformat("0001-01-01T00:00:00+00:00")}]
    contract = contract_for("product")
    full = {c.name: _any(c) for c in contract.columns} | rows[0]
    (text,) = column_texts(contract, pa.RecordBatch.from_pylist([full], arrow_schema(contract.columns)))
    assert "0001-01-01T00:00:00.000000Z" in text
    assert text == message_text("product", full)


def _any(column: Column) -> Any:
    return {ColumnType.STRING: "x", ColumnType.INT: 1, ColumnType.LONG: 1}.get(column.type)


@pytest.fixture
def grown(monkeypatch: pytest.MonkeyPatch) -> Iterator[Contract]:
    """The order's contract with a note and, in its lines, an engraving, both since version 2."""
    known = contract_for("order")
    note, engraving = (Column(name, ColumnType.STRING, True, "", since=2) for name in ("note", "engraving"))
    columns = tuple(replace(c, items=(*c.items, engraving)) if c.items else c for c in known.columns)
    contract = replace(known, columns=(*columns, note))
    monkeypatch.setattr(canonical, "contract_for", lambda _entity: contract)
    monkeypatch.setattr(canonical, "SCHEMA_VERSION", 2)
    for cached in (canonical._writers, canonical._own_writers):
        cached.cache_clear()
    yield contract
    for cached in (canonical._writers, canonical._own_writers):
        cached.cache_clear()


def test_a_message_keeps_its_text_when_the_contract_grows(grown: Contract) -> None:
    before = message_text("order", ORDER)
    lines = [line | {"engraving": "A, B"} for line in ORDER["lines"]]
    of_version_1, of_version_2 = ORDER | {"lines": lines, "note": "n"}, ORDER | {"lines": lines, "note": "n", "schema_version": 2}

    assert before.endswith("1.5000,~,~;2,1:b,~,-1,1.5000,~,~]")
    assert message_text("order", of_version_1) == before, "a message of version 1 has no field of version 2"
    assert message_text("order", of_version_2) == (
        before.replace(",1:1,2,1,2026", ",1:1,2,2,2026")
        .replace("~,~;", "~,~,engraving=4:A, B;")
        .replace("~,~]", "~,~,engraving=4:A, B],note=1:n")
    )
    assert (
        own_text("order", {k: v for k, v in of_version_2.items() if k not in Envelope.model_fields})
        == (message_text("order", of_version_2).partition(",1:s,1:r,")[2])
    )
    assert [message_tokens("order", m)["note"] for m in (of_version_1, of_version_2)] == ["~", "1:n"]


def test_silver_gives_the_text_of_later_fields_too(grown: Contract) -> None:
    noted = ORDER | {"schema_version": 2, "note": "n", "lines": [line | {"engraving": "e"} for line in ORDER["lines"]]}
    partly = ORDER | {"schema_version": 2, "note": None, "lines": [ORDER["lines"][0], ORDER["lines"][1] | {"engraving": ""}]}
    empty = ORDER | {"schema_version": 2, "note": "", "lines": []}
    rows = [ORDER, noted, partly, empty]

    assert column_texts(grown, silver(grown, rows)) == [message_text("order", m) for m in rows]
    assert len({message_text("order", m) for m in rows}) == len(rows)
