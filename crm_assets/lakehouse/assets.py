"""Bronze, silver, dead letters and duplicates: external assets whose materializations a sensor reports.

Belongs here: what each table is, its columns and where they come from, and when growth is reported. Not here: writing
them; only the stream's driver does that.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import dagster as dg

from crm_assets.conventions import (
    BATCHES_KEY,
    BRONZE_KEY,
    DEAD_LETTERS_KEY,
    DUPLICATES_KEY,
    OWNERS,
    REPLAYS_KEY,
    STREAM_KEY,
    Group,
    lake_lineage,
    lake_schema,
    lake_tables,
    silver_key,
    topic_key,
)
from crm_resources.contracts import Reason, contracts
from crm_resources.dagster_resources import SettingsResource

REPORT_EVERY = timedelta(seconds=60)
"""Growth is reported at most this often per table: an event log is for people, not for every micro-batch."""

_FRESH = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=24), warn_window=timedelta(hours=6))


def lake_specs() -> list[dg.AssetSpec]:
    """Specs of all lake tables."""
    reasons = "\n".join(f"- `{reason}`: {reason.description}" for reason in Reason)
    descriptions = {
        BRONZE_KEY: "Every Kafka record as it came: raw bytes and coordinates, append-only, never parsed.",
        DEAD_LETTERS_KEY: f"Records that could not become silver, with the reason, their bytes and their coordinates.\n\n{reasons}",
        DUPLICATES_KEY: "Exact duplicates that were dropped: coordinates only. With silver and dead letters they close the books.",
        REPLAYS_KEY: "What became of dead letters that were tried again: one row per attempt. A dead letter without a row here is open.",
        BATCHES_KEY: "The batch ledger: which offsets each batch of the stream read, how many rows it wrote where, and how long it took.",
        **{
            silver_key(c.plural): f"{c.description} Typed, append-only, unique by event id however late the duplicate comes."
            for c in contracts()
        },
    }
    return [_spec(key, text) for key, text in descriptions.items()]


def _spec(key: dg.AssetKey, description: str) -> dg.AssetSpec:
    return dg.AssetSpec(
        key,
        deps=_upstream(key),
        description=description,
        group_name=Group.LAKEHOUSE.value,
        kinds={"deltalake", "spark"},
        owners=OWNERS,
        freshness_policy=_FRESH if key == BRONZE_KEY or key.path[0] == "silver" else None,
        metadata={"dagster/column_schema": lake_schema(key), "dagster/table_name": ".".join(key.path)},
    )


def _upstream(key: dg.AssetKey) -> list[dg.AssetKey]:
    if key == BRONZE_KEY:
        return [STREAM_KEY, *(topic_key(c.plural) for c in contracts())]
    if key == BATCHES_KEY:
        return [STREAM_KEY]
    return [DEAD_LETTERS_KEY] if key == REPLAYS_KEY else [BRONZE_KEY]


@dataclass(frozen=True)
class Reported:
    """What was last reported of a table: its Delta version, and when (seconds since the epoch)."""

    version: int
    at: float


def due_tables(seen: Mapping[str, Reported], versions: Mapping[str, int], now: datetime) -> list[str]:
    """Tables whose growth is to be reported now: changed since the last report, which lies at least a minute back."""
    horizon = (now - REPORT_EVERY).timestamp()
    return [name for name, version in versions.items() if name not in seen or (seen[name].version != version and seen[name].at <= horizon)]


def lake_sensor() -> dg.SensorDefinition:
    """The sensor that turns committed Delta versions into materializations."""

    @dg.sensor(
        name="lake_growth",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Reports a lake table as materialized when the stream has committed to it: rows, version, columns and their lineage.",
    )
    def lake_growth(context: dg.SensorEvaluationContext, settings: SettingsResource) -> dg.SensorResult | dg.SkipReason:
        from crm_resources import lake

        loaded = settings.load()
        now = datetime.now(UTC)
        cursor: dict[str, list[float]] = json.loads(context.cursor) if context.cursor else {}
        seen = {name: Reported(int(version), at) for name, (version, at) in cursor.items()}
        found = {key.to_user_string(): lake.table_version(loaded, table.path) for key, table in lake_tables().items()}
        versions = {name: version for name, version in found.items() if version is not None}
        due = due_tables(seen, versions, now)
        if not due:
            return dg.SkipReason("no table has news to report")
        events = [
            dg.AssetMaterialization(
                key,
                metadata={
                    "dagster/row_count": lake.row_count(loaded, table.path),
                    "dagster/uri": loaded.table_uri(table.path),
                    "dagster/table_name": name,
                    "dagster/column_schema": lake_schema(key),
                    "dagster/column_lineage": lake_lineage(key),
                    "delta_version": versions[name],
                },
            )
            for key, table in lake_tables().items()
            if (name := key.to_user_string()) in due
        ]
        seen |= {name: Reported(versions[name], now.timestamp()) for name in due}
        return dg.SensorResult(asset_events=events, cursor=json.dumps({n: [r.version, r.at] for n, r in seen.items()}))

    return lake_growth


assets: list[dg.AssetSpec] = lake_specs()
sensors: list[dg.SensorDefinition] = [lake_sensor()]
