"""The audit as an asset check: nothing lost, nothing doubled, the books closed."""

import dagster as dg

from crm_assets.conventions import BRONZE_KEY
from crm_resources.dagster_resources import SettingsResource

GRACE_SECONDS = 120


@dg.asset_check(
    asset=BRONZE_KEY,
    name="audit",
    description="Everything acknowledged stands once, unchanged and in order, in lake and warehouse; the marts' revenue is the ledger's.",
)
def audit_check(settings: SettingsResource) -> dg.AssetCheckResult:
    """Run the audit over everything that is in the data set."""
    from crm_assets.monitoring.audit import run_audit

    # What was acked in the last two minutes may still be under way through the stream and the load.
    loaded = settings.load()
    result = run_audit(loaded, grace_seconds=GRACE_SECONDS, lists=loaded.reports_dir / f"audit-check-{loaded.env}-lists.csv")
    lists = {"complete_lists": str(result.lists)} if result.lists else {}
    return dg.AssetCheckResult(passed=result.passed, metadata={**result.figures(), "verdict": result.verdict_text(), **lists})


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
