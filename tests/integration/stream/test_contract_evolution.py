"""A contract gains fields while messages flow: one edit and the platform's own commands, and the fields are everywhere, nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import IO, Any

import pytest

from crm_assets.streaming.progress import QueryProgress, QueryState, read_progress
from crm_assets.streaming.tables import refined_tables
from crm_resources import kafka, lake, warehouse
from crm_resources.layout import BRONZE, DEAD_LETTERS, DUPLICATES, SILVER, topic_name
from crm_resources.settings import REPOSITORY, Settings
from deploy.local.stack import Stack
from tests.integration.stream.messages import good_message

DEADLINE_SECONDS = 300

EDITS = {
    "class OrderLine(Message):": '    engraving: Text | None = added_in(2, "What is engraved on it.")\n',
    "class Order(Envelope):": '    gift_note: Identifier | None = added_in(2, "What the card says.")\n',
}
"""The whole of the work on the new version: a line at the end of each class's fields."""


class Installation:
    """A copy of the platform that a test may edit, with a data set of its own on the session's Kafka and PostgreSQL."""

    def __init__(self, root: Path, environ: dict[str, str], settings: Settings) -> None:
        for name in ("crm_assets", "crm_resources", "generator", "deploy", "dbt", "docs"):
            shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "target", "logs"))
        self.root, self.environ, self.settings = root, environ, settings
        self._driver: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] = (root / "driver.log").open("wb")

    def run(self, *command: str) -> str:
        done = subprocess.run([sys.executable, *command], cwd=self.root, env=self.environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    def up(self) -> str:
        """The part of `make up` that comes before the services, which are the session's."""
        call = "bring_up_to_date(load_settings(), Reporter())"
        imports = "from deploy.local.contracts import bring_up_to_date; from deploy.local.reporter import Reporter; "
        return self.run("-c", f"{imports}from crm_resources.settings import load_settings; {call}")

    def send(self, name: str, records: list[dict[str, Any]]) -> None:
        """Send records as a shop would, from a file, with rows in the ledger."""
        file = self.root / f"{name}.jsonl"
        file.write_text("".join(json.dumps(r) + "\n" for r in records))
        self.run("-m", "generator", "send", str(file), "--env", self.settings.env)

    def produce(self, *messages: dict[str, Any]) -> None:
        """Send messages as somebody else's producer would, unchecked."""
        sender = kafka.producer(self.settings)
        for message in messages:
            sender.produce(topic_name(self.settings.env, "orders"), json.dumps(message).encode(), message["entity_key"])
        assert sender.flush(60) == 0

    def start(self) -> None:
        command = [sys.executable, "-m", "crm_assets.streaming.driver"]
        self._driver = subprocess.Popen(command, cwd=self.root, env=self.environ, stdout=self._log, stderr=subprocess.STDOUT)

    def stop(self) -> None:
        if self._driver is not None and self._driver.poll() is None:
            self._driver.send_signal(signal.SIGTERM)
            assert self._driver.wait(DEADLINE_SECONDS) == 0

    def end(self) -> None:
        if self._driver is not None and self._driver.poll() is None:
            self._driver.kill()
            self._driver.wait()
        self._log.close()

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert self._driver is None or self._driver.poll() is None, (self.root / "driver.log").read_text()[-4000:]
            assert time.monotonic() < deadline, f"not within {DEADLINE_SECONDS} s: {what}"
            time.sleep(0.2)

    def settle(self, records: int) -> None:
        tables = refined_tables()
        self.wait(lambda: sum(lake.row_count(self.settings, t.path) for t in tables) >= records, f"{records} records have a place")

    def refine(self) -> QueryProgress | None:
        progress = read_progress(self.settings)
        running = progress is not None and self._driver is not None and progress.pid == self._driver.pid
        return progress.queries["refine"] if progress is not None and running else None

    def orders(self) -> dict[str, tuple[int, str | None, list[str | None]]]:
        """Schema version, note and engravings of each order in silver, by order number."""
        table = lake.open_table(self.settings, SILVER["orders"].path)
        assert table is not None
        rows = table.to_pyarrow_table().to_pylist()
        return {r["order_id"]: (r["schema_version"], r["gift_note"], [line["engraving"] for line in r["lines"]]) for r in rows}


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory, stack_environ: dict[str, str], stack_services: Stack) -> Iterator[Installation]:
    known = stack_services.settings
    root = tmp_path_factory.mktemp("installation")
    own = {"CRM_ENV": "evolving", "CRM_KAFKA_BOOTSTRAP": known.kafka_bootstrap, "CRM_POSTGRES_PORT": str(known.postgres_port)}
    found = Installation(root, {**stack_environ, **own, "PYTHONPATH": str(root)}, known.model_copy(update={"env": "evolving"}))
    kafka.ensure(found.settings)
    yield found
    found.end()


def order(number: str, seed: int, **fields: Any) -> dict[str, Any]:
    message = good_message("order", Random(seed))
    line = {"line_number": 1, "product_id": "P1", "quantity": 2, "unit_price": "2.50"} | fields.pop("line", {})
    return message | {"order_id": number, "entity_key": number, "amount": "5.00", "lines": [line]} | fields


def unversioned(message: dict[str, Any]) -> dict[str, Any]:
    """As a shop writes it that leaves the version to the platform."""
    return {name: value for name, value in message.items() if name != "schema_version"}


NOTED = {"gift_note": "Happy birthday", "line": {"engraving": "A & B"}}


def test_a_field_is_added_while_messages_of_both_versions_flow(installation: Installation) -> None:
    here, settings = installation, installation.settings
    before = [unversioned(order(f"before-{n}", n)) for n in range(5)]
    here.start()
    here.send("before", before)
    # Its producer is ahead of the platform; and one that sends what nobody knows yet.
    here.produce(order("ahead", 10, schema_version=2, **NOTED), order("unknown-field", 11, **NOTED))
    here.settle(7)
    assert reasons(settings) == ["unknown_schema_version"]
    here.run("-m", "crm_assets.warehouse.load")

    grow(here.root)
    told = here.up()
    assert here.up() == "", "a second `up` changes nothing"

    for name in ("order.schema.json", "docs/contracts.md", "_sources.yml", "stg_crm__order_lines.yml", "manifest"):
        assert name in told, told
    # The old stream still runs; what comes now waits in Kafka for the new one.
    here.stop()
    here.send("during", [unversioned(order("during-1", 20)), unversioned(order("during-2", 21, **NOTED))])
    here.start()
    here.settle(9)
    here.produce(
        order("after-2", 30, schema_version=2, **NOTED),
        # Of version 1 still, whatever these mean to their producer.
        order("after-1", 31, **NOTED),
        order("after-1-odd", 32, gift_note=17),
        order("after-2-odd", 33, schema_version=2, gift_note=17),
        order("after-3", 34, schema_version=3),
    )
    here.send("before", before)
    here.settle(19)
    here.stop()

    noted, plain = (2, "Happy birthday", ["A & B"]), (1, None, [None])
    assert here.orders() == {
        **{f"before-{n}": plain for n in range(5)},
        **{"unknown-field": plain, "during-1": plain, "during-2": noted, "after-2": noted, "after-1": plain, "after-1-odd": plain},
    }
    assert reasons(settings) == ["invalid_field", "unknown_schema_version", "unknown_schema_version"]
    assert lake.row_count(settings, DUPLICATES.path) == len(before), "a file sent again is the same bytes, though the contract has grown"

    here.run("-m", "crm_assets.warehouse.load")
    dbt(here, "run", "--select", "stg_crm__orders", "stg_crm__order_lines")
    staged = (
        "select o.order_id, o.gift_note, l.engraving from staging.stg_crm__orders o join staging.stg_crm__order_lines l using (event_id)"
    )
    assert {n: (note, [text]) for n, note, text in warehouse.fetch_rows(settings, staged)} == {n: v[1:] for n, v in here.orders().items()}
    manifest = json.loads((here.root / "dbt/manifest.json").read_text())["nodes"]
    assert manifest["model.crm.stg_crm__orders"]["columns"]["gift_note"]["description"] == "What the card says."

    here.run("-m", "crm_assets.monitoring.audit")
    report = json.loads((settings.reports_dir / "audit.json").read_text())
    assert report["verdict"] == "pass"
    assert report["figures"]["bronze_rows"] == 19


def test_a_change_by_hand_stops_the_refining_and_names_itself(installation: Installation) -> None:
    here, silver = installation, lake.open_table(installation.settings, SILVER["orders"].path)
    assert silver is not None
    version = silver.version()
    silver.delete("order_id = 'before-1'")
    captured = lake.row_count(here.settings, BRONZE.path)

    here.start()
    here.wait(lambda: (now := here.refine()) is not None and now.state is QueryState.FAILED, "refine reports its failure")
    failed = here.refine()
    here.produce(order("captured", 40))
    here.wait(lambda: lake.row_count(here.settings, BRONZE.path) == captured + 1, "the capture goes on")
    here.stop()

    assert failed is not None
    told = failed.error or ""
    assert told.startswith(f"orders was changed by hand: version {version + 1} (DELETE)")
    assert f"restore({version})" in told


def grow(root: Path) -> None:
    """Edit the contracts."""
    file = root / "crm_resources/contracts/entities.py"
    text = file.read_text()
    for head, line in EDITS.items():
        start = text.index(head)
        fields = text.index("\n\n", text.index("Field(", start))
        text = text[: fields + 1] + line + text[fields + 1 :]
    file.write_text(text)


def reasons(settings: Settings) -> list[str]:
    table = lake.open_table(settings, DEAD_LETTERS.path)
    assert table is not None
    return sorted(lake.read_columns(settings, DEAD_LETTERS.path, lake.files_of(table), ["reason"])["reason"].to_pylist())


def dbt(here: Installation, *arguments: str) -> None:
    environ = {**here.environ, **warehouse.dbt_environment(here.settings)}
    places = ["--project-dir", "dbt", "--profiles-dir", "dbt", "--no-version-check"]
    command = [os.fspath(Path(sys.executable).with_name("dbt")), *arguments, *places]
    done = subprocess.run(command, cwd=here.root, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
