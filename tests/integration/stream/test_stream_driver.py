"""The driver on a real broker: it captures and refines, ends cleanly when asked, and loses nothing when it is killed."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import urlopen

import psutil  # noqa: TID253 -- a test may load what it tests with
import pytest
from confluent_kafka import TopicPartition  # noqa: TID253 -- a test may load what it tests with
from prometheus_client.parser import text_string_to_metric_families

from crm_assets.streaming.catch_up import catch_up, run_both_steps
from crm_assets.streaming.progress import QueryState, StreamProgress, read_progress
from crm_assets.streaming.source_offsets import topics
from crm_assets.streaming.tables import refined_tables
from crm_resources.contracts import contract_for
from crm_resources.group_offsets import bronze_group, silver_group
from crm_resources.kafka import consumer, ensure, offsets, producer
from crm_resources.lake import files_of, open_table, read_columns, row_count
from crm_resources.lake_lock import LakeLocked
from crm_resources.layout import BATCHES, BRONZE, topic_name
from crm_resources.settings import Settings
from tests.driver_process import DEADLINE_SECONDS, DriverProcess, wait_until
from tests.integration.lakes import on_both_lakes
from tests.integration.stream.messages import good_message

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

NUMBERS = itertools.count()


def send(settings: Settings, count: int, seed: int) -> None:
    """Send messages of all entities, one in fifty of them no JSON."""
    chooser = random.Random(seed)
    sender = producer(settings)
    for n in range(count):
        entity = chooser.choice(["event", "order", "product", "profile"])
        message = good_message(entity, chooser)
        value = b"no JSON" if n % 50 == 0 else json.dumps(message).encode()
        sender.produce(topic_name(settings.env, contract_for(entity).plural), value, message["entity_key"])
    assert sender.flush(60) == 0


def ends(settings: Settings) -> dict[tuple[str, int], int]:
    """Where the topics of a data set end, by topic and partition."""
    return {(t, p): high for t in topics(settings) for p, (_, high) in offsets(settings, t).items()}


def committed(settings: Settings, group: str) -> dict[tuple[str, int], int]:
    """Offsets of a consumer group, 0 where it has none."""
    client = consumer(settings, group)
    try:
        found = client.committed([TopicPartition(t, p) for t, p in ends(settings)], timeout=30)
    finally:
        client.close()
    return {(f.topic, f.partition): max(f.offset, 0) for f in found}


def metric(settings: Settings, name: str, **labels: str) -> float:
    """A figure the driver tells Prometheus."""
    url = (read_progress(settings) or never()).metrics_url
    assert url is not None
    with urlopen(url, timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
        return next(s.value for f in families for s in f.samples if s.name == name and s.labels == labels)


def noted_ranges(settings: Settings) -> dict[tuple[str, int], tuple[int, int]]:
    """Per partition, what the ledger's ingest batches read, which must join without a gap or an overlap."""
    table = open_table(settings, BATCHES.path)
    assert table is not None
    columns = ["query", "kafka_topic", "kafka_partition", "from_offset", "to_offset", "rows_in", "rows_bronze"]
    found: dict[tuple[str, int], tuple[int, int]] = {}
    rows = [r for r in read_columns(settings, BATCHES.path, files_of(table), columns).to_pylist() if r["query"] == "ingest"]
    for row in sorted(rows, key=lambda r: r["from_offset"]):
        partition = (row["kafka_topic"], row["kafka_partition"])
        first, end = found.get(partition, (row["from_offset"], row["from_offset"]))
        assert row["from_offset"] == end, row
        assert row["rows_in"] == row["rows_bronze"] == row["to_offset"] - row["from_offset"]
        found[partition] = (first, row["to_offset"])
    return found


@pytest.fixture
def driver(
    stack_services: object, stack_environ: dict[str, str], lake_kind: str, request: pytest.FixtureRequest
) -> Iterator[DriverProcess]:
    env = f"stream{next(NUMBERS)}"
    place = request.getfixturevalue("minio").variables(env) if lake_kind == "minio" else {}
    found = DriverProcess({**stack_environ, **place, "CRM_ENV": env})
    ensure(found.settings)
    yield found
    found.end()


def test_records_arrive_and_sigterm_ends_cleanly(driver: DriverProcess) -> None:
    driver.start()
    java = driver.java()
    assert os.getpgid(java.pid) != os.getpgid(driver.running.pid), "a signal to the group would hit Java in the middle of a batch"
    send(driver.settings, 400, seed=1)
    wait_until(lambda: driver.placed() == 400, "400 records have a place")
    wait_until(lambda: (read_progress(driver.settings) or never()).queries["ingest"].lag_records == 0, "no lag is reported")
    written = ends(driver.settings)
    for group in (bronze_group(driver.settings), silver_group(driver.settings)):
        wait_until(lambda group=group: committed(driver.settings, group) == written, f"group {group} stands at the topics' ends")
    assert metric(driver.settings, "crm_stream_rows_total", query="refine", outcome="dead_letters") == 8

    driver.running.send_signal(signal.SIGTERM)

    assert driver.running.wait(DEADLINE_SECONDS) == 0
    assert not java.is_running()
    assert driver.rows()["bronze"] == 400
    assert driver.rows()["dead_letters"] == 8
    progress = read_progress(driver.settings)
    assert progress is not None
    assert {q.state for q in progress.queries.values()} == {QueryState.STOPPED}


def never() -> StreamProgress:
    raise AssertionError("the driver has not reported")


@on_both_lakes
def test_killed_driver_leaves_no_java_and_goes_on_where_it_was_without_its_checkpoints(driver: DriverProcess) -> None:
    driver.start()
    java = driver.java()
    send(driver.settings, 300, seed=2)
    wait_until(lambda: driver.rows()["bronze"] > 0, "something is captured")

    driver.running.kill()
    driver.running.wait()
    wait_until(lambda: not java.is_running() or java.status() == psutil.STATUS_ZOMBIE, "Java ends when its parent is gone")
    shutil.rmtree(driver.settings.checkpoint_root)
    send(driver.settings, 300, seed=3)
    driver.start()

    wait_until(lambda: driver.placed() == 600, "600 records have a place")
    assert driver.rows()["bronze"] == 600
    assert noted_ranges(driver.settings) == {p: (0, end) for p, end in ends(driver.settings).items() if end}
    with pytest.raises(LakeLocked, match="stream"):
        catch_up(driver.settings)


def test_a_failing_refine_step_does_not_stop_the_capture(driver: DriverProcess) -> None:
    # A driver that is warm: the first batch of a cold one may take longer than refine is tried again.
    driver.launch()
    send(driver.settings, 100, seed=4)
    wait_until(lambda: driver.placed() == 100, "both steps run")
    silver = Path(driver.settings.table_uri("silver"))
    aside = silver.rename(silver.with_name("silver-aside"))
    silver.write_text("a file where a folder should be")
    send(driver.settings, 100, seed=14)
    wait_until(lambda: refine_state(driver.settings) is QueryState.RETRYING, "refine fails")
    send(driver.settings, 100, seed=24)

    wait_until(lambda: row_count(driver.settings, BRONZE.path) == 300, "the records are captured")
    assert refine_state(driver.settings) in {QueryState.RETRYING, QueryState.STARTING}

    silver.unlink()
    aside.rename(silver)

    wait_until(lambda: driver.placed() == 300, "refine has recovered by itself")


def refine_state(settings: Settings) -> QueryState:
    """What the driver says of its refine query."""
    return (read_progress(settings) or never()).queries["refine"].state


def content(settings: Settings) -> dict[str, list[str]]:
    """Every row of every refined table, but for when it was captured or refused."""
    found = {}
    for table in refined_tables():
        opened = open_table(settings, table.path)
        assert opened is not None
        columns = [c.name for c in table.columns if c.name not in {"ingested_at", "first_failed_at", "failed_at"}]
        found[table.name] = sorted(map(str, read_columns(settings, table.path, files_of(opened), columns).to_pylist()))
    return found


def test_catch_up_gives_the_tables_the_stream_gives(driver: DriverProcess, spark: SparkSession) -> None:
    settings = driver.settings
    send(settings, 200, seed=5)
    send(settings, 50, seed=5)

    done = run_both_steps(spark, settings)

    assert done.ingested == done.refined.read == 250
    assert run_both_steps(spark, settings).refined.read == 0
    in_batch = content(settings)
    Path(settings.lake_root).rename(f"{settings.lake_root}-batch")
    Path(settings.checkpoint_root).rename(f"{settings.checkpoint_root}-batch")
    driver.start()
    wait_until(lambda: driver.placed() == 250, "250 records have a place")
    assert content(settings) == in_batch
    assert min(len(in_batch[name]) for name in ("events", "dead_letters", "duplicates")) > 0
