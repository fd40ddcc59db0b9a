"""Whether the stream does what it should: the judgement behind its asset checks.

Belongs here: verdicts (pure), from what the driver reports, what the brokers say, and what the batch ledger holds; and counting the
ledger's rows out of books. Not here: reporting them (`assets`), or the driver's own file (`progress`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from crm_assets.streaming.progress import QueryState, StreamProgress, judge
from crm_resources.kafka import Lag
from crm_resources.layout import BATCHES
from crm_resources.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

CHECKPOINT_SECONDS = 300.0
"""How long records may wait without a query finishing a batch: the longest batch takes a tenth of that."""


@dataclass(frozen=True)
class Facts:
    """What is known of the stream.

    Attributes:
        alive: whether a driver's process exists.
        progress: what it reported last.
        lags: lag of its groups, measured at the brokers; empty when they did not answer.
        lag_error: why not.
        rows_out_of_books: rows of the batch ledger that do not add up, since the ledger began.
    """

    alive: bool
    progress: StreamProgress | None
    lags: tuple[Lag, ...]
    lag_error: str | None
    rows_out_of_books: int


@dataclass(frozen=True)
class Verdict:
    """One check: its name, whether it passed, why, and the figures it was judged by."""

    name: str
    passed: bool
    reason: str
    figures: dict[str, float | int | str]


CHECKS = {
    "running": "Both queries of the driver are active.",
    "lag": "By the brokers, fewer records than CRM_MAX_LAG_RECORDS wait for the stream, the oldest no longer than CRM_MAX_LAG_SECONDS.",
    "failed_batches": "No query is failing or waiting to be started again.",
    "books": "Each batch in the ledger wrote as many rows as it read.",
    "checkpoint_age": f"While records wait, each query has finished a batch within {CHECKPOINT_SECONDS:.0f} s.",
}
"""Name and description of each check."""


def verdicts(facts: Facts, settings: Settings, now: datetime) -> list[Verdict]:
    """All checks of the stream, in the order of `CHECKS`; pure."""
    running = judge(facts.alive, facts.progress, now)
    return [
        Verdict("running", running.passed, running.reason, {}),
        _lag(facts, settings),
        _failed_batches(facts.progress),
        _books(facts.rows_out_of_books),
        _checkpoint_age(facts, now),
    ]


def _lag(facts: Facts, settings: Settings) -> Verdict:
    if facts.lag_error is not None:
        return Verdict("lag", False, f"the lag cannot be measured: {facts.lag_error}", {})
    figures: dict[str, float | int | str] = {}
    reasons = []
    for lag in facts.lags:
        figures |= {f"{lag.group} records": lag.records, f"{lag.group} seconds": round(lag.seconds, 1), f"{lag.group} lost": lag.lost}
        if lag.lost:
            reasons.append(f"Kafka removed {lag.lost} records before {lag.group} had them")
        if lag.records > settings.max_lag_records:
            reasons.append(f"{lag.group} is {lag.records} records behind, more than {settings.max_lag_records}")
        if lag.seconds > settings.max_lag_seconds:
            reasons.append(f"the oldest record {lag.group} waits for is {lag.seconds:.0f} s old, more than {settings.max_lag_seconds:.0f}")
    return Verdict("lag", not reasons, "; ".join(reasons) or "within its limits", figures)


def _failed_batches(progress: StreamProgress | None) -> Verdict:
    queries = progress.queries if progress is not None else {}
    failing = [f"{name}: {q.error or q.state}" for name, q in queries.items() if q.state in {QueryState.RETRYING, QueryState.FAILED}]
    restarts: dict[str, float | int | str] = {f"{name}_restarts": q.restarts for name, q in queries.items()}
    return Verdict("failed_batches", not failing, "; ".join(failing) or "no batch is failing", restarts)


def _books(rows: int) -> Verdict:
    reason = f"{rows} rows of the batch ledger do not add up; run `make audit`" if rows else "every batch adds up"
    return Verdict("books", rows == 0, reason, {"rows_out_of_books": rows})


def _checkpoint_age(facts: Facts, now: datetime) -> Verdict:
    """Age of each query's last finished batch. The longest wait of a record counts where it is shorter: a shop may be quiet for hours."""
    waiting = max((lag.seconds for lag in facts.lags), default=0.0)
    progress = facts.progress
    ages = (
        {n: (now - datetime.fromisoformat(q.committed_at or progress.started_at)).total_seconds() for n, q in progress.queries.items()}
        if progress is not None
        else {}
    )
    stuck = [f"{name} has finished no batch for {age:.0f} s" for name, age in ages.items() if min(age, waiting) > CHECKPOINT_SECONDS]
    figures: dict[str, float | int | str] = {f"{name}_seconds": round(age, 1) for name, age in ages.items()}
    return Verdict("checkpoint_age", not stuck, "; ".join(stuck) or "batches end while records wait, or none waits", figures)


@dataclass(frozen=True)
class LedgerCount:
    """Rows out of books up to a version of the batch ledger; -1 before the first look."""

    version: int = -1
    rows: int = 0


def count_ledger(settings: Settings, before: LedgerCount) -> LedgerCount:
    """Count rows out of books in what the batch ledger gained since the last look."""
    from crm_resources.lake import LakeError, added_files, read_columns

    try:
        changes = added_files(settings, BATCHES.path, before.version if before.version >= 0 else None)
    except LakeError:
        # The ledger was made anew, or its log reaches less far back than the last look: everything it holds is counted.
        before = LedgerCount()
        changes = added_files(settings, BATCHES.path, None)
    if changes is None:
        return LedgerCount()
    found = read_columns(settings, BATCHES.path, changes.files, _BOOKED)
    return LedgerCount(changes.to_version, before.rows + out_of_books(found))


_BOOKED = ("query", "rows_in", "rows_bronze", "rows_silver", "rows_dead_letters", "rows_duplicates", "rows_placed_before")


def out_of_books(ledger: pa.Table) -> int:
    """Rows of the batch ledger that do not add up; pure.

    Args:
        ledger: columns `query` and `rows_…`. Of `ingest`, rows in bronze must be rows read; of others, rows in all places.
    """
    if ledger.num_rows == 0:
        return 0
    bad = 0
    for row in ledger.select(_BOOKED).to_pylist():
        places = ("rows_bronze",) if row["query"] == "ingest" else _BOOKED[3:]
        bad += row["rows_in"] != sum(row[name] or 0 for name in places)
    return bad
