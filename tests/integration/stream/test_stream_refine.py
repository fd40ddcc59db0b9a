"""Every record of bronze gets exactly one place, whatever is resent, spoilt, crashed or run again."""

from __future__ import annotations

import json
import random
import shutil
from datetime import timedelta

import pytest

from crm_assets.streaming.refine import BatchCounts, RefineStep
from crm_assets.streaming.tables import CheckpointDamaged, live
from crm_resources.contracts import Reason
from crm_resources.lake import table_version
from crm_resources.layout import SILVER
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


@pytest.mark.parametrize("crash_at", ["events", "profiles", "dead_letters", "duplicates"])
def test_a_crash_between_two_tables_loses_and_doubles_nothing(lake: Lake, crash_at: str) -> None:
    captured = mixed(count=40)
    place = live(lake.settings)

    def crash(table: str) -> None:
        if table == crash_at:
            raise Crash

    with pytest.raises(Crash):
        RefineStep(lake.settings, place, after_commit=crash)(lake.frame(captured), 0)
    RefineStep(lake.settings, place)(lake.frame(captured), 0)

    assert lake.places() == lake.coordinates(captured)


@on_both_lakes
def test_a_lost_checkpoint_doubles_nothing(lake: Lake) -> None:
    captured = mixed(count=40)
    lake.capture(captured)
    lake.refine()
    shutil.rmtree(live(lake.settings).checkpoint)
    late = records("event", messages("event", 5, seed=8), first_offset=10_000)
    lake.capture(late)

    counts = lake.refine().total

    assert counts.placed_before == len(captured)
    assert counts.silver == len(late)
    assert lake.places() == lake.coordinates([*captured, *late])


def test_a_checkpoint_without_its_generation_is_refused(lake: Lake) -> None:
    lake.capture(records("event", messages("event", 2)))
    lake.refine()
    (live(lake.settings).checkpoint / "generation.json").unlink()

    with pytest.raises(CheckpointDamaged, match=r"generation\.json"):
        lake.refine()


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
