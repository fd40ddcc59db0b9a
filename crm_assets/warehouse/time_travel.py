"""Time travel: the marts as they were reported, built once more from silver's old versions and compared with what was written down.

Belongs here: finding the point, making sure that it can still be reached, building a database of its own beside the data set's, and
comparing. Not here: what is written down at each refresh (`crm_resources.refresh_reports`, `mart_digests`), reading what a person
asked for (`travel_choice`), the command (`time_travel_cli`) or the job (`time_travel_job`).

The live database is only read. What marts are made of besides silver is pinned: as-of date and business time zone by the report. The
models and seeds are those of this installation; where they have changed since the report, the journey says so.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import StrEnum

from crm_assets.monitoring.refresh import business_date
from crm_assets.warehouse.dbt_command import run_dbt
from crm_assets.warehouse.load import LoadError, load_entity
from crm_assets.warehouse.mart_digests import SCORED_BY_CUT_POINTS, digest_marts, models_fingerprint
from crm_assets.warehouse.models.storage import copy_models
from crm_assets.warehouse.travel_choice import TimeTravelError, end_of, place_of_report, place_of_versions, read_date, read_versions
from crm_resources import lake, refresh_reports, warehouse
from crm_resources.contracts import contracts
from crm_resources.layout import SILVER
from crm_resources.refresh_reports import MartDigest, RefreshReport, TableVersion
from crm_resources.report import Verdict
from crm_resources.settings import Settings

COMMENT = "time travel of"
"""Begin of the comment of every database made here; one without it is never replaced."""

LIST = "`make time-travel LIST=1` lists what there is"


@dataclass(frozen=True)
class Destination:
    """Where a journey goes: silver's versions, the date and time zone the marts shall show, and the report of it, if there was one."""

    place: str
    versions: Mapping[str, TableVersion]
    as_of: date
    business_timezone: str
    report: RefreshReport | None


class Outcome(StrEnum):
    """What became of one figure or mart."""

    EQUAL = "equal"
    DIFFERENT = "different"
    ONLY_THEN = "no longer there"
    ONLY_NOW = "not there then"
    NOT_REPORTED = "nothing reported"


@dataclass(frozen=True)
class Comparison:
    """One figure, or one mart as `<rows> rows, <checksum>`: as reported then, and as reproduced now; `None` where there is none."""

    name: str
    then: str | None
    now: str | None
    outcome: Outcome


@dataclass(frozen=True)
class Journey:
    """What a time travel found. `database` still exists only when it was kept."""

    destination: Destination
    database: str
    kept: bool
    comparisons: tuple[Comparison, ...]
    models_changed: bool
    rows_loaded: int
    seconds: float

    @property
    def differing(self) -> tuple[Comparison, ...]:
        """What is not as it was reported."""
        return tuple(c for c in self.comparisons if c.outcome not in (Outcome.EQUAL, Outcome.NOT_REPORTED))

    @property
    def verdict(self) -> Verdict:
        """Pass when nothing differs; without a report there is nothing that could."""
        return Verdict.FAIL if self.differing else Verdict.PASS

    def figures(self) -> dict[str, float]:
        """For the JSON report."""
        compared = [c for c in self.comparisons if c.outcome is not Outcome.NOT_REPORTED]
        return {
            "compared_count": len(compared),
            "equal_count": sum(c.outcome is Outcome.EQUAL for c in compared),
            "differing_count": len(self.differing),
            "loaded_rows": self.rows_loaded,
            "models_changed_flag": int(self.models_changed),
            "build_seconds": round(self.seconds, 3),
            **{f"silver_{name}_version": v.version for name, v in self.destination.versions.items()},
        }


def find_destination(
    settings: Settings,
    *,
    now: datetime,
    at: str = "",
    report_id: int | None = None,
    versions: str = "",
    as_of: str = "",
) -> Destination:
    """Find the point that was asked for, in one of three ways.

    Args:
        settings: which data set.
        now: the current time.
        at: date or time; the last report made by then (`travel_choice.end_of`).
        report_id: number of a report.
        versions: silver versions, e.g. `orders=12,events=40`: the last report that stood on them, or where no refresh happened at
            them, these versions and the latest of the tables not named.
        as_of: with `versions`: the date the marts shall show; by default that of the report, or the current one.

    Raises:
        TimeTravelError: not exactly one way was asked for, or there is no such point.
    """
    if [bool(at), report_id is not None, bool(versions)].count(True) != 1 or (as_of and not versions):
        raise TimeTravelError("name one point: AT=<date or time>, REPORT=<number>, or VERSIONS=orders=12,… (with AS_OF=<date> if wanted)")
    if versions:
        return _of_versions(settings, read_versions(versions, SILVER), read_date(as_of) if as_of else None, now)
    if report_id is not None:
        found = refresh_reports.report_by_id(settings, report_id)
        if found is None:
            raise TimeTravelError(f"there is no report {report_id}; {_possible(settings)}")
    else:
        found = refresh_reports.last_report_before(settings, end_of(at, settings.business_timezone, now))
        if found is None:
            raise TimeTravelError(f"nothing was reported by {at} that is still kept; {_possible(settings)}")
    return _of_report(settings, found)


def check_reachable(settings: Settings, versions: Mapping[str, TableVersion]) -> None:
    """Make sure that silver still holds the versions, log and files.

    Raises:
        TimeTravelError: a table was made anew, or a version or a file of it is gone.
    """
    from pyarrow.fs import FileType

    for name, wanted in versions.items():
        path = SILVER[name].path
        try:
            changes = lake.added_files(settings, path, None, wanted.version)
        except lake.VersionMissing as error:
            raise TimeTravelError(f"silver {name} has no version {wanted.version} any more, or not yet ({error}); {LIST}") from error
        if changes is None or changes.table_id != wanted.table_id:
            what = "is gone" if changes is None else f"was made anew since (table {wanted.table_id} then, {changes.table_id} now)"
            raise TimeTravelError(f"silver {name} {what}, and its old versions went with it; a later report may be reachable: {LIST}")
        filesystem = lake.table_filesystem(settings, path)
        infos = filesystem.get_file_info([lake.unquoted(f.path) for f in changes.files]) if changes.files else []
        missing = sum(info.type != FileType.File for info in infos)
        if missing:
            raise TimeTravelError(
                f"{missing} of {len(infos)} files of silver {name} at version {wanted.version} were removed by a vacuum; "
                f"later reports may be reachable: {LIST}"
            )


def travel(settings: Settings, destination: Destination, *, keep: bool = False) -> Journey:
    """Build the marts of a destination in a database of its own, and compare them with what was reported.

    Args:
        settings: the data set travelled from; its database is not touched.
        destination: see `find_destination`.
        keep: leave the database behind; otherwise it is dropped, whatever happened.

    Raises:
        TimeTravelError: the point cannot be reached, dbt failed, or the place is taken.
        crm_resources.warehouse.WarehouseError: no connection, or a right is missing.
    """
    clock = time.monotonic()
    check_reachable(settings, destination.versions)
    place = settings_of_place(settings, destination)
    with _own_database(settings, place, keep=keep):
        rows = _load(place, destination.versions)
        copy_models(settings, place, destination.report.reported_at if destination.report else None)
        _build(place)
        marts, figures = digest_marts(place, read_all=True)
    report = destination.report
    if report is not None:
        # Scores by cut points of an earlier run were not reported; here they rest on cut points of their own.
        marts = {name: mart for name, mart in marts.items() if name in report.marts or name not in SCORED_BY_CUT_POINTS}
    return Journey(
        destination=destination,
        database=place.database,
        kept=keep,
        comparisons=tuple(compare(report, marts, figures)),
        models_changed=report is not None and report.models != models_fingerprint(),
        rows_loaded=rows,
        seconds=time.monotonic() - clock,
    )


def compare(report: RefreshReport | None, marts: Mapping[str, MartDigest], figures: Mapping[str, str]) -> Iterator[Comparison]:
    """Put figures and marts, as reported and as reproduced, side by side: figures first, each in the order of the names."""
    spelled = {name: f"{m.rows:,} rows, {m.checksum}" for name, m in marts.items()}
    for then, now in (
        (dict(report.figures) if report else {}, dict(figures)),
        ({name: f"{m.rows:,} rows, {m.checksum}" for name, m in report.marts.items()} if report else {}, spelled),
    ):
        for name in sorted({*then, *now}):
            yield Comparison(name, then.get(name), now.get(name), _outcome(report, then.get(name), now.get(name)))


def settings_of_place(settings: Settings, destination: Destination) -> Settings:
    """Settings of a data set that has the same lake, a database of its own, and the destination's date and time zone."""
    return settings.model_copy(
        update={
            "env": destination.place,
            "lake_uri": settings.lake_root,
            "as_of": destination.as_of,
            "business_timezone": destination.business_timezone,
        }
    )


def kept_databases(settings: Settings) -> list[str]:
    """Databases that journeys of this data set left behind."""
    with warehouse.connect_to_server(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select datname::text from pg_database where shobj_description(oid, 'pg_database') = $1::text order by datname",
            (_comment(settings),),
        )
        return [name for (name,) in cursor.fetchall()]


def _outcome(report: RefreshReport | None, then: str | None, now: str | None) -> Outcome:
    if report is None:
        return Outcome.NOT_REPORTED
    if then is None:
        return Outcome.ONLY_NOW
    if now is None:
        return Outcome.ONLY_THEN
    return Outcome.EQUAL if then == now else Outcome.DIFFERENT


def _of_report(settings: Settings, report: RefreshReport) -> Destination:
    return Destination(place_of_report(settings.env, report.refresh_id), report.versions, report.as_of, report.business_timezone, report)


def _of_versions(settings: Settings, numbers: Mapping[str, int], as_of: date | None, now: datetime) -> Destination:
    ids = {name: lake.table_id(settings, table.path) for name, table in SILVER.items()}
    absent = sorted(name for name in numbers if ids[name] is None)
    if absent:
        raise TimeTravelError(f"there is no silver table {', '.join(absent)} yet, so it has no versions")
    named = {name: TableVersion(str(ids[name]), number) for name, number in numbers.items()}
    report = refresh_reports.last_report_of_versions(settings, named, as_of)
    if report is not None:
        return _of_report(settings, report)
    latest = {name: lake.table_version(settings, SILVER[name].path) for name in SILVER if name not in numbers}
    versions = named | {name: TableVersion(str(ids[name]), version) for name, version in latest.items() if version is not None}
    shown = as_of or business_date(now, settings.business_timezone, settings.as_of)
    place = place_of_versions(settings.env, {name: v.version for name, v in versions.items()}, shown)
    return Destination(place, versions, shown, settings.business_timezone, None)


def _possible(settings: Settings) -> str:
    oldest = refresh_reports.oldest_report(settings)
    if oldest is None:
        return "no refresh has written a report yet; the next one will"
    return (
        f"the oldest report is {oldest.refresh_id} of {oldest.reported_at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ} "
        f"({settings.time_travel_days} days are kept); {LIST}"
    )


def _load(place: Settings, versions: Mapping[str, TableVersion]) -> int:
    rows = 0
    try:
        for contract in contracts():
            wanted = versions.get(contract.plural)
            if wanted is not None:
                rows += load_entity(place, contract, to_version=wanted.version).rows_inserted
    except (LoadError, OSError) as error:
        raise TimeTravelError(f"silver could not be loaded as it was: {error.__cause__ or error}") from error
    loaded = {name: TableVersion(mark.table_id, mark.version) for name, mark in warehouse.bookmarks(place).items()}
    if loaded != dict(versions):
        raise TimeTravelError("a silver table was made anew while it was being loaded; start again")
    return rows


def _build(place: Settings) -> None:
    """Seeds and models, without their tests and rules: what was reported had passed them, and the comparison is stricter and says more."""
    with tempfile.TemporaryDirectory(prefix="crm-time-travel-") as folder:
        models = ("build", "--exclude-resource-type", "test", "unit_test", "--vars", '{"table_rules": false}')
        done = run_dbt(models, folder=folder, variables=warehouse.dbt_environment(place))
    if done.returncode:
        raise TimeTravelError(f"dbt could not build the marts in {place.database}:\n{(done.stdout + done.stderr)[-4000:].strip()}")


@contextmanager
def _own_database(settings: Settings, place: Settings, *, keep: bool) -> Iterator[None]:
    """A new, prepared database at the place; only one of this data set's own journeys is replaced, and none that is under way."""
    name = warehouse.quoted(place.database)
    with warehouse.connect_to_server(settings) as connection, connection.cursor() as cursor:
        cursor.execute("select pg_try_advisory_lock(hashtext('crm time travel'), hashtext($1::text))", (place.database,))
        if not cursor.fetchall()[0][0]:
            raise TimeTravelError(f"another time travel is building {place.database}; start this one again when it has ended")
        cursor.execute("select shobj_description(oid, 'pg_database') from pg_database where datname = $1::text", (place.database,))
        found = cursor.fetchall()
        if found and found[0][0] != _comment(settings):
            raise TimeTravelError(
                f"there is a database {place.database} that no time travel of {settings.env} made (its comment is {found[0][0]!r}); "
                "it is left alone. Drop or rename it by hand, then start again"
            )
        try:
            cursor.execute(f"drop database if exists {name} with (force)")
            warehouse.create_database(place)
            cursor.execute(f"comment on database {name} is '{_comment(settings)}'")
            warehouse.prepare(place)
            yield
        finally:
            if not keep:
                cursor.execute(f"drop database if exists {name} with (force)")


def _comment(settings: Settings) -> str:
    return f"{COMMENT} {settings.database}"
