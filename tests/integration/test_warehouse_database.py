"""The data set's database: made once, readable by the read-only role in the marts alone, and clear errors without it."""

from __future__ import annotations

import stat
from datetime import UTC, date, datetime

import pytest
from adbc_driver_postgresql import dbapi  # noqa: TID253 -- tests need not start fast

from crm_resources import warehouse
from crm_resources.contracts.evolution import SchemaRefused
from crm_resources.settings import Settings
from deploy.local.stack import Stack
from tests.oracle.refresh import data_set


@pytest.fixture(scope="module")
def prepared(stack_services: Stack) -> Settings:
    settings = data_set(stack_services.settings, "database")
    warehouse.prepare(settings)
    return settings


def as_reader(settings: Settings, sql: str) -> list[tuple[object, ...]]:
    with dbapi.connect(warehouse.reader_uri(settings), autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        return [tuple(row) for row in cursor.fetchall()]


def test_preparing_again_changes_nothing(prepared: Settings):
    sql = "select count(*), max(oid::bigint) from pg_class"
    before = warehouse.fetch_rows(prepared, sql)
    warehouse.prepare(prepared)
    assert warehouse.fetch_rows(prepared, sql) == before


@pytest.mark.parametrize(
    ("change", "back", "refused"),
    [
        ("add column mine text", "drop column mine", r"raw\.orders\.mine: is stored, but not declared"),
        (
            "alter column amount type numeric(20,4)",
            "alter column amount type numeric(18,4)",
            r"raw\.orders\.amount: is stored as numeric\(20,4\)",
        ),
        ("alter column currency drop not null", "alter column currency set not null", r"raw\.orders\.currency: may be null in the table"),
    ],
)
def test_a_raw_table_that_differs_from_its_contract_is_refused_and_left_alone(prepared: Settings, change: str, back: str, refused: str):
    execute(prepared, f"alter table raw.orders {change}")
    changed = warehouse.actual_columns(prepared, "raw", "orders")
    try:
        with pytest.raises(SchemaRefused, match=refused):
            warehouse.prepare(prepared)
        assert warehouse.actual_columns(prepared, "raw", "orders") == changed
    finally:
        execute(prepared, f"alter table raw.orders {back}")
    warehouse.prepare(prepared)


def test_a_field_that_became_optional_may_be_null_in_its_raw_table(prepared: Settings):
    execute(prepared, "alter table raw.orders alter column country set not null")

    warehouse.prepare(prepared)

    sql = "select not attnotnull from pg_attribute where attrelid = 'raw.orders'::regclass and attname = 'country'"
    assert warehouse.fetch_rows(prepared, sql) == [(True,)]


def execute(settings: Settings, statement: str) -> None:
    with warehouse.connect(settings, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(statement)


def test_questions_before_the_first_load_have_empty_answers(stack_services: Stack):
    nothing = data_set(stack_services.settings, "never_made")
    assert warehouse.bookmarks(nothing) == {}
    assert warehouse.last_refresh_as_of(nothing) is None
    with pytest.raises(warehouse.DatabaseMissing, match="crm_never_made"):
        warehouse.fetch_rows(nothing, "select 1")


def test_the_reader_sees_marts_made_later_and_nothing_else(prepared: Settings):
    with warehouse.connect(prepared, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("create table marts.made_later as select 1 as one")
    assert as_reader(prepared, "select one from marts.made_later") == [(1,)]
    for table in ("raw.orders", "meta.bookmarks"):
        with pytest.raises(dbapi.Error, match="permission denied"):
            as_reader(prepared, f"select * from {table}")
    with pytest.raises(dbapi.Error, match=r"permission denied|read-only"):
        as_reader(prepared, "delete from marts.made_later")


def test_preparing_waits_for_no_mart_that_is_being_replaced(prepared: Settings):
    execute(prepared, "create table marts.being_replaced as select 1 as one")
    execute(prepared, f"alter database {prepared.database} set lock_timeout = '2s'")
    try:
        with warehouse.connect(prepared) as refresh, refresh.cursor() as cursor:
            cursor.execute("alter table marts.being_replaced rename to being_replaced__dbt_backup")
            warehouse.prepare(prepared)
            refresh.rollback()
    finally:
        execute(prepared, f"alter database {prepared.database} reset lock_timeout")


def test_a_mart_that_the_reader_may_not_see_is_granted_to_it(prepared: Settings):
    execute(prepared, "create table marts.kept_from_readers as select 1 as one")
    execute(prepared, "revoke select on marts.kept_from_readers from crm_read")

    warehouse.prepare(prepared)

    assert as_reader(prepared, "select one from marts.kept_from_readers") == [(1,)]


def test_the_readers_password_is_the_owners_alone(prepared: Settings):
    file = prepared.home / "secrets" / "crm_read_password"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_refresh_is_remembered(prepared: Settings):
    now = datetime.now(UTC)
    warehouse.record_refresh(prepared, started_at=now, finished_at=now, as_of=date(2011, 12, 10))
    assert warehouse.last_refresh_as_of(prepared) == date(2011, 12, 10)


class TestNoConnection:
    """Every error says where and what next, and none holds the password."""

    def test_nobody_answers(self, stack_services: Stack):
        settings = stack_services.settings.model_copy(update={"postgres_port": 1})
        with (
            pytest.raises(warehouse.WarehouseUnreachable, match=r"127\.0\.0\.1:1 .*make up"),
            warehouse.connect(settings, patience_seconds=0),
        ):
            pass

    def test_the_wrong_password(self, stack_services: Stack):
        port = stack_services.settings.postgres_port
        settings = Settings(home=stack_services.settings.home, warehouse_dsn=f"postgresql://crm:open-sesame@127.0.0.1:{port}/postgres")
        with pytest.raises(warehouse.WarehouseRefused, match="CRM_WAREHOUSE_DSN") as refused, warehouse.connect(settings):
            pass
        assert "open-sesame" not in str(refused.value)

    def test_a_dsn_that_is_none(self):
        with pytest.raises(warehouse.WarehouseError, match="postgresql://") as refused, warehouse.connect(Settings(warehouse_dsn="host=x")):
            pass
        assert "host=x" not in str(refused.value)
