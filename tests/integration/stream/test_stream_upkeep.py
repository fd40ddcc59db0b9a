"""Upkeep on real tables: fewer files and log entries, the same rows, and nobody who reads by version notices."""

from __future__ import annotations

import itertools
import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from crm_assets.streaming import upkeep
from crm_assets.streaming.refine import RefineStep
from crm_assets.streaming.requests import Request, RequestKind
from crm_assets.streaming.tables import live
from crm_resources.lake import added_files, files_of, open_table, read_columns, row_count, table_version
from crm_resources.lake_tables import append_rows, create_table, table_schema
from crm_resources.layout import BRONZE, SILVER
from crm_resources.settings import Settings
from tests.integration.stream.lake_fixtures import Lake, Record, records
from tests.integration.stream.messages import ARRIVED, good_message

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession

EVENTS = SILVER["events"]


def event_rows(count: int, number: int) -> pa.Table:
    """Rows of silver events with ids that rise with `number`."""
    import pyarrow as pa

    schema = table_schema(EVENTS).remove_metadata()
    ids = [f"{number:08d}-{n:04d}" for n in range(count)]
    return pa.table({f.name: pa.array(ids) if f.name == "event_id" else pa.nulls(count, f.type) for f in schema}, schema=schema)


def many_commits(settings: Settings, commits: int, first: int = 0) -> None:
    table = create_table(settings, EVENTS)
    for n in range(first, first + commits):
        append_rows(table, event_rows(5, n), application="test", version=n)


def request(kind: RequestKind, **arguments: object) -> Request:
    return Request("test", kind, arguments)


def carry_out(
    lake: Lake | Settings, wanted: Request, *, step: RefineStep | None = None, spark: SparkSession | None = None, **more: Any
) -> dict[str, Any]:
    """Upkeep of a lake without a warehouse: only the refine query reads it by version, unless the test says otherwise."""
    settings = lake if isinstance(lake, Settings) else lake.settings
    return upkeep.carry_out(settings, spark, step, wanted, **{"readers_of": refine_only, **more})


def refine_only(settings: Settings) -> dict[str, tuple[upkeep.Reader, ...]]:
    position = upkeep.refine_position(settings)
    return {} if position is None else {BRONZE.name: (upkeep.Reader("the refine query", position),)}


def of_table(answer: dict[str, Any], name: str) -> dict[str, Any]:
    return next(t for t in answer["tables"] if t["table"] == name)


def ids(settings: Settings) -> list[str]:
    table = open_table(settings, EVENTS.path)
    assert table is not None
    return sorted(read_columns(settings, EVENTS.path, files_of(table), ["event_id"])["event_id"].to_pylist())


def make_older(settings: Settings, days: float, below: int | None = None) -> None:
    """Set the clock of a table's files and log back, up to a version of the log."""
    then = time.time() - days * 86_400
    for path in Path(settings.table_uri(EVENTS.path)).rglob("*"):
        if path.is_file() and (below is None or not path.name[:20].isdigit() or int(path.name[:20]) < below):
            os.utime(path, (then, then))


def test_one_upkeep_brings_hundreds_of_files_and_log_entries_down(lake_settings: Settings) -> None:
    many_commits(lake_settings, 300)
    before = ids(lake_settings)
    log = Path(lake_settings.table_uri(EVENTS.path)) / "_delta_log"

    compacted = of_table(carry_out(lake_settings, request(RequestKind.COMPACT)), EVENTS.name)
    carry_out(lake_settings, request(RequestKind.CHECKPOINT))
    in_a_month = datetime.now(UTC) + timedelta(days=32)
    entries = len(list(log.glob("*.json")))
    kept = carry_out(lake_settings, request(RequestKind.VACUUM))
    vacuumed = of_table(carry_out(lake_settings, request(RequestKind.VACUUM), now=in_a_month), EVENTS.name)

    assert (compacted["files_before"], compacted["files_after"]) == (300, 1)
    assert of_table(kept, EVENTS.name)["removed_files"] == of_table(kept, EVENTS.name)["removed_log_files"] == 0
    assert entries > 300
    assert len(list(log.glob("*.json"))) == 1, "the checkpoint stands for all before it"
    assert vacuumed["removed_log_files"] >= 300
    assert ids(lake_settings) == before


def test_files_merged_again_and_again_span_the_ids_of_their_time_only(lake_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each batch of the stream would have to look for duplicates in files of long ago."""
    monkeypatch.setattr(upkeep, "TARGET_BYTES", 200_000)
    monkeypatch.setattr(upkeep, "SMALL_BYTES", 100_000)
    for turn in range(4):
        many_commits(lake_settings, 40, first=40 * turn)
        carry_out(lake_settings, request(RequestKind.COMPACT, tables=[EVENTS.name]))

    table = open_table(lake_settings, EVENTS.path)
    assert table is not None
    spans = sorted((f.minimum["event_id"], f.maximum["event_id"]) for f in files_of(table))
    assert len(spans) > 1
    assert all(last < first for (_, last), (first, _) in itertools.pairwise(spans)), spans


def test_a_reader_behind_compaction_is_given_each_row_once(lake_settings: Settings) -> None:
    many_commits(lake_settings, 20)
    bookmark = table_version(lake_settings, EVENTS.path)
    many_commits(lake_settings, 20, first=20)
    carry_out(lake_settings, request(RequestKind.COMPACT))
    many_commits(lake_settings, 1, first=40)

    changes = added_files(lake_settings, EVENTS.path, bookmark)

    assert changes is not None
    assert changes.rows == 21 * 5
    read = read_columns(lake_settings, EVENTS.path, changes.files, ["event_id"])["event_id"].to_pylist()
    assert sorted(read) == ids(lake_settings)[20 * 5 :]


def test_what_a_crash_left_behind_is_removed_once_it_is_old_and_current_files_stay(lake_settings: Settings) -> None:
    many_commits(lake_settings, 3)
    folder = Path(lake_settings.table_uri(EVENTS.path))
    left, young = folder / "part-00000-left-behind.zstd.parquet", folder / "part-00001-being-written.zstd.parquet"
    left.write_bytes(b"never committed")
    make_older(lake_settings, days=40)
    young.write_bytes(b"not committed yet")

    found = of_table(carry_out(lake_settings, request(RequestKind.VACUUM, dry_run=True)), EVENTS.name)
    assert (found["removed_files"], left.exists()) == (1, True), "a dry run only tells"
    carry_out(lake_settings, request(RequestKind.VACUUM))

    assert not left.exists()
    assert young.exists()
    assert len(ids(lake_settings)) == 15


def test_vacuum_stops_at_a_bookmark_and_says_so(lake_settings: Settings) -> None:
    many_commits(lake_settings, 30)
    carry_out(lake_settings, request(RequestKind.COMPACT))
    carry_out(lake_settings, request(RequestKind.CHECKPOINT))
    in_a_month = datetime.now(UTC) + timedelta(days=32)

    def behind(_settings: Settings) -> dict[str, tuple[upkeep.Reader, ...]]:
        return {EVENTS.name: (upkeep.Reader("the warehouse load", 7),)}

    answer = carry_out(lake_settings, request(RequestKind.VACUUM), now=in_a_month, readers_of=behind)

    assert of_table(answer, EVENTS.name)["removed_files"] == of_table(answer, EVENTS.name)["removed_log_files"] == 0
    (reason,) = answer["skipped"]
    assert "the warehouse load has read version 7" in reason
    changes = added_files(lake_settings, EVENTS.path, 7)
    assert changes is not None
    assert read_columns(lake_settings, EVENTS.path, changes.files, ["event_id"]).num_rows == 23 * 5


def test_a_table_from_before_gets_the_declared_properties(lake_settings: Settings) -> None:
    create_table(lake_settings, EVENTS).alter.set_table_properties({"delta.enableExpiredLogCleanup": "true"})

    create_table(lake_settings.model_copy(update={"retention_days": 60}), EVENTS)

    table = open_table(lake_settings, EVENTS.path)
    assert table is not None
    assert table.metadata().configuration["delta.enableExpiredLogCleanup"] == "false"
    assert table.metadata().configuration["delta.deletedFileRetentionDuration"] == "interval 61 days"
    version = table.version()
    create_table(lake_settings.model_copy(update={"retention_days": 60}), EVENTS)
    assert table_version(lake_settings, EVENTS.path) == version, "nothing is committed when nothing differs"


def captured(number: int) -> list[Record]:
    import random

    chooser = random.Random(number)
    messages = [good_message("event", chooser, ARRIVED - timedelta(hours=2) + timedelta(seconds=60 * number + n)) for n in range(10)]
    return records("event", messages, first_offset=10 * number)


def test_a_running_step_goes_on_behind_compaction_and_still_knows_every_duplicate(lake: Lake) -> None:
    place = live(lake.settings)
    step = RefineStep(lake.settings, place)
    for n in range(20):
        step(lake.frame(captured(n)), n)

    figures = carry_out(lake, request(RequestKind.COMPACT), step=step)
    resent = [Record(r.entity, r.value, 1000 + n) for n, r in enumerate(captured(3))]
    step(lake.frame([*captured(20), *resent]), 20)

    assert of_table(figures, EVENTS.name)["files_after"] == 1
    assert 0 < figures["longest_pause_seconds"] < 60
    assert (step.total.silver, step.total.duplicates) == (210, 10)
    assert row_count(lake.settings, EVENTS.path) == 210
    assert len(lake.places()) == len(set(lake.places())) == 220


def test_bronze_compacted_by_spark_is_not_refined_again(lake: Lake, spark: SparkSession) -> None:
    for n in range(18):
        lake.capture(captured(n))
    assert lake.refine().total.read == 180
    lake.capture(captured(18))

    figures = carry_out(lake, request(RequestKind.COMPACT, tables=[BRONZE.name]), spark=spark)
    lake.capture(captured(19))
    counts = lake.refine().total

    assert of_table(figures, BRONZE.name)["files_before"] == 19
    assert of_table(figures, BRONZE.name)["files_after"] == 1
    assert (counts.read, counts.duplicates) == (20, 0)
    assert row_count(lake.settings, BRONZE.path) == row_count(lake.settings, EVENTS.path) == 200
    assert upkeep.refine_position(lake.settings) is not None
    carry_out(lake, request(RequestKind.CHECKPOINT, tables=[BRONZE.name]), spark=spark)
    hint = json.loads((Path(lake.settings.table_uri(BRONZE.path)) / "_delta_log" / "_last_checkpoint").read_text())
    assert hint["version"] == table_version(lake.settings, BRONZE.path)


def test_bronze_compacted_while_nothing_runs_is_read_on_by_spark(lake: Lake) -> None:
    for n in range(18):
        lake.capture(captured(n))
    lake.refine()
    position = upkeep.refine_position(lake.settings)

    figures = carry_out(lake, request(RequestKind.COMPACT))
    lake.capture(captured(18))
    in_a_month = datetime.now(UTC) + timedelta(days=32)
    removed = carry_out(lake, request(RequestKind.VACUUM), now=in_a_month)
    counts = lake.refine().total

    assert of_table(figures, BRONZE.name)["files_after"] == 1
    assert position is not None
    assert removed["skipped"], "the refine query has not read the last capture, which is a month old by that clock"
    assert counts.read == 10
    assert len(lake.places()) == 190
