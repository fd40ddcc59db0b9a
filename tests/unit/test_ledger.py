"""The ledger keeps what was acknowledged, whatever happens to its writer."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pyarrow as pa  # noqa: TID253 -- tests need not start fast
import pytest

from crm_resources.ledger import (
    NO_DIGEST,
    LedgerError,
    LedgerRow,
    LedgerWriter,
    ledger_files,
    ledger_schema,
    payload_md5,
    read_ledger,
)

ROW = LedgerRow(
    event_id="019a0000-0000-7000-8000-000000000000",
    entity="order",
    entity_key="O-1",
    sequence=1,
    amount=Decimal("12.3400"),
    payload_md5=payload_md5(b"{}"),
    topic="demo.orders",
    partition=0,
    offset=0,
    intended_us=1_700_000_000_000_000,
    sent_us=1_700_000_000_000_001,
    acked_us=1_700_000_000_000_002,
    defect=None,
    refused=False,
)


def write(directory: Path, count: int, batch_rows: int = 10) -> Path:
    with LedgerWriter(directory, "run", batch_rows=batch_rows) as ledger:
        for offset in range(count):
            ledger.append(ROW._replace(offset=offset))
        return ledger.path


def offsets(path: Path) -> list[int]:
    return [value for batch in read_ledger(path, ["offset"]) for value in batch.column("offset").to_pylist()]


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    (batch,) = read_ledger(write(tmp_path, 1))
    (row,) = batch.to_pylist()
    assert row["run_id"] == "run"
    assert row["amount"] == Decimal("12.3400")
    assert row["payload_md5"] == payload_md5(b"{}")
    assert row["acked_at"].microsecond == 2
    assert row["refused"] is False


def test_a_row_counts_only_when_its_batch_is_on_disk(tmp_path: Path) -> None:
    with LedgerWriter(tmp_path, "run", batch_rows=3) as ledger:
        ledger.append(ROW)
        ledger.append(ROW._replace(partition=None, offset=None, acked_us=None, refused=True))
        assert (ledger.durable_acked, ledger.durable_refused) == (0, 0)
        ledger.append(ROW)
        assert (ledger.durable_acked, ledger.durable_refused) == (2, 1)


def test_an_old_batch_is_written_before_it_is_full(tmp_path: Path) -> None:
    now = [0.0]
    with LedgerWriter(tmp_path, "run", max_age_seconds=1, clock=lambda: now[0]) as ledger:
        ledger.append(ROW)
        ledger.tend()
        assert ledger.durable_acked == 0
        now[0] = 1.5
        ledger.tend()
        assert ledger.durable_acked == 1


def test_every_truncation_leaves_whole_batches_only(tmp_path: Path) -> None:
    path = write(tmp_path, 35)
    content = path.read_bytes()
    seen = set()
    for length in range(0, len(content) + 1, 7):
        path.write_bytes(content[:length])
        found = offsets(path)
        assert found == list(range(len(found)))
        assert len(found) in (0, 10, 20, 30, 35)
        seen.add(len(found))
    assert seen >= {0, 10, 20, 30, 35}


def test_nothing_counts_behind_a_batch_that_the_disk_refused(tmp_path: Path) -> None:
    ledger = LedgerWriter(tmp_path, "run", batch_rows=1000)
    ledger.append(ROW)
    ledger.flush()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ledger.path.stat().st_size + 100, limits[1]))
    try:
        ledger.append(ROW)
        with pytest.raises(LedgerError, match="do not count as acked"):
            ledger.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    # The disk has room again, but what lies behind the torn batch could not be read back.
    ledger.append(ROW)
    with pytest.raises(LedgerError, match="do not count as acked"):
        ledger.close()
    assert (ledger.durable_acked, len(offsets(ledger.path))) == (1, 1)


def test_batches_survive_kill_9(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path\n"
        "from tests.unit.test_ledger import ROW, LedgerWriter\n"
        "ledger = LedgerWriter(Path(sys.argv[1]), 'killed', batch_rows=10)\n"
        "for n in range(25): ledger.append(ROW._replace(offset=n))\n"
        "print(ledger.durable_acked, flush=True); time.sleep(600)\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, cwd=root) as process:
        assert process.stdout is not None
        counted = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
    assert counted == 20
    assert offsets(ledger_files(tmp_path, "killed")[0]) == list(range(20))


def test_each_writer_of_a_run_has_a_file_of_its_own(tmp_path: Path) -> None:
    with LedgerWriter(tmp_path, "a") as one, LedgerWriter(tmp_path, "a") as two, LedgerWriter(tmp_path, "a-2") as other:
        assert len({one.path, two.path, other.path}) == 3
    assert ledger_files(tmp_path, "a") == [one.path, two.path]
    assert len(ledger_files(tmp_path)) == 3


def test_a_run_id_with_odd_characters_stays_inside_the_folder(tmp_path: Path) -> None:
    with LedgerWriter(tmp_path, "../a/b c") as ledger:
        assert ledger.path.parent == tmp_path
    assert ledger_files(tmp_path, "../a/b c") == [ledger.path]


def test_another_file_is_not_taken_for_a_ledger(tmp_path: Path) -> None:
    path = tmp_path / "run-1.arrows"
    path.write_bytes(b"not a ledger at all")
    with pytest.raises(LedgerError, match=r"run-1\.arrows is no ledger"):
        list(read_ledger(path))


def test_no_value_and_an_empty_value_have_different_digests() -> None:
    assert payload_md5(None) == NO_DIGEST
    assert payload_md5(b"") != NO_DIGEST


def test_a_file_of_an_older_generator_reads_with_null_typed_checksums(tmp_path: Path) -> None:
    older = pa.schema(list(ledger_schema())[:-1])
    row = {f.name: None for f in older} | {"run_id": "old", "event_id": "x", "refused": False, "sequence": 1, "payload_md5": NO_DIGEST}
    row |= dict.fromkeys(("entity", "entity_key", "topic"), "k") | dict.fromkeys(("intended_at", "sent_at"), 0)
    with pa.OSFile(str(tmp_path / "old-1.arrows"), "wb") as file, pa.ipc.new_stream(file, older) as stream:
        stream.write_table(pa.Table.from_pylist([row], older))
    (file_path,) = ledger_files(tmp_path)
    (whole,) = read_ledger(file_path)
    assert whole.schema.names == ledger_schema().names
    (part,) = read_ledger(file_path, ["typed_md5", "event_id"])
    assert part.to_pylist() == [{"typed_md5": None, "event_id": "x"}]
