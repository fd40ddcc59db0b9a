"""Replaying the Online Retail file through a real broker."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from crm_resources import kafka
from crm_resources.settings import REPOSITORY, Settings, load_settings
from deploy.local.stack import Stack
from tests.integration.kafka_records import read_all, read_ledger_rows

HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"


@pytest.fixture
def shop(stack_services: Stack, request: pytest.FixtureRequest) -> Settings:
    """Settings of a data set with topics that only this test uses."""
    settings = stack_services.settings.model_copy(update={"env": request.node.name.replace("test_", "r_", 1)[:30].lower()})
    kafka.ensure(settings)
    return settings


def replay(shop: Settings, environ: dict[str, str], file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    variables = {**environ, "CRM_KAFKA_BOOTSTRAP": shop.kafka_bootstrap}
    command = [sys.executable, "-m", "generator", "replay", str(file), "--env", shop.env, *options]
    return subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, check=False)


def test_a_second_replay_sends_the_same_records_again(shop: Settings, stack_environ: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "small.csv.gz"
    rows = [f"{536365 + i // 3},P{i},thing,{i % 5 - 1},2010-12-01 08:{i:02d}:00,{i}.25,{17850 + i // 3}.0,France" for i in range(60)]
    file.write_bytes(gzip.compress("\n".join([HEADER, *rows]).encode()))
    for options in (("--speed", "max"), ("--messages-per-second", "200")):
        done = replay(shop, stack_environ, file, *options)
        assert done.returncode == 0, done.stderr
    held = read_all(shop)
    assert len(held) == 40
    assert len({(r.partition, r.key, r.value) for r in held}) == 20
    assert sorted(json.loads(r.value or b"")["order_id"] for r in held) == sorted([str(536365 + i) for i in range(20)] * 2)
    facts = load_settings({**stack_environ, "CRM_ENV": shop.env})
    assert (facts.business_timezone, str(facts.as_of)) == ("Europe/London", "2010-12-02")


def test_a_wrong_file_sends_nothing(shop: Settings, stack_environ: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "small.csv"
    file.write_text(
        f"{HEADER}\n536365,P,thing,1,2010-12-01 08:00:00,1.25,17850.0,France\n536366,P,thing,one,2010-12-01 08:00:00,1,1,France"
    )
    done = replay(shop, stack_environ, file)
    assert done.returncode == 2
    assert "small.csv:3: Quantity: 'one' is no whole number" in done.stderr
    assert read_all(shop) == []
    assert read_ledger_rows(shop) == []


@pytest.mark.real_data
def test_every_line_of_the_real_file_reaches_kafka(shop: Settings, stack_environ: dict[str, str], shared_data: Path) -> None:
    done = replay(shop, stack_environ, shared_data / "online-retail/online_retail_2010_2011.csv.gz")
    assert done.returncode == 0, done.stderr
    orders = [json.loads(r.value or b"", parse_float=Decimal) for r in read_all(shop)]
    assert len(orders) == 25_900
    assert sorted(line["source_line"] for o in orders for line in o["lines"]) == list(range(1, 541_910))
    assert sum(Decimal(o["amount"]) for o in orders) == Decimal("9747747.934")
    assert sum(r["amount"] for r in read_ledger_rows(shop)) == Decimal("9747747.934")
