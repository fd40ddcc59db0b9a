"""The stream's decisions without Spark: duplicates, overlapping files, progress, health, pauses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pyarrow as pa  # noqa: TID253 -- a test may load what it tests
from hypothesis import given
from hypothesis import strategies as st

from crm_assets.streaming.board import progressed
from crm_assets.streaming.driver import LONGEST_PAUSE_SECONDS, pause_seconds
from crm_assets.streaming.history import IDENTITY, Decision, FileIndex, Verdict, decide, placed_coordinates
from crm_assets.streaming.progress import STALE_SECONDS, QueryProgress, QueryState, StreamProgress, judge
from crm_assets.streaming.rebuild import checksum
from crm_resources.lake import DataFile

NOW = datetime(2026, 3, 1, tzinfo=UTC)

Row = tuple[str, int, int, int]


def table(rows: list[Row]) -> pa.Table:
    types = (pa.string(), pa.int64(), pa.int32(), pa.int64())
    return pa.table({name: pa.array([r[i] for r in rows], types[i]) for i, name in enumerate(IDENTITY)})


def test_the_first_by_partition_and_offset_is_kept() -> None:
    batch = table([("a", 1, 1, 0), ("a", 1, 0, 7), ("a", 2, 0, 9), ("b", 1, 0, 3)])

    assert decide(batch, table([])) == [
        Decision(0, 9, Verdict.CONFLICT, 0, 7),
        Decision(1, 0, Verdict.DUPLICATE, 0, 7),
    ]


def test_history_goes_before_the_batch() -> None:
    batch = table([("a", 1, 0, 5), ("b", 2, 0, 6)])
    history = table([("a", 1, 0, 1), ("b", 1, 0, 2), ("c", 1, 0, 3)])

    assert decide(batch, history) == [Decision(0, 5, Verdict.DUPLICATE, 0, 1), Decision(0, 6, Verdict.CONFLICT, 0, 2)]


def test_a_record_in_history_under_its_own_coordinates_is_itself() -> None:
    assert decide(table([("a", 1, 0, 5)]), table([("a", 1, 0, 5)])) == []


rows = st.lists(
    st.tuples(st.sampled_from("abcd"), st.integers(1, 2), st.integers(0, 1), st.integers(0, 50)),
    unique_by=lambda r: (r[2], r[3]),
    max_size=30,
)


@given(rows, st.integers(0, 30))
def test_cut_into_two_batches_every_id_is_accepted_once(found: list[Row], cut: int) -> None:
    first, second = found[:cut], found[cut:]
    dropped = {(d.kafka_partition, d.kafka_offset) for d in decide(table(first), table([]))}
    silver = [r for r in first if r[2:] not in dropped]
    again = {(d.kafka_partition, d.kafka_offset) for d in decide(table(first), table(silver))}
    dropped |= {(d.kafka_partition, d.kafka_offset) for d in decide(table(second), table(silver))}
    silver += [r for r in second if r[2:] not in dropped]

    assert sorted(r[0] for r in silver) == sorted({r[0] for r in found})
    assert again <= dropped, "a batch that runs again decides as before"
    assert len(silver) + len(dropped) == len(found)


def file(path: str, low: str | None, high: str | None) -> DataFile:
    return DataFile(path, 1, 1, 1, {}, {} if low is None else {"event_id": low}, {} if high is None else {"event_id": high})


def test_only_files_that_span_an_id_of_the_batch_are_read() -> None:
    index = FileIndex()
    index.add([file("old", "010", "019"), file("hit", "020", "029"), file("gap", "030", "039"), file("unknown", None, None)])

    assert [f.path for f in index.overlapping(pa.array(["025", "045"]))] == ["hit", "unknown"]
    assert index.overlapping(pa.array([], pa.string())) == []


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)).map(sorted), max_size=12), st.lists(st.integers(0, 99), max_size=12))
def test_overlap_is_exact(spans: list[list[int]], ids: list[int]) -> None:
    index = FileIndex()
    index.add(file(str(n), f"{low:02}", f"{high:02}") for n, (low, high) in enumerate(spans))

    found = {f.path for f in index.overlapping(pa.array([f"{i:02}" for i in ids], pa.string()))}

    assert found == {str(n) for n, (low, high) in enumerate(spans) if any(low <= i <= high for i in ids)}


def test_coordinates_that_have_a_place_are_recognised() -> None:
    placed = placed_coordinates([pa.table({"kafka_topic": ["t", "t"], "kafka_partition": [0, 1], "kafka_offset": [5, 6]})])

    found = placed.decisions("t", table([("a", 1, 0, 5), ("b", 1, 0, 6), ("c", 1, 1, 6)]))

    assert [(d.kafka_partition, d.kafka_offset) for d in found] == [(0, 5), (1, 6)]
    assert placed.decisions("other", table([("a", 1, 0, 5)])) == []


def event(**fields: object) -> dict[str, object]:
    return {"id": "q", "runId": "r", "batchId": 4, "numInputRows": 10, "durationMs": {"addBatch": 5}, "sources": [{}], **fields}


def test_progress_counts_lag_over_partitions() -> None:
    source = {"endOffset": {"t": {"0": 5, "1": 7}}, "latestOffset": {"t": {"0": 9, "1": 7, "2": 3}}}

    after = progressed(QueryProgress(), event(sources=[source]))

    assert (after.state, after.batch_id, after.lag_records) == (QueryState.RUNNING, 4, 7)


def test_a_trigger_without_a_batch_does_not_count_as_a_commit() -> None:
    before = QueryProgress(batch_id=3, committed_at="then", error="it failed")

    after = progressed(before, event(durationMs={"latestOffset": 1}, numInputRows=0))

    assert (after.batch_id, after.committed_at, after.error) == (3, "then", "it failed")


def progress(**states: QueryState) -> StreamProgress:
    return StreamProgress(1, NOW.isoformat(), NOW.isoformat(), {name: QueryProgress(state=s) for name, s in states.items()})


def test_health_says_what_is_wrong() -> None:
    good = progress(ingest=QueryState.RUNNING, refine=QueryState.RUNNING)
    assert judge(True, good, NOW).passed
    assert judge(False, good, NOW).reason == "the driver does not run"
    assert not judge(True, None, NOW).passed
    assert "no sign of life" in judge(True, good, NOW + timedelta(seconds=STALE_SECONDS + 1)).reason
    assert judge(True, progress(ingest=QueryState.RUNNING, refine=QueryState.RETRYING), NOW).reason == "refine is retrying"


@given(st.integers(1, 200))
def test_pauses_grow_and_are_bounded(failures: int) -> None:
    assert 2 <= pause_seconds(failures) <= LONGEST_PAUSE_SECONDS
    assert pause_seconds(failures) <= pause_seconds(failures + 1)


@given(st.lists(st.tuples(st.text(), st.integers())))
def test_checksum_does_not_depend_on_order(pairs: list[tuple[str, int]]) -> None:
    ids, hashes = [p[0] for p in pairs], [p[1] for p in pairs]
    assert checksum(ids, hashes) == checksum(ids[::-1], hashes[::-1])
