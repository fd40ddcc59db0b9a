"""The batch ledger and what is read from it: written once, read back, and a lost checkpoint's next step decided."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa  # noqa: TID253 -- a test may load what it tests
import pytest

from crm_assets.streaming.batch_ledger import Batch, BatchLedger, BatchRange, RefinedBatch, captured_ends, ranges_of, refined_batches
from crm_assets.streaming.ingest import planned_ends, planned_ranges
from crm_assets.streaming.resumption import reached, source_version
from crm_assets.streaming.source_offsets import Gap, gaps, starting_offsets
from crm_resources.lake import row_count
from crm_resources.layout import BATCHES
from crm_resources.settings import Settings, load_settings

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ORDERS = ("demo.orders", 0)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"CRM_HOME": str(tmp_path)})


def batch(query: str, number: int, ranges: list[BatchRange], *, generation: str = "g1", version: int | None = None) -> Batch:
    return Batch(query, generation, number, tuple(ranges), version, 0.5, NOW + timedelta(seconds=number))


def test_a_batch_noted_again_stands_there_once(settings: Settings) -> None:
    done = batch("ingest", 0, [BatchRange(ORDERS, 0, 5, 5, rows_bronze=5)])

    BatchLedger(settings).note(done)
    BatchLedger(settings).note(done)

    assert row_count(settings, BATCHES.path) == 1


def test_the_same_number_of_another_generation_or_query_is_another_batch(settings: Settings) -> None:
    ledger, one = BatchLedger(settings), [BatchRange(ORDERS, 0, 5, 5)]
    for done in (batch("ingest", 0, one), batch("refine", 0, one), batch("ingest", 0, one, generation="g2")):
        ledger.note(done)

    assert row_count(settings, BATCHES.path) == 3


def test_where_bronze_ends_by_partition(settings: Settings) -> None:
    ledger = BatchLedger(settings)
    other = ("demo.orders", 1)
    ledger.note(batch("ingest", 0, [BatchRange(ORDERS, 0, 5, 5), BatchRange(other, 0, 2, 2)]))
    ledger.note(batch("ingest", 1, [BatchRange(ORDERS, 5, 9, 4)]))
    ledger.note(batch("refine", 0, [BatchRange(ORDERS, 0, 100, 100)]))

    assert captured_ends(settings) == {ORDERS: 9, other: 2}


def test_refined_batches_come_in_the_order_of_their_commits(settings: Settings) -> None:
    ledger, one = BatchLedger(settings), [BatchRange(ORDERS, 0, 5, 5)]
    ledger.note(batch("refine", 1, one, generation="z", version=4))
    ledger.note(batch("refine", 2, one, generation="a", version=7))
    ledger.note(batch("rebuild", 3, one, generation="r", version=9))

    found = refined_batches(settings)

    assert found == [RefinedBatch("z", 1, 4), RefinedBatch("a", 2, 7)]
    assert reached(found, own="new") == 7
    assert reached(found, own="a") == 4
    assert reached([], own="a") is None


def test_ranges_leave_out_partitions_without_records() -> None:
    offsets = pa.table({"kafka_offset": pa.array([7, 5, 6], pa.int64())})

    found = ranges_of({ORDERS: offsets, ("demo.orders", 1): offsets.slice(0, 0)}, rows_silver={ORDERS: 2})

    assert found == (BatchRange(ORDERS, 5, 8, 3, rows_silver=2),)


def checkpoint(folder: Path, *, offsets: dict[int, str], commits: list[int], initial: str | None = None) -> Path:
    """A checkpoint as Spark lays it out: a version line, a line of metadata, a line for the source."""
    for name in ("offsets", "commits", "sources/0"):
        (folder / name).mkdir(parents=True)
    for number, source in offsets.items():
        (folder / "offsets" / str(number)).write_text(f'v1\n{{"batchWatermarkMs":0}}\n{source}')
    for number in commits:
        (folder / "commits" / str(number)).write_text("v1\n{}")
    if initial is not None:
        (folder / "sources" / "0" / "0").write_bytes(b"\x00v1\n" + initial.encode())
    return folder


def test_what_a_batch_was_to_read_stands_in_the_checkpoint(tmp_path: Path) -> None:
    found = checkpoint(
        tmp_path,
        offsets={0: '{"demo.orders":{"0":5,"1":2}}', 1: '{"demo.orders":{"0":9,"1":2,"2":1}}'},
        commits=[0],
        initial='{"demo.orders":{"0":3,"1":2}}',
    )

    assert planned_ranges(found, 0) == {ORDERS: (3, 5)}
    assert planned_ranges(found, 1) == {ORDERS: (5, 9), ("demo.orders", 2): (None, 1)}
    assert planned_ends(found) == {ORDERS: 5, ("demo.orders", 1): 2}
    assert planned_ends(tmp_path / "nothing") == {}


def test_the_version_of_bronze_a_batch_reads_to(tmp_path: Path) -> None:
    found = checkpoint(
        tmp_path,
        offsets={
            0: '{"sourceVersion":1,"reservoirVersion":3,"index":2,"isStartingVersion":true}',
            1: '{"sourceVersion":1,"reservoirVersion":4,"index":-1,"isStartingVersion":false}',
        },
        commits=[],
    )

    assert [source_version(found, n) for n in (0, 1, 2)] == [None, 4, None]


def test_what_retention_took_is_named_partition_by_partition() -> None:
    following = {ORDERS: 10, ("demo.orders", 1): 10, ("demo.orders", 2): 10}
    held = {ORDERS: (10, 20), ("demo.orders", 1): (15, 20), ("demo.orders", 3): (0, 5)}

    found = gaps(following, held)

    assert found == [Gap(("demo.orders", 1), 10, 15)]
    assert str(found[0]) == "demo.orders[1] 10 to 14 (5 records)"


def test_a_new_checkpoint_begins_behind_what_bronze_holds() -> None:
    assert starting_offsets({"demo.orders": [0, 1]}, {}) == "earliest"
    assert starting_offsets({"demo.orders": [0, 1]}, {ORDERS: 7}) == '{"demo.orders": {"0": 7, "1": -2}}'
