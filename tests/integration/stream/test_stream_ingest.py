"""A batch on its way to bronze: one commit with its transaction, counted and noted, and once, however often it runs."""

from __future__ import annotations

import json

import pytest

from crm_assets.streaming.batch_ledger import captured_ends
from crm_assets.streaming.ingest import IngestStep, append_by_spark
from crm_assets.streaming.tables import BooksOpen
from crm_resources.lake import open_table, read_commit, row_count, table_version
from crm_resources.lake_tables import create_table
from crm_resources.layout import BRONZE
from tests.integration.lakes import on_both_lakes
from tests.integration.stream.lake_fixtures import Lake, Record, records


def orders(count: int) -> list[Record]:
    return records("order", [b"{}"] * count)


def plan(step: IngestStep, lake: Lake, batch: int, end: int) -> None:
    """Note a batch in the checkpoint as Spark does before it runs it."""
    reach = json.dumps({lake.topic("order"): {"0": end}})
    for name, text in ((f"offsets/{batch}", f"v1\n{{}}\n{reach}"), ("sources/0/0", "v1\n{}")):
        file = step.checkpoint / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


@on_both_lakes
def test_an_append_is_one_commit_with_its_transaction_and_statistics(lake: Lake) -> None:
    create_table(lake.settings, BRONZE)
    uri = lake.settings.spark_uri(BRONZE.path)
    before = table_version(lake.settings, BRONZE.path) or 0

    append_by_spark(lake.frame(orders(7)).coalesce(1), uri, application="ingest-life", version=0)

    commit = read_commit(lake.settings, BRONZE.path, before + 1)
    assert commit is not None
    assert commit.transactions == {"ingest-life": 0}
    assert commit.operation == "WRITE"
    assert [(f.rows, f.minimum["kafka_offset"], f.maximum["kafka_offset"]) for f in commit.added] == [(7, 0, 6)]
    assert table_version(lake.settings, BRONZE.path) == before + 1


def test_delta_knows_the_transaction_as_its_own(lake: Lake) -> None:
    create_table(lake.settings, BRONZE)
    uri = lake.settings.spark_uri(BRONZE.path)
    append_by_spark(lake.frame(orders(7)), uri, application="ingest-life", version=3)

    again = lake.frame(orders(7)).write.format("delta").mode("append")
    again.option("txnAppId", "ingest-life").option("txnVersion", "3").save(uri)

    table = open_table(lake.settings, BRONZE.path)
    assert table is not None
    assert table.transaction_version("ingest-life") == 3
    assert row_count(lake.settings, BRONZE.path) == 7


def test_a_batch_that_is_in_bronze_is_noted_but_not_written_again(lake: Lake) -> None:
    step = IngestStep(lake.settings)
    plan(step, lake, 0, 5)
    append_by_spark(lake.frame(orders(5)), lake.settings.spark_uri(BRONZE.path), application=step.application, version=0)

    IngestStep(lake.settings)(lake.frame(orders(5)), 0)

    assert row_count(lake.settings, BRONZE.path) == 5
    assert captured_ends(lake.settings) == {(lake.topic("order"), 0): 5}


def test_batches_follow_each_other_in_one_life_of_the_step(lake: Lake) -> None:
    step = IngestStep(lake.settings)
    captured = orders(9)
    plan(step, lake, 0, 5)
    step(lake.frame(captured[:5]), 0)
    plan(step, lake, 1, 9)
    step(lake.frame(captured[5:]), 1)

    assert row_count(lake.settings, BRONZE.path) == 9
    noted = sorted((b["batch_id"], b["from_offset"], b["to_offset"], b["rows_bronze"]) for b in lake.batches())
    assert noted == [(0, 0, 5, 5), (1, 5, 9, 4)]


def test_a_batch_that_lacks_a_record_stops_the_query(lake: Lake) -> None:
    step = IngestStep(lake.settings)
    plan(step, lake, 0, 5)

    with pytest.raises(BooksOpen, match=r"read 5 offsets of test\.orders\[0\]"):
        step(lake.frame(orders(4)), 0)
    assert lake.batches() == []
