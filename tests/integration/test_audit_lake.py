"""The audit over a real lake and warehouse: it passes when the books close, and names what is planted into them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest

from crm_assets.monitoring.audit import AuditResult, run_audit
from crm_resources import kafka, lake, warehouse
from crm_resources.layout import BRONZE, DUPLICATES, SILVER
from crm_resources.ledger import LedgerError, ledger_dir, ledger_files, ledger_runs, read_ledger
from crm_resources.settings import REPOSITORY, Settings
from deploy.local.stack import Stack
from generator.defects import DefectShares, with_defects
from generator.delivery import deliver
from generator.records import Defect
from generator.synthetic import Shop, ShopOptions

OPTIONS = ShopOptions(seed=5, customers=80, products=30, orders=300, events=1_500, days=20)


@pytest.fixture(scope="module")
def environ(stack_environ: dict[str, str], stack_services: Stack) -> dict[str, str]:
    known = stack_services.settings
    return {
        **stack_environ,
        "CRM_ENV": "audited",
        "CRM_KAFKA_BOOTSTRAP": known.kafka_bootstrap,
        "CRM_POSTGRES_PORT": str(known.postgres_port),
    }


@pytest.fixture(scope="module")
def audited(stack_services: Stack, environ: dict[str, str]) -> Settings:
    """A data set that went all the way: sent with defects, streamed, loaded."""
    settings = stack_services.settings.model_copy(update={"env": "audited"})
    kafka.ensure(settings)
    warehouse.prepare(settings)
    shop = Shop(OPTIONS, datetime(2026, 1, 31, tzinfo=UTC))
    shares = DefectShares(**{d.value: 0.001 if d in (Defect.OVERSIZED, Defect.DEEP_NESTING) else 0.02 for d in Defect})
    deliver(settings, shop.run_id, with_defects(shop.history(), shares, Random(1)))
    script = (
        "from crm_resources.settings import load_settings as settings\n"
        "from crm_assets.streaming.catch_up import catch_up\n"
        "from crm_assets.warehouse.load import load_all\n"
        "catch_up(settings()); load_all(settings())"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return settings


def broken(result: AuditResult) -> set[str]:
    return {c.name for c in result.checks if not c.passed}


def test_the_books_of_a_whole_run_close(audited: Settings) -> None:
    result = run_audit(audited)
    assert result.passed, result.verdict_text()
    c = result.counts
    assert c.acked == c.bronze == c.silver + c.dead_letters + c.duplicates
    assert c.silver == c.warehouse
    assert c.dead_letters > 0
    assert c.duplicates > 0
    assert result.ledger_revenue == result.warehouse_revenue
    sums = result.checksums
    assert sums.ledger_typed == sums.silver_typed
    assert sums.silver_all == sums.warehouse_all
    assert (c.typed, c.untyped) == (c.silver, 0)
    assert [x.name for x in result.checks if x.unchecked] == ["revenue in the marts is that of the ledger"]
    assert set(result.dead_letter_reasons) >= {"corrupt_json", "null_value", "conflicting_duplicate"}


def test_every_kind_of_defect_was_sent(audited: Settings) -> None:
    kinds = {row["defect"] for row in ledger_rows(audited, "defect")}
    assert kinds == {None, *(d.value for d in Defect)}


def test_the_command_shows_the_verdict_and_leaves_a_report(audited: Settings, environ: dict[str, str]) -> None:
    command = [sys.executable, "-m", "crm_assets.monitoring.audit", "--wait", "5"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "missing 0, duplicated 0, content equal, order kept, books closed" in done.stdout
    report = json.loads((audited.reports_dir / "audit.json").read_text())
    assert report["verdict"] == "pass"
    assert report["figures"]["missing_rows"] == report["figures"]["duplicated_rows"] == 0


def test_a_row_deleted_from_the_warehouse_is_named_and_the_command_ends_with_1(audited: Settings, environ: dict[str, str]) -> None:
    with warehouse.connect(audited) as connection, connection.cursor() as cursor:
        cursor.execute("create table raw.kept as select * from raw.orders order by event_id limit 1")
        cursor.execute("delete from raw.orders where event_id in (select event_id from raw.kept)")
        cursor.execute("select event_id from raw.kept")
        (event_id,) = cursor.fetchone()
        connection.commit()
    try:
        result = run_audit(audited)
        assert result.missing == (event_id,)
        assert "every silver row is in the warehouse" in broken(result)
        command = [sys.executable, "-m", "crm_assets.monitoring.audit"]
        done = subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert f"missing: {event_id}" in done.stdout
    finally:
        with warehouse.connect(audited) as connection, connection.cursor() as cursor:
            cursor.execute("insert into raw.orders select * from raw.kept")
            cursor.execute("drop table raw.kept")
            connection.commit()
    assert run_audit(audited).passed


def test_a_changed_cent_in_the_warehouse_is_found(audited: Settings) -> None:
    change = "update raw.orders set amount = amount {} 0.01 where event_id = (select min(event_id) from raw.orders)"
    _execute(audited, change.format("+"))
    try:
        result = run_audit(audited)
        assert broken(result) == {
            "typed content in the warehouse is that of silver",
            "revenue in the warehouse is that of the ledger",
            "order lines add up to their orders",
        }
        (example,) = next(c.examples for c in result.checks if c.name.startswith("typed content in the warehouse"))
        assert " amount is " in example
        assert f"{audited.env}.orders[" in example
    finally:
        _execute(audited, change.format("-"))
    assert run_audit(audited).passed


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (BRONZE.path, {"each coordinate stands once in each place"}),
        (SILVER["orders"].path, {"event ids are unique in silver", "each coordinate stands once in each place"}),
        (DUPLICATES.path, {"each coordinate stands once in each place"}),
    ],
)
def test_a_file_written_twice_to_a_lake_table_is_found(audited: Settings, path: str, expected: set[str]) -> None:
    from deltalake import write_deltalake

    table = lake.open_table(audited, path)
    assert table is not None
    version = table.version()
    doubled = table.to_pyarrow_table().slice(0, 3)
    # The stream is not running: nobody else writes this table.
    write_deltalake(table, doubled, mode="append")
    try:
        result = run_audit(audited)
        assert expected <= broken(result)
        assert result.doubled_rows == (3 if "silver" in path else 0)
    finally:
        table.restore(version)
    assert run_audit(audited).passed


def test_rows_deleted_from_silver_are_named(audited: Settings) -> None:
    table = lake.open_table(audited, SILVER["events"].path)
    assert table is not None
    version = table.version()
    victim = table.to_pyarrow_table(columns=["event_id"]).column("event_id")[7].as_py()
    table.delete(f"event_id = '{victim}'")
    try:
        result = run_audit(audited)
        assert result.missing == (victim,)
        assert {"every bronze record was placed", "the warehouse holds nothing that silver lacks"} <= broken(result)
    finally:
        table.restore(version)
    assert run_audit(audited).passed


def test_one_changed_byte_in_bronze_is_named(audited: Settings) -> None:
    import pyarrow.parquet as pq

    table = lake.open_table(audited, BRONZE.path)
    assert table is not None
    file = next(f for f in lake.files_of(table) if "orders" in f.path)
    path = Path(audited.table_uri(BRONZE.path)) / lake.unquoted(file.path)
    original = path.read_bytes()
    content = pq.ParquetFile(path).read()
    values = content.column("value").to_pylist()
    values[0] = (values[0] or b"") + b" "
    place = content.schema.get_field_index("value")
    import pyarrow as pa

    pq.write_table(content.set_column(place, content.schema.field(place), pa.array(values, content.schema.field(place).type)), path)
    try:
        result = run_audit(audited)
        (check,) = [c for c in result.checks if not c.passed]
        assert (check.invariant, check.broken) == ("I3", 1), result.verdict_text()
        assert ".orders[" in check.examples[0]
    finally:
        path.write_bytes(original)
    assert run_audit(audited).passed


def test_a_changed_amount_in_silver_is_named_with_its_field(audited: Settings) -> None:
    with doctored(audited, "orders", "amount = amount + 0.0001") as event_id:
        result = run_audit(audited)
        assert {"typed content in silver is that which was sent", "typed content in the warehouse is that of silver"} == broken(result)
        (example,) = next(c.examples for c in result.checks if c.name.startswith("typed content in silver"))
        assert example.startswith(f"{event_id} {audited.env}.orders[")
        assert " amount is " in example
    assert run_audit(audited).passed


def test_two_records_of_a_key_swapped_in_sequence_are_named(audited: Settings) -> None:
    from deltalake import write_deltalake

    table = lake.open_table(audited, SILVER["events"].path)
    assert table is not None
    version = table.version()
    rows = table.to_pyarrow_table()
    plain = {r["event_id"] for r in ledger_rows(audited, "event_id", "defect") if r["defect"] is None}
    of_key: dict[tuple[str, int], list[int]] = {}
    for place, row in enumerate(rows.select(["event_id", "entity_key", "kafka_partition"]).to_pylist()):
        if row["event_id"] in plain:
            of_key.setdefault((row["entity_key"], row["kafka_partition"]), []).append(place)
    offsets, sequences = rows["kafka_offset"].to_pylist(), rows["sequence"].to_pylist()
    first, second = sorted(next(places for places in of_key.values() if len(places) >= 2), key=lambda p: offsets[p])[:2]
    sequences[first], sequences[second] = sequences[second], sequences[first]
    swapped = rows.set_column(rows.schema.get_field_index("sequence"), "sequence", [sequences])
    write_deltalake(table, swapped.cast(rows.schema), mode="overwrite")
    try:
        result = run_audit(audited)
        (check,) = [c for c in result.checks if c.invariant == "I4"]
        event_id, topic, partition = (rows[name][second].as_py() for name in ("event_id", "kafka_topic", "kafka_partition"))
        # A record of the key with another defect may stand between the two, and then behind the first one as well.
        assert check.broken in (1, 2)
        assert f"{event_id} {topic}[{partition}]@{offsets[second]}" in check.examples
    finally:
        table.restore(version)
    assert run_audit(audited).passed


def test_a_run_without_a_ledger_is_refused_with_the_runs_there_are(audited: Settings) -> None:
    (known,) = ledger_runs(ledger_dir(audited.environment_dir))
    assert run_audit(audited, run_id=known).run_id == known
    with pytest.raises(LedgerError, match=f"no ledger of a run another in .*; runs with a ledger: {known}"):
        run_audit(audited, run_id="another")


def test_an_unreachable_warehouse_ends_with_2_and_says_what_to_do(audited: Settings, environ: dict[str, str]) -> None:
    command = [sys.executable, "-m", "crm_assets.monitoring.audit", "--no-kafka"]
    away = {**environ, "CRM_WAREHOUSE_DSN": "postgresql://crm@127.0.0.1:1/postgres"}
    done = subprocess.run(command, cwd=REPOSITORY, env=away, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "the audit of audited could not run: PostgreSQL at 127.0.0.1:1 does not answer" in done.stderr
    assert os.linesep + "Traceback" not in done.stderr


def _execute(settings: Settings, statement: str) -> None:
    with warehouse.connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        connection.commit()


def ledger_rows(settings: Settings, *columns: str) -> list[dict[str, Any]]:
    files = ledger_files(ledger_dir(settings.environment_dir))
    return [row for file in files for batch in read_ledger(file, columns) for row in batch.to_pylist()]


@contextmanager
def doctored(settings: Settings, plural: str, change: str) -> Iterator[str]:
    """One row of a silver table changed in place; gives its event id."""
    table = lake.open_table(settings, SILVER[plural].path)
    assert table is not None
    version = table.version()
    event_id = table.to_pyarrow_table(columns=["event_id"]).column("event_id")[0].as_py()
    name, _, expression = change.partition(" = ")
    # The stream is not running: nobody else writes this table.
    table.update(updates={name: f"cast({expression} as decimal(18,4))"}, predicate=f"event_id = '{event_id}'")
    try:
        yield event_id
    finally:
        table.restore(version)
