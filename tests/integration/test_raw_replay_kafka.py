"""Public data sets row by row through a real broker: sent = acked = rows, to topics the platform does not read."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from crm_resources import kafka
from crm_resources.ledger import payload_md5
from crm_resources.raw_topics import raw_ledger_dir, raw_topic_spec
from crm_resources.settings import REPOSITORY, Settings
from deploy.local.stack import Stack
from tests.integration.kafka_records import Record, read_all, read_ledger_rows
from tests.unit.test_raw_replay import AVAZU, AVAZU_ROW, EVENTS, RETAIL

RAW = ("online_retail", "retailrocket_events", "avazu")


@pytest.fixture
def shop(stack_services: Stack, request: pytest.FixtureRequest) -> Settings:
    """Settings of a data set that only this test uses; it has no topic yet."""
    return stack_services.settings.model_copy(update={"env": request.node.name.replace("test_", "w_", 1)[:30].lower()})


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A file of 300 rows of each format."""
    tables = {
        "online_retail": [RETAIL, *(f"{i // 4},P{i},thing,1,2010-12-01 08:{i % 60:02d}:00,1.5,{i // 8}.0,France" for i in range(300))],
        "retailrocket_events": [EVENTS, *(f"{1_433_221_332_117 + i},{i % 40},view,{i}," for i in range(300))],
        "avazu": [AVAZU, *(AVAZU_ROW.replace("1000009418151094273", str(10**18 + i)) for i in range(300))],
    }
    for name, lines in tables.items():
        (tmp_path / f"{name}.csv").write_text("\n".join([*lines, ""]))
    return {name: tmp_path / f"{name}.csv" for name in tables}


def replay_raw(shop: Settings, environ: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    variables = {**environ, "CRM_KAFKA_BOOTSTRAP": shop.kafka_bootstrap, "COLUMNS": "200"}
    command = [sys.executable, "-m", "generator", "replay-raw", *map(str, arguments), "--env", shop.env]
    return subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, check=False)


def held(shop: Settings, name: str) -> list[Record]:
    return read_all(shop, [raw_topic_spec(shop, name).name])


def event_ids(records: list[Record]) -> list[str]:
    return [json.loads(r.value or b"")["event_id"] for r in records]


def test_every_row_is_sent_acked_and_held_and_a_resend_has_the_same_ids(
    shop: Settings, stack_environ: dict[str, str], files: dict[str, Path]
) -> None:
    done = replay_raw(shop, stack_environ, *files.values())
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"300 │ +300 │ +300 │.* yes ", done.stdout)) == 3, done.stdout
    found = {name: held(shop, name) for name in RAW}
    for name, records in found.items():
        assert sorted(json.loads(r.value or b"")["row"] for r in records) == list(range(1, 301)), name
    ledger = {
        (r["topic"], r["partition"], r["offset"]): r["payload_md5"] for r in read_ledger_rows(shop, raw_ledger_dir(shop.environment_dir))
    }
    assert ledger == {(r.topic, r.partition, r.offset): payload_md5(r.value) for records in found.values() for r in records}
    assert read_ledger_rows(shop) == []  # the audit's ledgers know nothing of it
    assert kafka.observe(shop) == {}  # and none of the four topics came about by the way

    again = replay_raw(shop, stack_environ, files["avazu"], "--limit", "100", "--messages-per-second", "200", "--batch-size", "20")
    assert again.returncode == 0, again.stderr
    before, after = event_ids(found["avazu"]), event_ids(held(shop, "avazu"))
    assert len(set(before)) == len(set(after)) == 300
    assert len(after) == 400
    rows = [r for r in read_ledger_rows(shop, raw_ledger_dir(shop.environment_dir)) if r["entity"] == "raw.avazu"][300:]
    starts = sorted({(r["intended_at"] - rows[0]["intended_at"]).total_seconds() for r in rows})
    assert starts == [0.0, 0.1, 0.2, 0.3, 0.4]


def test_a_cut_off_file_ends_at_its_line_with_the_rows_before_it_acked(
    shop: Settings, stack_environ: dict[str, str], files: dict[str, Path]
) -> None:
    file = files["retailrocket_events"]
    file.write_text(file.read_text() + "1433221332117,25")
    done = replay_raw(shop, stack_environ, file, files["avazu"])
    assert done.returncode == 2
    assert "retailrocket_events.csv:302: the last line is cut off: 2 of 5 columns and no line end; fetch the file again" in done.stderr
    assert f"300 rows of retailrocket_events.csv are in {shop.env}.raw.retailrocket_events and in the ledger" in done.stderr
    assert "Files not begun: 1." in done.stderr
    assert len(held(shop, "retailrocket_events")) == 300
    assert held(shop, "avazu") == []
