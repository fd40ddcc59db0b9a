"""The typed checksum that PostgreSQL makes of a row is that of the message, whatever the message holds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from crm_assets.monitoring.audit_reading import signed_halves
from crm_assets.warehouse.load import reset_entity
from crm_resources import warehouse
from crm_resources.contracts import Contract, contract_for, contracts
from crm_resources.contracts.canonical import digest_sql, message_digest, message_tokens, token_sql
from crm_resources.settings import Settings
from deploy.local.stack import Stack
from tests.canonical_messages import messages, typed
from tests.oracle.lake_writer import record, silver_table, write
from tests.oracle.refresh import data_set

ARRIVED = datetime(2026, 1, 1, tzinfo=UTC)

EDGES: dict[str, Any] = {
    "status": "paid",
    "currency": "GBP",
    "channel": "",
    "country": "Åland, 😀 ~ 1:x",
    "amount": "-0.0000",
    "lines": [
        {"line_number": 2, "product_id": "b;[,", "quantity": -1, "unit_price": "1.5"},
        {"line_number": 10, "product_id": "a", "quantity": 1, "unit_price": "+1.50", "line_time": "2026-01-01T00:00:00.000001Z"},
    ],
}


@pytest.fixture(scope="module")
def prepared(stack_services: Stack) -> Settings:
    found = data_set(stack_services.settings, "canonical")
    warehouse.prepare(found)
    return found


@pytest.mark.parametrize("contract", contracts(), ids=lambda c: c.entity)
@given(data=st.data())
@settings(deadline=None, max_examples=4, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
def test_postgresql_gives_the_digest_of_the_message(prepared: Settings, contract: Contract, data: st.DataObject) -> None:
    sent = data.draw(st.lists(messages(contract), min_size=4, max_size=8, unique_by=lambda m: m["event_id"]))
    if contract.entity == "order":
        sent.append(sent[0] | EDGES | {"event_id": "0193f3a0-0000-7000-8000-000000000000"})
    rows = [record(contract.entity, ARRIVED) | typed(contract.columns, m) for m in sent]
    write(prepared, contract, silver_table(contract, rows), mode="overwrite")
    reset_entity(prepared, contract)
    with warehouse.connect(prepared) as connection, connection.cursor() as cursor:
        cursor.execute(digest_sql(contract, ("r.event_id",)))
        (batch,) = cursor.fetch_arrow_table().combine_chunks().to_batches()
    found = dict(zip(batch.column("event_id").to_pylist(), signed_halves(batch).astype(">u8"), strict=True))
    assert {event_id: halves.tobytes() for event_id, halves in found.items()} == {
        m["event_id"]: message_digest(contract.entity, m) for m in sent
    }


def test_postgresql_gives_the_text_of_each_field(prepared: Settings) -> None:
    contract = contract_for("order")
    sent = {c.name: None for c in contract.columns} | EDGES | {"event_id": "x" * 36, "entity": "order", "sequence": 1, "schema_version": 1}
    sent |= {"event_time": "2026-01-01T00:00:00.000001Z", **dict.fromkeys(("entity_key", "source", "run_id", "order_id"), "1")}
    row = record("order", ARRIVED) | typed(contract.columns, sent)
    write(prepared, contract, silver_table(contract, [row]), mode="overwrite")
    reset_entity(prepared, contract)
    ((_, *tokens),) = warehouse.fetch_rows(prepared, token_sql(contract, "true"))
    assert dict(zip([c.name for c in contract.columns], tokens, strict=True)) == message_tokens("order", sent)
