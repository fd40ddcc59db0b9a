"""Silver into PostgreSQL: exactly once, with the bookmark, and a stop with the remedy when the lake's history broke."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from deltalake import DeltaTable  # noqa: TID253 -- tests need not start fast

from crm_assets.warehouse import load as loader
from crm_assets.warehouse.load import LoadError, load_all, load_entity, reset_entity
from crm_resources import warehouse
from crm_resources.contracts import Contract, contract_for
from crm_resources.layout import SILVER
from crm_resources.object_store import storage_options
from crm_resources.settings import Settings
from deploy.local.stack import Stack
from tests.integration.lakes import on_both_lakes
from tests.oracle.lake_writer import append, event, order, silver_table, write
from tests.oracle.refresh import data_set

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ORDERS = contract_for("order")


@pytest.fixture
def prepared(stack_services: Stack, lake_kind: str, request: pytest.FixtureRequest) -> Settings:
    """A data set of this test's own, with an empty warehouse and an empty lake."""
    number = request.node.session.items.index(request.node)
    settings = data_set(stack_services.settings, f"load_{number}")
    if lake_kind == "minio":
        settings = request.getfixturevalue("minio").lake_of(settings)
    warehouse.prepare(settings)
    return settings


def some_orders(count: int, lines: int = 2) -> list[dict[str, object]]:
    return [order(f"o{n}", NOON, [("A", 1, "1.50"), ("B", -1, "0.25")][:lines]) for n in range(count)]


def rows(settings: Settings, table: str = "orders") -> int:
    """Rows of a raw table; the loads must have counted them right."""
    counted = warehouse.count_rows(settings, "raw", table)
    assert warehouse.raw_row_count(settings, table) == counted
    return counted


@on_both_lakes
def test_rows_lists_and_bookmark_arrive_together(prepared: Settings):
    append(prepared, [*some_orders(3), event("v", NOON)])
    results = {result.entity: result for result in load_all(prepared)}
    assert (results["order"].rows_read, results["order"].rows_inserted, results["order"].child_rows_inserted) == (3, 3, 6)
    assert (results["product"].rows_read, results["product"].version) == (0, None)
    assert (rows(prepared), rows(prepared, "order_lines"), rows(prepared, "events")) == (3, 6, 1)
    assert {name: mark.version for name, mark in warehouse.bookmarks(prepared).items()} == {"orders": 0, "events": 0}
    sql = "select quantity, unit_price::text, line_number from raw.order_lines order by event_id, line_number limit 2"
    assert warehouse.fetch_rows(prepared, sql) == [(1, "1.5000", 1), (-1, "0.2500", 2)]


@on_both_lakes
def test_only_what_was_added_since_the_bookmark_is_read(prepared: Settings):
    append(prepared, some_orders(3))
    load_entity(prepared, ORDERS)
    append(prepared, some_orders(2))
    append(prepared, some_orders(1))
    result = load_entity(prepared, ORDERS)
    assert (result.rows_read, result.rows_inserted, result.version) == (3, 3, 2)
    assert (rows(prepared), rows(prepared, "order_lines")) == (6, 12)
    assert load_entity(prepared, ORDERS).rows_read == 0


def test_rows_are_dated_after_all_before_even_when_the_clock_was_set_back(prepared: Settings):
    append(prepared, some_orders(1))
    load_entity(prepared, ORDERS)
    with warehouse.connect(prepared, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("update raw.orders set loaded_at = loaded_at + interval '1 hour'")
    append(prepared, some_orders(1))
    load_entity(prepared, ORDERS)
    dated = warehouse.fetch_rows(
        prepared, "select count(distinct loaded_at), max(loaded_at) - min(loaded_at) < interval '1 s' from raw.orders"
    )
    assert dated == [(2, True)]


def test_rows_that_are_there_already_are_skipped(prepared: Settings):
    batch = some_orders(3)
    append(prepared, batch)
    load_entity(prepared, ORDERS)
    append(prepared, batch)
    result = load_entity(prepared, ORDERS)
    assert (result.rows_read, result.rows_inserted, result.child_rows_inserted) == (3, 0, 0)
    assert rows(prepared) == 3


@on_both_lakes
def test_rewritten_files_are_no_new_rows(prepared: Settings):
    for _ in range(3):
        append(prepared, some_orders(1))
    load_entity(prepared, ORDERS)
    table = DeltaTable(prepared.table_uri(SILVER["orders"].path), storage_options=storage_options(prepared))
    table.optimize.compact()
    assert load_entity(prepared, ORDERS).rows_read == 0
    assert warehouse.bookmarks(prepared)["orders"].version == 3


def test_a_large_load_goes_in_chunks(prepared: Settings):
    append(prepared, some_orders(25))
    result = load_entity(prepared, ORDERS, chunk_rows=4)
    assert (result.rows_inserted, result.child_rows_inserted) == (25, 50)
    assert (rows(prepared), rows(prepared, "order_lines")) == (25, 50)


def test_orders_without_lines_load(prepared: Settings):
    append(prepared, some_orders(2, lines=0))
    assert load_entity(prepared, ORDERS).child_rows_inserted == 0


def test_a_load_that_dies_in_the_middle_leaves_neither_rows_nor_bookmark(prepared: Settings, monkeypatch: pytest.MonkeyPatch):
    append(prepared, some_orders(6))
    real = loader.read_batches

    def dying(*arguments: object) -> Iterator[object]:
        yield next(real(*arguments))
        backends = warehouse.fetch_rows(
            prepared, "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and database = "
            "(select oid from pg_database where datname = current_database())"
        )  # fmt: skip
        assert backends == [(True,)]
        yield from real(*arguments)

    monkeypatch.setattr(loader, "read_batches", dying)
    with pytest.raises(Exception, match=r"terminat|closed|connection"):
        load_entity(prepared, ORDERS, chunk_rows=2)
    assert (rows(prepared), rows(prepared, "order_lines"), warehouse.bookmarks(prepared)) == (0, 0, {})

    monkeypatch.undo()
    assert load_entity(prepared, ORDERS).rows_inserted == 6


def test_two_loads_at_once_take_turns(prepared: Settings):
    append(prepared, some_orders(500))
    results = []
    threads = [threading.Thread(target=lambda: results.append(load_entity(prepared, ORDERS, chunk_rows=50))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert sorted(result.rows_read for result in results) == [0, 0, 500]
    assert warehouse.fetch_rows(prepared, "select count(*) from meta.loads") == [(1,)]


class TestBrokenHistory:
    """The load stops, says what happened, and the command it names brings it back."""

    def test_a_recreated_table(self, prepared: Settings):
        append(prepared, some_orders(2))
        load_entity(prepared, ORDERS)
        path = prepared.environment_dir / "lake" / SILVER["orders"].path
        path.rename(path.with_name("orders_before"))
        append(prepared, some_orders(3))
        self.stops(prepared, "is table .*, the bookmark speaks of")
        assert reset_entity(prepared, ORDERS).rows_inserted == 3
        assert rows(prepared) == 3

    def test_a_version_that_is_gone(self, prepared: Settings):
        for _ in range(3):
            append(prepared, some_orders(1))
        load_entity(prepared, ORDERS, to_version=0)
        log = prepared.environment_dir / "lake" / SILVER["orders"].path / "_delta_log"
        DeltaTable(prepared.table_uri(SILVER["orders"].path)).create_checkpoint()
        (log / f"{1:020d}.json").unlink()
        self.stops(prepared, "version 1 .* is no longer in its log")
        assert reset_entity(prepared, ORDERS).rows_inserted == 3

    def test_removed_rows(self, prepared: Settings):
        append(prepared, some_orders(2))
        load_entity(prepared, ORDERS)
        write(prepared, ORDERS, silver_table(ORDERS, some_orders(1)), mode="overwrite")
        self.stops(prepared, "removed 1 files")
        assert reset_entity(prepared, ORDERS).rows_inserted == 1
        assert rows(prepared) == 1

    def stops(self, settings: Settings, reason: str) -> None:
        before = (rows(settings), warehouse.bookmarks(settings))
        with pytest.raises(LoadError, match=reason) as stopped:
            load_entity(settings, ORDERS)
        assert "python -m crm_assets.warehouse.load --reset orders" in str(stopped.value)
        assert (rows(settings), warehouse.bookmarks(settings)) == before


def test_every_entity_has_its_table(prepared: Settings):
    def columns(contract: Contract) -> bool:
        tables = loader.raw_tables(contract)
        return all(warehouse.actual_columns(prepared, "raw", t.name) == warehouse.expected_columns(t) for t in tables)

    assert all(columns(contract_for(name)) for name in ("event", "order", "product", "profile"))
