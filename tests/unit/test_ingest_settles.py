"""What the ingest step notes of a bronze it did not write itself, before it writes to it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa  # noqa: TID253 -- a test may load what it tests
import pytest

from crm_assets.streaming.batch_ledger import captured_ends
from crm_assets.streaming.ingest import IngestStep
from crm_resources.lake import files_of, open_table, read_columns
from crm_resources.lake_tables import append_rows, create_table, table_schema
from crm_resources.layout import BATCHES, BRONZE
from crm_resources.settings import Settings, load_settings

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"CRM_HOME": str(tmp_path)})


def capture(settings: Settings, offsets: range, *, partition: int = 0, application: str, batch: int) -> None:
    """Rows of bronze as a query commits them."""
    row = {
        "kafka_partition": partition,
        "kafka_timestamp": NOW,
        "ingested_at": NOW,
        "kafka_key": b"k",
        "value": b"{}",
        "kafka_topic": "demo.orders",
        "ingest_date": NOW.date(),
    }
    rows = pa.Table.from_pylist([{**row, "kafka_offset": o} for o in offsets], schema=table_schema(BRONZE).remove_metadata())
    append_rows(create_table(settings, BRONZE), rows, application=application, version=batch)


def noted(settings: Settings) -> list[tuple[str, int, int, int, int]]:
    table = open_table(settings, BATCHES.path)
    assert table is not None
    columns = ["generation", "batch_id", "kafka_partition", "from_offset", "to_offset"]
    return sorted(tuple(r.values()) for r in read_columns(settings, BATCHES.path, files_of(table), columns).to_pylist())


def test_a_batch_that_was_committed_but_not_noted_is_noted_by_the_next_generation(settings: Settings) -> None:
    capture(settings, range(5), application="ingest-old", batch=0)

    IngestStep(settings)
    IngestStep(settings)

    assert noted(settings) == [("old", 0, 0, 0, 5)]
    assert captured_ends(settings) == {("demo.orders", 0): 5}


def test_rows_from_before_the_ledger_are_noted_once_and_without_those_that_never_were_in_kafka(settings: Settings) -> None:
    capture(settings, range(5), application="3f1c", batch=0)
    capture(settings, range(5, 9), application="3f1c", batch=1)
    capture(settings, range(9), partition=-7, application="backfill-run", batch=1)
    capture(settings, range(9, 12), application="ingest-old", batch=0)

    IngestStep(settings)

    assert noted(settings) == [("before-the-ledger", 0, 0, 0, 9), ("old", 0, 0, 9, 12)]


def test_a_batch_of_its_own_is_left_to_be_run_again(settings: Settings) -> None:
    step = IngestStep(settings)
    capture(settings, range(5), application=step.application, batch=0)

    again = IngestStep(settings)

    assert again.generation == step.generation
    assert noted(settings) == []
