"""The declared faults: where each is planted, which promise it breaks, and the tests that must catch it.

A fault is a mistake somebody could make and no tool but a test would see: it passes lint, types and imports. When the product's line
changes, or a test moves, change the declaration here. Not here: how a fault is planted and judged (`planting`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Area(StrEnum):
    """Part of the product in which a fault is planted."""

    STREAM = "stream"
    LOAD = "load"
    MARTS = "marts"
    AUDIT = "audit"
    REPLAY = "replay"


@dataclass(frozen=True)
class Tests:
    """Tests as pytest selects them.

    Args:
        file: file of the tests, from the root of the checkout.
        keyword: expression for `-k`; all tests of the file when empty.
    """

    file: str
    keyword: str = ""


@dataclass(frozen=True)
class Fault:
    """A fault of one line.

    Args:
        name: short name, for `--only` and the table.
        area: where it belongs.
        file: file to plant it in, from the root of the checkout.
        line: the line it replaces, without its indentation; the file holds it exactly once.
        replacement: the line in its place, without indentation.
        promise: what no longer holds.
        tests: which tests must fail; where several can, the quickest.
    """

    name: str
    area: Area
    file: str
    line: str
    replacement: str
    promise: str
    tests: Tests


_INTEGRATION = "tests/integration"

INGEST = Tests(f"{_INTEGRATION}/stream/test_stream_ingest.py", "not minio")
REFINE = Tests(f"{_INTEGRATION}/stream/test_stream_refine.py", "(at_any_age or a_lost_checkpoint) and not minio")
REFUSALS = Tests(f"{_INTEGRATION}/stream/test_stream_transform.py", "every_refusal")
DECISIONS = Tests("tests/unit/test_stream_decisions.py")
LOAD = Tests(f"{_INTEGRATION}/test_warehouse_load.py", "not minio")
TIME_TRAVEL = Tests(f"{_INTEGRATION}/test_time_travel.py", "comes_out_again")
EDGE_CASES = Tests(f"{_INTEGRATION}/test_marts_edge_cases.py", "second_cancellation or capped or newest_sales or after_the_as_of_date")
UNITS_OF_SQL = Tests(f"{_INTEGRATION}/test_marts_documentation.py", "unit_tests_of_the_sql")
INCREMENTAL = Tests(f"{_INTEGRATION}/test_marts_incremental.py", "late_cancellation")
HISTORY = Tests(f"{_INTEGRATION}/test_segment_history.py", "stays_as_it_was_published or looking_back")
SCORING = Tests(f"{_INTEGRATION}/test_scoring_formulas.py")
AUDIENCES = Tests(f"{_INTEGRATION}/test_marts_audiences.py", "first_refresh")
EXPORT = Tests(f"{_INTEGRATION}/test_audience_export.py", "joins_and_leaves")
AUDIT = Tests("tests/unit/test_audit.py")
AUDIT_LAKE = Tests(f"{_INTEGRATION}/test_audit_lake.py", "unreachable_warehouse or changed_cent")
REPLAY = Tests(f"{_INTEGRATION}/stream/test_stream_replay.py", "good_now or run_twice or between_tables-1")

FAULTS: tuple[Fault, ...] = (
    # -- stream ------------------------------------------------------------------------------------------------------
    Fault(
        "transaction-off-by-one",
        Area.STREAM,
        "crm_assets/streaming/ingest.py",
        "transaction.updateSetTransaction(application, version, option.apply(time.time_ns() // 1_000_000))",
        "transaction.updateSetTransaction(application, version - 1, option.apply(time.time_ns() // 1_000_000))",
        "A batch carries its own number as a Delta transaction, so that bronze holds it once however often it runs.",
        INGEST,
    ),
    Fault(
        "missing-rows-accepted",
        Area.STREAM,
        "crm_assets/streaming/ingest.py",
        "if rows != end - first:",
        "if rows > end - first:",
        "A batch with fewer rows in bronze than offsets read stops the query.",
        INGEST,
    ),
    Fault(
        "generation-not-in-transaction",
        Area.STREAM,
        "crm_assets/streaming/refine.py",
        'return f"{REFINE}-{self.generation.id}-{table.name}"',
        'return f"{REFINE}-{table.name}"',
        "A new checkpoint counts its batches from 0, and none of them is taken for one of the checkpoint before it.",
        REFINE,
    ),
    Fault(
        "history-of-the-newest-file",
        Area.STREAM,
        "crm_assets/streaming/refine.py",
        "for file in table.index.overlapping(ids):",
        "for file in table.index.overlapping(ids)[-1:]:",
        "A duplicate is dropped whatever the age of the record it repeats.",
        REFINE,
    ),
    Fault(
        "conflict-dropped-as-duplicate",
        Area.STREAM,
        "crm_assets/streaming/history.py",
        "verdict = Verdict.DUPLICATE if first[0] == own[0] else Verdict.CONFLICT",
        "verdict = Verdict.DUPLICATE if first[1] == own[1] else Verdict.CONFLICT",
        "A record with the id of another and a payload of its own is kept as a dead letter.",
        DECISIONS,
    ),
    Fault(
        "future-tolerance-in-milliseconds",
        Area.STREAM,
        "crm_assets/streaming/transform.py",
        "latest = F.unix_micros(_judged_at(limits)) + F.lit(limits.future_tolerance_seconds * 1_000_000)",
        "latest = F.unix_micros(_judged_at(limits)) + F.lit(limits.future_tolerance_seconds * 1_000_000_000)",
        "An event dated further ahead than the tolerance is quarantined.",
        REFUSALS,
    ),
    # -- load --------------------------------------------------------------------------------------------------------
    Fault(
        "chunks-committed-one-by-one",
        Area.LOAD,
        "crm_assets/warehouse/load.py",
        "read += batch.num_rows",
        "read, _ = read + batch.num_rows, connection.commit()",
        "Rows and bookmark of a load arrive in one transaction, or not at all.",
        LOAD,
    ),
    Fault(
        "last-version-not-read",
        Area.LOAD,
        "crm_resources/lake.py",
        "for version in range(after_version + 1, target + 1):",
        "for version in range(after_version + 1, target):",
        "The bookmark moves over no version whose rows were not loaded.",
        LOAD,
    ),
    Fault(
        "rows-dated-by-the-clock-alone",
        Area.LOAD,
        "crm_assets/warehouse/load.py",
        """f"select {columns}, greatest(clock_timestamp(), timestamptz '{floor.isoformat()}') from pg_temp.{incoming} \"""",
        """f"select {columns}, clock_timestamp() from pg_temp.{incoming} \"""",
        "New rows are dated after all before them, so that a refresh sees them even when the clock was set back.",
        LOAD,
    ),
    Fault(
        "recreated-table-not-noticed",
        Area.LOAD,
        "crm_assets/warehouse/load.py",
        "expected_table_id=mark.table_id if mark else None,",
        "expected_table_id=None,",
        "A load stops where the Delta table is not the one its bookmark speaks of.",
        LOAD,
    ),
    Fault(
        "removed-rows-not-noticed",
        Area.LOAD,
        "crm_resources/lake.py",
        "if commit.removed:",
        "if commit.removed and not commit.added:",
        "A load stops where rows it has loaded were removed from silver.",
        LOAD,
    ),
    Fault(
        "newest-version-for-the-asked-one",
        Area.LOAD,
        "crm_resources/lake.py",
        "_load_as_version(settings, path, table, target)",
        "_load_as_version(settings, path, table, latest)",
        "Time travel reads silver as it was at the version of the report.",
        TIME_TRAVEL,
    ),
    # -- marts -------------------------------------------------------------------------------------------------------
    Fault(
        "ties-split",
        Area.MARTS,
        "dbt/models/marts/rfm/rfm_cut_points.sql",
        "rank() over (partition by basis, measure order by goodness) - 1 as customers_below",
        "row_number() over (partition by basis, measure order by goodness) - 1 as customers_below",
        "Equal values get equal RFM scores.",
        UNITS_OF_SQL,
    ),
    Fault(
        "session-ends-at-thirty-minutes",
        Area.MARTS,
        "dbt/macros/sessions.sql",
        "coalesce(occurred_at - lag(occurred_at) over {{ window }} > {{ session_pause() }}, true)",
        "coalesce(occurred_at - lag(occurred_at) over {{ window }} >= {{ session_pause() }}, true)",
        "A pause of exactly 30:00 minutes stays within the session.",
        UNITS_OF_SQL,
    ),
    Fault(
        "day-after-as-of-counted",
        Area.MARTS,
        "dbt/models/staging/stg_crm__orders.sql",
        "{{ business_date('event_time') }} <= {{ as_of() }} as is_within_as_of,",
        "{{ business_date('event_time') }} <= {{ as_of() }} + 1 as is_within_as_of,",
        "What is dated after the as-of date has no effect yet.",
        EDGE_CASES,
    ),
    Fault(
        "cancellation-takes-later-sales",
        Area.MARTS,
        "dbt/models/intermediate/int_cancellation_matches.sql",
        "window turn as (partition by spans.customer_id, spans.product_code, spans.unit_price, covered.slice order by spans.place)",
        "window turn as (partition by spans.customer_id, spans.product_code, spans.unit_price, covered.slice order by spans.place desc)",
        "A cancellation without an order takes from the newest sales before it.",
        EDGE_CASES,
    ),
    Fault(
        "wholly-cancelled-scored",
        Area.MARTS,
        "dbt/models/intermediate/int_rfm_measures.sql",
        "where orders_restated > 0",
        "where orders_restated >= 0",
        "A customer whose orders were all cancelled has no restated score.",
        EDGE_CASES,
    ),
    Fault(
        "refund-not-capped",
        Area.MARTS,
        "dbt/models/intermediate/int_cancellations_targeted.sql",
        "least(claimed, sale_amount) - least(claimed - claim, sale_amount) as applied_claim,",
        "claim as applied_claim,",
        "Refunds of an order take effect up to its amount, and the excess is counted.",
        EDGE_CASES,
    ),
    Fault(
        "named-order-not-rebuilt",
        Area.MARTS,
        "dbt/models/intermediate/changes/int_changed_orders.sql",
        "select cancels_order_id as order_id from messages",
        "select order_id from messages",
        "A refresh of what changed builds the orders anew that a new cancellation names.",
        INCREMENTAL,
    ),
    Fault(
        "history-rewritten-looking-back",
        Area.MARTS,
        "dbt/models/marts/rfm/segment_history.sql",
        "having max(business_date) = {{ as_of() }}",
        "having max(business_date) >= {{ as_of() }}",
        "Segments as known on a day stay as they were published.",
        HISTORY,
    ),
    Fault(
        "one-coin-too-many",
        Area.MARTS,
        "dbt/macros/purchase_models.sql",
        """"ln(" ~ a ~ ") - ln(" ~ b ~ " + " ~ coins_survived(method, x) ~ " - 1) + (" ~ r ~ " + " ~ x ~ ") * ln((\"""",
        """"ln(" ~ a ~ ") - ln(" ~ b ~ " + " ~ coins_survived(method, x) ~ ") + (" ~ r ~ " + " ~ x ~ ") * ln((\"""",
        "The chance to be alive follows BG/NBD: b + x - 1 and not b + x.",
        SCORING,
    ),
    Fault(
        "opted-out-let-in",
        Area.MARTS,
        "dbt/models/intermediate/int_audience_suppressions.sql",
        "when customers.is_opted_out then 'opted out'",
        "when customers.is_opted_out and not customers.consent then 'opted out'",
        "Who opted out is in no audience, whatever the consent says.",
        AUDIENCES,
    ),
    Fault(
        "leaves-not-sent",
        Area.MARTS,
        "crm_assets/warehouse/audiences/reconcile.py",
        "if last.action is Action.JOIN:",
        "if last.action is Action.JOIN and standing.member is not None:",
        "Who leaves an audience is taken from the receiver as well.",
        EXPORT,
    ),
    # -- audit -------------------------------------------------------------------------------------------------------
    Fault(
        "swapped-records-equal",
        Area.AUDIT,
        "crm_assets/monitoring/checksums.py",
        "for column, values in ((1, halves[:, 0]), (2, halves[:, 1]), (3, halves[:, 0] * weights)):",
        "for column, values in ((1, halves[:, 0]), (2, halves[:, 1]), (3, halves[:, 0] + weights)):",
        "Two records that changed places show in the checksum.",
        AUDIT,
    ),
    Fault(
        "one-side-of-a-checksum",
        Area.AUDIT,
        "crm_assets/monitoring/audit_checks.py",
        'self._compare("WAREHOUSE", self.reading.silver_all, self.reading.warehouse_all)',
        'self._compare("WAREHOUSE", self.reading.silver_all, self.reading.silver_all)',
        "A record that is another one in the warehouse than in silver is named.",
        AUDIT,
    ),
    Fault(
        "missing-in-warehouse-not-counted",
        Area.AUDIT,
        "crm_assets/monitoring/audit_reading.py",
        "return judged(state) and (acked_not_in_bronze(state) or unplaced(state) or not_in_warehouse(state))",
        "return judged(state) and (acked_not_in_bronze(state) or unplaced(state))",
        "A record that was acknowledged and is not in the warehouse counts as missing.",
        AUDIT,
    ),
    Fault(
        "one-good-check-passes-all",
        Area.AUDIT,
        "crm_assets/monitoring/audit_result.py",
        "return all(c.passed for c in self.checks)",
        "return any(c.passed for c in self.checks)",
        "The audit passes only when no check is broken.",
        AUDIT,
    ),
    Fault(
        "gap-between-batches",
        Area.AUDIT,
        "crm_assets/monitoring/audit_checks.py",
        "apart = np.flatnonzero(begin[1:] != end[:-1]) + 1",
        "apart = np.flatnonzero(begin[1:] < end[:-1]) + 1",
        "Each batch of a partition begins where the one before it ended.",
        AUDIT,
    ),
    Fault(
        "audit-that-cannot-run-passes",
        Area.AUDIT,
        "crm_assets/monitoring/audit.py",
        "raise typer.Exit(2) from error",
        "raise typer.Exit(0) from error",
        "An audit that could not run does not end as one that found nothing.",
        AUDIT_LAKE,
    ),
    # -- replay ------------------------------------------------------------------------------------------------------
    Fault(
        "resolved-letter-stays-open",
        Area.REPLAY,
        "crm_assets/streaming/dead_letters.py",
        'rows = rows.join(tried, [*POSITION, "attempt"], join_type="left anti")',
        'rows = rows.join(tried, [*POSITION, "attempt"], join_type="left outer")',
        "A dead letter that was replayed is not open any more.",
        REPLAY,
    ),
    Fault(
        "replayed-twice",
        Area.REPLAY,
        "crm_assets/streaming/replay.py",
        'rows = selected(open_rows(found.rows), selection).join(mine, list(POSITION), join_type="left anti")',
        'rows = selected(open_rows(found.rows), selection).join(mine, list(POSITION), join_type="left outer")',
        "A replay tries a record once, even when it is carried out again.",
        REPLAY,
    ),
    Fault(
        "cut-off-chunk-not-settled",
        Area.REPLAY,
        "crm_assets/streaming/replay.py",
        'tables = [(SILVER[contract_for(e).plural], ReplayOutcome.SILVER) for e in pc.unique(rest["entity"]).to_pylist()]',
        'tables = [(SILVER[contract_for(e).plural], ReplayOutcome.SILVER) for e in pc.unique(rest["entity"]).to_pylist()[2:]]',
        "What a killed replay had put into silver is found there and not put there again.",
        REPLAY,
    ),
    Fault(
        "attempt-not-counted",
        Area.REPLAY,
        "crm_assets/streaming/replay.py",
        '"attempt": pa.array([row["attempt"] + 1 for row in before], pa.int32()),',
        '"attempt": pa.array([row["attempt"] for row in before], pa.int32()),',
        "A record that fails again is a dead letter of the next attempt.",
        REPLAY,
    ),
    Fault(
        "replay-judges-as-on-arrival",
        Area.REPLAY,
        "crm_assets/streaming/replay.py",
        "limits = Limits(self.settings.future_tolerance_seconds, tried_again_at=now)",
        "limits = Limits(self.settings.future_tolerance_seconds)",
        "A replay judges future events by the time of the replay.",
        REPLAY,
    ),
    Fault(
        "audit-counts-replayed-as-open",
        Area.REPLAY,
        "crm_assets/monitoring/audit_replays.py",
        "is_open = np.isin(letters.numbers, highest) & ~np.isin(letters.numbers, replays.numbers)",
        "is_open = np.isin(letters.numbers, highest)",
        "The books close after replays: a replayed dead letter is in its new place alone.",
        AUDIT,
    ),
)
