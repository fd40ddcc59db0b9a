"""Runs load and dbt over a data set the way the platform does, for tests of what comes out."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from contextlib import redirect_stdout
from datetime import UTC, date, datetime
from typing import Any

import polars as pl
import pytest

from crm_assets.warehouse import dbt_command
from crm_assets.warehouse.load import load_all
from crm_assets.warehouse.recorded_refresh import recorded_refresh
from crm_resources import refresh_reports, warehouse
from crm_resources.refresh_reports import RefreshReport
from crm_resources.settings import Settings

_parsed: dict[str, Any] = {}
"""What dbt made of the project, by database, whose name is in it; nothing else of a data set is."""

WITHOUT_TESTS = ("build", "--exclude-resource-type", "test", "unit_test")


def data_set(settings: Settings, name: str, *, as_of: date | None = None, timezone: str = "UTC") -> Settings:
    """Settings of another data set on the same server, with a lake and a database of its own."""
    return settings.model_copy(update={"env": name, "as_of": as_of, "business_timezone": timezone})


def refresh(settings: Settings, *arguments: str) -> None:
    """Load what is new and build the marts with their tests."""
    load_all(settings)
    run_dbt(settings, *(arguments or ("build",)))


def reported_refresh(settings: Settings) -> RefreshReport:
    """Load and build like the platform's own refresh, which writes its report down; gives that report."""
    complaints: list[str] = []
    load_all(settings)
    with recorded_refresh(settings, whole=True, warn=complaints.append) as planned:
        run_dbt(planned.settings, *WITHOUT_TESTS, changed_since=planned.scope.since)
    assert not complaints
    report = refresh_reports.last_report_before(settings, datetime.max.replace(tzinfo=UTC))
    assert report is not None
    return report


def run_dbt(settings: Settings, *arguments: str, unit_tests: bool = False, changed_since: Mapping[str, datetime] | None = None) -> str:
    """Run dbt over the data set, by default over all rows; fails with its output when dbt does.

    In this process and with the project parsed once for each database, which saves most of what a run costs; the platform's own way, a
    process for each run, is gone by the tests of the pipeline.
    """
    from dbt.cli.main import dbtRunner
    from dbt_common.behavior_flags import BehaviorFlagRendered

    environment = dict(warehouse.dbt_environment(settings, changed_since))
    if unit_tests:
        del environment["DBT_EXCLUDE_RESOURCE_TYPES"]
    folder, output = environment["DBT_TARGET_PATH"], io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output):
        for name in [name for name in os.environ if name.startswith(("CRM_", "DBT_"))]:
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        # For each of its flags dbt looks through all modules of the process, thousands beside Spark and scipy, to name the one that has it.
        patch.setattr(BehaviorFlagRendered, "_default_source", staticmethod(lambda: "dbt"))
        if settings.database not in _parsed:
            _parsed[settings.database] = dbtRunner().invoke(dbt_command.command_line(("parse",), folder=folder)).result
        command = dbt_command.command_line((*arguments, "--log-level-file", "none"), folder=folder)
        done = dbtRunner(_parsed[settings.database]).invoke(command)
    assert done.success, f"{output.getvalue()[-6000:]}{done.exception or ''}"
    return output.getvalue()


def mart(settings: Settings, table: str, *, money: tuple[str, ...] = (), where: str = "true") -> pl.DataFrame:
    """Rows of a mart; `money` columns as exact decimals."""
    frame = pl.DataFrame(warehouse.fetch_arrow(settings, f"select * from marts.{table} where {where}"))
    return frame.with_columns(pl.col(*money).cast(pl.Decimal(38, 4))) if money else frame
