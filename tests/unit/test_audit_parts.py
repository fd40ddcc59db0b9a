"""The parts the audit is made of: marks of coordinates, buckets on disk, the checkpoint's list of batches."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crm_assets.monitoring.coordinates import CHUNK, Coordinate, CoordinateBook, OffsetRange, Seen
from crm_assets.monitoring.spill import SEQUENCE_ROW, Buckets, inversions, repeated

OFFSETS = st.integers(-3, 3 * CHUNK) | st.integers(10**12, 10**12 + 3)


MARKS = st.tuples(st.sampled_from([0, 1, -7]), st.sampled_from([Seen.LEDGER, Seen.BRONZE]), st.lists(OFFSETS, max_size=12))


@given(st.lists(MARKS, max_size=8))
@settings(deadline=None, max_examples=30)
def test_marks_are_those_of_a_plain_dictionary(marks: list[tuple[int, Seen, list[int]]]) -> None:
    book = CoordinateBook()
    plain: Counter[tuple[int, Seen, int]] = Counter()
    for partition, seen, offsets in marks:
        book.mark("t", partition, np.array(offsets, np.int64), seen)
        plain.update((partition, seen, offset) for offset in offsets)
    for seen in (Seen.LEDGER, Seen.BRONZE):
        found = [(p, int(o)) for _, p, offsets in book.find(lambda s, seen=seen: bool(s & seen)) for o in offsets]
        assert found == sorted({(p, o) for p, s, o in plain if s is seen})
        assert book.twice[seen] == sum(n - 1 for (_, s, _), n in plain.items() if s is seen)
    for (partition, seen, offset), count in plain.items():
        (state,) = book.states("t", partition, np.array([offset]))
        assert state & seen
        assert bool(state & Seen.TWICE) or count == 1


def test_gaps_are_counted_and_named() -> None:
    book = CoordinateBook()
    book.mark("t", 0, np.array([3, 4, CHUNK + 1]), Seen.BRONZE)
    assert book.ranges(Seen.BRONZE) == {("t", 0): OffsetRange(3, CHUNK + 1, CHUNK - 4)}
    absent = np.concatenate([offsets for _, _, offsets in book.absent(Seen.BRONZE)])
    assert (absent == np.arange(5, CHUNK + 1)).all()
    assert np.diff(book.count_below("t", 0, np.array([4, CHUNK + 1]), Seen.BRONZE)) == [1]
    assert str(Coordinate("t", 0, 3)) == "t[0]@3"


@pytest.fixture
def small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crm_assets.monitoring.spill._BUFFERED_ROWS", 100)


@pytest.mark.usefixtures("small_buffer")
def test_what_occurs_twice_is_found_across_buffers(tmp_path: Path) -> None:
    buckets = Buckets(tmp_path, "ids", np.uint64)
    numbers = np.arange(1_000, dtype=np.uint64) * np.uint64(7_919)
    for part in (numbers[:400], numbers[400:], numbers[[3, 500]], numbers[[3]]):
        buckets.add(part)
    assert repeated(buckets).tolist() == numbers[[3, 500]].tolist()


@pytest.mark.usefixtures("small_buffer")
def test_a_sequence_that_goes_back_is_found_whatever_the_order_of_reading(tmp_path: Path) -> None:
    rows = np.zeros(600, SEQUENCE_ROW)
    rows["key"], rows["offset"] = np.arange(600) % 7, np.arange(600)
    rows["sequence"] = rows["offset"]
    rows["sequence"][[14, 21]] = rows["sequence"][[21, 14]]
    buckets = Buckets(tmp_path, "order", SEQUENCE_ROW)
    for part in np.array_split(rows[::-1], 5):
        buckets.add(part)
    assert [found["offset"].tolist() for found in inversions(buckets)] == [[21]]


def test_equal_sequences_are_no_step_back(tmp_path: Path) -> None:
    buckets = Buckets(tmp_path, "order", SEQUENCE_ROW)
    buckets.add(np.array([(1, 0, 5, 0), (1, 1, 5, 0)], SEQUENCE_ROW))
    assert list(inversions(buckets)) == []
