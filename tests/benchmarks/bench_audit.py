"""`make bench-audit`: how long the audit takes and how much memory, on tables of a stated number of events made for it.

The tables are written with delta-rs, without Kafka and Spark: what a whole run leaves behind, in the ledger, bronze and silver. What
PostgreSQL would hand over (coordinates, ids, checksums) is kept in a file, so the time its SQL takes is not in the figures. Each audit
runs in a process of its own, on two sizes, so that the growth of memory with the number of events can be seen.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa  # noqa: TID253 -- a benchmark need not start fast
import pyarrow.compute as pc  # noqa: TID253 -- as above
import pyarrow.parquet as pq  # noqa: TID253 -- as above
import typer
from deltalake import write_deltalake  # noqa: TID253 -- as above
from rich.console import Console
from rich.table import Table

from crm_assets.monitoring.audit import audit
from crm_assets.monitoring.audit_reading import byte_halves
from crm_assets.monitoring.audit_sources import MartFindings, open_sources
from crm_assets.monitoring.checksums import halves_of
from crm_resources.contracts import contract_for
from crm_resources.contracts.canonical import column_digests
from crm_resources.contracts.derive_arrow import arrow_schema
from crm_resources.layout import BRONZE, SILVER, silver_columns, topic_name
from crm_resources.ledger import ledger_dir, ledger_schema
from crm_resources.report import Verdict, write_report
from crm_resources.settings import REPOSITORY, Settings, load_settings
from tests.oracle.lake_writer import nullable

CONSOLE = Console()
PARTITIONS = 6
ROWS_PER_FILE = 250_000
ROWS_PER_LEDGER_BATCH = 10_000
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
MEMORY_TARGET_MIB = 4096
TARGET_EVENTS = 50_000_000


def main(
    events: Annotated[int, typer.Option(help="Events to audit.")] = 5_000_000,
    smaller: Annotated[int, typer.Option(help="Events of the smaller audit before it, to see the growth; 0 leaves it out.")] = 1_000_000,
    folder: Annotated[Path | None, typer.Option(help="Where the tables are made, and deleted; default: below CRM_HOME.")] = None,
    part: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Audit tables made for it; report seconds and peak memory."""
    started = datetime.now(UTC)
    home = folder or load_settings().home / "bench-audit"
    settings = load_settings({"CRM_HOME": str(home), "CRM_ENV": "bench"})
    if part:
        CONSOLE.print_json(json.dumps(_write(settings, events) if part == "write" else _audit(settings)))
        return
    figures: dict[str, float] = {}
    for name, size in (("smaller", smaller), ("whole", events)):
        if not size:
            continue
        shutil.rmtree(home, ignore_errors=True)
        try:
            written, audited = (_run(home, size, step) for step in ("write", "audit"))
        finally:
            shutil.rmtree(home, ignore_errors=True)
        suffix = "" if name == "whole" else "_smaller"
        figures |= {
            f"events{suffix}": size,
            f"write_seconds{suffix}": written["seconds"],
            f"audit_seconds{suffix}": audited["seconds"],
            f"audit_cpu_seconds{suffix}": audited["cpu_seconds"],
            f"audited_events_per_s{suffix}": round(size / audited["seconds"]),
            f"peak_rss_mib{suffix}": audited["peak_rss_mib"],
        }
    if smaller:
        growth = (figures["peak_rss_mib"] - figures["peak_rss_mib_smaller"]) * 2**20 / (events - smaller)
        figures["growth_bytes_per_event"] = round(growth, 2)
        figures["peak_rss_mib_at_50_million"] = round(figures["peak_rss_mib"] + max(0.0, growth) * (TARGET_EVENTS - events) / 2**20)
    table = Table("figure", "value", title="bench-audit", title_justify="left")
    for name, value in figures.items():
        table.add_row(name, f"{value:,}")
    CONSOLE.print(table)
    passed = figures.get("peak_rss_mib_at_50_million", figures["peak_rss_mib"]) <= MEMORY_TARGET_MIB
    write_report(load_settings().reports_dir, "bench-audit", Verdict.PASS if passed else Verdict.FAIL, figures, started=started)
    raise typer.Exit(0 if passed else 1)


def _run(home: Path, events: int, part: str) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.bench_audit", "--events", str(events), "--folder", str(home), "--part", part]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


# -- the audit -------------------------------------------------------------------------------------------------------------


def _audit(settings: Settings) -> dict[str, float]:
    begun = time.monotonic()
    sources = open_sources(settings, with_kafka=False)
    sources = replace(
        sources,
        warehouse={p: partial(_handed_over, settings, p) for p in SILVER},
        order_totals=lambda: None,
        marts=lambda: MartFindings("the benchmark has no marts"),
    )
    result = audit(sources)
    if not result.passed:
        raise SystemExit(result.verdict_text())
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": round(time.monotonic() - begun, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_rss_mib": _peak_rss_mib(),
    }


def _handed_over(settings: Settings, plural: str) -> Iterator[pa.RecordBatch]:
    path = settings.home / f"warehouse-{plural}.parquet"
    if path.exists():
        yield from pq.ParquetFile(path).iter_batches(65_536)


def _peak_rss_mib() -> float:
    """Highest resident memory of this process since it began its program."""
    status = Path("/proc/self/status").read_text()
    kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return round(kib / 1024, 1)


# -- the tables ------------------------------------------------------------------------------------------------------------


def _write(settings: Settings, events: int) -> dict[str, float]:
    begun = time.monotonic()
    directory = ledger_dir(settings.environment_dir)
    directory.mkdir(parents=True)
    contract = contract_for("event")
    topic = topic_name(settings.env, contract.plural)
    handed = pa.schema([*_placed(topic, np.arange(1)).schema, pa.field("event_id", pa.string()), *_HALVES])
    warehouse_path = settings.home / f"warehouse-{contract.plural}.parquet"
    with (
        pa.OSFile(str(directory / "bench-1.arrows"), "wb") as file,
        pa.ipc.new_stream(file, ledger_schema()) as ledger,
        pq.ParquetWriter(warehouse_path, handed, compression="zstd") as warehouse,
    ):
        for start in range(0, events, ROWS_PER_FILE):
            numbers = np.arange(start, min(start + ROWS_PER_FILE, events))
            fields, placed = _fields(numbers), _placed(topic, numbers)
            values = _json(fields)
            typed = column_digests(contract, pa.RecordBatch.from_arrays(list(fields.columns), schema=arrow_schema(contract.columns)))
            raw = byte_halves(pa.record_batch([values], ["value"])).astype(">u8").tobytes()
            _append(settings, BRONZE.path, {**_columns(placed), "kafka_key": values.slice(0, 0), "value": values}, numbers)
            _append_silver(settings, fields, placed)
            rows = _ledger_rows(numbers, fields, placed, raw, typed)
            for batch in rows.to_batches(ROWS_PER_LEDGER_BATCH):
                ledger.write_batch(batch)
            halves = halves_of(typed).view(np.int64)
            columns = [*placed.columns, fields["event_id"], pa.array(halves[:, 0]), pa.array(halves[:, 1])]
            warehouse.write_batch(pa.RecordBatch.from_arrays(columns, schema=handed))
    return {"seconds": round(time.monotonic() - begun, 1)}


_HALVES = (pa.field("typed_high", pa.int64()), pa.field("typed_low", pa.int64()))


def _fields(numbers: np.ndarray) -> pa.RecordBatch:
    """Browsing events, in the contract's columns."""
    count = len(numbers)
    of = numbers.tolist()
    customers = [f"C{n % 200_000:07d}" for n in of]
    times = pa.array(numbers * 1_000 + int(BEGIN.timestamp() * 1_000_000), pa.timestamp("us", tz="UTC"))
    columns = {
        "event_id": pa.array([f"{n >> 16:08x}-{n & 0xFFFF:04x}-7000-8000-{n * 2_654_435_761 % 2**48:012x}" for n in of]),
        "entity_key": pa.array(customers),
        "sequence": pa.array(numbers),
        "schema_version": pa.array(np.ones(count, np.int32)),
        "event_time": times,
        "product_id": pa.array([f"P{n % 997:05d}" for n in of]),
        "visitor_id": pa.array([f"v{n % 200_000}" for n in of]),
        "customer_id": pa.array(customers),
        **{name: pa.repeat(text, count) for name, text in _CONSTANTS.items()},
    }
    schema = arrow_schema(contract_for("event").columns)
    return pa.RecordBatch.from_arrays([columns.get(f.name, pa.nulls(count, f.type)) for f in schema], schema=nullable(schema))


_CONSTANTS = {"entity": "event", "source": "benchmark", "run_id": "bench", "event_type": "view", "page": "/products/view", "channel": "web"}


def _json(fields: pa.RecordBatch) -> pa.Array:
    """The events as JSON bytes."""
    parts: list[pa.Array | str] = []
    for name, column in zip(fields.schema.names, fields.columns, strict=True):
        quote = "" if pa.types.is_integer(column.type) else '"'
        text = column if pa.types.is_string(column.type) else column.cast(pa.string())
        if pa.types.is_timestamp(column.type):
            text = pc.binary_replace_slice(text, 10, 11, "T")
        value = pc.binary_join_element_wise(quote, text, quote, "")
        parts += [f'"{name}":', pc.fill_null(value, "null"), ","]
    joined = pc.binary_join_element_wise("{", *parts[:-1], "}", "")
    return joined.cast(pa.binary())


def _placed(topic: str, numbers: np.ndarray) -> pa.RecordBatch:
    moment = pa.repeat(pa.scalar(BEGIN, pa.timestamp("us", tz="UTC")), len(numbers))
    # Customers are spread over the partitions like keys: 200,000 is no multiple of the partitions, so the customer decides.
    customers = numbers % 200_000
    partitions, rounds = customers % PARTITIONS, numbers // 200_000
    each = (200_000 - 1 - partitions) // PARTITIONS + 1
    offsets = rounds * each + customers // PARTITIONS
    return pa.RecordBatch.from_arrays(
        [pa.repeat(topic, len(numbers)), pa.array(partitions.astype(np.int32)), pa.array(offsets), moment],
        names=["kafka_topic", "kafka_partition", "kafka_offset", "ingested_at"],
    )


def _columns(batch: pa.RecordBatch) -> dict[str, pa.Array]:
    return dict(zip(batch.schema.names, batch.columns, strict=True))


def _append(settings: Settings, path: str, columns: dict[str, pa.Array], numbers: np.ndarray) -> None:
    count = len(numbers)
    columns |= {"kafka_key": pa.nulls(count, pa.binary()), "kafka_timestamp": columns["ingested_at"]}
    columns["ingest_date"] = columns["ingested_at"].cast(pa.date32())
    write_deltalake(settings.table_uri(path), pa.table(columns), mode="append", partition_by=list(BRONZE.partition_by))


def _append_silver(settings: Settings, fields: pa.RecordBatch, placed: pa.RecordBatch) -> None:
    contract = contract_for("event")
    columns = _columns(fields) | _columns(placed)
    columns |= {"payload_hash": columns["kafka_offset"], "kafka_timestamp": columns["ingested_at"]}
    names = [c.name for c in silver_columns(contract)]
    write_deltalake(settings.table_uri(SILVER[contract.plural].path), pa.table({n: columns[n] for n in names}), mode="append")


def _ledger_rows(numbers: np.ndarray, fields: pa.RecordBatch, placed: pa.RecordBatch, raw: bytes, typed: bytes) -> pa.Table:
    count = len(numbers)
    known = _columns(fields) | {"topic": placed["kafka_topic"], "partition": placed["kafka_partition"], "offset": placed["kafka_offset"]}
    known |= dict.fromkeys(("intended_at", "sent_at", "acked_at"), placed["ingested_at"])
    known |= {"refused": pa.repeat(False, count)}
    digest = pa.binary(16)
    known |= {
        "payload_md5": pa.Array.from_buffers(digest, count, [None, pa.py_buffer(raw)]),
        "typed_md5": pa.Array.from_buffers(digest, count, [None, pa.py_buffer(typed)]),
    }
    return pa.table([known.get(f.name, pa.nulls(count, f.type)) for f in ledger_schema()], schema=ledger_schema())


if __name__ == "__main__":
    typer.run(main)
