"""The whole way, once, on the real stack: Kafka → Spark → Delta → PostgreSQL → dbt, driven as a user drives it."""

import json
import time
from pathlib import Path

import pytest

from crm_resources import kafka, lake, warehouse
from crm_resources.layout import DEAD_LETTERS, DUPLICATES, SILVER, topic_name
from tests.conftest import Pipeline


def audit(pipeline: Pipeline) -> dict:
    done = pipeline.run("crm_assets.monitoring.audit", check=False)
    report = json.loads((pipeline.settings.reports_dir / "audit.json").read_text())
    assert done.returncode == (0 if report["verdict"] == "pass" else 1), done.stdout + done.stderr
    return report


def runs_of(pipeline: Pipeline, job: str) -> list[str]:
    """States of a job's runs, the oldest first, as the webserver tells them."""
    query = "query ($job: String!) { runsOrError(filter: {pipelineName: $job}) { ... on Runs { results { status } } } }"
    return [run["status"] for run in reversed(pipeline.ask(query, job=job)["runsOrError"]["results"])]


def test_new_data_reaches_the_marts_without_a_click_and_the_books_close(pipeline: Pipeline):
    report = audit(pipeline)
    assert report["verdict"] == "pass"
    figures = report["figures"]
    assert figures["missing_rows"] == figures["duplicated_rows"] == 0
    assert figures["bronze_rows"] == figures["silver_rows"] + figures["dead_letter_rows"] + figures["duplicate_rows_dropped"]
    assert figures["dead_letter_rows"] > 0, "the made-up shop orders some broken records"
    assert figures["duplicate_rows_dropped"] > 0
    assert figures["silver_rows"] == figures["warehouse_rows"]
    ((scored,),) = warehouse.fetch_rows(pipeline.settings, "select count(*) from marts.rfm_segments where basis = 'booked'")
    assert scored > 50


def test_bad_messages_become_dead_letters_and_the_stream_goes_on(pipeline: Pipeline):
    topic = topic_name(pipeline.settings.env, "orders")
    before = lake.row_count(pipeline.settings, DEAD_LETTERS.path)
    producer = kafka.producer(pipeline.settings)
    bad = [b"{", b"\xff\xfe", None, b"x" * (1024 * 1024 + 1), b'{"entity": "order"}', b"[" * 10_000 + b"]" * 10_000]
    for value in bad:
        producer.produce(topic, key=b"bad", value=value)
    assert producer.flush(30) == 0
    pipeline.settle()
    assert lake.row_count(pipeline.settings, DEAD_LETTERS.path) == before + len(bad)
    assert audit(pipeline)["verdict"] == "pass"


def test_the_same_records_again_are_all_duplicates_and_change_no_mart(pipeline: Pipeline, tmp_path: Path):
    order = {
        "event_id": "019a0000-0000-7000-8000-00000000abcd",
        "entity": "order",
        "entity_key": "again-1",
        "sequence": 1,
        "schema_version": 1,
        "event_time": "2026-01-02T03:04:05.000000Z",
        "source": "test",
        "run_id": "again",
        "order_id": "again-1",
        "status": "placed",
        "currency": "GBP",
        "channel": "web",
        "amount": "7.50",
        "lines": [{"line_number": 1, "product_id": "p-again", "quantity": 3, "unit_price": "2.50"}],
    }
    file = tmp_path / "orders.jsonl"
    file.write_text(json.dumps(order) + "\n")
    figures = []
    for _ in range(2):
        pipeline.run("generator", "send", str(file), "--env", pipeline.settings.env)
        pipeline.settle()
        silver = sum(lake.row_count(pipeline.settings, t.path) for t in SILVER.values())
        duplicates = lake.row_count(pipeline.settings, DUPLICATES.path)
        sales = warehouse.fetch_rows(pipeline.settings, "select sum(gross_amount)::text, sum(orders_booked) from marts.daily_sales")
        figures.append((silver, duplicates, sales))
    (silver, duplicates, sales), (silver_again, duplicates_again, sales_again) = figures
    assert silver_again == silver
    assert duplicates_again == duplicates + 1
    assert sales_again == sales
    ((inferred,),) = warehouse.fetch_rows(
        pipeline.settings, "select count(*) from marts.dim_products where product_code = 'P-AGAIN' and is_inferred"
    )
    assert inferred == 1, "a product seen on an order before its own message gets an inferred member"


def test_the_dagster_command_line_materializes_and_launches(pipeline: Pipeline):
    pipeline.dagster("asset", "materialize", "--select", "key:marts/dim_date", "-m", "crm_assets.definitions")
    workspace = pipeline.settings.environment_dir / "dagster" / "workspace.yaml"
    before = runs_of(pipeline, "audit")
    pipeline.dagster("job", "launch", "-j", "audit", "-w", str(workspace))
    deadline = time.monotonic() + 120
    while (states := runs_of(pipeline, "audit")).count("SUCCESS") <= before.count("SUCCESS"):
        assert "FAILURE" not in states[len(before) :]
        assert time.monotonic() < deadline, states
        time.sleep(1)


def test_dg_launches_an_asset(pipeline: Pipeline):
    pipeline.run("deploy.local.run", "dg", "launch", "--assets", "key:topics/orders")


def test_materializing_the_stream_again_adopts_the_driver(pipeline: Pipeline):
    progress = pipeline.settings.environment_dir / "stream" / "progress.json"
    before = json.loads(progress.read_text())
    pipeline.dagster("asset", "materialize", "--select", "key:stream/driver", "-m", "crm_assets.definitions")
    after = json.loads(progress.read_text())
    assert (after["pid"], after["started_at"]) == (before["pid"], before["started_at"])


def test_batch_mode_is_refused_while_the_stream_holds_the_lake(pipeline: Pipeline):
    refused = pipeline.dagster("job", "execute", "-j", "rebuild_silver", "-m", "crm_assets.definitions", check=False)
    assert refused.returncode != 0
    assert "lock" in (refused.stdout + refused.stderr).lower()


def test_topics_drift_is_seen_and_mended(pipeline: Pipeline):
    from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

    spec = next(s for s in kafka.topic_specs(pipeline.settings) if s.plural == "products")
    entry = ConfigEntry("retention.ms", "1000000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, spec.name, incremental_configs=[entry])
    client = kafka.admin(pipeline.settings)  # held until the answer is there: its futures end with it
    for future in client.incremental_alter_configs([resource]).values():
        future.result(30)
    assert not kafka.plan([spec], kafka.observe(pipeline.settings, [spec.name])).is_empty
    pipeline.dagster("asset", "materialize", "--select", "key:topics/products", "-m", "crm_assets.definitions")
    assert kafka.plan([spec], kafka.observe(pipeline.settings, [spec.name])).is_empty


def test_the_reader_sees_the_marts_and_nothing_else(pipeline: Pipeline):
    from adbc_driver_postgresql import dbapi

    def ask(statement: str) -> list[tuple]:
        with dbapi.connect(warehouse.reader_uri(pipeline.settings)) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall()

    assert ask("select count(*) from marts.rfm_segments")
    with pytest.raises(dbapi.Error, match="permission denied"):
        ask("select count(*) from raw.orders")
    with pytest.raises(dbapi.Error, match=r"permission denied|read-only transaction"):
        ask("delete from marts.rfm_segments")
