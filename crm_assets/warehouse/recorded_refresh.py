"""A refresh of the marts that leaves a trace: the as-of date it shows, and the report of what it showed.

Belongs here: what is pinned before dbt runs and written down after it. Not here: running dbt (`assets`), or what a report is for
(`time_travel`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from crm_assets.monitoring.refresh import business_date
from crm_assets.warehouse.mart_digests import digest_marts, models_fingerprint
from crm_resources import refresh_reports, warehouse
from crm_resources.refresh_reports import RefreshReport, TableVersion
from crm_resources.settings import Settings


@contextmanager
def recorded_refresh(settings: Settings, *, whole: bool, warn: Callable[[str], None]) -> Iterator[Settings]:
    """Around a run of dbt: gives the settings to run it with, and writes the refresh down when the block ended without an error.

    Args:
        settings: which data set.
        whole: whether all models are built. A part of them shows several states at once, which is no report of any.
        warn: told why a refresh has no report.

    Yields:
        The settings with the as-of date fixed, so that a run over midnight shows one date.
    """
    started = datetime.now(UTC)
    as_of = business_date(started, settings.business_timezone, settings.as_of)
    before = silver_versions(settings)
    yield settings.model_copy(update={"as_of": as_of})
    finished = datetime.now(UTC)
    refresh_id = warehouse.record_refresh(settings, started_at=started, finished_at=finished, as_of=as_of)
    if not whole:
        warn("only a part of the models was built: time travel cannot go to this refresh")
        return
    marts, figures = digest_marts(settings)
    if silver_versions(settings) != before:
        warn("another load moved the bookmarks while the marts were built: time travel cannot go to this refresh")
        return
    report = RefreshReport(refresh_id, finished, as_of, settings.business_timezone, models_fingerprint(), before, marts, figures)
    refresh_reports.record_report(settings, report)


def silver_versions(settings: Settings) -> dict[str, TableVersion]:
    """Silver's versions that are in raw."""
    return {name: TableVersion(mark.table_id, mark.version) for name, mark in warehouse.bookmarks(settings).items()}
