"""What upkeep decides, without a lake: which files are merged, and what may be removed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm_assets.streaming.upkeep import (
    SMALL_BYTES,
    LogEntry,
    Reader,
    TableState,
    UpkeepRefused,
    plan_compaction,
    plan_removal,
    retention_of,
)
from crm_resources.lake import DataFile
from crm_resources.layout import BRONZE, SILVER
from crm_resources.settings import load_settings

NOW = datetime(2026, 6, 1, tzinfo=UTC)
MONTH = timedelta(days=30)
TABLE = SILVER["events"]


def commit(version: int, age_days: float) -> LogEntry:
    return LogEntry(f"{version:020d}.json", version, NOW - timedelta(days=age_days), 1000)


def checkpoint(version: int, age_days: float) -> LogEntry:
    return LogEntry(f"{version:020d}.checkpoint.parquet", version, NOW - timedelta(days=age_days), 1000)


def daily(days: int, *checkpoints: int, readers: tuple[Reader, ...] = ()) -> TableState:
    """A table with one commit a day, the last one now."""
    log = [commit(n, days - n) for n in range(days + 1)] + [checkpoint(n, days - n) for n in checkpoints]
    return TableState(TABLE, (), tuple(log), readers)


def files(sizes: list[int], **partition: str) -> tuple[DataFile, ...]:
    return tuple(DataFile(f"{partition}{n}", 1, size, None, dict(partition)) for n, size in enumerate(sizes))


def test_only_partitions_with_enough_small_files_are_rewritten() -> None:
    state = TableState(
        BRONZE,
        (
            *files([100] * 20, kafka_topic="a", ingest_date="2026-05-31"),
            *files([100] * 3, kafka_topic="b", ingest_date="2026-05-31"),
            *files([SMALL_BYTES] * 50, kafka_topic="c", ingest_date="2026-05-31"),
        ),
        (),
    )

    (plan,) = plan_compaction(state, 16)

    assert (plan.partition["kafka_topic"], plan.small_files) == ("a", 20)
    assert [p.partition["kafka_topic"] for p in plan_compaction(state, 2)] == ["a", "b"]
    assert plan_compaction(TableState(TABLE, files([1]), ()), 0) == [], "a single file has nothing to be merged with"


def test_a_young_table_loses_nothing() -> None:
    plan = plan_removal(daily(29, 3, 7), MONTH, NOW)

    assert (plan.log_below, plan.blocked_by) == (0, None)


def test_the_log_goes_up_to_the_newest_checkpoint_from_before_the_retention() -> None:
    state = daily(50, 5, 15, 25)

    assert plan_removal(state, MONTH, NOW).log_below == 15, "version 20 was current 30 days ago; version 25 is younger"
    assert plan_removal(daily(50), MONTH, NOW).log_below == 0, "without a checkpoint the log is needed from its beginning"
    part = LogEntry(f"{18:020d}.checkpoint.0000000001.0000000002.parquet", 18, NOW - timedelta(days=32), 1)
    assert plan_removal(TableState(TABLE, (), (*state.log, part)), MONTH, NOW).log_below == 15, "a part of a checkpoint is none"


def test_a_reader_that_far_behind_blocks_its_table_and_is_named() -> None:
    behind = plan_removal(daily(50, 15, readers=(Reader("the warehouse load", 19),)), MONTH, NOW)
    abreast = plan_removal(daily(50, 15, readers=(Reader("the warehouse load", 20),)), MONTH, NOW)

    assert behind.log_below == 0
    assert behind.blocked_by is not None
    assert "the warehouse load has read version 19" in behind.blocked_by
    assert (abreast.log_below, abreast.blocked_by) == (15, None)


@given(
    st.integers(1, 90),
    st.sets(st.integers(0, 90)),
    st.lists(st.integers(0, 90), max_size=3),
    st.integers(30, 60),
)
def test_what_is_removed_is_needed_by_no_reader_and_no_version_of_the_retention(
    days: int, checkpoints: set[int], bookmarks: list[int], kept_days: int
) -> None:
    readers = tuple(Reader(f"r{n}", min(b, days)) for n, b in enumerate(bookmarks))
    state = daily(days, *(c for c in checkpoints if c <= days), readers=readers)

    plan = plan_removal(state, timedelta(days=kept_days), NOW)

    left = [e for e in state.log if e.version >= plan.log_below]
    first_promised = state.version_at(NOW - timedelta(days=kept_days))
    needed = min([first_promised or 0, *(r.version for r in readers)])
    bases = [e.version for e in left if e.is_checkpoint and e.version <= needed] or [-1]
    kept = {e.version for e in left if e.is_commit}
    assert set(range(max(bases) + 1, days + 1)) <= kept, "a version that is needed can no longer be read"
    if plan.log_below:
        assert max(bases) >= 0, "the beginning of the log is gone, and no checkpoint stands for it"


def test_how_long_a_reader_has_been_waiting() -> None:
    state = daily(50)

    assert state.waiting_since(Reader("load", 50)) is None
    assert state.waiting_since(Reader("load", 10)) == NOW - timedelta(days=39)


def test_less_than_the_promised_retention_has_to_be_asked_for_by_name() -> None:
    settings = load_settings({"CRM_RETENTION_DAYS": "45"})

    assert retention_of({}, settings) == timedelta(days=46)
    with pytest.raises(UpkeepRefused, match="promised 30 days"):
        retention_of({"retention_days": 29}, settings)
    assert retention_of({"retention_days": 0, "unsafe": True}, settings) == timedelta(0)
    with pytest.raises(ValueError, match="retention_days"):
        load_settings({"CRM_RETENTION_DAYS": "29"})
