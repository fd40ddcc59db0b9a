"""The audit as an asset check: nothing lost, nothing doubled, the books closed."""

import dagster as dg

from crm_assets.conventions import BRONZE_KEY
from crm_resources.dagster_resources import SettingsResource

GRACE_SECONDS = 120


@dg.asset_check(
    asset=BRONZE_KEY,
    name="audit",
    description="Ledger of acked records = bronze = silver + dead letters + dropped duplicates = warehouse; missing 0, doubled 0.",
)
def audit_check(settings: SettingsResource) -> dg.AssetCheckResult:
    """Run the audit over everything that is in the data set."""
    from crm_assets.monitoring.audit import run_audit

    # What was acked in the last two minutes may still be under way through the stream and the load.
    result = run_audit(settings.load(), grace_seconds=GRACE_SECONDS)
    return dg.AssetCheckResult(passed=result.passed, metadata={**result.figures(), "verdict": result.verdict_text()})


asset_checks: list[dg.AssetChecksDefinition] = [audit_check]

audit_job = dg.define_asset_job(
    "audit",
    selection=dg.AssetSelection.checks(audit_check),
    executor_def=dg.in_process_executor,
    description="Checks the books of the whole data set.",
)

audit_schedule = dg.ScheduleDefinition(
    name="audit_nightly",
    job=audit_job,
    cron_schedule="10 3 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every night at 03:10 UTC.",
)
