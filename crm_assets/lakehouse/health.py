"""Checks of the lake's tables: too many small files, growth of files and logs, readers that fall behind the retention.

Belongs here: judging what `crm_assets.streaming.upkeep` sees (pure), and reporting it as asset checks. Not here: mending it
(`upkeep`), or whether rows are right (the audit).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import dagster as dg

from crm_assets.conventions import lake_tables
from crm_assets.streaming.upkeep import TableState, followers_of, table_state
from crm_resources.dagster_resources import SettingsResource

MOST_SMALL_FILES = 10_000
"""Three hours of bronze at the shortest interval of commits; compaction runs every hour, so it has failed or cannot follow."""

MOST_FILES = 100_000
"""Each snapshot of a table holds all its files: with so many, opening one takes seconds and a batch waits for it."""

MOST_COMMITS_BEHIND_CHECKPOINT = 5
"""Times the table's own interval: reading the log then takes longer with each batch, so checkpoints are not written."""


@dataclass(frozen=True)
class Verdict:
    """One check of one table: its name, whether it passed, whether failing is serious, and the figures it was judged by."""

    name: str
    passed: bool
    serious: bool
    figures: dict[str, float | int | str]


def judge(state: TableState, retention: timedelta, now: datetime) -> list[Verdict]:
    """All checks of a table; pure.

    Args:
        state: files, log and readers.
        retention: how long what left the table is kept.
        now: current time, with a time zone.
    """
    files, small = len(state.files), state.small_files
    ratio = small / files if files else 0.0
    version = max((e.version for e in state.log), default=0)
    behind = version - max((e.version for e in state.log if e.is_checkpoint), default=0)
    most_behind = MOST_COMMITS_BEHIND_CHECKPOINT * state.table.checkpoint_interval
    waits = {r.name: (now - since) / timedelta(days=1) for r in state.readers if (since := state.waiting_since(r)) is not None}
    longest = max(waits.values(), default=0.0)
    limit = retention / timedelta(days=1)
    return [
        Verdict(
            "small_files",
            small <= MOST_SMALL_FILES or ratio <= 0.5,
            False,
            {"files": files, "small_files": small, "small_file_ratio": round(ratio, 4), "most_small_files": MOST_SMALL_FILES},
        ),
        Verdict(
            "growth",
            files <= MOST_FILES and behind <= most_behind,
            False,
            {
                "files": files,
                "bytes": sum(f.size_bytes for f in state.files),
                "rows": sum(f.rows for f in state.files),
                "log_entries": len(state.log),
                "log_bytes": sum(e.size_bytes for e in state.log),
                "commits_behind_checkpoint": behind,
                "most_files": MOST_FILES,
                "most_commits_behind_checkpoint": most_behind,
            },
        ),
        Verdict(
            "readers",
            longest < limit / 2,
            longest >= limit,
            {"longest_wait_days": round(longest, 3), "retention_days": limit, "waiting": ", ".join(sorted(waits)) or "nobody"},
        ),
    ]


_DESCRIPTIONS = {
    "small_files": f"At most {MOST_SMALL_FILES:,} files, or half of all, are smaller than compaction leaves them.",
    "growth": f"At most {MOST_FILES:,} files, and a log checkpoint that is not far behind.",
    "readers": "Whoever reads the table by version has read what is older than half the retention; at the whole of it vacuum stops.",
}


@dg.multi_asset_check(
    specs=[dg.AssetCheckSpec(name, asset=key, description=text) for key in lake_tables() for name, text in _DESCRIPTIONS.items()],
    name="lake_checks",
)
def lake_checks(settings: SettingsResource) -> Iterator[dg.AssetCheckResult]:
    """Look at every table's files, log and readers. A table that does not exist yet has nothing wrong with it."""
    loaded = settings.load()
    now, readers = datetime.now(UTC), followers_of(loaded)
    for key, table in lake_tables().items():
        state = table_state(loaded, table, readers.get(table.name, ())) or TableState(table, (), ())
        for verdict in judge(state, timedelta(days=loaded.history_days), now):
            yield dg.AssetCheckResult(
                asset_key=key,
                check_name=verdict.name,
                passed=verdict.passed,
                severity=dg.AssetCheckSeverity.ERROR if verdict.serious else dg.AssetCheckSeverity.WARN,
                metadata=verdict.figures,
            )


asset_checks: list[dg.AssetChecksDefinition] = [lake_checks]

lake_health_job = dg.define_asset_job(
    "lake_health",
    selection=dg.AssetSelection.checks(lake_checks),
    executor_def=dg.in_process_executor,
    description="Checks files, logs and readers of every lake table.",
)

lake_health_schedule = dg.ScheduleDefinition(
    name="lake_health_hourly",
    job=lake_health_job,
    cron_schedule="50 * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every hour, after compaction.",
)
