"""The one assembly point: every asset, check, job, sensor and schedule of the platform as one `Definitions`.

Importing this module, or calling `build_defs`, opens no connection, starts no process and writes nothing; it reads one
file, the dbt manifest.
"""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg

from crm_assets.infrastructure import assets as infrastructure
from crm_assets.ingestion import topics
from crm_assets.lakehouse import assets as lakehouse
from crm_assets.lakehouse import health as lake_health
from crm_assets.lakehouse import upkeep as lake_upkeep
from crm_assets.monitoring import checks, refresh, upkeep
from crm_assets.streaming import assets as streaming
from crm_assets.streaming import replay_job
from crm_assets.warehouse import assets as warehouse
from crm_assets.warehouse import customers_page
from crm_assets.warehouse.audiences.job import export_audiences_job
from crm_assets.warehouse.models import assets as models
from crm_assets.warehouse.time_travel_job import time_travel_job
from crm_resources.dagster_resources import SettingsResource, StreamLauncherResource


def build_defs(overrides: Mapping[str, object] | None = None) -> dg.Definitions:
    """Assemble the platform.

    Args:
        overrides: resources to use instead of the defaults, by name (`settings`, `stream_launcher`, `dbt`); for tests and
            for deployments that bring their own.

    Raises:
        KeyError: an override names no resource.
    """
    resources: dict[str, object] = {
        "settings": SettingsResource(),
        "stream_launcher": StreamLauncherResource(),
        "dbt": warehouse.dbt_resource(),
    }
    unknown = set(overrides or {}) - set(resources)
    if unknown:
        raise KeyError(f"no resource named {', '.join(sorted(unknown))}; known: {', '.join(sorted(resources))}")
    models_of_dbt = warehouse.dbt_assets_definition()
    refresh_jobs = warehouse.refresh_jobs(models_of_dbt)
    return dg.Definitions(
        assets=[
            *infrastructure.assets,
            *topics.assets,
            *streaming.assets,
            *lakehouse.assets,
            *lake_upkeep.assets,
            warehouse.load_raw,
            models_of_dbt,
            models.fit_purchase_models,
            customers_page.customers_page,
        ],
        asset_checks=[*checks.asset_checks, *streaming.asset_checks, *lake_health.asset_checks],
        jobs=[
            *refresh_jobs,
            time_travel_job,
            models.fit_models_job,
            customers_page.customers_page_job,
            export_audiences_job,
            checks.audit_job,
            *streaming.jobs,
            replay_job.replay_dead_letters,
            *lake_upkeep.jobs,
            lake_health.lake_health_job,
            upkeep.purge_runs,
        ],
        sensors=[*topics.sensors, *streaming.sensors, *lakehouse.sensors, refresh.refresh_sensor(refresh_jobs)],
        schedules=[
            refresh.nightly_refresh,
            upkeep.purge_schedule,
            checks.audit_schedule,
            *lake_upkeep.schedules,
            lake_health.lake_health_schedule,
            models.fit_models_schedule,
            customers_page.customers_page_schedule,
        ],
        resources={**resources, **(overrides or {})},
        # A process per step costs some ten seconds on two cores and brings nothing on one machine.
        executor=dg.in_process_executor,
    )
