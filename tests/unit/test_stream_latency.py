"""The latency benchmark's own arithmetic: when a record was visible, and whether a lag grows."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from crm_resources.lake_tables import append_rows, create_table, table_schema
from crm_resources.layout import DUPLICATES
from crm_resources.settings import load_settings
from tests.benchmarks.bench_stream import growth
from tests.benchmarks.stream_latency import COORDINATES, EVENT_ID, Visible, latencies, visible


def test_a_record_counts_from_its_intended_time_to_its_first_commit() -> None:
    records = pl.DataFrame({"event_id": ["a", "b", "c"], "intended_us": [1_000_000, 2_000_000, 3_000_000]})
    tables = [
        Visible(pl.DataFrame({"event_id": ["b", "a"], "visible_us": [9_000_000, 1_500_000]}), 1, 1),
        Visible(pl.DataFrame({"event_id": ["b"], "visible_us": [2_250_000]}), 1, 1),
    ]

    assert latencies(records, tables, EVENT_ID).to_list() == [0.5, 0.25, None]


def test_rows_are_visible_when_their_commit_was_written(tmp_path: Path) -> None:
    import pyarrow as pa

    settings = load_settings({"CRM_HOME": str(tmp_path), "CRM_ENV": "test"})
    table = create_table(settings, DUPLICATES)
    schema = table_schema(DUPLICATES).remove_metadata()
    between = []
    for number in range(2):
        between.append(time.time_ns() // 1_000)
        now = datetime.now(UTC)
        known = {"event_id": f"e{number}", "entity": "event", "payload_hash": 1, "kafka_topic": "test.events", "kafka_partition": 0}
        row = known | {"kafka_offset": number, "kafka_timestamp": now, "ingested_at": now}
        append_rows(table, pa.Table.from_pylist([row], schema), application="test", version=number)

    every, late = (visible(settings, DUPLICATES.path, COORDINATES, begin) for begin in (between[0], between[1]))

    assert (every.commits, every.files, every.rows.height) == (2, 2, 2)
    assert late.rows["kafka_offset"].to_list() == [1]
    assert between[1] <= late.rows["visible_us"].item() <= time.time_ns() // 1_000


@pytest.mark.parametrize(("share", "grows"), [(1.0, False), (1.1, False), (0.9, True)])
def test_a_lag_grows_when_less_becomes_visible_than_is_sent_whatever_its_saw_teeth(share: float, *, grows: bool) -> None:
    rate, batch_seconds = 1_000, 5
    intended = pl.Series(range(0, 60_000_000, 1_000_000 // rate))
    served = intended / 1e6 / min(share, 1.0)
    seconds = (served / batch_seconds).ceil() * batch_seconds + 1 - intended / 1e6

    found = growth(intended, seconds)

    assert (found > 60) is grows
    assert found == pytest.approx(rate * (1 - min(share, 1.0)), abs=50)


def test_records_that_never_become_visible_make_the_lag_grow() -> None:
    intended = pl.Series(range(0, 60_000_000, 1_000))
    seconds = pl.Series([2.0 if n < 30_000 else None for n in range(60_000)])

    assert growth(intended, seconds) > 500
