"""A scenario's run against a real broker: rates, metrics and ledger, and what happens when the broker is full, frozen or away."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.request import urlopen
from zlib import crc32

import pytest

from crm_resources import kafka
from crm_resources.ledger import payload_md5
from crm_resources.ordered_defects import Defect
from crm_resources.settings import REPOSITORY, Settings
from crm_resources.supervisor import Service
from deploy.local.stack import Stack
from generator.delivery import WhenFull, deliver
from generator.records import Outgoing
from tests.integration.kafka_records import read_all, read_ledger_rows
from tests.integration.test_send_kafka import freeze

SCENARIO = """
seed: 11
customers: 50
products: 20
mix: {events: 0.85, orders: 0.1, products: 0.01, profiles: 0.04}
phases:
  - {name: calm, duration: 3s, rate: 100}
  - name: rush
    duration: 3s
    rate: 1000
    hot_key_share: 0.5
    defects: {duplicate: 0.02, late: 0.02, out_of_order: 0.02, corrupt_json: 0.01}
"""


@pytest.fixture
def shop(stack_services: Stack, request: pytest.FixtureRequest) -> Settings:
    """Settings of a data set with topics that only this test uses."""
    settings = stack_services.settings.model_copy(update={"env": f"scenario_{crc32(request.node.name.encode()):08x}"})
    kafka.ensure(settings)
    return settings


@pytest.fixture
def environ(stack_environ: dict[str, str], shop: Settings) -> dict[str, str]:
    """Variables of a process that works with this test's data set."""
    return {**stack_environ, "CRM_ENV": shop.env, "CRM_KAFKA_BOOTSTRAP": shop.kafka_bootstrap}


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "short.yml"
    path.write_text(SCENARIO)
    return path


def test_a_scenario_keeps_its_rates_serves_its_metrics_and_is_in_the_ledger(
    shop: Settings, environ: dict[str, str], scenario: Path
) -> None:
    command = [sys.executable, "-m", "generator", "run", str(scenario), "--metrics-port", "0"]
    with subprocess.Popen(command, cwd=REPOSITORY, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        assert process.stdout
        address = re.search(r"http://127\.0\.0\.1:\d+/metrics", process.stderr.readline())
        assert address
        rest = threading.Thread(target=process.stderr.read)
        rest.start()
        scraped = ""
        deadline = time.monotonic() + 60
        while 'phase="rush"} 1.0' not in scraped:
            assert time.monotonic() < deadline, scraped
            assert process.poll() is None
            with urlopen(address[0], timeout=5) as answer:
                scraped = answer.read().decode()
        shown = process.stdout.read()
        assert process.wait(timeout=60) == 0
        rest.join()
    assert re.search(r'crm_generator_acked_records_total\{entity="event"\} [1-9]', scraped)
    assert 'crm_generator_lateness_seconds_bucket{le="+Inf"}' in scraped
    assert "rush" in shown

    report = json.loads((shop.reports_dir / "scenario.json").read_text())
    figures = report["figures"]
    assert (report["verdict"], figures["truth_bgnbd"]) == ("pass", 0)
    assert (figures["introduction_rows"], figures["offered_rows"], figures["acked_rows"]) == (70, 3_370, 3_370)
    assert figures["calm_offered_per_s"] == pytest.approx(100, rel=0.02)
    assert figures["rush_offered_per_s"] == pytest.approx(1_000, rel=0.02)
    head, *seconds = [json.loads(line) for line in (shop.reports_dir / "scenario.jsonl").read_text().splitlines()]
    assert head["truth"] == {"bgnbd": False}
    assert sum(s["offered"] for s in seconds) == sum(s["achieved"] for s in seconds) == sum(s["acked"] for s in seconds) == 3_300

    rows = read_ledger_rows(shop)
    held = {(r.topic, r.partition, r.offset): payload_md5(r.value) for r in read_all(shop)}
    assert {(r["topic"], r["partition"], r["offset"]): r["payload_md5"] for r in rows} == held
    assert len(rows) == 3_370
    assert {r["defect"] for r in rows} == {None, Defect.DUPLICATE, Defect.LATE, Defect.OUT_OF_ORDER, Defect.CORRUPT_JSON}
    intended = sorted(r["intended_at"] for r in rows)[70:]
    gaps = Counter(round((b - a).total_seconds(), 5) for a, b in itertools.pairwise(intended))
    assert gaps == {0.01: 300, 0.001: 2_999}


@pytest.mark.parametrize("policy", list(WhenFull))
def test_a_full_queue_is_waited_for_or_shed_as_stated(shop: Settings, policy: WhenFull) -> None:
    records: list[Outgoing] = []
    for n in range(2_000):
        good = Outgoing("events", "event", b"k", f'{{"n":{n}}}'.encode(), f"id-{n}", "k", n, n)
        records += [good, Outgoing("events", "event", b"k", b"{}", f"id-{n}", "k", n, n, defect=Defect.CONFLICTING_DUPLICATE)]
    outcome = deliver(shop, "full", records, when_full=policy, producer_options={"queue.buffering.max.messages": 50})
    assert outcome.offered == 4_000
    assert outcome.acked + outcome.shed == outcome.offered
    assert (outcome.shed > 0) is (policy is WhenFull.SHED)
    rows = read_ledger_rows(shop)
    assert len(rows) == outcome.acked == len(read_all(shop))
    sent = {r["event_id"] for r in rows if r["defect"] is None}
    assert {r["event_id"] for r in rows if r["defect"]} <= sent  # nothing contradicts a record that was left out


def test_a_broker_that_freezes_ends_the_run_with_1_and_a_readable_ledger(
    shop: Settings, environ: dict[str, str], scenario: Path, stack_services: Stack
) -> None:
    pid = next(s.pid for s in stack_services.status() if s.service is Service.KAFKA)
    assert pid is not None
    command = [sys.executable, "-m", "generator", "run", str(scenario), "--timeout", "2"]
    with subprocess.Popen(command, cwd=REPOSITORY, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while len(read_ledger_rows(shop)) < 150:
            assert time.monotonic() < deadline
            assert process.poll() is None
        freeze(pid)
        try:
            _, complaints = process.communicate(timeout=60)
        finally:
            os.kill(pid, signal.SIGCONT)
    assert process.returncode == 1
    assert re.search(r"did not acknowledge \d+ of \d+ records within 2 s", complaints)
    report = json.loads((shop.reports_dir / "scenario.json").read_text())
    assert (report["verdict"], report["figures"]["unknown_rows"] > 0) == ("fail", True)
    rows = {(r["topic"], r["partition"], r["offset"]): r["payload_md5"] for r in read_ledger_rows(shop)}
    assert len(rows) == report["figures"]["acked_rows"]
    assert rows.items() <= {(r.topic, r.partition, r.offset): payload_md5(r.value) for r in read_all(shop)}.items()


def test_nobody_at_the_brokers_address_ends_the_run_with_1_and_nothing_sent(environ: dict[str, str], scenario: Path) -> None:
    command = [sys.executable, "-m", "generator", "run", str(scenario), "--wait", "1"]
    away = {**environ, "CRM_KAFKA_BOOTSTRAP": "127.0.0.1:1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=away, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "Kafka at 127.0.0.1:1 did not answer" in done.stderr
    assert "Nothing was sent." in done.stderr


def test_a_faulty_scenario_ends_with_2_and_names_its_line(environ: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "bad.yml"
    path.write_text("phases:\n  - name: a\n    duration: 1s\n    rate: -5\n")
    command = [sys.executable, "-m", "generator", "run", str(path)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{path}:4: phases[1].rate: must be 0 or more, not -5" in done.stderr
