"""A refresh of the marts that leaves a trace: what it has to build, the as-of date it shows, and the report of what it showed.

Belongs here: what is pinned before dbt runs and written down after it. Not here: running dbt (`assets`), where marks are kept
(`crm_resources.change_marks`), or what a report is for (`time_travel`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from crm_assets.monitoring.refresh import business_date
from crm_assets.warehouse.mart_digests import digest_marts, models_fingerprint
from crm_resources import change_marks, refresh_reports, warehouse
from crm_resources.change_marks import ChangeMarks, Scope
from crm_resources.refresh_reports import RefreshReport, TableVersion
from crm_resources.settings import Settings


@dataclass(frozen=True)
class PlannedRefresh:
    """A refresh about to run: the settings with the as-of date fixed, so that a run over midnight shows one date, and what it builds."""

    settings: Settings
    scope: Scope

    def dbt_environment(self) -> Mapping[str, str]:
        """Variables for dbt; see `crm_resources.warehouse.dbt_environment`."""
        return warehouse.dbt_environment(self.settings, self.scope.since)


@contextmanager
def recorded_refresh(settings: Settings, *, whole: bool, warn: Callable[[str], None], everything: bool = False) -> Iterator[PlannedRefresh]:
    """Around a run of dbt: says what to build, and writes the refresh down when the block ended without an error.

    Args:
        settings: which data set; its database is prepared.
        whole: whether all models are built. A part of them shows several states at once, which is no report of any and moves no mark;
            what is selected is built from the first row.
        warn: told why a refresh has no report.
        everything: build every row anew whatever has changed.

    Raises:
        crm_resources.change_marks.RefreshUnderWay: another refresh of the data set does not end.
        crm_resources.warehouse.WarehouseError: the database cannot be prepared.
    """
    with change_marks.only_refresh(settings):
        warehouse.prepare(settings)
        started = datetime.now(UTC)
        as_of = business_date(started, settings.business_timezone, settings.as_of)
        before = silver_versions(settings)
        marks = change_marks.current_marks(settings, as_of=as_of, models=models_fingerprint())
        yield PlannedRefresh(settings.model_copy(update={"as_of": as_of}), _scope(settings, marks, whole=whole, everything=everything))
        finished = datetime.now(UTC)
        refresh_id = warehouse.record_refresh(settings, started_at=started, finished_at=finished, as_of=as_of)
        if not whole:
            warn("only a part of the models was built: time travel cannot go to this refresh")
            return
        change_marks.keep_marks(settings, marks)
        marts, figures = digest_marts(settings)
        if silver_versions(settings) != before:
            warn("another load moved the bookmarks while the marts were built: time travel cannot go to this refresh")
            return
        report = RefreshReport(refresh_id, finished, as_of, settings.business_timezone, marks.basis.models, before, marts, figures)
        refresh_reports.record_report(settings, report)


def silver_versions(settings: Settings) -> dict[str, TableVersion]:
    """Silver's versions that are in raw."""
    return {name: TableVersion(mark.table_id, mark.version) for name, mark in warehouse.bookmarks(settings).items()}


def _scope(settings: Settings, marks: ChangeMarks, *, whole: bool, everything: bool) -> Scope:
    scope = change_marks.decide_scope(change_marks.kept_marks(settings), marks)
    if everything and not scope.whole:
        scope = Scope(None, "everything was asked for")
    if scope.whole:
        # Tables of two bases stand side by side until this run has ended; nothing may go on from there.
        change_marks.forget_marks(settings)
    elif not whole:
        scope = Scope(None, "only a part of the models was asked for")
    return scope
