"""Every record of bronze gets exactly one place, whatever is resent, spoilt, crashed or run again."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from datetime import timedelta

import pytest

from crm_assets.streaming.crash_points import CrashPoint
from crm_assets.streaming.refine import BatchCounts, RefineStep, drain_refine
from crm_assets.streaming.tables import live
from crm_resources.contracts import Reason
from crm_resources.lake import table_version
from crm_resources.layout import BATCHES, SILVER
from tests.integration.lakes import on_both_lakes
from tests.integration.stream.lake_fixtures import Lake, Record, records
from tests.integration.stream.messages import ARRIVED, Message, good_message, spoil


class Crash(RuntimeError):
    """The process dies here."""


def messages(entity: str, count: int, seed: int = 1) -> list[Message]:
    chooser = random.Random(seed)
    return [good_message(entity, chooser, ARRIVED - timedelta(hours=2) + timedelta(seconds=n)) for n in range(count)]


def other_payload(message: Message) -> Message:
    return {**message, "source": "another system"}


def mixed(seed: int = 3, count: int = 150) -> list[Record]:
    """Good, spoilt, resent and conflicting records of all entities over two partitions."""
    chooser = random.Random(seed)
    found: list[Record] = []
    for entity in ("event", "order", "product", "profile"):
        values: list[Message | bytes | None] = []
        for message in messages(entity, count, seed):
            values.append(message)
            if chooser.random() < 0.2:
                values.append(spoil(message, chooser))
            if chooser.random() < 0.1:
                values.append(message)
            if chooser.random() < 0.05:
                values.append(other_payload(message))
        values.append(None)
        half = len(values) // 2
        found += records(entity, values[:half]) + records(entity, values[half:], partition=1)
    return found


def test_within_a_batch_the_first_by_offset_is_accepted(lake: Lake) -> None:
    first, second = messages("order", 2)
    captured = records("order", [first, second, first, other_payload(second)])
    lake.capture(captured)

    counts = lake.refine().total

    assert counts == BatchCounts(read=4, silver=2, dead_letters=1, duplicates=1)
    assert {r["kafka_offset"] for r in lake.rows("orders", "kafka_offset")} == {0, 1}
    (dropped,) = lake.rows("duplicates", "event_id", "entity", "kafka_offset")
    assert dropped == {"event_id": first["event_id"], "entity": "order", "kafka_offset": 2}
    (dead,) = lake.rows("dead_letters", "event_id", "reason", "detail", "value", "stage", "attempt")
    assert (dead["event_id"], dead["reason"], dead["stage"], dead["attempt"]) == (
        second["event_id"], Reason.CONFLICTING_DUPLICATE, "refine", 1
    )  # fmt: skip
    assert dead["detail"] == "the accepted record is at partition 0, offset 1"
    assert json.loads(dead["value"]) == other_payload(second)


def test_duplicates_are_dropped_at_any_age(lake: Lake) -> None:
    old = messages("event", 40)
    for n in range(4):
        lake.capture(records("event", old[n * 10 : n * 10 + 10], first_offset=n * 10))
        lake.refine()
    again = records("event", [old[0], other_payload(old[15]), *messages("event", 3, seed=9), old[39]], first_offset=40)
    lake.capture(again)

    counts = lake.refine().total

    assert counts == BatchCounts(read=6, silver=3, dead_letters=1, duplicates=2)
    ids = [r["event_id"] for r in lake.rows("events", "event_id")]
    assert len(ids) == len(set(ids)) == 43


@on_both_lakes
def test_every_record_has_exactly_one_place(lake: Lake) -> None:
    captured = mixed()
    lake.capture(captured)

    counts = lake.refine().total

    assert counts.read == len(captured) == counts.silver + counts.dead_letters + counts.duplicates
    assert min(counts.silver, counts.dead_letters, counts.duplicates) > 0
    assert lake.places() == lake.coordinates(captured)


@on_both_lakes
def test_a_batch_run_again_changes_nothing(lake: Lake) -> None:
    captured = mixed(count=40)
    place = live(lake.settings)
    RefineStep(lake.settings, place)(lake.frame(captured), 0)
    before = {name: table_version(lake.settings, table.path) for name, table in SILVER.items()}

    RefineStep(lake.settings, place)(lake.frame(captured), 0)

    assert {name: table_version(lake.settings, table.path) for name, table in SILVER.items()} == before
    assert lake.places() == lake.coordinates(captured)


@pytest.mark.parametrize(
    ("point", "passing"),
    [
        (CrashPoint.REFINE_BEFORE_COMMIT, 1),
        *((CrashPoint.REFINE_BETWEEN_TABLES, n) for n in (1, 3, 6)),
        (CrashPoint.REFINE_AFTER_COMMIT, 1),
        (CrashPoint.REFINE_BEFORE_CHECKPOINT, 1),
    ],
)
def test_a_crash_anywhere_in_a_batch_loses_and_doubles_nothing(lake: Lake, point: CrashPoint, passing: int) -> None:
    captured = mixed(count=40)
    place = live(lake.settings)
    passed: list[CrashPoint] = []

    def crash(at: CrashPoint) -> None:
        passed.append(at)
        if passed.count(point) == passing:
            raise Crash

    with pytest.raises(Crash):
        RefineStep(lake.settings, place, passing=crash)(lake.frame(captured), 0)
    RefineStep(lake.settings, place)(lake.frame(captured), 0)

    assert lake.places() == lake.coordinates(captured)
    assert sum(b["rows_in"] for b in lake.batches()) == len(captured)


@on_both_lakes
def test_a_lost_checkpoint_goes_on_where_the_ledger_says(lake: Lake) -> None:
    captured = mixed(count=40)
    lake.capture(captured)
    lake.refine()
    shutil.rmtree(live(lake.settings).checkpoint)
    late = records("event", messages("event", 5, seed=8), first_offset=10_000)
    lake.capture(late)

    step = lake.refine()

    assert step.resumption.starting_version == 2
    assert (step.total.read, step.total.placed_before, step.total.silver) == (len(late), 0, len(late))
    assert lake.places() == lake.coordinates([*captured, *late])


@pytest.mark.parametrize("noted", [True, False])
def test_a_checkpoint_lost_in_the_middle_of_a_batch_doubles_nothing(lake: Lake, noted: bool) -> None:
    """The batch is in some tables, or in all but the ledger, when the driver dies and its checkpoint with it."""
    first, second = mixed(count=20), [replace(r, offset=r.offset + 1000) for r in mixed(count=20, seed=9)]
    lake.capture(first)
    lake.refine()
    lake.capture(second)
    point = CrashPoint.REFINE_AFTER_COMMIT if noted else CrashPoint.REFINE_BETWEEN_TABLES

    def crash(at: CrashPoint) -> None:
        if at is point:
            raise Crash

    query = drain_refine(lake.spark, lake.settings, RefineStep(lake.settings, live(lake.settings), passing=crash))
    with pytest.raises(Exception, match="Crash"):
        query.awaitTermination()
    shutil.rmtree(live(lake.settings).checkpoint)

    step = lake.refine()

    assert step.resumption.starting_version == 2
    assert step.total.placed_before > 0
    assert lake.places() == lake.coordinates([*first, *second])


def test_without_a_ledger_bronze_is_read_from_its_start(lake: Lake) -> None:
    captured = mixed(count=40)
    lake.capture(captured)
    lake.refine()
    shutil.rmtree(live(lake.settings).checkpoint)
    shutil.rmtree(lake.settings.table_uri(BATCHES.path))

    step = lake.refine()

    assert step.resumption.starting_version is None
    assert (step.total.read, step.total.placed_before) == (len(captured), len(captured))
    assert lake.places() == lake.coordinates(captured)


def test_a_checkpoint_without_its_generation_is_moved_aside(lake: Lake) -> None:
    captured = records("event", messages("event", 2))
    lake.capture(captured)
    lake.refine()
    checkpoint = live(lake.settings).checkpoint
    (checkpoint / "generation.json").unlink()

    lake.refine()

    assert lake.places() == lake.coordinates(captured)
    assert [p.name for p in checkpoint.parent.glob("refine.without-generation-*")]


def test_the_ledger_says_what_became_of_each_partition(lake: Lake) -> None:
    captured = mixed(count=40)
    lake.capture(captured)

    total = lake.refine().total

    rows = lake.batches()
    assert {(r["kafka_topic"], r["kafka_partition"]) for r in rows} == {(lake.topic(r.entity), r.partition) for r in captured}
    for row in rows:
        offsets = [r.offset for r in captured if (lake.topic(r.entity), r.partition) == (row["kafka_topic"], row["kafka_partition"])]
        assert (row["from_offset"], row["to_offset"], row["rows_in"]) == (min(offsets), max(offsets) + 1, len(offsets))
        outcomes = [row[f"rows_{name}"] for name in ("silver", "dead_letters", "duplicates", "placed_before")]
        assert sum(outcomes) == row["rows_in"]
    for name in ("silver", "dead_letters", "duplicates"):
        assert sum(r[f"rows_{name}"] for r in rows) == getattr(total, name)


def test_many_small_batches_and_one_large_give_the_same_tables(spark, lake_settings, tmp_path) -> None:
    captured = mixed(seed=5, count=60)
    many = Lake(spark, lake_settings)
    one = Lake(spark, lake_settings.model_copy(update={"home": tmp_path / "one"}))
    by_offset = sorted(captured, key=lambda r: (r.partition, r.offset))
    for start in range(0, len(by_offset), 100):
        many.capture(by_offset[start : start + 100])
        many.refine()
    one.capture(captured)
    one.refine()

    for table, columns in {
        **dict.fromkeys(SILVER, ("event_id", "payload_hash", "kafka_partition", "kafka_offset")),
        "dead_letters": ("kafka_topic", "kafka_partition", "kafka_offset", "reason", "detail"),
        "duplicates": ("kafka_topic", "kafka_partition", "kafka_offset", "event_id", "payload_hash"),
    }.items():
        assert sorted(map(str, many.rows(table, *columns))) == sorted(map(str, one.rows(table, *columns))), table


def test_nothing_is_committed_for_tables_that_get_nothing(lake: Lake) -> None:
    lake.capture(records("event", messages("event", 3)))

    lake.refine()

    assert table_version(lake.settings, "silver/events") == 1
    assert table_version(lake.settings, "silver/orders") == 0
    assert table_version(lake.settings, "dead_letters") == 0
