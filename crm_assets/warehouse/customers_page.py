"""The page of the customers as an asset: its plots are the metadata of each materialization, so the UI shows them day by day.

Belongs here: key, metadata, when it runs. Not here: reading the marts or drawing (`marts_page`). How good the models are is shown by the
evaluations' own asset (`models.assets`), which has just computed it.
"""

import base64
from datetime import timedelta
from typing import Any

import dagster as dg

from crm_assets.conventions import OWNERS, Group
from crm_resources.dagster_resources import SettingsResource

CUSTOMERS_PAGE_KEY = dg.AssetKey(["reports", "customers"])


@dg.asset(
    key=CUSTOMERS_PAGE_KEY,
    deps=[dg.AssetKey(["marts", name]) for name in ("rfm_segments", "segment_history", "customer_cohorts")],
    group_name=Group.MARTS.value,
    kinds={"matplotlib"},
    owners=OWNERS,
    freshness_policy=dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=50), warn_window=timedelta(hours=26)),
    description="Segment sizes, migration within a month, and cohort retention as plots, here and as a page in the reports folder.",
)
def customers_page(context: dg.AssetExecutionContext, settings: SettingsResource) -> dg.MaterializeResult[None]:
    """Draw the page anew; a data set without scored customers has none, and says so."""
    from crm_assets.warehouse.marts_page import NothingToShow, pictures, read_marts, write_page

    loaded = settings.load()
    try:
        marts = read_marts(loaded)
    except NothingToShow as nothing:
        context.log.info("%s", nothing)
        return dg.MaterializeResult(metadata={"shown": f"nothing: {nothing}"})
    sections = pictures(marts)
    path = write_page(loaded.reports_dir / f"customers-{loaded.env}", f"Customers of {loaded.env}", sections)
    figures: dict[str, Any] = {"as_of": marts.as_of.isoformat(), "page": dg.MetadataValue.path(path)}
    for section in sections:
        if section.png:
            picture = base64.b64encode(section.png).decode()
            figures[section.name] = dg.MetadataValue.md(f"{section.text}\n\n![{section.title}](data:image/png;base64,{picture})")
    return dg.MaterializeResult(metadata=figures)


customers_page_job = dg.define_asset_job(
    "show_customers",
    selection=dg.AssetSelection.assets(customers_page),
    executor_def=dg.in_process_executor,
    description="Draws segment sizes, migration and cohort retention anew.",
)

customers_page_schedule = dg.ScheduleDefinition(
    name="show_customers_daily",
    job=customers_page_job,
    cron_schedule="50 4 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every night at 04:50 UTC, after the marts and the models of the day.",
)
