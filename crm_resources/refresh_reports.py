"""What each refresh reported: from which silver versions, for which date, and what the marts held. Time travel compares with it.

Belongs here: writing a report down, finding one again, purging old ones, and which versions of silver they still need. Not here: how
a mart is digested (`crm_assets.warehouse.mart_digests`), or how a report is reproduced (`crm_assets.warehouse.time_travel`).

One row of `meta.refresh_reports` takes some 1.5 kB; a refresh every 30 s for 30 days makes about 130 MB.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from crm_resources import warehouse
from crm_resources.settings import Settings


@dataclass(frozen=True)
class TableVersion:
    """A version of one Delta table; a table that was made anew has another id, and its versions start over."""

    table_id: str
    version: int

    def __str__(self) -> str:
        """The version, as a person asks for it."""
        return str(self.version)


@dataclass(frozen=True)
class MartDigest:
    """Content of a mart: its rows, and an order-free checksum over them as 32 hexadecimal digits."""

    rows: int
    checksum: str


@dataclass(frozen=True)
class RefreshReport:
    """What a refresh reported.

    `refresh_id` is that of `meta.refreshes`, `reported_at` the time when the marts were complete, `models` a fingerprint of the SQL
    that made them. `versions` are silver's by plural (a table without rows yet is absent), `marts` by name. `figures` are exact
    decimal numbers as text, by name.
    """

    refresh_id: int
    reported_at: datetime
    as_of: date
    business_timezone: str
    models: str
    versions: Mapping[str, TableVersion]
    marts: Mapping[str, MartDigest]
    figures: Mapping[str, str]


@dataclass(frozen=True)
class ReportedDay:
    """One business date on which something was reported: the last report of it, and how many there were."""

    day: date
    reports: int
    last: RefreshReport


def record_report(settings: Settings, report: RefreshReport) -> int:
    """Write a report down, and delete those older than the promised time; returns how many were deleted."""
    versions = {name: {"table_id": v.table_id, "version": v.version} for name, v in sorted(report.versions.items())}
    marts = {name: {"rows": m.rows, "checksum": m.checksum} for name, m in sorted(report.marts.items())}
    with warehouse.connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "insert into meta.refresh_reports (refresh_id, reported_at, as_of, business_timezone, models, versions, marts, figures) values "
            "($1::bigint, $2::timestamptz, cast($3::text as date), $4::text, $5::text, $6::text::jsonb, $7::text::jsonb, $8::text::jsonb)",
            (
                report.refresh_id,
                report.reported_at,
                report.as_of.isoformat(),
                report.business_timezone,
                report.models,
                json.dumps(versions),
                json.dumps(marts),
                json.dumps(dict(sorted(report.figures.items()))),
            ),
        )
        cursor.execute(
            "delete from meta.refresh_reports where reported_at < $1::timestamptz",
            (kept_since(settings, report.reported_at),),
        )
        deleted = max(int(cursor.rowcount), 0)
        connection.commit()
    return deleted


def kept_since(settings: Settings, now: datetime) -> datetime:
    """Time from which on reports, and the silver versions they name, are promised to be kept."""
    return now - timedelta(days=settings.time_travel_days)


def report_by_id(settings: Settings, refresh_id: int) -> RefreshReport | None:
    """The report of a refresh, `None` when it is not kept or there never was one."""
    return _first(settings, "where refresh_id = $1::bigint", (refresh_id,))


def last_report_before(settings: Settings, moment: datetime) -> RefreshReport | None:
    """The last report from before a moment (exclusive): what was reported then."""
    return _first(settings, "where reported_at < $1::timestamptz order by reported_at desc, refresh_id desc limit 1", (moment,))


def last_report_of_versions(settings: Settings, versions: Mapping[str, TableVersion], as_of: date | None = None) -> RefreshReport | None:
    """The last report that stood on the given silver versions, and on the as-of date where one is given."""
    # Containment of JSON: a report that stood on more tables than those named fits as well.
    wanted = json.dumps({name: {"table_id": v.table_id, "version": v.version} for name, v in versions.items()})
    return _first(
        settings,
        "where versions @> $1::text::jsonb and ($2::text is null or as_of = cast($2::text as date)) "
        "order by reported_at desc, refresh_id desc limit 1",
        (wanted, as_of.isoformat() if as_of else None),
    )


def oldest_report(settings: Settings) -> RefreshReport | None:
    """The oldest report there is."""
    return _first(settings, "order by reported_at, refresh_id limit 1", ())


def reported_days(settings: Settings) -> list[ReportedDay]:
    """The last report of each business date of the configured time zone, latest date first."""
    rows = _rows(
        settings,
        "with dated as (select refresh_id, reported_at, (reported_at at time zone $1::text)::date as day from meta.refresh_reports), "  # noqa: S608 -- columns of this module
        "ranked as (select refresh_id, day, row_number() over (partition by day order by reported_at desc, refresh_id desc) as place, "
        "count(*) over (partition by day) as reports from dated) "
        f"select {_COLUMNS}, day::text, reports from meta.refresh_reports join ranked using (refresh_id) where place = 1 order by day desc",
        (settings.business_timezone,),
    )
    return [ReportedDay(date.fromisoformat(row[-2]), row[-1], _report(row[:-2])) for row in rows]


def oldest_needed(settings: Settings, now: datetime) -> dict[str, TableVersion]:
    """The oldest version of each silver table that somebody may still read: what a vacuum or a log clean-up must leave whole.

    That version needs its data files **and** the log from which it is put together (its commit, and the checkpoint with the
    commits before it); everything that is newer likewise.

    Args:
        settings: which data set.
        now: reports older than `settings.time_travel_days` before it need nothing.

    Returns:
        By plural, with the id of the table that was loaded. A table that is absent has never been loaded, so nothing needs an older
        version than its latest. When the table in the lake has another id, it was made anew since: nobody needs its older
        versions either, for a load of it begins with a whole snapshot.

    Raises:
        crm_resources.warehouse.WarehouseError: no connection. Then nobody knows, and nothing should be deleted.
    """
    rows = _rows(
        settings,
        "select b.table_name, b.table_id, least(b.version, min((r.versions -> b.table_name ->> 'version')::bigint)) "
        "from meta.bookmarks as b left join meta.refresh_reports as r "
        "on r.reported_at >= $1::timestamptz and r.versions -> b.table_name ->> 'table_id' = b.table_id "
        "group by b.table_name, b.table_id, b.version",
        (kept_since(settings, now),),
    )
    return {name: TableVersion(table_id, version) for name, table_id, version in rows}


_COLUMNS = (
    "refresh_id, reported_at, as_of::text as as_of, business_timezone, models, "
    "versions::text as versions, marts::text as marts, figures::text as figures"
)


def _first(settings: Settings, condition: str, parameters: Sequence[object]) -> RefreshReport | None:
    rows = _rows(settings, f"select {_COLUMNS} from meta.refresh_reports {condition}", parameters)  # noqa: S608 -- conditions of this module
    return _report(rows[0]) if rows else None


def _rows(settings: Settings, sql: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
    return warehouse.rows_if_prepared(settings, sql, parameters)


def _report(row: Sequence[Any]) -> RefreshReport:
    refresh_id, reported_at, as_of, timezone, models, versions, marts, figures = row
    return RefreshReport(
        refresh_id=refresh_id,
        reported_at=reported_at,
        as_of=date.fromisoformat(as_of),
        business_timezone=timezone,
        models=models,
        versions={name: TableVersion(**v) for name, v in json.loads(versions).items()},
        marts={name: MartDigest(**m) for name, m in json.loads(marts).items()},
        figures=json.loads(figures),
    )
