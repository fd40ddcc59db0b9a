"""PostgreSQL as the platform uses it: connections, a data set's database, its roles, raw tables, bookmarks and refresh log.

Belongs here: everything that has to be there before the first row, and small reads of the warehouse's own records. Not here:
how silver gets into raw (`crm_assets.warehouse.load`), SQL with business meaning (the dbt project), or starting a server
(`deploy.local`). Connections go through ADBC, so that tables arrive as Arrow. No message of this module holds a password.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from crm_resources.contracts import contracts
from crm_resources.contracts.derive_postgres import (
    RAW_SCHEMA,
    RawTable,
    alter_table_sql,
    bootstrap_sql,
    index_sql,
    postgres_type,
    raw_tables,
)
from crm_resources.contracts.evolution import SchemaRefused, TableColumn, compare_table, declared_columns
from crm_resources.model_tables import MODELS_SCHEMA, model_tables_sql
from crm_resources.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa
    from adbc_driver_postgresql.dbapi import Connection

SUPERUSER = "crm"
READER = "crm_read"
MARTS_SCHEMA = "marts"
DBT_SCHEMAS = ("staging", "intermediate", MARTS_SCHEMA)
CONNECT_SECONDS = 20.0
"""How long a connection is tried before the caller hears of it; a restart of the embedded server takes about 3 s."""

_PREPARE_LOCK = "crm prepare"
_WORK_MEM = "64MB"
"""Sorts and hashes of half a million order lines stay in memory with this; two dbt threads use it a few times over."""


class WarehouseError(RuntimeError):
    """Base of what goes wrong between the platform and PostgreSQL; messages say what to do next."""


class WarehouseUnreachable(WarehouseError):
    """No connection within the time given."""


class WarehouseRefused(WarehouseError):
    """The server answers and says no: wrong password, missing right."""


class DatabaseMissing(WarehouseError):
    """The data set has no database yet."""


@dataclass(frozen=True)
class Bookmark:
    """How far the load of an entity has come: the Delta table's id and the last version whose rows are in raw."""

    table_id: str
    version: int
    moved_at: datetime


@dataclass(frozen=True)
class ColumnFact:
    """A column as PostgreSQL spells it."""

    name: str
    data_type: str


@dataclass(frozen=True)
class _Server:
    """Where PostgreSQL is; never printed as a whole."""

    uri: str

    def database_uri(self, database: str) -> str:
        return urlunsplit(urlsplit(self.uri)._replace(path=f"/{quote(database, safe='')}"))

    @property
    def address(self) -> str:
        parts = urlsplit(self.uri)
        return f"{parts.hostname or '127.0.0.1'}:{parts.port or 5432}"

    @property
    def maintenance_database(self) -> str:
        return unquote(urlsplit(self.uri).path.lstrip("/")) or "postgres"


@contextmanager
def connect(
    settings: Settings, database: str | None = None, *, autocommit: bool = False, patience_seconds: float = CONNECT_SECONDS
) -> Iterator[Connection]:
    """Open a connection, closed at the end of the block; what was not committed is rolled back.

    Args:
        settings: which server and data set.
        database: database to use; the data set's own when omitted.
        autocommit: whether each statement is a transaction of its own.
        patience_seconds: how long a server that does not answer is tried again.

    Raises:
        WarehouseUnreachable: no answer in that time.
        WarehouseRefused: the server does not let us in.
        DatabaseMissing: the server has no such database; `prepare` makes it.
    """
    server = _server(settings)
    name = database or settings.database
    retrying = Retrying(
        retry=retry_if_exception_type(WarehouseUnreachable),
        stop=stop_after_delay(patience_seconds),
        wait=wait_exponential_jitter(multiplier=0.1, max=2.0, jitter=0.1),
        reraise=True,
    )
    connection = retrying(_open, server, name, autocommit)
    try:
        yield connection
    finally:
        connection.close()


def connect_to_server(settings: Settings) -> AbstractContextManager[Connection]:
    """A connection beside all data sets, for statements about whole databases; each statement is a transaction of its own."""
    return connect(settings, _server(settings).maintenance_database, autocommit=True)


def create_database(settings: Settings) -> None:
    """Make the data set's database, empty; nothing happens where it exists.

    Raises:
        WarehouseError: no connection, or a right is missing.
    """
    server = _server(settings)
    with connect_to_server(settings) as connection, connection.cursor() as cursor:
        cursor.execute("select 1 from pg_database where datname = $1::text", (settings.database,))
        if cursor.fetchone() is not None:
            return
        try:
            cursor.execute(f"create database {quoted(settings.database)} encoding 'UTF8' template template0")
        except _driver_error() as error:
            if getattr(error, "sqlstate", None) in ("42P04", "23505"):
                return  # somebody else made it between the question and the answer
            raise WarehouseRefused(
                f"PostgreSQL at {server.address} would not create the database {settings.database}: {_first_line(error)}. "
                f"Create it by hand, or give the user of CRM_WAREHOUSE_DSN the right createdb"
            ) from error


def prepare(settings: Settings) -> None:
    """Bring the data set's database to what load and dbt expect; a second call changes nothing.

    Makes the database, the schemas, raw tables by contract, the load's and refresh's own tables, those of the models, and the role
    `crm_read`, which may read the marts and nothing else. Its password is made once and kept in `<home>/secrets/crm_read_password`.
    Raw tables get the columns their contracts have gained.

    Raises:
        WarehouseError: no connection, or a right is missing; the message says which.
        SchemaRefused: a raw table differs from its contract in a way that cannot be made good; nothing is changed.
    """
    create_database(settings)
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(f"select pg_advisory_xact_lock(hashtext('{_PREPARE_LOCK}'))")
        try:
            evolved = _evolve_sql(cursor)
            for statement in (
                *bootstrap_sql(contracts()),
                *evolved,
                *_META_SQL,
                *model_tables_sql(),
                *_schema_sql(),
                *_reader_sql(settings, cursor),
            ):
                cursor.execute(statement)
            for mart in _unreadable_marts(cursor):
                cursor.execute(f"grant select on {MARTS_SCHEMA}.{quoted(mart)} to {READER}")
            # Asking first: `create index if not exists` would wait for a load under way even where the index exists.
            cursor.execute("select indexname::text from pg_indexes where schemaname = $1::text", (RAW_SCHEMA,))
            there = {name for (name,) in cursor.fetchall()}
            for name, statement in index_sql(contracts()).items():
                if name not in there:
                    cursor.execute(statement)
        except _driver_error() as error:
            raise WarehouseRefused(
                f"PostgreSQL at {_server(settings).address} would not prepare {settings.database}: {_first_line(error)}. The user of "
                "CRM_WAREHOUSE_DSN must own the database and may create roles (or create the role crm_read beforehand)"
            ) from error
        connection.commit()


def bookmarks(settings: Settings) -> dict[str, Bookmark]:
    """Bookmarks by plural of the entity; empty before the first load."""
    rows = rows_if_prepared(settings, "select table_name, table_id, version, moved_at from meta.bookmarks")
    return {name: Bookmark(table_id, version, moved_at) for name, table_id, version, moved_at in rows}


def record_refresh(
    settings: Settings, *, started_at: datetime, finished_at: datetime, as_of: date, loaded_at: datetime | None = None
) -> int:
    """Note that the marts were rebuilt; returns the number of the refresh.

    Args:
        settings: which data set.
        started_at: when dbt began; rows loaded before are in the marts.
        finished_at: when the marts were complete.
        as_of: business date they show.
        loaded_at: time of the latest row in raw; asked of the load log when omitted.
    """
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "insert into meta.refreshes (started_at, loaded_at, finished_at, as_of) values ($1::timestamptz, "
            "coalesce($2::timestamptz, (select max(finished_at) from meta.loads where finished_at <= $1::timestamptz)), $3::timestamptz, "
            "cast($4::text as date)) returning refresh_id",
            (started_at, loaded_at, finished_at, as_of.isoformat()),
        )
        refresh_id = int(cursor.fetchall()[0][0])
        connection.commit()
    return refresh_id


def last_refresh_as_of(settings: Settings) -> date | None:
    """Business date the marts show since the last finished refresh; `None` before the first."""
    rows = rows_if_prepared(settings, "select as_of::text from meta.refreshes order by finished_at desc, refresh_id desc limit 1")
    return date.fromisoformat(rows[0][0]) if rows else None


def fetch_rows(settings: Settings, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
    """Rows of a query over the data set's database; `numeric` arrives as text, so that no digit is lost."""
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(sql, tuple(parameters) or None)
        return [tuple(row) for row in cursor.fetchall()]


def rows_if_prepared(settings: Settings, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
    """Rows as of `fetch_rows`; none while the database, or the table asked for, was never made."""
    try:
        return fetch_rows(settings, sql, parameters)
    except DatabaseMissing:
        return []
    except _driver_error() as error:
        if getattr(error, "sqlstate", None) in _NOT_MADE_YET:
            return []
        raise


def fetch_arrow(settings: Settings, sql: str) -> pa.Table:
    """Result of a query as an Arrow table; `numeric` columns arrive as text."""
    import pyarrow as pa

    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        table = cursor.fetch_arrow_table()
    for position, field in enumerate(table.schema):
        if isinstance(field.type, pa.BaseExtensionType):  # what Arrow has no type for, `numeric` above all, comes wrapped
            chunks = [chunk.storage for chunk in table.column(position).chunks]
            table = table.set_column(position, field.name, pa.chunked_array(chunks, field.type.storage_type))
    return table


def count_rows(settings: Settings, schema: str, table: str) -> int:
    """Exact number of rows of a table."""
    return int(fetch_rows(settings, f"select count(*) from {quoted(schema)}.{quoted(table)}")[0][0])  # noqa: S608 -- quoted names


def raw_row_count(settings: Settings, table: str) -> int:
    """Number of rows of a raw table as its loads have counted them; counting some ten million takes longer than all else of a load."""
    counted = fetch_rows(settings, "select row_count from meta.raw_rows where table_name = $1::text", (table,))
    return int(counted[0][0]) if counted else count_rows(settings, RAW_SCHEMA, table)


def server_version(settings: Settings) -> str:
    """The server's own version, e.g. `18.4`."""
    return str(fetch_rows(settings, "select current_setting('server_version')")[0][0])


def expected_columns(table: RawTable) -> list[ColumnFact]:
    """Columns a raw table has by its contract."""
    return [ColumnFact(c.name, postgres_type(c)) for c in table.columns]


def actual_columns(settings: Settings, schema: str, table: str) -> list[ColumnFact]:
    """Columns a table has in the database, in order; empty when it does not exist."""
    rows = fetch_rows(
        settings,
        "select a.attname::text, format_type(a.atttypid, a.atttypmod) from pg_attribute a join pg_class c on c.oid = a.attrelid "
        "join pg_namespace n on n.oid = c.relnamespace "
        "where n.nspname = $1::text and c.relname = $2::text and a.attnum > 0 and not a.attisdropped order by a.attnum",
        (schema, table),
    )
    return [ColumnFact(name, data_type) for name, data_type in rows]


def dbt_environment(settings: Settings, changed_since: Mapping[str, datetime] | None = None) -> Mapping[str, str]:
    """Variables a dbt process needs; the password travels under the prefix that dbt keeps out of its logs.

    Args:
        settings: which data set.
        changed_since: newest `loaded_at` by plural that the models show already (`crm_resources.change_marks`); incremental models build
            what newer rows touch. Everything is built when omitted.
    """
    parts = urlsplit(_server(settings).uri)
    options = dict(parse_qsl(parts.query))
    return {
        "CRM_DBT_HOST": parts.hostname or "127.0.0.1",
        "CRM_DBT_PORT": str(parts.port or 5432),
        "CRM_DBT_USER": unquote(parts.username or SUPERUSER),
        "CRM_DBT_DATABASE": settings.database,
        "CRM_DBT_SSLMODE": options.get("sslmode", "prefer"),
        "DBT_ENV_SECRET_CRM_PASSWORD": unquote(parts.password or ""),
        "CRM_BUSINESS_TIMEZONE": settings.business_timezone,
        "CRM_AS_OF": settings.as_of.isoformat() if settings.as_of else "",
        "CRM_CHANGED_SINCE": json.dumps({name: at.isoformat() for name, at in changed_since.items()}) if changed_since is not None else "",
        "DBT_FULL_REFRESH": str(changed_since is None).lower(),
        # Beside the data set's other state, not in the checkout.
        "DBT_TARGET_PATH": str(settings.environment_dir / "dbt"),
        "DBT_LOG_PATH": str(settings.environment_dir / "dbt"),
        # Unit tests of the SQL run on rows of their own; they are no checks of this data set.
        "DBT_EXCLUDE_RESOURCE_TYPES": "unit_test",
    }


def reader_uri(settings: Settings) -> str:
    """URI of the read-only role for a BI tool or `psql`; holds the password, so never log it."""
    password = (settings.home / "secrets" / "crm_read_password").read_text().strip()
    parts = urlsplit(_server(settings).database_uri(settings.database))
    address = f"{parts.hostname or '127.0.0.1'}:{parts.port or 5432}"
    return urlunsplit(parts._replace(netloc=f"{READER}:{quote(password, safe='')}@{address}"))


def quoted(identifier: str) -> str:
    """An identifier as SQL."""
    return '"' + identifier.replace('"', '""') + '"'


def _server(settings: Settings) -> _Server:
    if settings.warehouse_dsn is not None:
        uri = settings.warehouse_dsn.get_secret_value()
        if urlsplit(uri).scheme not in ("postgresql", "postgres"):
            raise WarehouseError("CRM_WAREHOUSE_DSN is no URI; write it as postgresql://user:password@host:port/database")
        return _Server(uri)
    path = settings.home / "secrets" / "postgres_password"
    if not path.exists():
        raise WarehouseUnreachable(f"no embedded PostgreSQL under {settings.home}: {path} is missing. Start it with `make up`")
    return _Server(f"postgresql://{SUPERUSER}:{quote(path.read_text().strip(), safe='')}@127.0.0.1:{settings.postgres_port}/postgres")


def _open(server: _Server, database: str, autocommit: bool) -> Connection:
    from adbc_driver_postgresql import dbapi

    parts = urlsplit(server.database_uri(database))
    query = urlencode({"connect_timeout": "5", "application_name": "crm", **dict(parse_qsl(parts.query))})
    try:
        return dbapi.connect(urlunsplit(parts._replace(query=query)), autocommit=autocommit)
    except _driver_error() as error:
        text = _first_line(error)
        if f'database "{database}" does not exist' in text:
            raise DatabaseMissing(
                f"PostgreSQL at {server.address} has no database {database}; the load makes it on its first run"
            ) from error
        if any(sign in text for sign in ("password authentication failed", "no password supplied", "does not exist", "permission denied")):
            raise WarehouseRefused(
                f"PostgreSQL at {server.address} refused the connection to {database}: {text}. Check CRM_WAREHOUSE_DSN, or for the "
                "embedded server the file postgres_password in the secrets folder"
            ) from error
        raise WarehouseUnreachable(
            f"PostgreSQL at {server.address} does not answer: {text}. Look at `make status`, and start it with `make up`"
        ) from error


def _driver_error() -> type[Exception]:
    from adbc_driver_manager import Error

    found: type[Exception] = Error
    return found


def _first_line(error: Exception) -> str:
    lines = str(error).removeprefix("IO: ").removeprefix("[libpq] ").split("Query was:")[0].strip().splitlines()
    return lines[0] if lines else type(error).__name__


_NOT_MADE_YET = ("42P01", "3F000")
"""Undefined table, undefined schema."""


def _evolve_sql(cursor: Any) -> list[str]:  # noqa: ANN401 -- the driver carries no types
    """Statements that bring the raw tables that exist to their contracts.

    Raises:
        SchemaRefused: see `prepare`.
    """
    cursor.execute(
        "select c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod), not a.attnotnull from pg_attribute a "
        "join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace "
        "where n.nspname = $1::text and c.relkind in ('r', 'p') and a.attnum > 0 and not a.attisdropped",
        (RAW_SCHEMA,),
    )
    stored: dict[str, list[TableColumn]] = {}
    for table, name, data_type, nullable in cursor.fetchall():
        stored.setdefault(table, []).append(TableColumn(name, data_type, nullable))
    there = [table for contract in contracts() for table in raw_tables(contract) if table.name in stored]
    changes = [(t, compare_table(f"{RAW_SCHEMA}.{t.name}", declared_columns(t.columns, postgres_type), stored[t.name])) for t in there]
    refused = [refusal for _, change in changes for refusal in change.refused]
    if refused:
        raise SchemaRefused(refused)
    return [statement for table, change in changes for statement in alter_table_sql(table, change)]


_META_SQL = (
    "create schema if not exists meta",
    """create table if not exists meta.bookmarks (
    table_name text primary key,
    table_id text not null,
    version bigint not null,
    moved_at timestamp with time zone not null default clock_timestamp()
)""",
    """create table if not exists meta.loads (
    load_id bigint generated always as identity primary key,
    table_name text not null,
    table_id text not null,
    from_version bigint,
    to_version bigint not null,
    rows_read bigint not null,
    rows_inserted bigint not null,
    started_at timestamp with time zone not null,
    finished_at timestamp with time zone not null
)""",
    """create table if not exists meta.raw_rows (
    table_name text primary key,
    row_count bigint not null
)""",
    """create table if not exists meta.refreshes (
    refresh_id bigint generated always as identity primary key,
    started_at timestamp with time zone not null,
    loaded_at timestamp with time zone,
    finished_at timestamp with time zone not null,
    as_of date not null
)""",
    """create table if not exists meta.refresh_reports (
    refresh_id bigint primary key,
    reported_at timestamp with time zone not null,
    as_of date not null,
    business_timezone text not null,
    models text not null,
    versions jsonb not null,
    marts jsonb not null,
    figures jsonb not null
)""",
    "create index if not exists refresh_reports_reported_at on meta.refresh_reports (reported_at)",
    """create table if not exists meta.mart_digests (
    mart text primary key,
    digested_rows bigint not null,
    high numeric not null,
    low numeric not null
)""",
    """create table if not exists meta.change_marks (
    as_of date not null,
    business_timezone text not null,
    models text not null,
    tables jsonb not null,
    moved_at timestamp with time zone not null default clock_timestamp()
)""",
    # One table per identity: a pseudonym beside the hash of an e-mail address would be none.
    *(
        f"""create table if not exists meta.{table} (
    delivery_id bigint generated always as identity,
    destination text not null,
    idempotency_key text not null,
    audience text not null,
    version integer not null,
    customer_key text not null,
    member text not null,
    action text not null,
    modified_at timestamp with time zone not null,
    begun_at timestamp with time zone not null default clock_timestamp(),
    acknowledged_at timestamp with time zone,
    primary key (destination, idempotency_key)
)"""
        for table in ("audience_pseudonym_deliveries", "audience_email_hash_deliveries")
    ),
)


def _schema_sql() -> Iterator[str]:
    for schema in DBT_SCHEMAS:
        yield f"create schema if not exists {schema}"
    # Settings of the database, not of the server: a server by DSN may serve others.
    yield f"do $$ begin execute format('alter database %I set work_mem = ''{_WORK_MEM}''', current_database()); end $$"
    yield f"revoke all on schema {RAW_SCHEMA}, meta, {MODELS_SCHEMA}, staging, intermediate from public"


def _reader_sql(settings: Settings, cursor: Any) -> Iterator[str]:  # noqa: ANN401 -- the driver carries no types
    """Statements that make the read-only role; the password goes over as a SCRAM verifier, so no server log can hold it."""
    password_file = settings.home / "secrets" / "crm_read_password"
    fresh = not password_file.exists()
    if fresh:
        _write_secret(password_file, secrets.token_urlsafe(24))
    cursor.execute("select 1 from pg_roles where rolname = $1::text", (READER,))
    exists = cursor.fetchone() is not None
    if fresh or not exists:
        verifier = scram_verifier(password_file.read_text().strip(), secrets.token_bytes(16))
        yield f"{'alter' if exists else 'create'} role {READER} login password '{verifier}'"
        yield f"alter role {READER} set default_transaction_read_only = on"
    yield f"do $$ begin execute format('grant connect on database %I to {READER}', current_database()); end $$"
    yield f"grant usage on schema {MARTS_SCHEMA} to {READER}"
    yield f"alter default privileges in schema {MARTS_SCHEMA} grant select on tables to {READER}"


def _unreadable_marts(cursor: Any) -> list[str]:  # noqa: ANN401 -- the driver carries no types
    """Marts that the read-only role lacks; a grant on all of them would fail beside a dbt that is putting one in the place of another."""
    cursor.execute(
        "select c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace "
        "where n.nspname = $1::text and c.relkind in ('r', 'v', 'm', 'p') and not has_table_privilege($2::text, c.oid, 'select')",
        (MARTS_SCHEMA, READER),
    )
    return [name for (name,) in cursor.fetchall()]


def scram_verifier(password: str, salt: bytes, iterations: int = 4096) -> str:
    """Password as PostgreSQL stores it (RFC 5802 and 7677, SCRAM-SHA-256); the password cannot be read back from it."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    spelled = [base64.b64encode(raw).decode() for raw in (salt, stored_key, server_key)]
    return "SCRAM-SHA-256${}:{}${}:{}".format(iterations, *spelled)


def _write_secret(path: Path, value: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(value + "\n")
