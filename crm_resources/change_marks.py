"""How far the marts have come: up to which `loaded_at` of each raw table, and on what else they stand.

Belongs here: the marks of the last whole refresh, what the next one may leave untouched, and that only one refresh runs at a time. Not
here: what a model does with the marks (`dbt/macros/changes.sql`), or when a refresh runs (`crm_assets.monitoring.refresh`).

The marks move only when a refresh has ended well. One that failed half way left some tables new and some old; the next one starts from the
same marks, meets the same changes and later ones, and replaces the same keys again. Before tables are built for anything but more rows
(another date, other SQL), the marks are forgotten, so that nothing can take the half of such a refresh for a whole one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from crm_resources import warehouse
from crm_resources.contracts import contracts
from crm_resources.contracts.derive_postgres import RAW_SCHEMA
from crm_resources.settings import Settings

LOCK_SECONDS = 1800
"""How long a refresh waits for another one of the same data set, whose lock ends with it; only one that hangs holds on for so long."""


class RefreshUnderWay(warehouse.WarehouseError):
    """Another refresh of the data set does not end."""


@dataclass(frozen=True)
class Basis:
    """What the marts stand on besides rows: a change of any of it changes rows that no new message touches.

    `models` is the fingerprint of the dbt project. `first_loads` holds by plural the number of the load that filled the raw table from
    nothing; a table that was emptied and filled again has another one.
    """

    as_of: date
    business_timezone: str
    models: str
    first_loads: Mapping[str, int]


@dataclass(frozen=True)
class ChangeMarks:
    """State of raw that a refresh shows: its basis, and the newest `loaded_at` by plural; a table without rows is absent."""

    basis: Basis
    loaded_at: Mapping[str, datetime]


@dataclass(frozen=True)
class Scope:
    """What a refresh builds, and why: everything, or what rows newer than `since` touch (newest `loaded_at` that is in the marts)."""

    since: Mapping[str, datetime] | None
    reason: str

    @property
    def whole(self) -> bool:
        """Whether every row of every model is built anew."""
        return self.since is None


def decide_scope(kept: ChangeMarks | None, now: ChangeMarks) -> Scope:
    """Build only what changed where nothing but rows has come since the marks that are kept.

    Args:
        kept: marks of the last whole refresh; `None` where there is none that still holds.
        now: what a refresh that starts now would show.
    """
    if kept is None:
        return Scope(None, _NO_MARKS)
    was, is_now = kept.basis, now.basis
    if was.as_of != is_now.as_of:
        return Scope(None, f"first refresh of {is_now.as_of}: everybody has aged since {was.as_of}")
    if was.business_timezone != is_now.business_timezone:
        return Scope(None, f"the business time zone is {is_now.business_timezone}, it was {was.business_timezone}")
    if was.models != is_now.models:
        return Scope(None, "the models have changed")
    for name, loaded_at in kept.loaded_at.items():
        if was.first_loads.get(name) != is_now.first_loads.get(name) or now.loaded_at.get(name, _NEVER) < loaded_at:
            return Scope(None, f"raw {name} was emptied and loaded again")
    return Scope({name: kept.loaded_at.get(name, _NEVER) for name in _plurals()}, "only what new rows touch")


def planned_scope(settings: Settings, *, as_of: date, models: str) -> Scope:
    """What a refresh that starts now would build; for arguments see `current_marks`. Everything where the database is not prepared."""
    kept = kept_marks(settings)
    return Scope(None, _NO_MARKS) if kept is None else decide_scope(kept, current_marks(settings, as_of=as_of, models=models))


_NEVER = datetime(1970, 1, 1, tzinfo=UTC)
_NO_MARKS = "no refresh has ended yet from which this one could go on"


def current_marks(settings: Settings, *, as_of: date, models: str) -> ChangeMarks:
    """What a refresh that starts now will show at least; the database must be prepared.

    Loads of one entity follow each other and each one's rows are newer than all before, so whatever is committed later is newer than
    these marks.

    Args:
        settings: which data set.
        as_of: date the refresh shows.
        models: fingerprint of the dbt project.
    """
    newest = " union all ".join(
        f"select '{name}', (select max(loaded_at) from {RAW_SCHEMA}.{name}), "  # noqa: S608 -- names come from the contracts
        f"(select max(load_id) from meta.loads where table_name = '{name}' and from_version is null)"
        for name in _plurals()
    )
    rows = warehouse.fetch_rows(settings, newest)
    basis = Basis(as_of, settings.business_timezone, models, {name: int(load) for name, _, load in rows if load is not None})
    return ChangeMarks(basis, {name: moment.astimezone(UTC) for name, moment, _ in rows if moment is not None})


def kept_marks(settings: Settings) -> ChangeMarks | None:
    """Marks of the last whole refresh, `None` where there is none or something was built on another basis since."""
    rows = warehouse.rows_if_prepared(settings, "select as_of::text, business_timezone, models, tables::text from meta.change_marks")
    if not rows:
        return None
    as_of, timezone, models, tables = rows[0]
    stored: dict[str, dict[str, Any]] = json.loads(tables)
    first_loads = {name: table["first_load"] for name, table in stored.items() if table["first_load"] is not None}
    loaded_at = {name: datetime.fromisoformat(table["loaded_at"]) for name, table in stored.items() if table["loaded_at"] is not None}
    return ChangeMarks(Basis(date.fromisoformat(as_of), timezone, models, first_loads), loaded_at)


def keep_marks(settings: Settings, marks: ChangeMarks) -> None:
    """Note what a whole refresh that has just ended shows; `marks` are from before it began."""
    loaded_at, first_loads = marks.loaded_at, marks.basis.first_loads
    tables = {
        name: {"loaded_at": loaded_at[name].isoformat() if name in loaded_at else None, "first_load": first_loads.get(name)}
        for name in sorted({*loaded_at, *first_loads})
    }
    with warehouse.connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute("delete from meta.change_marks")
        cursor.execute(
            "insert into meta.change_marks (as_of, business_timezone, models, tables) "
            "values (cast($1::text as date), $2::text, $3::text, $4::text::jsonb)",
            (marks.basis.as_of.isoformat(), marks.basis.business_timezone, marks.basis.models, json.dumps(tables)),
        )
        connection.commit()


def forget_marks(settings: Settings) -> None:
    """Have the next refresh build everything; nothing happens where no refresh has ended yet."""
    with warehouse.connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute("delete from meta.change_marks")
        connection.commit()


@contextmanager
def only_refresh(settings: Settings) -> Iterator[None]:
    """Keep other refreshes of the data set out until the block ends; two at once would insert the same keys twice.

    Makes the database where it is missing, and nothing in it.

    Raises:
        RefreshUnderWay: another one held on for too long.
    """
    from adbc_driver_manager import Error

    warehouse.create_database(settings)
    with warehouse.connect(settings, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(f"set lock_timeout = '{LOCK_SECONDS}s'")
        try:
            cursor.execute("select pg_advisory_lock(hashtext('crm refresh'))")
            cursor.fetchall()
        except Error as error:
            if error.sqlstate != "55P03":
                raise
            raise RefreshUnderWay(
                f"another refresh of {settings.env} has been running for more than {LOCK_SECONDS} s; look for it in the Dagster runs, or "
                "in pg_stat_activity, and start this one again when it has ended"
            ) from error
        yield


def _plurals() -> list[str]:
    return [contract.plural for contract in contracts()]
