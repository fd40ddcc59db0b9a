"""What the ledger says is what Kafka holds, whatever happens to broker and producer."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from crm_resources import kafka
from crm_resources.contracts import ENTITIES
from crm_resources.contracts.entities import kafka_key
from crm_resources.ledger import ledger_dir, ledger_files, payload_md5, read_ledger
from crm_resources.settings import REPOSITORY, Settings
from crm_resources.supervisor import Service
from deploy.local.stack import Stack
from generator.defects import DefectShares, with_defects
from generator.delivery import DeliveryError, deliver
from generator.pacing import PerSecond
from generator.records import Outgoing
from generator.synthetic import Shop, ShopOptions
from tests.integration.kafka_records import read_all, read_ledger_rows

SMALL = ShopOptions(seed=3, customers=40, products=20, orders=150, events=500, days=10)
PRODUCING = REPOSITORY / "docs/producing.md"


@pytest.fixture
def shop(stack_services: Stack, request: pytest.FixtureRequest) -> Settings:
    """Settings of a data set with topics that only this test uses."""
    settings = stack_services.settings.model_copy(update={"env": request.node.name.replace("test_", "s_", 1)[:30].lower()})
    kafka.ensure(settings)
    return settings


@pytest.fixture
def environ(stack_environ: dict[str, str], shop: Settings) -> dict[str, str]:
    """Variables of a process that works with this test's data set."""
    return {**stack_environ, "CRM_ENV": shop.env, "CRM_KAFKA_BOOTSTRAP": shop.kafka_bootstrap}


def records(seed: int = 3) -> list[Outgoing]:
    from random import Random

    made = Shop(SMALL, datetime(2026, 1, 31, tzinfo=UTC))
    return list(with_defects(made.history(), DefectShares.usual(0.05, 0.05), Random(seed)))


def test_the_ledger_is_what_kafka_holds(shop: Settings) -> None:
    sent = records()
    outcome = deliver(shop, "run", sent)
    assert (outcome.offered, outcome.acked, outcome.refused, outcome.unknown) == (len(sent), len(sent), 0, 0)
    held = {(r.topic, r.partition, r.offset): payload_md5(r.value) for r in read_all(shop)}
    ledger = {(r["topic"], r["partition"], r["offset"]): r["payload_md5"] for r in read_ledger_rows(shop)}
    assert ledger == held
    assert len(held) == len(sent)


def test_a_key_keeps_its_order_within_its_partition(shop: Settings) -> None:
    sent = [r for r in records() if r.defect is None]
    deliver(shop, "run", sent)
    partitions: dict[tuple[str, bytes | None], set[int]] = {}
    sequences: dict[tuple[str, str], int] = {}
    for record in read_all(shop):
        partitions.setdefault((record.topic, record.key), set()).add(record.partition)
        message = json.loads(record.value or b"")
        key = (message["entity"], message["entity_key"])
        assert message["sequence"] > sequences.get(key, -1)
        sequences[key] = message["sequence"]
    assert all(len(found) == 1 for found in partitions.values())


def test_a_record_too_large_for_kafka_is_refused_and_written_down(shop: Settings) -> None:
    good = records()[:10]
    huge = Outgoing("events", "event", b"k", b"x" * (9 * 1024 * 1024), "huge", "k", 1, good[0].event_us)
    outcome = deliver(shop, "run", [*good, huge])
    assert (outcome.acked, outcome.refused, outcome.unknown) == (10, 1, 0)
    (row,) = [r for r in read_ledger_rows(shop) if r["refused"]]
    assert (row["event_id"], row["offset"], row["acked_at"]) == ("huge", None, None)


def test_a_record_above_the_contracts_size_still_reaches_kafka(shop: Settings) -> None:
    outcome = deliver(shop, "run", [Outgoing("events", "event", b"k", b"x" * (7 * 1024 * 1024), "large", "k", 1, 0)])
    assert (outcome.acked, outcome.refused) == (1, 0)


def test_records_leave_at_their_scheduled_times(shop: Settings) -> None:
    sent = [r for r in records() if r.defect is None][:100]
    outcome = deliver(shop, "run", sent, pace=PerSecond(100))
    assert outcome.acked == 100
    rows = sorted(read_ledger_rows(shop), key=lambda r: r["intended_at"])
    gaps = {(b["intended_at"] - a["intended_at"]).total_seconds() for a, b in itertools.pairwise(rows)}
    assert gaps == {0.01}
    assert all(r["sent_at"] >= r["intended_at"] for r in rows)
    assert [r["event_id"] for r in rows] == [r.event_id for r in sent]


def test_a_frozen_broker_is_reported_and_nothing_counts_that_was_not_acked(shop: Settings, stack_services: Stack) -> None:
    sent = [r for r in records() if r.defect is None]
    pid = next(s.pid for s in stack_services.status() if s.service is Service.KAFKA)
    assert pid is not None

    def frozen_half_way() -> Iterator[Outgoing]:
        for index, record in enumerate(sent):
            if index == 200:
                freeze(pid)
            yield record

    try:
        with pytest.raises(DeliveryError, match=r"did not acknowledge .* run the same command again") as caught:
            deliver(shop, "frozen", frozen_half_way(), pace=PerSecond(400), delivery_timeout_seconds=3)
    finally:
        os.kill(pid, signal.SIGCONT)
    outcome = caught.value.outcome
    assert outcome.unknown > 0
    assert outcome.acked > 0
    assert outcome.acked + outcome.unknown == outcome.offered
    assert outcome.acked == len(read_ledger_rows(shop))
    again = deliver(shop, "again", sent)
    assert again.acked == len(sent)
    held = {(r.topic, r.partition, r.offset): payload_md5(r.value) for r in read_all(shop)}
    rows = read_ledger_rows(shop)
    assert {(r["topic"], r["partition"], r["offset"]): r["payload_md5"] for r in rows}.items() <= held.items()
    assert {r["event_id"] for r in rows} == {r.event_id for r in sent}


def test_kill_9_of_the_generator_leaves_only_rows_that_are_in_kafka(shop: Settings, environ: dict[str, str]) -> None:
    command = [sys.executable, "-m", "generator", "synthetic", "--no-history", "--live", "120", "--rate", "400", "--customers", "50"]
    with subprocess.Popen(command, cwd=REPOSITORY, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while sum(b.num_rows for p in ledger_files(ledger_dir(shop.environment_dir)) for b in read_ledger(p)) < 300:
            assert time.monotonic() < deadline
            assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
    held = {(r.topic, r.partition, r.offset): payload_md5(r.value) for r in read_all(shop)}
    ledger = {(r["topic"], r["partition"], r["offset"]): r["payload_md5"] for r in read_ledger_rows(shop)}
    assert len(ledger) >= 300
    assert ledger.items() <= held.items()


def test_a_run_asked_to_stop_ends_with_each_record_acked_once(shop: Settings) -> None:
    sent = records()
    handed_over: list[Outgoing] = []

    def noted() -> Iterator[Outgoing]:
        for record in sent:
            handed_over.append(record)
            yield record

    outcome = deliver(shop, "stopped", noted(), stop=lambda: len(handed_over) > 250)
    assert (outcome.interrupted, outcome.offered, outcome.acked, outcome.unknown) == (True, 250, 250, 0)
    ledger = sorted((r["topic"], r["partition"], r["offset"]) for r in read_ledger_rows(shop))
    assert ledger == [(r.topic, r.partition, r.offset) for r in read_all(shop)]


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_with_130_and_what_was_acked(
    stack_services: Stack, stack_environ: dict[str, str], sign: signal.Signals
) -> None:
    settings = stack_services.settings.model_copy(update={"env": f"s_interrupted_{sign.name.lower()}"})
    kafka.ensure(settings)
    environ = {**stack_environ, "CRM_ENV": settings.env, "CRM_KAFKA_BOOTSTRAP": settings.kafka_bootstrap}
    command = [sys.executable, "-m", "generator", "synthetic", "--no-history", "--live", "120", "--rate", "100", "--customers", "50"]
    with subprocess.Popen(command, cwd=REPOSITORY, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not read_ledger_rows(settings):
            assert time.monotonic() < deadline
            assert process.poll() is None
        process.send_signal(sign)
        shown, complaints = process.communicate(timeout=30)
    assert process.returncode == 130, complaints
    assert "acked" in shown
    ledger = sorted((r["topic"], r["partition"], r["offset"]) for r in read_ledger_rows(settings))
    assert ledger == [(r.topic, r.partition, r.offset) for r in read_all(settings)] != []


def test_a_broker_that_is_down_ends_with_1_and_says_what_to_do(environ: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "shop.jsonl"
    path.write_text(example("json lines"))
    command = [sys.executable, "-m", "generator", "send", str(path)]
    away = {**environ, "CRM_KAFKA_BOOTSTRAP": "127.0.0.1:1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=away, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Kafka at 127.0.0.1:1 did not answer" in done.stderr
    assert "Nothing was sent." in done.stderr


def test_the_file_of_the_guide_is_sent_and_sent_again_with_the_same_bytes(shop: Settings, environ: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "shop.jsonl"
    path.write_text(example("json lines"))
    for _ in range(2):
        command = [sys.executable, "-m", "generator", "send", str(path)]
        done = subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    held = read_all(shop)
    assert len(held) == 8
    assert len({(r.topic, r.key, r.value) for r in held}) == 4
    report = json.loads((shop.reports_dir / "send.json").read_text())
    assert (report["verdict"], report["figures"]["acked_rows"]) == ("pass", 4)


def test_the_producer_of_the_guide_works_as_it_is_printed(shop: Settings, environ: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", example("python")], cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (record,) = read_all(shop)
    message = ENTITIES["order"].model_validate_json(record.value or b"", strict=True)
    assert (record.topic, record.key) == (f"{shop.env}.orders", kafka_key(message))
    assert message.event_id in done.stdout


def freeze(pid: int) -> None:
    """Stop a process and wait until it stands still, which takes a moment on a busy machine."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 30
    while any(stat.read_text().rpartition(")")[2].split()[0] != "T" for stat in Path(f"/proc/{pid}/task").glob("*/stat")):
        assert time.monotonic() < deadline


def example(language: str) -> str:
    """The one example of a language in the guide."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", PRODUCING.read_text(), re.MULTILINE | re.DOTALL)
    return str(block)
